"""Redaction: blur, pixelate, fill, replace. Pure functions; what they show is bounded by information, not a radius."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import SettingError
from .images import ImageBatch, read_images, to_picture
from .placement import constant

if TYPE_CHECKING:
    from .verdict import Verdict

KINDS = ("blur", "pixelate", "fill", "replace", "none")
FITS = ("cover", "contain", "stretch")
# A cell is at least this many pixels a side: below that, its mean is nearly the pixels themselves.
MIN_CELL = 4
# What is flagged for these reasons has no picture worth blurring: no numbers, or half-removed noise.
FILLED_REASONS = ("non_finite", "early")


@dataclass(frozen=True)
class Redaction:
    """What becomes of a flagged image.

    Attributes:
        kind: ``"blur"`` and ``"pixelate"`` show the mean colours of ``cells`` cells along the short side (the same
            density along the long one) and nothing else of the image; ``"fill"`` a colour; ``"replace"`` another
            picture; ``"none"`` changes no pixel, whatever the verdict.
        cells: At least 1; fewer show less. A cell is never smaller than 4 pixels a side, and an image too small for 2x2
            cells is filled.
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
    color: tuple[float, float, float] = (0.0, 0.0, 0.0)
    image: Any = field(default=None, hash=False)
    fit: str = "cover"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingError(f"redaction is {self.kind!r}; expected one of {', '.join(map(repr, KINDS))}.")
        if isinstance(self.cells, bool) or not isinstance(self.cells, int) or self.cells < 1:
            raise SettingError(f"cells is {self.cells!r}; expected a whole number of at least 1, such as 16.")
        try:
            color = tuple(float(value) for value in self.color)
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


class Redacted(Mapping[int, list[Tensor]]):
    """Image index → its redacted frames, each ``[3, H, W]``, float32, in [0, 1].

    They are made when they are asked for: what is held at a time is one image, whatever the batch.
    """

    def __init__(self, images: ImageBatch, reasons: dict[int, str | None], redaction: Redaction) -> None:
        self._images = images
        self._reasons = reasons
        self._redaction = redaction

    def __getitem__(self, index: int) -> list[Tensor]:
        filled = self._reasons[index] in FILLED_REASONS and self._redaction.kind != "replace"
        return [(fill if filled else redact)(frame, self._redaction) for frame in self._images.frames(index)]

    def __contains__(self, index: object) -> bool:
        return index in self._reasons

    def __iter__(self) -> Iterator[int]:
        return iter(self._reasons)

    def __len__(self) -> int:
        return len(self._reasons)


def redact_flagged(images: ImageBatch, verdicts: list[Verdict], redaction: Redaction) -> Redacted:
    """Redact what was flagged; nothing for ``Redaction("none")``."""
    flagged = {index: verdict.reason for index, verdict in enumerate(verdicts) if verdict.flagged}
    return Redacted(images, {} if redaction.kind == "none" else flagged, redaction)


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
    # Under a host's autocast the products would be in half precision.
    with torch.autocast(pixels.device.type, enabled=False):
        return _replace(pixels, redaction) if redaction.kind == "replace" else _reduced(pixels, redaction)


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


def _reduced(pixels: Tensor, redaction: Redaction) -> Tensor:
    cells = _cell_means(pixels, redaction.cells) if redaction.kind in ("blur", "pixelate") else None
    if cells is None:
        return fill(pixels, redaction)
    if redaction.kind == "pixelate":
        return F.interpolate(cells, size=pixels.shape[-2:], mode="nearest-exact")[0]
    # The cells are smoothed once more, so that the interpolation has no edges of cells to show: [1, 2, 1] / 4 each way.
    smooth = F.avg_pool2d(F.avg_pool2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), 2, stride=1), 2, stride=1)
    rows = _enlarging(smooth.shape[-2], pixels.shape[-2], pixels.device)
    columns = _enlarging(smooth.shape[-1], pixels.shape[-1], pixels.device)
    return (rows @ smooth[0] @ columns.T).clamp_(0, 1)


def _enlarging(few: int, many: int, device: torch.device) -> Tensor:
    """The matrix ``[many, few]`` of a bicubic interpolation: a product is ten times faster than ``interpolate``."""
    unit = torch.eye(few, dtype=torch.float32, device=device)[None, None]
    return F.interpolate(unit, size=(many, few), mode="bicubic", align_corners=False)[0, 0]


def fill(pixels: Tensor, redaction: Redaction) -> Tensor:
    """Return an image of the redaction's colour, ``[3, H, W]``, float32, on the device of ``pixels``."""
    color = constant(redaction.color, pixels.device)
    return color.view(3, 1, 1).expand(3, *pixels.shape[-2:]).clone()


def _cell_means(pixels: Tensor, cells: int) -> Tensor | None:
    """Mean colours ``[1, 3, rows, columns]`` of the cells, or ``None`` if the image is too small for 2x2 of them."""
    height, width = pixels.shape[-2:]
    short = min(height, width)
    along_short = min(cells, short // MIN_CELL)
    if along_short < 2:
        return None
    rows, columns = (max(1, round(along_short * side / short)) for side in (height, width))
    rows, columns = min(rows, height // MIN_CELL), min(columns, width // MIN_CELL)
    return F.adaptive_avg_pool2d(pixels[None].to(torch.float32), (rows, columns))


def _replace(pixels: Tensor, redaction: Redaction) -> Tensor:
    height, width = pixels.shape[-2:]
    picture = next(read_images(redaction.image).frames(0)).to(pixels.device, non_blocking=True)
    scale = [height / picture.shape[-2], width / picture.shape[-1]]
    if redaction.fit != "stretch":
        scale = [max(scale) if redaction.fit == "cover" else min(scale)] * 2
    size = [max(1, round(side * by)) for side, by in zip(picture.shape[-2:], scale, strict=True)]
    picture = F.interpolate(picture[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(
        0, 1
    )
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    picture = picture[:, max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
    canvas = fill(pixels, redaction)
    top, left = max(-top, 0), max(-left, 0)
    canvas[:, top : top + picture.shape[-2], left : left + picture.shape[-1]] = picture
    return canvas


def _read_replacement(image: Any) -> Image.Image:
    """Read a replacement to RGB now: a missing file fails before anything is flagged, and any kind can be saved."""
    batch = read_images(image)
    if len(batch) != 1:
        raise SettingError(f"The replacement is {len(batch)} images; expected one.")
    pixels = next(batch.frames(0))
    if not bool(torch.isfinite(pixels).all()):
        raise SettingError("The replacement has non-finite pixels; expected values in [0, 1].")
    return to_picture(pixels)
