"""How a guarded pipeline behaves: what `attach` was told, as data that lives on the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nsfw_guard.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from nsfw_guard.guard import NsfwGuard
    from nsfw_guard.verdict import Verdict

    from .early import EarlyExit

LATENTS = ("raise", "allow")
VIDEO = ("frame", "clip")


@dataclass(frozen=True)
class Settings:
    """The arguments of ``attach``; see there.

    Raises:
        SettingError: A value is not one of its choices, or out of its range.
    """

    latents: str = "raise"
    every: int = 1
    video: str = "frame"
    min_run: int = 8
    on_verdicts: Callable[[list[Verdict], dict[int, Tensor]], Any] | None = None
    early: EarlyExit | None = None

    def __post_init__(self) -> None:
        if self.latents not in LATENTS:
            raise SettingError(f'latents is {self.latents!r}; expected "raise" or "allow".')
        if self.video not in VIDEO:
            raise SettingError(f'video is {self.video!r}; expected "frame" or "clip".')
        for name in ("every", "min_run"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(f"{name} is {value!r}; expected a whole number of frames, at least 1.")
        if self.on_verdicts is not None and not callable(self.on_verdicts):
            raise SettingError(
                f"on_verdicts is {self.on_verdicts!r}; expected a function of the verdicts and the flagged originals."
            )
        if self.early is not None and (isinstance(self.early, type) or not hasattr(self.early, "every")):
            raise SettingError(f"early is {self.early!r}; expected an EarlyExit, such as EarlyExit(every=5).")


@dataclass
class Attachment:
    """What makes one pipeline, with its inner pipelines and processors, a guarded one.

    Attributes:
        guard: The guard that looks at everything.
        settings: What ``attach`` was told.
        replaced: What a slot or a modular component held before: name → (object, its entry in the pipeline's config).
        to_rgb: The map from latents to colours that ``EarlyExit(preview="rgb")`` has fitted, ``[C + 1, 3]``.
    """

    guard: NsfwGuard
    settings: Settings
    replaced: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    to_rgb: Tensor | None = None
