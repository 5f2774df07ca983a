"""Preprocessing: which views of an image the model is shown, and how they become model input. The only such path."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import SettingError, one_line
from .images.frames import Frames
from .placement import constant

if TYPE_CHECKING:
    from .images import ImageBatch

logger = logging.getLogger(__name__)

VIEWS = ("auto", "card")
MAX_VIEWS = 8
OVERLAP = 0.125
# A picture longer than this is never only squashed as a whole, and no tile is longer than this.
MAX_SQUASH = 2.0
# Before a centre crop the whole picture is resized: a bound on that intermediate, as an aspect ratio.
MAX_CROPPED = 64


@dataclass(frozen=True)
class PreprocessSpec:
    """How a model wants its pictures.

    Attributes:
        size: Side of the square model input, in pixels.
        resize: ``"squash"`` scales both sides to ``size``, the aspect ratio is lost; ``"crop"`` scales the shorter side
            to ``size`` and cuts the centre square out.
        interpolation: ``"bilinear"`` or ``"bicubic"``, both antialiased as in Pillow.
        mean: Per channel (R, G, B), subtracted from pixels in [0, 1].
        std: Per channel, divided by.
        crop_pct: In (0, 1]; the picture is scaled to ``size / crop_pct`` and its centre cut out, as in timm.
        source: Where these settings are from.

    Raises:
        SettingError: A value is not one of its choices or out of its range.
    """

    size: int
    resize: str = "squash"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    crop_pct: float = 1.0
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise SettingError(f"preprocess.size is {self.size!r}; expected a positive number of pixels, such as 224.")
        if self.resize not in ("squash", "crop"):
            raise SettingError(f'preprocess.resize is {self.resize!r}; expected "squash" or "crop".')
        if self.interpolation not in ("bilinear", "bicubic"):
            raise SettingError(f'preprocess.interpolation is {self.interpolation!r}; expected "bilinear" or "bicubic".')
        if not 0 < self.crop_pct <= 1:
            raise SettingError(f"preprocess.crop_pct is {self.crop_pct!r}; expected a number in (0, 1].")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                raise SettingError(f"preprocess.{name} is {values}; expected three numbers, one per channel.")
            object.__setattr__(self, name, values)


class View(NamedTuple):
    """A part of an image, in its pixels, that the model is shown at once.

    It is squashed to the model's square, unless ``own``: then it goes through the card's own resize, centre crop
    included.
    """

    top: int
    left: int
    height: int
    width: int
    own: bool = False


def plan_views(height: int, width: int, spec: PreprocessSpec, *, views: str = "auto") -> tuple[View, ...] | None:
    """Choose the views of an image; their maximum score counts.

    ``"card"`` is the one view of the card's own preprocessing. ``"auto"`` lets nothing go unseen: the fewest square
    tiles along the long side that overlap by an eighth or more, at most ``MAX_VIEWS`` views; where square tiles would
    be too many they become longer, up to 2:1. A card that squashes sees the squashed whole first, and tiles only
    beyond an aspect ratio of 2:1.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        spec: The model's preprocessing.
        views: ``"auto"`` or ``"card"``.

    Returns:
        The views, or ``None`` for an image that they cannot cover.

    Raises:
        SettingError: ``views`` is neither.
    """
    if views not in VIEWS:
        raise SettingError(f'views is {views!r}; expected "auto" or "card".')
    short, long = sorted((height, width))
    if views == "card":
        too_long = spec.resize == "crop" and long > MAX_CROPPED * short
        return None if too_long else (View(0, 0, height, width, own=True),)
    whole = View(0, 0, height, width)
    if spec.resize == "squash" and long <= MAX_SQUASH * short:
        return (whole,)
    first = (whole,) if spec.resize == "squash" else ()
    room = MAX_VIEWS - len(first)
    count = math.ceil((long - short) / ((1 - OVERLAP) * short)) + 1
    side = short
    if count > room:
        count, side = room, math.ceil(long / (1 + (room - 1) * (1 - OVERLAP)))
        if side > MAX_SQUASH * short:
            return None
    starts = [round(index * (long - side) / max(count - 1, 1)) for index in range(count)]
    if height >= width:
        return first + tuple(View(start, 0, side, width) for start in starts)
    return first + tuple(View(0, start, height, side) for start in starts)


def model_input(frames: Frames, view: View, spec: PreprocessSpec, *, clamped: bool = False) -> Tensor:
    """Cut a view out of frames, resize and normalise it.

    Within 1.25/255 of Pillow's 8-bit resize for pixels that hold 8-bit values.

    Args:
        frames: ``N`` frames of one size.
        view: Which part.
        spec: The model's preprocessing.
        clamped: Whether no value is out of range, so that none need be clamped.

    Returns:
        ``[N, 3, size, size]``, float32, normalised.
    """
    part = frames.data[..., view.top : view.top + view.height, view.left : view.left + view.width].to(torch.float32)
    if not clamped and frames.data.dtype != torch.uint8:
        part = part.clamp(-frames.shift, frames.scale - frames.shift)
    rows, columns, top, left = place_of_crop(view, spec)
    resized = _resize(part, frames, rows, columns, spec.interpolation)
    resized = resized[..., top : top + spec.size, left : left + spec.size]
    mean, std = (constant(values, part.device).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (resized / 255 - mean) / std


def place_of_crop(view: View, spec: PreprocessSpec) -> tuple[int, int, int, int]:
    """Return to how many rows and columns a view is resized, and where the model's square is in them (top, left)."""
    rows = columns = spec.size
    if view.own:
        # The longer side is cut down to an integer, as torchvision does.
        edge, short = math.floor(spec.size / spec.crop_pct), min(view.height, view.width)
        squash = spec.resize == "squash"
        rows = edge if squash else edge * view.height // short
        columns = edge if squash else edge * view.width // short
    return rows, columns, round((rows - spec.size) / 2), round((columns - spec.size) / 2)


