"""What is drawn instead of an image: cells, a colour, another picture. Pure functions of tensors in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .placement import constant

FITS = ("cover", "contain", "stretch")
# A cell is at least this many pixels a side: below that, its mean is nearly the pixels themselves.
MIN_CELL = 4


def cell_means(pixels: Tensor, cells: int, *, finer: Tensor | None = None) -> Tensor | None:
    """Return the mean colours ``[1, 3, rows, columns]`` of an image's cells, float32.

    Args:
        pixels: ``[3, H, W]``.
        cells: The most along the short side; along the long one there are as many per pixel.
        finer: Its finer cells, of which they are made where there are any: there are fewer of those than pixels.

    Returns:
        ``None`` if there is no room for 2x2 of them.
    """
    height, width = pixels.shape[-2:]
    short = min(height, width)
    along_short = min(cells, short // MIN_CELL)
    if along_short < 2:
        return None
    rows, columns = (max(1, round(along_short * side / short)) for side in (height, width))
    rows, columns = min(rows, height // MIN_CELL), min(columns, width // MIN_CELL)
    return F.adaptive_avg_pool2d(pixels[None].to(torch.float32) if finer is None else finer, (rows, columns))


def enlarged(cells: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return cells ``[1, 3, rows, columns]`` as squares, ``[3, *size]``."""
    return F.interpolate(cells, size=size, mode="nearest-exact")[0]


def smoothed(cells: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return cells ``[1, 3, rows, columns]`` as a blur, ``[3, *size]``, in [0, 1]."""
    # They are smoothed once more, so that the interpolation has no edges of cells to show: [1, 2, 1] / 4 each way.
    smooth = F.avg_pool2d(F.avg_pool2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), 2, stride=1), 2, stride=1)
    rows, columns = (_enlarging(few, many, cells.device) for few, many in zip(smooth.shape[-2:], size, strict=True))
    return (rows @ smooth[0] @ columns.T).clamp_(0, 1)


def _enlarging(few: int, many: int, device: torch.device) -> Tensor:
    """The matrix ``[many, few]`` of a bicubic interpolation: a product is ten times faster than ``interpolate``."""
    unit = torch.eye(few, dtype=torch.float32, device=device)[None, None]
    return F.interpolate(unit, size=(many, few), mode="bicubic", align_corners=False)[0, 0]


def filled(color: tuple[float, float, float], size: tuple[int, ...], device: torch.device) -> Tensor:
    """Return ``[3, *size]`` of one colour, float32."""
    return constant(color, device).view(3, 1, 1).expand(3, *size).clone()


def fitted(picture: Tensor, fit: str, color: tuple[float, float, float], size: tuple[int, ...]) -> Tensor:
    """Fit a picture ``[3, h, w]`` into ``[3, *size]``: one of ``FITS``; what stays free is of the colour."""
    height, width = size
    scale = [height / picture.shape[-2], width / picture.shape[-1]]
    if fit != "stretch":
        scale = [max(scale) if fit == "cover" else min(scale)] * 2
    wanted = [max(1, round(side * by)) for side, by in zip(picture.shape[-2:], scale, strict=True)]
    picture = F.interpolate(picture[None], size=wanted, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (wanted[0] - height) // 2, (wanted[1] - width) // 2
    picture = picture[:, max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width].clamp(0, 1)
    canvas = filled(color, size, picture.device)
    top, left = max(-top, 0), max(-left, 0)
    canvas[:, top : top + picture.shape[-2], left : left + picture.shape[-1]] = picture
    return canvas
