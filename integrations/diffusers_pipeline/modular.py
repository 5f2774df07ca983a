"""Modular pipelines: the guarded call, and a block for people who compose blocks themselves."""

from __future__ import annotations

from typing import Any

from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines import ComponentSpec, InputParam, OutputParam
from torch import Tensor

from nsfw_guard.errors import SettingError
from nsfw_guard.guard import NsfwGuard

from .checks import check_any
from .pipeline import device_of, look, report
from .record import Passed, Record, current_record, recording
from .settings import Attachment, Settings

_OUTPUTS = {"images": False, "videos": True}  # name → whether they are clips


class GuardedModularPipeline:
    """Mixed into the class of a modular pipeline; nothing that the guard has not seen leaves a call."""

    _nsfw_guard: Attachment

    def __call__(self, state: Any = None, output: str | list[str] | None = None, **kwargs: Any) -> Any:
        """Run the pipeline; ``nsfw_content_detected`` and ``verdicts`` are outputs that can be asked for too."""
        call = super().__call__  # type: ignore[misc]
        attachment = self._nsfw_guard
        outer = current_record()
        if outer is not None and outer.attachment is attachment:
            return call(state, output, **kwargs)
        wanted = [output] if isinstance(output, str) else list(output or [])
        if attachment.settings.latents == "raise" and ("latents" in wanted or kwargs.get("output_type") == "latent"):
            raise SettingError(
                f"{type(self).__name__} is asked for latents, which the guard cannot look at. Ask for its images or "
                'videos; or, if another guarded pipeline decodes them, attach(pipe, guard, latents="allow").'
            )
        record = Record(attachment, device_of(self))
        found: list[Passed] = []
        with recording(record):
            state = call(state, None, **kwargs)
            for name, clips in _OUTPUTS.items():
                if state.values.get(name) is not None:
                    state.values[name], passed = look(state.values[name], record, clips=clips)
                    found += passed
            report(found, record)
        flags = [entry.verdict.flagged for entry in found]
        if any(flags) and attachment.settings.latents == "raise":
            for name, value in state.values.items():
                if name.startswith("latent") and isinstance(value, Tensor):
                    state.values[name] = None
        state.set("nsfw_content_detected", flags)
        state.set("verdicts", [entry.verdict for entry in found])
        if any(entry.frames is not None for entry in found):
            state.set("frame_verdicts", [list(entry.frames or ()) for entry in found])
        return state if output is None else state.get(output)


class NsfwGuardBlock(ModularPipelineBlocks):  # type: ignore[misc]
    """A block that checks finished images or videos, to be put last: ``blocks.sub_blocks.insert("guard", block, n)``.

    It looks at what the blocks before it made, PIL images included; ``attach`` looks at the decoded tensor. The guard
    is the component ``safety_checker``: ``pipe.update_components(safety_checker=NsfwGuard())``.

    Args:
        settings: As for ``attach``: ``every``, ``video``, ``min_run``, ``on_verdicts``.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = Settings(**settings)
        super().__init__()

    @property
    def description(self) -> str:
        """What the block does."""
        return "Checks images or videos, and redacts those that are flagged."

    @property
    def expected_components(self) -> list[Any]:
        """The guard."""
        return [ComponentSpec("safety_checker", NsfwGuard)]

    @property
    def inputs(self) -> list[Any]:
        """What is looked at."""
        return [InputParam("images"), InputParam("videos"), InputParam("output_type")]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """The same, redacted, with flags and verdicts."""
        names = ("images", "videos", "nsfw_content_detected", "verdicts")
        return [OutputParam(name) for name in names]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the block.

        Raises:
            SettingError: There is no guard, or what it is to look at is latents.
        """
        block = self.get_block_state(state)
        guard = components.safety_checker
        if not isinstance(guard, NsfwGuard):
            raise SettingError(
                f"The component safety_checker is {guard!r}; expected an NsfwGuard: "
                "pipe.update_components(safety_checker=NsfwGuard())."
            )
        if block.output_type == "latent":
            raise SettingError('output_type="latent" gives the guard nothing to look at; expected "pil", "np" or "pt".')
        record = Record(Attachment(guard, self._settings), device_of(components))
        found: list[Passed] = []
        for name, clips in _OUTPUTS.items():
            given = getattr(block, name, None)
            if given is not None:
                images, passed = check_any(given, record, clips=clips, value_range=(0, 1))
                setattr(block, name, images)
                found += passed
        report(found, record)
        block.nsfw_content_detected = [entry.verdict.flagged for entry in found]
        block.verdicts = [entry.verdict for entry in found]
        self.set_block_state(state, block)
        return components, state
