"""Pillow pictures: files, bytes, every mode, rotation by EXIF, transparency, animation."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import ImageError, one_line
from .frames import Frames

# Modes that can hold a redacted picture. The others (P, 1, I;16, …) come back as RGB.
_HOLDING_MODES = ("RGB", "L", "CMYK", "YCbCr", "HSV", "LAB")
# Formats in which several frames are one picture; of others (MPO) only the first is what people see.
_ANIMATED = ("GIF", "WEBP", "PNG", "TIFF")
ORIENTATION = 0x0112  # EXIF's tag


class Picture:
    """One picture; each of its frames is classified.

    Args:
        picture: As it was opened, or as a caller made it.
        name: What error messages call it.
        data: The encoded file, if it is at hand; else an animated picture's own file is read.
        opener: How ``data`` is opened again: to read frames without moving ``picture``.
        max_pixels: More than so many in a frame are refused; ``None``: ``PIL.Image.MAX_IMAGE_PIXELS``.

    Attributes:
        original: The caller's PIL image, or the one that was opened from a path or bytes.
        owners: One 0 per frame: a picture is one image.
        count: 1.
        at_once: 1: frames are decoded one by one.
        device: ``None``: a picture is on no device.
    """

    count = 1
    at_once = 1
    device = None

    def __init__(
        self,
        picture: Image.Image,
        name: str,
        *,
        data: bytes | None = None,
        opener: Callable[[io.BytesIO], Image.Image] = Image.open,
        max_pixels: int | None = None,
    ) -> None:
        self.original = picture
        self._name = name
        self._opener = opener
        self._max_pixels = max_pixels
        if not picture.width or not picture.height:
            raise ImageError(f"{name} has no pixels (size {picture.width}x{picture.height}); expected at least 1x1.")
        if picture.mode == "F":
            raise ImageError(f"{name} has the mode F, whose range is unknown; expected RGB: call .convert('RGB').")
        self._reader: Any = None
        with reading(name, "decoded"):
            self.owners = [0] * getattr(picture, "n_frames", 1)
            # Frames are read by a reader of our own: the caller's picture stays where it is.
            self._data = b"" if len(self.owners) == 1 else _file_of(picture) if data is None else data

    @classmethod
    def read(cls, source: Any, name: str) -> Picture:
        """Take a PIL image, or open a file path or encoded bytes.

        Raises:
            ImageError: No such file, not a picture, broken, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
        """
        if isinstance(source, Image.Image):
            return cls(source, name)
        where = str(source) if isinstance(source, (str, Path)) else f"{name} ({len(source)} bytes)"
        with reading(where, "opened as a picture"):
            # Read in full: the picture is decoded lazily, and the file may be gone by then.
            data = Path(source).read_bytes() if isinstance(source, (str, Path)) else bytes(source)
            picture = Image.open(io.BytesIO(data))
        refuse_bomb(picture, where)
        return cls(picture, where)

    def stored(self, start: int, stop: int) -> Frames:
        """Decode frames; see ``ImageBatch.stored``."""
        with reading(self._name, "decoded"):
            each = [_to_tensor(self._frame(index), self._name)[None] for index in range(start, stop)]
            frames = each[0] if len(each) == 1 else torch.cat(each)
        return Frames(frames, scale=255 if frames.dtype == torch.uint8 else 1)

    def refuse(self, low: float, high: float, name: str) -> None:
        """Never needed: decoded pictures are in range."""

    def replace(self, redacted: Mapping[int, list[Tensor]]) -> Image.Image:
        """Return a picture of the redacted frames, in the original's mode if that can hold it.

        No metadata is carried over: it may hold a thumbnail of what was redacted.
        """
        frames, info = [], []
        for index, pixels in enumerate(redacted[0]):
            frame = self._frame(index)
            frames.append(_put(pixels, frame))
            info.append(frame.info)  # each frame has its own duration
        if len(frames) == 1 or self.original.format not in _ANIMATED:
            return frames[0]
        timing = (
            {"duration": [entry["duration"] for entry in info]} if all("duration" in entry for entry in info) else {}
        )
        loop = {"loop": info[0]["loop"]} if "loop" in info[0] else {}
        lossless = {"lossless": True} if self.original.format == "WEBP" else {}
        file = io.BytesIO()
        frames[0].save(
            file, self.original.format, save_all=True, append_images=frames[1:], **timing, **loop, **lossless
        )
        return Image.open(file)

    def _frame(self, index: int) -> Image.Image:
        """One frame, upright."""
        picture = self.original
        with reading(self._name, "decoded"):
            if len(self.owners) == 1:
                picture.load()
                return _upright(picture)
            # Forward only: going back decodes from the start again, which some of Pillow's readers cannot do in place.
            if self._reader is None or self._reader.tell() > index:
                self._reader = self._opener(io.BytesIO(self._data))
            self._reader.seek(index)
            refuse_bomb(self._reader, self._name, self._max_pixels)
            return _upright(self._reader.copy())


@contextmanager
def reading(name: str, done: str) -> Iterator[None]:
    """Make whatever Pillow raises an ``ImageError``: on broken files its readers raise nearly anything."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is refused as a decompression bomb: {one_line(error)}") from error
    except UnidentifiedImageError as error:  # its own text is about objects in memory
        raise ImageError(f"{name} cannot be {done}: it is none, or of a kind that this Pillow does not know") from error
    except Exception as error:
        raise ImageError(f"{name} cannot be {done}: {one_line(error)}") from error


