"""A block for people who compose the blocks of a modular pipeline themselves."""

from __future__ import annotations

from typing import Any

from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines import ComponentSpec, InputParam, OutputParam

from nsfw_guard.errors import SettingError
from nsfw_guard.guard import NsfwGuard

from .finished import Finish
from .modular import PICTURES, look_through_state
from .pipeline import device_of, report
from .record import Record
from .settings import Attachment, Settings


class NsfwGuardBlock(ModularPipelineBlocks):  # type: ignore[misc]
    """A block that checks finished images or videos, to be put last: ``blocks.sub_blocks.insert("guard", block, n)``.

    It looks at all that the blocks before it have left in the state, PIL images included; ``attach`` looks at the
    decoded tensor. Latents, masks and embeddings are ``None`` behind it, unless they are allowed, and so is what cannot
    be looked at. The guard is the component ``safety_checker``: ``pipe.update_components(safety_checker=NsfwGuard())``.

    Args:
        latents: ``"allow"`` leaves latents, masks and embeddings in the state, for blocks or pipelines behind it.
        every: As for ``attach``.
        video: As for ``attach``.
        min_run: As for ``attach``.
        on_verdicts: As for ``attach``.
    """

    def __init__(
        self,
        *,
        latents: str = "raise",
        every: int = 1,
        video: str = "frame",
        min_run: int = 8,
        on_verdicts: Any = None,
    ) -> None:
        self._settings = Settings(latents, every, video, min_run, on_verdicts)
        super().__init__()

    @property
    def description(self) -> str:
        """What the block does."""
        return "Checks images, videos and whatever else is in the state, and redacts what is flagged."

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
        if all(getattr(block, name, None) is None for name in PICTURES):
            raise SettingError("The block found no images or videos; put it behind the block that decodes.")
        record = Record(Attachment(guard, self._settings), device_of(components))
        finishing = Finish(record, type(components))
        look_through_state(state, list(state.values), finishing)
        for name, value in report(finishing.found, record).items():
            state.set(name, value)
        return components, state
