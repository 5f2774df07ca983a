"""Redaction: blur, pixelate, fill, replace. Pure functions; what they show is bounded by information, not a radius."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from .drawing import FITS, MIN_CELL, cell_means, enlarged, filled, fitted, smoothed
from .errors import SettingError
from .images import Frames, ImageBatch, read_images, to_picture

if TYPE_CHECKING:
    from .verdict import Verdict

logger = logging.getLogger(__name__)

KINDS = ("blur", "pixelate", "fill", "replace", "none")
# What is flagged for these reasons has no picture worth blurring: no numbers, half-removed noise, or a shape that
# cannot be looked at again.
FILLED_REASONS = ("non_finite", "early", "too_long")
_BLACK = (0.0, 0.0, 0.0)
# The short side of the canvas on which candidates are drawn to be looked at, at most: more than models see. A blur is
# so smooth that it can be drawn at a model's own size, if that is not tiny.
_CANVAS, _SMALLEST = 512, 224


@dataclass(frozen=True)
class Redaction:
    """What becomes of a flagged image.

    Attributes:
        kind: ``"blur"`` and ``"pixelate"`` show the mean colours of ``cells`` cells along the short side (the same
            density along the long one) and nothing else of the image; ``"fill"`` a colour; ``"replace"`` another
            picture; ``"none"`` changes no pixel, whatever the verdict.
        cells: The most that is shown, at least 1; fewer show less. A cell is never smaller than 4 pixels a side, and an
            image too small for 2x2 cells is filled.
        verify: Look at what would come out, too, with the same model and policy: at ``cells``, a half, a quarter, …,
            and the colour. The most detailed that is not flagged is shown, else black.
        color: RGB in [0, 1], for ``"fill"``, for what a contained picture leaves free, and wherever the kind cannot be
            used.
        image: The replacement: a PIL image, a file path, encoded bytes, a tensor ``[3, H, W]`` or an array in [0, 1].
        fit: How the replacement is fitted: ``"cover"`` fills the image and cuts what stands over, ``"contain"`` shows
            all of it, ``"stretch"`` ignores its aspect ratio.

    Raises:
        SettingError: A value is not one of its choices, or out of its range.
        ImageError: The replacement cannot be read.
    """

    kind: str = "blur"
    cells: int = 16
    verify: bool = True
    color: tuple[float, float, float] = (0.0, 0.0, 0.0)
    image: Any = field(default=None, hash=False)
    fit: str = "cover"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingError(f"redaction is {self.kind!r}; expected one of {', '.join(map(repr, KINDS))}.")
        if isinstance(self.cells, bool) or not isinstance(self.cells, int) or self.cells < 1:
            raise SettingError(f"cells is {self.cells!r}; expected a whole number of at least 1, such as 16.")
        if not isinstance(self.verify, bool):
            raise SettingError(f"verify is {self.verify!r}; expected True or False.")
        try:
            color = () if isinstance(self.color, str) else tuple(float(value) for value in self.color)
        except (TypeError, ValueError):
            color = ()
        if len(color) != 3 or not all(0 <= value <= 1 for value in color):
            raise SettingError(f"color is {self.color!r}; expected RGB in [0, 1], such as (0.5, 0.5, 0.5).")
        object.__setattr__(self, "color", color)
        if self.fit not in FITS:
            raise SettingError(f"fit is {self.fit!r}; expected one of {', '.join(map(repr, FITS))}.")
        if (self.kind == "replace") != (self.image is not None):
            raise SettingError(
                'A replacement picture goes with kind="replace" and with nothing else: '
                'Redaction("replace", image="blocked.png").'
            )
        if self.image is not None:
            object.__setattr__(self, "image", _read_replacement(self.image))

    @classmethod
    def parse(cls, value: Redaction | str) -> Redaction:
        """Return the redaction for a ``Redaction`` or the name of a kind.

        Raises:
            SettingError: It is neither.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        raise SettingError(f"redaction is {value!r}; expected a Redaction or one of {', '.join(map(repr, KINDS))}.")


# Tells for each image of a batch whether it passes, with room to spare.
Judge = Callable[[ImageBatch], list[bool]]


class Redacted(Mapping[int, list[Tensor]]):
    """Image index → its redacted frames, each ``[3, H, W]``, float32, in [0, 1].

    They are made when they are asked for: what is held at a time is one image, whatever the batch.

    Args:
        images: The batch.
        chosen: Image index → how it is redacted.
        looked_at: Image index → its candidates, which have its cells.
    """

    def __init__(
        self, images: ImageBatch, chosen: dict[int, Redaction], looked_at: Mapping[int, Candidates] | None = None
    ) -> None:
        self._images = images
        self._looked_at = looked_at or {}
        self.chosen = chosen

    def __getitem__(self, index: int) -> list[Tensor]:
        step = self.chosen[index]
        if index in self._looked_at:
            return [self._looked_at[index].drawn(step)]
        return [_settled(redact(frame, step), step) for frame in self._images.frames(index)]

    def __contains__(self, index: object) -> bool:
        return index in self.chosen

    def __iter__(self) -> Iterator[int]:
        return iter(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)


