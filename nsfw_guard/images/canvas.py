"""Animations as browsers put them together: what no frame paints, or what one clears, is transparent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

from PIL import Image


class Disposal(Enum):
    """What becomes of a frame's place before the next frame is painted."""

    KEEP = 0
    CLEAR = 1
    RESTORE = 2


class Part(NamedTuple):
    """What one frame paints.

    Attributes:
        box: Its place: left, top, right, lower; the canvas cuts off what is outside.
        disposal: What becomes of that place.
        over: Whether it is blended over what is there, or takes its place.
        decode: Makes its pixels, RGBA.
    """

    box: tuple[int, int, int, int]
    disposal: Disposal
    over: bool
    decode: Callable[[], Image.Image]


class Animation(NamedTuple):
    """What a file paints.

    Attributes:
        size: Width and height.
        parts: Its frames.
        as_pillow: Whether Pillow shows it as browsers do.
    """

    size: tuple[int, int]
    parts: list[Part]
    as_pillow: bool


def composed(size: tuple[int, int], parts: list[Part]) -> Iterator[Image.Image]:
    """Yield the frames of an animation, RGBA; each is a picture of its own."""
    canvas = Image.new("RGBA", size)
    for part in parts:
        before = canvas.copy() if part.disposal is Disposal.RESTORE else None
        left, top, right, lower = part.box
        right, lower = min(right, size[0]), min(lower, size[1])
        visible = left < right and top < lower
        if visible:
            pixels = part.decode().crop((0, 0, right - left, lower - top))
            if part.over:
                canvas.alpha_composite(pixels, (left, top))
            else:
                canvas.paste(pixels, (left, top))
        yield canvas.copy()
        if before is not None:
            canvas = before
        elif part.disposal is Disposal.CLEAR and visible:
            canvas.paste((0, 0, 0, 0), (left, top, right, lower))
