"""A block for people who compose the blocks of a modular pipeline themselves."""

from __future__ import annotations

from typing import Any

from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines import ComponentSpec, InputParam, OutputParam

from nsfw_guard.errors import SettingError
from nsfw_guard.guard import NsfwGuard

from .finished import check_any
from .modular import OUTPUTS
from .pipeline import device_of, report
from .record import Passed, Record
from .settings import Attachment, Settings


class NsfwGuardBlock(ModularPipelineBlocks):  # type: ignore[misc]
    """A block that checks finished images or videos, to be put last: ``blocks.sub_blocks.insert("guard", block, n)``.

    It looks at what the blocks before it made, PIL images included; ``attach`` looks at the decoded tensor. The guard
    is the component ``safety_checker``: ``pipe.update_components(safety_checker=NsfwGuard())``.

    Args:
        every: As for ``attach``.
        video: As for ``attach``.
        min_run: As for ``attach``.
        on_verdicts: As for ``attach``.
    """

    def __init__(self, *, every: int = 1, video: str = "frame", min_run: int = 8, on_verdicts: Any = None) -> None:
        self._settings = Settings(every=every, video=video, min_run=min_run, on_verdicts=on_verdicts)
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
        for name, clips in OUTPUTS.items():
            given = getattr(block, name, None)
            if given is not None:
                images, passed = check_any(given, record, clips=clips, value_range=(0, 1))
                setattr(block, name, images)
                found += passed
        if not found:
            raise SettingError("The block found no images or videos; put it behind the block that decodes.")
        said = report(found, record)
        block.nsfw_content_detected, block.verdicts = said["nsfw_content_detected"], said["verdicts"]
        self.set_block_state(state, block)
        return components, state