@torch.compiler.disable  # its settings cannot be rebuilt within a graph
def redact_flagged(
    images: ImageBatch, verdicts: list[Verdict], redaction: Redaction, judge: Judge | None = None
) -> Redacted:
    """Redact what was flagged; nothing for ``Redaction("none")``.

    Args:
        images: The batch.
        verdicts: One per image.
        redaction: How, at most.
        judge: Looks at what would come out; ``None``: nobody does. It is asked once for all single pictures, and for an
            animated one once for each candidate: all of its frames share one.
    """
    flagged = {index: verdict.reason for index, verdict in enumerate(verdicts) if verdict.flagged}
    if redaction.kind == "none":
        return Redacted(images, {})
    in_colour = replace(redaction, kind="fill", image=None)
    unseen = {index for index, reason in flagged.items() if is_filled_unseen(reason, redaction)}
    chosen = {index: in_colour if index in unseen else redaction for index in flagged}
    if judge is None or not redaction.verify:
        return Redacted(images, chosen)
    singles: dict[int, Candidates] = {}
    for index in sorted(flagged.keys() - unseen):
        item, of_item = images.item_of(index)
        if item.shown(of_item) > 1:
            chosen[index] = _for_all_frames(images, index, redaction, judge)
        else:
            singles[index] = Candidates(images, index, redaction)
    return Redacted(images, chosen | _most_detailed(singles, redaction, judge), singles)


def is_filled_unseen(reason: str | None, redaction: Redaction) -> bool:
    """Whether what is flagged for a reason is filled, and not looked at again.

    A replacement picture shows nothing of it and is looked at like any other, where the shape allows that.
    """
    return reason in FILLED_REASONS and (redaction.kind != "replace" or reason == "too_long")