def _file_of(picture: Any) -> bytes:
    """The encoded file that an animated picture reads from."""
    at = picture.fp.tell()
    try:
        picture.fp.seek(0)
        return bytes(picture.fp.read())
    finally:
        picture.fp.seek(at)


def refuse_bomb(picture: Image.Image, name: str, max_pixels: int | None = None) -> None:
    """Refuse what is larger than the limit, or the process's own; Pillow itself only warns up to twice that."""
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    if limit is not None and math.prod(picture.size) > limit:
        raised = "PIL.Image.MAX_IMAGE_PIXELS" if max_pixels is None else "the limit"
        raise ImageError(
            f"{name} is refused as a decompression bomb: {picture.width}x{picture.height} is more than {limit} pixels. "
            f"If you trust it, raise {raised}."
        )


def _put(pixels: Tensor, frame: Image.Image) -> Image.Image:
    """Make redacted pixels a picture of the frame's mode, with the frame's alpha."""
    picture = to_picture(pixels)
    if frame.has_transparency_data:
        picture = picture.convert("LA" if frame.mode == "LA" else "RGBA")
        picture.putalpha(frame.convert("RGBA").getchannel("A"))
        return picture
    return picture.convert(frame.mode) if frame.mode in _HOLDING_MODES else picture


def to_picture(pixels: Tensor) -> Image.Image:
    """Make a picture of RGB ``[3, H, W]`` or gray ``[1, H, W]``, uint8, or floating point, clamped to [0, 1]."""
    levels = pixels.detach().cpu()
    if levels.dtype != torch.uint8:
        levels = (levels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    levels = levels.expand(3, -1, -1) if len(levels) == 1 else levels
    return Image.fromarray(levels.movedim(0, -1).contiguous().numpy())


def pixels_of(picture: Image.Image, name: str) -> Tensor:
    """Decode the frame at which a picture is, upright: ``[1, H, W]`` or ``[3, H, W]``, uint8 or float32 in [0, 1].

    Raises:
        ImageError: 16-bit gray with values outside its range.
    """
    return _to_tensor(_upright(picture), name)


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says; one that says nothing is handed on, not copied."""
    return picture if picture.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(picture)


def _to_tensor(picture: Image.Image, name: str) -> Tensor:
    """Decode an upright frame to ``[1, H, W]`` or ``[3, H, W]``, uint8 or float32 in [0, 1], composited on white."""
    if picture.mode.startswith("I"):
        # Pillow's own conversion of 16-bit gray clips at 255 and shows nearly everything white.
        values = np.asarray(picture).astype(np.float32) / 65535
        if values.min() < 0 or values.max() > 1:
            raise ImageError(f"{name} has the mode {picture.mode} and values outside 0 to 65535; expected 16-bit gray.")
        return torch.from_numpy(values)[None]
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    array = np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    return torch.from_numpy(array).movedim(-1, 0)
