"""Pillow pictures: files, bytes, every mode, rotation by EXIF, transparency, colour, animation, pictures inside."""

from __future__ import annotations

import io
import logging
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import ImageError
from .color import coding_of, profile_of
from .film import FilmReader, film_support
from .frames import Frames
from .held import Held
from .looks import Colors, looks_at, stored_look
from .orientation import ORIENTATION, has_orientation
from .settings import DecodeSettings
from .sniff import open_picture, read_file, reading, refuse_bomb

logger = logging.getLogger(__name__)

# Modes that can hold a redacted picture. The others (P, 1, I;16, …) come back as RGB.
_HOLDING_MODES = ("RGB", "L", "CMYK", "YCbCr", "HSV", "LAB", "RGBA", "LA", "RGBa", "La", "RGBX")
# How several redacted frames are written; those of other formats as TIFF, which holds pages of any size.
WRITTEN: dict[str, dict[str, Any]] = {
    "GIF": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "MPO": {"quality": 95, "subsampling": 0},
}
_MOST_IN_MPO = 3  # of more, Pillow writes down wrong places
_LONGEST_NAME = 200
# As PNG, JPEG, GIF, WebP, TIFF and BMP files begin.
_IN_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "Qk0")


class Picture:
    """One picture; each of its frames is classified, and so is what else its file shows.

    Args:
        picture: As it was opened, or as a caller made it.
        name: What error messages call it.
        data: The encoded file, if it is at hand.
        settings: The limits that count; ``None``: Pillow's own.
        look_into_films: Whether the films in its file are frames of it, too.

    Attributes:
        original: The caller's PIL image, or the one that was opened from a path or bytes.
        owners: One 0 per frame and per picture beside them: a picture is one image.
        count: 1.
        at_once: 1: frames are decoded one by one.
        device: ``None``: a picture is on no device.
        films: The files of the films in its file.
        holds_sequence: Whether its file holds a sequence beside it.
        warnings: What of it cannot be looked at, and why.
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
        settings: DecodeSettings | None = None,
        look_into_films: bool = True,
    ) -> None:
        self.original = picture
        self._name = name
        self._data = data
        self._max_pixels = None if settings is None else settings.max_pixels
        self.warnings: list[str] = []
        self._where: str | None = None
        if not picture.width or not picture.height:
            raise ImageError(f"{name} has no pixels (size {picture.width}x{picture.height}); expected at least 1x1.")
        if picture.mode == "F":
            raise ImageError(f"{name} has the mode F, whose range is unknown; expected RGB: call .convert('RGB').")
        settings = settings or DecodeSettings()
        with reading(name, "decoded"):
            self._held = Held(picture, data, settings, name, self.warnings)
        self.films, self.holds_sequence = self._held.films, self._held.holds_sequence
        self._in_films: list[tuple[FilmReader, int]] = []
        if self.films and look_into_films and not film_support():
            self.warnings.append("the film in it was not looked at: that needs PyAV: pip install 'nsfw-guard[scan]'")
        elif look_into_films:
            for film in self.films:
                reader = FilmReader(film, settings, name=f"the film in {name}")
                self._in_films += [(reader, index) for index in range(reader.count)]
                self.warnings += reader.warnings
        self.owners = [0] * (len(self._held) + len(self._in_films))

    @classmethod
    def read(cls, source: Any, name: str) -> Picture:
        """Take a PIL image, or open a file path or encoded bytes.

        Raises:
            ImageError: No such file, not a picture, broken, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
        """
        where = called(source, name)
        if isinstance(source, Image.Image):
            return cls(source, name)._telling(where)
        if isinstance(source, str) and is_text_of_a_picture(source):
            raise ImageError(
                f"{name} ({len(source)} characters, {source[:12]!r}…) is no file path; expected a path or bytes. For "
                "text in base64, without what stands before the comma of a data: URL, pass base64.b64decode(text)."
            )
        # Read in full: the picture is decoded lazily, and the file may be gone by then.
        data = read_file(source, DecodeSettings()) if isinstance(source, (str, Path)) else bytes(source)
        return cls(open_picture(data, name=where), where, data=data)._telling(where)

    def _telling(self, where: str) -> Picture:
        """Log warnings from now on: nobody else shows them."""
        self._where = where
        self._tell(0)
        return self

    def _tell(self, first: int) -> None:
        for warning in self.warnings[first:] if self._where is not None else ():
            logger.warning("%s: %s", self._where, warning)

    def shown(self, image: int = 0) -> int:
        """How many frames of it come back."""
        return self._held.frames

    def stored(self, start: int, stop: int) -> Frames:
        """Decode frames as they are stored, transparent ones over white; see ``ImageBatch.stored``."""
        with reading(self._name, "decoded"):
            return _as_frames(stored_look(self._frame(start), self._name))

    def looks(self, start: int, stop: int, size: int = 0) -> tuple[Frames, ...]:
        """Decode the looks at one frame; see ``ImageBatch.looks``."""
        if start >= len(self._held):
            film, number = self._in_films[start - len(self._held)]
            return tuple(map(_as_frames, film.looks(number)))
        told = len(self.warnings)
        with reading(self._name, "decoded"):
            frame = self._held.frame(start)
            refuse_bomb(frame, self._name, self._max_pixels)
            known = self._data if start < self._held.frames else None
            colors = Colors(profile_of(frame, known), coding_of(frame, known), self.warnings)
            looks = [look for turned in ways_up(frame) for look in looks_at(turned, self._name, colors)]
        self._tell(told)
        return tuple(map(_as_frames, looks))

    def refuse(self, low: float, high: float, name: str) -> None:
        """Never needed: decoded pictures are in range."""

    def seen(self, candidates: list[Tensor], image: int) -> tuple[Frames, ...]:
        """Return the looks at some redacted pixels, each ``[3, h, w]``, as they would be written."""
        mode = self._frame(0).mode
        pixels = torch.stack([stored_look(_put(one, mode), self._name) for one in candidates])
        return (Frames(pixels, scale=255),)

    def replace(self, redacted: Mapping[int, list[Tensor]]) -> Image.Image:
        """Return an opaque picture of the redacted frames, in the original's mode if that can hold it.

        Nothing else of the file is carried over: it may hold a thumbnail of what was redacted.
        """
        frames, info = [], []
        for index, pixels in enumerate(redacted[0]):
            frame = self._frame(index)
            frames.append(_put(pixels, frame.mode))
            info.append(frame.info)  # each frame has its own duration
        if len(frames) == 1:
            return frames[0]
        kind = self.original.format or ""
        if kind not in WRITTEN or (kind == "MPO" and len(frames) > _MOST_IN_MPO):
            kind = "TIFF"
        options = dict(WRITTEN[kind])
        if all("duration" in entry for entry in info):
            options["duration"] = [entry["duration"] for entry in info]
        if "loop" in info[0]:
            options["loop"] = info[0]["loop"]
        if kind == "GIF":
            frames = [frame.convert("RGB").quantize(255, dither=Image.Dither.NONE) for frame in frames]
        frames = _distinct(frames)
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], **options)
        return Image.open(file)

    def _frame(self, index: int) -> Image.Image:
        """One frame, upright."""
        with reading(self._name, "decoded"):
            frame = self._held.frame(index)
            refuse_bomb(frame, self._name, self._max_pixels)
            return upright(frame)


def is_text_of_a_picture(text: str) -> bool:
    """Whether text is rather a picture in base64, or a data: URL, than the path of a file."""
    rather = text.startswith("data:") or len(text) > _LONGEST_NAME or (len(text) > 32 and text.startswith(_IN_BASE64))
    return rather and not os.path.exists(text)


def called(source: Any, name: str) -> str:
    """Return what messages call a picture: its path, or the name and size of what it is; never what is in it."""
    if isinstance(source, (str, Path)):
        path = str(source)
        return path if len(path) <= _LONGEST_NAME else f"{name} ({len(path)} characters, {path[:24]!r}…)"
    return f"{name} ({len(source)} bytes)" if isinstance(source, (bytes, bytearray, memoryview)) else name


def _put(pixels: Tensor, mode: str) -> Image.Image:
    """Make redacted pixels an opaque picture of a mode, or RGB where that cannot hold them."""
    picture = to_picture(pixels)
    if mode not in _HOLDING_MODES:
        return picture
    if mode in ("RGBa", "La"):  # of opaque pixels the same numbers
        return picture.convert(mode.upper()).convert(mode)
    return picture if mode == "RGB" else picture.convert(mode)


def _distinct(frames: list[Image.Image]) -> list[Image.Image]:
    """Change one pixel of frames that are equal to the one before: writers would leave them out."""
    made: list[Image.Image] = []
    for frame in frames:
        if made and made[-1].size == frame.size and made[-1].convert("RGB").tobytes() == frame.convert("RGB").tobytes():
            frame = frame.copy()
            corner = (frame.width - 1, frame.height - 1)
            red, green, blue = frame.convert("RGB").crop((*corner, frame.width, frame.height)).tobytes()
            changed = (red, green, blue ^ 1)
            if frame.mode == "P":
                palette = (frame.getpalette() or [])[: 3 * 255]
                palette += [0] * (3 * 255 - len(palette))
                frame.putpalette([*palette, *changed])
                frame.putpixel(corner, 255)
            else:
                frame.paste(Image.new("RGB", (1, 1), changed).convert(frame.mode), corner)
        made.append(frame)
    return made


def to_picture(pixels: Tensor) -> Image.Image:
    """Make a picture of RGB ``[3, H, W]`` or gray ``[1, H, W]``, uint8, or floating point, clamped to [0, 1]."""
    levels = pixels.detach().cpu()
    if levels.dtype != torch.uint8:
        levels = (levels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    levels = levels.expand(3, -1, -1) if len(levels) == 1 else levels
    return Image.fromarray(levels.movedim(0, -1).contiguous().numpy())


def pixels_of(picture: Image.Image, name: str) -> Tensor:
    """Decode the frame at which a picture is, upright: the first of ``looks_at``.

    Raises:
        ImageError: 16-bit gray with values outside its range.
    """
    return stored_look(upright(picture), name)


def _as_frames(look: Tensor) -> Frames:
    return Frames(look[None], scale=255 if look.dtype == torch.uint8 else 1)


def upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says; one that says nothing, or nonsense, is handed on, not copied."""
    try:
        stored = picture.getexif().get(ORIENTATION, 1) == 1
    except (SyntaxError, ValueError, struct.error):
        return picture
    return picture if stored else ImageOps.exif_transpose(picture)


def ways_up(picture: Image.Image) -> list[Image.Image]:
    """Return a picture as it is turned, and as it is stored where not every viewer turns it."""
    turned = upright(picture)
    # All viewers go by EXIF in a JPEG, if its tag is of the right type; by XMP, and in other formats, some do.
    by_all = picture.format in ("JPEG", "MPO") and has_orientation(picture.info.get("exif"))
    return [turned] if turned is picture or by_all else [turned, picture]