def candidates(redaction: Redaction, height: int, width: int) -> list[Redaction]:
    """Return what an image may become, the most detailed first, and black, which needs no look, last."""
    in_colour = replace(redaction, kind="fill", image=None)
    if redaction.kind in ("blur", "pixelate"):
        cells, made = min(redaction.cells, min(height, width) // MIN_CELL), []
        while cells >= 2:
            made.append(replace(redaction, cells=cells))
            cells //= 2
    else:
        made = [redaction] if redaction.kind == "replace" else []
    black = replace(in_colour, color=_BLACK)
    return [*made, black] if in_colour == black else [*made, in_colour, black]


def _most_detailed(singles: Mapping[int, Candidates], redaction: Redaction, judge: Judge) -> dict[int, Redaction]:
    """Choose, for each image, the most detailed candidate that passes, else black."""
    passing = iter(judge(ImageBatch(None, list(singles.values()))) if singles else ())
    chosen = {}
    for index, one in singles.items():
        passes = [next(passing) for _ in range(one.count)]
        chosen[index] = next((step for step, passed in zip(one.steps, passes, strict=False) if passed), one.steps[-1])
        if redaction.kind == "replace" and chosen[index].kind != "replace":
            _warn_of_replacement(redaction)
    return chosen


def _for_all_frames(images: ImageBatch, index: int, redaction: Redaction, judge: Judge) -> Redaction:
    """Choose one candidate for all frames of an animated picture: looked at as it is written."""
    item, of_item = images.item_of(index)
    steps = candidates(redaction, *next(images.frames(index)).shape[-2:])

    def attempt(step: Redaction) -> bool:
        if step is steps[-1]:
            return True
        return all(judge(read_images(item.replace({of_item: Redacted(images, {index: step})[index]}))))

    return most_detailed(steps, attempt)


def most_detailed(steps: Sequence[Redaction], attempt: Callable[[Redaction], bool]) -> Redaction:
    """Find one step for many pictures that share it: the frames of an animation or of a clip.

    Args:
        steps: The most detailed first; the last needs no look. See ``candidates``.
        attempt: Writes what a step gives, and tells whether all of it passes. It may stop at the first picture that
            does not. The last step is attempted too, so that it is written; the answer does not count.

    Returns:
        The first step that passes, else the last.
    """
    *looked_at, last = steps
    found = next((step for step in looked_at if attempt(step)), last)
    if found is last:
        attempt(last)
    if steps[0].kind == "replace" and found.kind != "replace":
        _warn_of_replacement(steps[0])
    return found


class Candidates:
    """What one image may become, as a batch of images; see ``ImageBatch``.

    The image is reduced to mean colours at once; each candidate is drawn on a canvas no larger than models need.

    Attributes:
        steps: All candidates; the last needs no look.
        count: How many are to be looked at.
    """

    def __init__(self, images: ImageBatch, index: int, redaction: Redaction) -> None:
        self._item, self._of_item = images.item_of(index)
        pixels = next(images.frames(index))
        self._size = tuple(pixels.shape[-2:])
        self._device = pixels.device
        self.steps = candidates(redaction, *self._size)
        self._cells: list[Tensor | None] = []
        for step in self.steps:
            self._cells.append(_cells_of(pixels, step, finer=self._cells[-1] if self._cells else None))
        self.count = self.at_once = len(self.steps) - 1
        self.owners = list(range(self.count))
        self.device = self._item.device

    def shown(self, image: int) -> int:
        """How many frames a candidate has: one."""
        return 1

    def looks(self, start: int, stop: int, size: int = 0) -> tuple[Frames, ...]:
        """Return the looks at some candidates, as they would be written; see ``ImageBatch.looks``."""
        smooth = size >= _SMALLEST and self.steps[0].kind == "blur"
        scale = min(1.0, (size if smooth else _CANVAS) / min(self._size))
        canvas = tuple(max(1, round(scale * side)) for side in self._size)
        some = zip(self._cells[start:stop], self.steps[start:stop], strict=True)
        drawn = [_settled(_drawn(cells, step, canvas, self._device), step) for cells, step in some]
        looks: tuple[Frames, ...] = self._item.seen(drawn, self._of_item)
        return tuple(look._replace(full=self._size) for look in looks)

    def drawn(self, step: Redaction) -> Tensor:
        """Return what a candidate shows, ``[3, H, W]``."""
        (cells,) = (cells for cells, one in zip(self._cells, self.steps, strict=True) if one is step)
        return _settled(_drawn(cells, step, self._size, self._device), step)

    def refuse(self, low: float, high: float, name: str) -> None:
        """Never needed: what is drawn is in range."""


@lru_cache(maxsize=16)
def _warn_of_replacement(redaction: Redaction) -> None:
    logger.warning("The replacement picture is flagged itself, and is not shown: what is flagged is filled instead.")


def _settled(pixels: Tensor, redaction: Redaction) -> Tensor:
    """Bring cells that are verified to 8-bit levels, a little above: rounded or cut, they stay what was looked at."""
    if not (redaction.verify and redaction.kind in ("blur", "pixelate")):
        return pixels
    return pixels.mul(255).round_().add_(0.01).div_(255).clamp_(0, 1)


def redact(pixels: Tensor, redaction: Redaction) -> Tensor:
    """Redact one image.

    Args:
        pixels: ``[3, H, W]``, floating point, RGB in [0, 1]; never written to.
        redaction: How.

    Returns:
        A new tensor ``[3, H, W]``, float32, in [0, 1], on the same device; for the kind ``"none"``, the pixels
        themselves.
    """
    if redaction.kind == "none":
        return pixels
    return _drawn(_cells_of(pixels, redaction), redaction, tuple(pixels.shape[-2:]), pixels.device)


def denormalize_flagged(images: Any, flags: list[bool]) -> Any:
    """Bring what is flagged and shown as it is from [-1, 1] to [0, 1], by the formula that diffusers leaves out for it.

    Args:
        images: A tensor ``[B, C, H, W]`` in [-1, 1]; anything else is in [0, 1] and returned as it is.
        flags: One per image.
    """
    if not isinstance(images, Tensor) or not any(flags):
        return images
    shown = images.clone()
    for index, flagged in enumerate(flags):
        if flagged:
            shown[index] = (images[index] * 0.5 + 0.5).clamp(0, 1)
    return shown


def fill(pixels: Tensor, redaction: Redaction) -> Tensor:
    """Return an image of the redaction's colour, ``[3, H, W]``, float32, on the device of ``pixels``."""
    return filled(redaction.color, tuple(pixels.shape[-2:]), pixels.device)


def _cells_of(pixels: Tensor, redaction: Redaction, *, finer: Tensor | None = None) -> Tensor | None:
    """The mean colours that are shown of an image; ``None`` if none are, or there is no room for them."""
    return cell_means(pixels, redaction.cells, finer=finer) if redaction.kind in ("blur", "pixelate") else None


def _drawn(cells: Tensor | None, redaction: Redaction, size: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw what is shown instead of an image, ``[3, *size]``, of its cells; without any it is filled."""
    # Under a host's autocast the products would be in half precision.
    with torch.autocast(device.type, enabled=False):
        if redaction.kind == "replace":
            picture = next(read_images(redaction.image).frames(0)).to(device, non_blocking=True)
            return fitted(picture, redaction.fit, redaction.color, size)
        if cells is None:
            return filled(redaction.color, size, device)
        return enlarged(cells, size) if redaction.kind == "pixelate" else smoothed(cells, size)


def _read_replacement(image: Any) -> Image.Image:
    """Read a replacement to RGB now: a missing file fails before anything is flagged, and any kind can be saved."""
    batch = read_images(image)
    if len(batch) != 1:
        raise SettingError(f"The replacement is {len(batch)} images; expected one.")
    pixels = next(batch.frames(0))
    if not bool(torch.isfinite(pixels).all()):
        raise SettingError("The replacement has non-finite pixels; expected values in [0, 1].")
    return to_picture(pixels)
