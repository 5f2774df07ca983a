"""Pictures and films as a colour-managed viewer shows them on an sRGB screen; Chromium is the measure."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .coding import coding_of, profile_of
from .icc import Refused, read_profile
from .light import Coding, levels_as_shown

__all__ = ["Coding", "array_as_shown", "as_shown", "coding_of", "differ", "profile_of"]

_GRAY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
# Primaries of BT.709 and of standard definition, which players show alike.
_ALIKE = (None, 1, 2, 5, 6, 7, 22)
_ON_AVERAGE = 4
_IN_A_CELL = 16
_CELLS = 8
# Contrast that a rendition has more than twice that of the other, in levels.
_EMERGING = 2


def as_shown(
    picture: Image.Image, *, profile: bytes | None = None, coding: Coding | None = None
) -> tuple[Image.Image | None, str | None]:
    """Return the picture as it is shown, where that is not as it is stored.

    Args:
        picture: Of any mode; its alpha is left out. 16-bit gray is taken by its upper 8 bits.
        profile: The file's ICC profile: ``profile_of``.
        coding: What the file says besides: ``coding_of``. It counts before the profile.

    Returns:
        An RGB picture of the same size, or ``None`` where levels stay within 2/255; and a warning where what the
        file says is refused or is not for such pictures. That is then shown as stored.
    """
    if coding is None and profile is not None:
        try:
            read = read_profile(profile)
        except Refused as error:
            return None, f"its ICC profile is refused ({error}): shown as stored"
        gray = picture.mode in _GRAY
        # A gray picture may be one of colours, whose channels are alike; not the other way round.
        if read.mode != ("CMYK" if picture.mode == "CMYK" else "RGB") and not (gray and read.mode == "L"):
            kind = {"L": "gray", "RGB": "RGB", "CMYK": "CMYK"}[read.mode]
            return None, f"its ICC profile is for {kind} pictures, and it is {picture.mode}: shown as stored"
        if read.same:
            return None, None
        if read.coding is None:
            return read.apply(_in_mode(picture, read.mode)), None
        coding = read.coding
    if coding is None or coding.plain:
        return None, None
    if (fault := coding.fault()) is not None:
        return None, f"what it says about its colours is nonsense ({fault}): shown as stored"
    return Image.fromarray(levels_as_shown(np.asarray(_in_mode(picture, "RGB")), coding)), None


def array_as_shown(frame: NDArray[np.uint8], coding: Coding | None) -> NDArray[np.uint8] | None:
    """Return a film's frame as it is shown, where that is not as it is stored.

    Args:
        frame: uint8 RGB ``[H, W, 3]``.
        coding: The stream's code points. PQ and HLG are mapped as by ``light.levels_as_shown``.

    Returns:
        uint8 ``[H, W, 3]``; ``None`` for the curves and primaries of ordinary films, and for code points that H.273
        does not have.
    """
    if coding is None or coding.fault() is not None:
        return None
    alike = not isinstance(coding.primaries, tuple) and coding.primaries in _ALIKE
    return None if alike and coding.ordinary_transfer else levels_as_shown(frame, coding)


def differ(stored: Tensor, shown: Tensor) -> bool:
    """Tell whether two renditions differ visibly.

    They do where they are apart by more than 4/255 on average, or 16/255 in one of 8 x 8 cells; and where what is
    hardly there as stored shows: in a cell, or in all, contrast doubles and grows by more than 2/255.

    Differences are averaged, not pictures: fine patterns don't cancel out. The average at the model's resolution is
    therefore the average of all pixels.

    Args:
        stored: uint8 ``[3, H, W]`` or ``[1, H, W]``.
        shown: As ``stored``, of the same height and width.
    """
    height, width = stored.shape[1:]
    across = _edges(width)
    total = 0.0
    moments = torch.zeros(4, dtype=torch.float64)
    for top, bottom in zip(_edges(height)[:-1], _edges(height)[1:], strict=True):
        one, other = stored[:, top:bottom], shown[:, top:bottom]
        # Unsigned: the greater less the smaller.
        apart = torch.maximum(one, other).sub_(torch.minimum(one, other))
        sums = _sums(apart, across)
        areas = torch.tensor(across).diff() * (bottom - top)
        if bool((sums > _IN_A_CELL * areas * len(apart)).any()):
            return True
        total += float(sums.sum())
        of_row = torch.stack([_sums(values, across) / len(values) for values in _powers(one) + _powers(other)])
        if bool(_emerges(of_row / areas).any()):
            return True
        moments += of_row.double().sum(1)
    if bool(_emerges(moments / (height * width))):
        return True
    return total > _ON_AVERAGE * max(len(stored), len(shown)) * height * width


def _sums(values: Tensor, across: list[int]) -> Tensor:
    """Sums over the cells of a row of them."""
    columns = values.sum(dim=(0, 1), dtype=torch.int64).cumsum(0)
    return torch.cat([columns.new_zeros(1), columns])[across].diff()


def _powers(levels: Tensor) -> list[Tensor]:
    return [levels, levels.to(torch.int32).square()]


def _emerges(means: Tensor) -> Tensor:
    """Whether contrast doubles: ``means`` are those of one rendition, its squares, the other, and its squares."""
    one, other = ((means[at + 1] - means[at] ** 2).clamp(min=0).sqrt() for at in (0, 2))
    return other > 2 * one + _EMERGING


def _edges(length: int) -> list[int]:
    cells = min(_CELLS, length)
    return [length * index // cells for index in range(cells + 1)]


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The colours of a picture, without alpha."""
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        # Mode I may hold 8 bits.
        values = values if picture.mode == "I" and values.max() <= 255 else values // 257
        picture = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    if picture.mode in ("LA", "PA") or mode == "L":
        picture = picture.convert("L" if mode == "L" else "RGBA")
    return picture if picture.mode == mode else picture.convert(mode)