def _resize(pixels: Tensor, frames: Frames, height: int, width: int, mode: str) -> Tensor:
    """Resize to 8-bit levels, 0 to 255; see ``resize_order`` for the order of the axes."""
    gain = 255 / frames.scale
    resized = False
    for size in resize_order(pixels.shape[-2], pixels.shape[-1], height, width):
        pixels = F.interpolate(pixels, size=size, mode=mode, antialias=True, align_corners=False)
        if not resized:
            pixels = pixels.add_(frames.shift).mul_(gain)
        # Clamped and rounded after each axis, as Pillow does: otherwise the overshoot of a bicubic first pass is
        # carried into the second (up to 30/255 off on noise and text), and fine grids are half a level off.
        pixels = _as_8_bits(pixels.clamp_(0, 255))
        resized = True
    return pixels if resized else (pixels + frames.shift) * gain


def resize_order(rows: int, columns: int, height: int, width: int) -> list[tuple[int, int]]:
    """Return the sizes through which Pillow resizes ``rows x columns`` to ``height x width``, one axis at a time.

    Pillow 13 starts with the height where it shrinks by more than twice as many pixels as the width, else with the
    width.
    """
    height_first = height < rows and rows - height > 2 * (columns - width)
    sizes, now = [], (rows, columns)
    for size in ((height, columns) if height_first else (rows, width), (height, width)):
        if size != now:
            sizes.append(size)
            now = size
    return sizes


def _as_8_bits(levels: Tensor) -> Tensor:
    rounded = levels.round()
    # Which way Pillow's fixed-point arithmetic rounds a tie cannot be told in floating point: ties stay between.
    tie = (levels - rounded).abs_() > 0.499
    return torch.where(tie, levels, rounded)


