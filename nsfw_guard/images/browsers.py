"""What browsers show of a file where Pillow shows something else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from PIL import Image

from .bmp import layered_bmp
from .canvas import Animation, composed
from .gif import read_gif
from .icons import alone_in, windows_icons
from .png import MAGIC, read_png
from .settings import DecodeSettings
from .sniff import HEAD, reading, sniff

# What a picture's file says besides its pixels: its colours and rotation.
_KEPT = ("icc_profile", "gamma", "chromaticity", "srgb", "exif")


class Shown:
    """The frames of a GIF, PNG (of an icon, too) or BMP as browsers show them; none where Pillow shows the same.

    Args:
        data: The encoded file; ``None``: there is none.
        picture: As Pillow opened it.
        settings: Its limits count.
        name: What errors call it.

    Raises:
        ImageError: Viewers show different pictures of it.
    """

    def __init__(self, data: bytes | None, picture: Image.Image, settings: DecodeSettings, name: str) -> None:
        kind = None if data is None else sniff(data[:HEAD]).format
        self._info = {key: picture.info[key] for key in _KEPT if key in picture.info}
        self._animations: list[Animation] = []
        self._still: Image.Image | None = None
        self._frames: Iterator[Image.Image] = iter(())
        self._next = 0
        self._last: Image.Image
        with reading(name, "decoded"):
            if data is not None and kind == "BMP":
                self._still = layered_bmp(data, picture)
            elif data is not None and kind in ("GIF", "PNG", "ICO", "CUR"):
                read = [read_gif(data, settings.max_pixels, name)] if kind == "GIF" else _pngs(data, kind, name)
                self._animations = [one for one in read if not one.as_pillow]
        self._count = sum(len(one.parts) for one in self._animations) + (self._still is not None)

    def __len__(self) -> int:
        return self._count

    def frame(self, index: int) -> Image.Image:
        """Return a frame, RGBA; one after the other is fastest."""
        frame = self._still if self._still is not None else self._composed(index)
        frame.info.update(self._info)
        return frame

    def _composed(self, index: int) -> Image.Image:
        if self._next == 0 or index < self._next - 1:
            each = (composed(one.size, one.parts) for one in self._animations)
            self._frames, self._next = chain.from_iterable(each), 0
        while self._next <= index:
            self._last = next(self._frames)
            self._next += 1
        return self._last


def _pngs(data: bytes, kind: str, name: str) -> list[Animation]:
    if kind == "PNG":
        return [read_png(data, name)]
    return [read_png(body, name) for icon in windows_icons(data) if (body := alone_in(icon)).startswith(MAGIC)]


def may_differ(picture: Any) -> bool:
    """Whether the file of a caller's object can show more than the object does."""
    info = picture.info
    if picture.format == "PNG":
        return any(key in info for key in ("transparency", "loop", "bbox"))
    return bool(picture.format == "GIF" or (picture.format == "BMP" and picture.mode != "RGBA"))
