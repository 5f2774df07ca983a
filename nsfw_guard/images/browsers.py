"""What browsers show of a file where Pillow shows something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from .bmp import layered_bmp
from .canvas import Animation, composed
from .gif import read_gif
from .png import read_png
from .settings import DecodeSettings
from .sniff import HEAD, reading, sniff

# What a picture's file says besides its pixels: its colours and rotation.
_KEPT = ("icc_profile", "gamma", "chromaticity", "srgb", "exif")


class Shown:
    """The frames of a GIF, PNG or BMP as browsers show them; none where that is what Pillow shows.

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
        self._animation = Animation((0, 0), [], True)
        self._still: Image.Image | None = None
        self._frames: Iterator[Image.Image] = iter(())
        self._next = 0
        self._last: Image.Image
        with reading(name, "decoded"):
            if data is not None and kind == "GIF":
                self._animation = read_gif(data, settings.max_pixels, name)
            elif data is not None and kind == "PNG":
                self._animation = read_png(data, name)
            elif data is not None and kind == "BMP":
                self._still = layered_bmp(data, picture)

    def __len__(self) -> int:
        return 1 if self._still is not None else 0 if self._animation.as_pillow else len(self._animation.parts)

    def frame(self, index: int) -> Image.Image:
        """Return a frame, RGBA; one after the other is fastest."""
        frame = self._still if self._still is not None else self._composed(index)
        frame.info.update(self._info)
        return frame

    def _composed(self, index: int) -> Image.Image:
        if self._next == 0 or index < self._next - 1:
            self._frames, self._next = composed(self._animation.size, self._animation.parts), 0
        while self._next <= index:
            self._last = next(self._frames)
            self._next += 1
        return self._last


def may_differ(picture: Any) -> bool:
    """Whether the file of a caller's object can show more than the object does."""
    info = picture.info
    if picture.format == "PNG":
        return any(key in info for key in ("transparency", "loop", "bbox"))
    return bool(picture.format == "GIF" or (picture.format == "BMP" and picture.mode != "RGBA"))