class ViewBatch:
    """The views of the frames of a batch, made into model input one micro-batch at a time."""

    def __init__(self, images: ImageBatch, spec: PreprocessSpec, *, views: str = "auto") -> None:
        self.images = images
        self.spec = spec
        self.views = views

    def _plan(self, frames: Frames) -> tuple[View, ...]:
        """The views of frames; of a smaller drawing, those of what it is of, as far smaller."""
        size = tuple(frames.data.shape[-2:])
        full = frames.full or size
        plan = plan_views(full[0], full[1], self.spec, views=self.views) or ()
        return plan if full == size else tuple(_scaled(view, full, size) for view in plan)

    def load(self, start: int, stop: int) -> tuple[Tensor, Tensor, list[int]]:
        """Make the model input of the frames ``start`` to ``stop``.

        Returns:
            The views of all looks, frame by frame, ``[V, 3, size, size]``; the least and greatest value of each frame,
            ``[N, 2]``, non-finite if it holds any such value; and how many views each frame has: none if they cannot
            cover it. Tensors are float32, and nothing waits for the device.
        """
        inputs: list[Tensor] = []
        extents: list[Tensor] = []
        counts: list[int] = []
        for looks in self.images.looks(start, stop, self.spec.size):
            of_looks: list[Tensor] = []
            for number, frames in enumerate(looks):
                plan = self._plan(frames)
                of_views, extent = _prepare(frames, plan, self.spec)
                of_looks += of_views
                if number == 0:  # of what is stored
                    extents.append(extent)
            counts += [len(of_looks)] * len(looks[0].data)
            if of_looks:
                inputs.append(torch.stack(of_looks, 1).flatten(0, 1) if len(of_looks) > 1 else of_looks[0])
        size = self.spec.size
        return _join(inputs) if inputs else extents[0].new_empty(0, 3, size, size), _join(extents), counts


def _scaled(view: View, full: tuple[int, ...], size: tuple[int, ...]) -> View:
    (rows, columns), (height, width) = full, size
    top, left = round(view.top * height / rows), round(view.left * width / columns)
    bottom = round((view.top + view.height) * height / rows)
    right = round((view.left + view.width) * width / columns)
    return View(top, left, max(1, bottom - top), max(1, right - left), view.own)


def _prepare(frames: Frames, plan: tuple[View, ...], spec: PreprocessSpec) -> tuple[list[Tensor], Tensor]:
    """Return the model input of each view, and the extents of the frames."""
    if frames.data.device.type == "cpu":
        extent = frames.extent()
        clamped = bool(((extent >= 0) & (extent <= 1)).all())  # on another device this would make the host wait
        return [model_input(frames, view, spec, clamped=clamped) for view in plan], extent
    fused, _ = kernels(frames.data.device)
    found = None
    inputs = []
    for view in plan:
        result = fused(frames, view, spec) if fused is not None else None
        if result is None:
            inputs.append(model_input(frames, view, spec))
        else:
            inputs.append(result[0])
            found = result[1] if found is None else found
    return inputs, frames.extent() if found is None else found


@lru_cache
def kernels(device: torch.device) -> tuple[Callable[..., Any] | None, str]:
    """Return ``fused.model_input`` where Triton's kernels run and give what ``model_input`` gives, and why (not)."""
    if device.type != "cuda":
        return None, f"PyTorch's own resize on {device.type}"
    try:
        from .fused import model_input as fused

        # Whatever the process's default device and dtype are.
        generator = torch.Generator("cpu").manual_seed(0)
        drawn = torch.rand(2, 3, 40, 56, generator=generator, dtype=torch.float32, device="cpu")
        frames = Frames(drawn.to(device), 1, 2)
        view, spec = View(0, 0, 40, 56), PreprocessSpec(24, interpolation="bicubic")
        given, extent = fused(frames, view, spec) or (None, None)
        # A level of 255 more or less where rounding decides.
        torch.testing.assert_close(given, model_input(frames, view, spec), atol=2.1 / 255, rtol=0)
        torch.testing.assert_close(extent, frames.extent())
    except Exception as error:
        why = f"PyTorch's own resize; Triton failed: {one_line(error)}"
        logger.warning("The guard preprocesses on %s with %s", device, why)
        return None, why
    return fused, "Triton: each pixel is read once"


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device) for part in parts])
