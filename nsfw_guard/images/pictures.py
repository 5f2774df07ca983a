"""Pillow pictures: files, bytes, every mode, rotation by EXIF, transparency, colour, animation, pictures inside."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import ImageError
from .film import FilmReader, film_support
from .frames import Frames
from .held import Held
from .settings import DecodeSettings
from .sniff import open_picture, read_file, reading, refuse_bomb

# Modes that can hold a redacted picture. The others (P, 1, I;16, …) come back as RGB.
_HOLDING_MODES = ("RGB", "L", "CMYK", "YCbCr", "HSV", "LAB", "RGBA", "LA", "RGBa", "La", "RGBX")
# How several redacted frames are written; those of other formats as TIFF, which holds pages of any size.
_WRITTEN: dict[str, dict[str, Any]] = {
    "GIF": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "MPO": {"quality": 95, "subsampling": 0},
}
ORIENTATION = 0x0112  # EXIF's tag
_LONGEST_NAME, _LONGEST_PATH = 200, 4096
_OPAQUE = 255


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
        self._max_pixels = None if settings is None else settings.max_pixels
        self.warnings: list[str] = []
        if not picture.width or not picture.height:
            raise ImageError(f"{name} has no pixels (size {picture.width}x{picture.height}); expected at least 1x1.")
        if picture.mode == "F":
            raise ImageError(f"{name} has the mode F, whose range is unknown; expected RGB: call .convert('RGB').")
        settings = settings or DecodeSettings()
        with reading(name, "decoded"):
            self._held = Held(picture, data, settings, name, self.warnings)
        self.films = self._held.films
        self._in_films: list[tuple[FilmReader, int]] = []
        if self.films and look_into_films and not film_support():
            self.warnings.append("the film in it was not looked at: that needs PyAV: pip install 'nsfw-guard[scan]'")
        elif look_into_films:
            for film in self.films:
                reader = FilmReader(film, settings, name=f"the film in {name}")
                self._in_films += [(reader, index) for index in range(reader.count)]
        self.owners = [0] * (len(self._held) + len(self._in_films))

    @classmethod
    def read(cls, source: Any, name: str) -> Picture:
        """Take a PIL image, or open a file path or encoded bytes.

        Raises:
            ImageError: No such file, not a picture, broken, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
        """
        if isinstance(source, Image.Image):
            return cls(source, name)
        where = called(source, name)
        if isinstance(source, str) and (source.startswith("data:") or len(source) > _LONGEST_PATH):
            raise ImageError(
                f"{where} is no file path; expected a path or bytes. For text in base64, without what stands before "
                "the comma of a data: URL, pass base64.b64decode(text)."
            )
        # Read in full: the picture is decoded lazily, and the file may be gone by then.
        data = read_file(source, DecodeSettings()) if isinstance(source, (str, Path)) else bytes(source)
        return cls(open_picture(data, name=where), where, data=data)

    def shown(self, image: int = 0) -> int:
        """How many frames of it come back."""
        return self._held.frames

    def stored(self, start: int, stop: int) -> Frames:
        """Decode frames as they are stored, transparent ones over white; see ``ImageBatch.stored``."""
        return self._looks(start, None)[0]

    def looks(self, start: int, stop: int, size: int) -> tuple[Frames, ...]:
        """Decode the looks at one frame; see ``ImageBatch.looks``."""
        return self._looks(start, size)

    def _looks(self, index: int, size: int | None) -> tuple[Frames, ...]:
        if index >= len(self._held):
            film, number = self._in_films[index - len(self._held)]
            looks = list(film.looks(number))
        else:
            with reading(self._name, "decoded"):
                looks = looks_at(self._frame(index), self._name, size)
        return tuple(Frames(look[None], scale=255 if look.dtype == torch.uint8 else 1) for look in looks)

    def refuse(self, low: float, high: float, name: str) -> None:
        """Never needed: decoded pictures are in range."""

    def seen(self, candidates: list[Tensor], image: int, size: int) -> tuple[Frames, ...]:
        """Return the looks at some redacted pixels, each ``[3, h, w]``, as they would be written."""
        mode = self._frame(0).mode
        pixels = torch.stack([looks_at(_put(one, mode), self._name, None)[0] for one in candidates])
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
        kind = self.original.format if self.original.format in _WRITTEN else "TIFF"
        options = dict(_WRITTEN[kind or "TIFF"])
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


def called(source: Any, name: str) -> str:
    """Return what messages call a picture: its path, or the name and size of what it is; never what is in it."""
    if isinstance(source, (str, Path)):
        path = str(source)
        return path if len(path) <= _LONGEST_NAME else f"{name} ({len(path)} characters, {path[:24]!r}…)"
    return f"{name} ({len(source)} bytes)" if isinstance(source, (bytes, bytearray, memoryview)) else name


def looks_at(frame: Image.Image, name: str, size: int | None, *, data: bytes | None = None) -> list[Tensor]:
    """Return the looks at an upright frame, each ``[1, H, W]`` or ``[3, H, W]``, uint8 or float32 in [0, 1].

    They are all combinations of what its numbers may mean, its colours as stored and as shown, and its transparency:
    over white, alone, over black.

    Args:
        frame: The frame.
        name: What errors call it.
        size: The edge in pixels to which the model resizes; what differs less than visibly there is left out. ``None``:
            only the first look.
        data: The encoded file, if it is at hand: where it says what its colours mean.

    Raises:
        ImageError: Numbers whose range is unknown.
    """
    looks: list[Tensor] = []
    for meant in _readings(frame, name, size):
        if isinstance(meant, Tensor):
            looks.append(meant)
            continue
        looks += _layers(meant, size)
    return looks if size is not None else looks[:1]


def _readings(frame: Image.Image, name: str, size: int | None) -> list[Any]:
    """Return what the numbers of a frame may mean: the frame, or ``[1, H, W]`` for each meaning of gray of 16 bits."""
    if not frame.mode.startswith("I"):
        return [frame]
    values = torch.from_numpy(np.asarray(frame).astype(np.float32))[None]
    low, high = float(values.min()), float(values.max())
    if frame.format is None and (low < 0 or high > 65535):
        raise ImageError(f"{name} has the mode {frame.mode} and values outside 0 to 65535; expected 16-bit gray.")
    # Viewers take 16 bits, or the values that there are; Pillow's own conversion, and so most scripts, clips at 255.
    readings = [(values / 65535).clamp(0, 1), (values / 255).clamp(0, 1)]
    if high <= 255:
        readings.reverse()
    if high > low:
        readings.append((values - low) / (high - low))
    kept = readings[:1]
    for reading_ in readings[1:] if size is not None else ():
        if not any(torch.equal(reading_, other) for other in kept):
            kept.append(reading_)
    return kept


def _layers(frame: Image.Image, size: int | None) -> list[Tensor]:
    """Return the looks at a frame of 8 bits: over white, and, unless it is opaque, alone and over black."""
    if not is_layered(frame):
        return [_rgb(frame)]
    layered = np.array(with_alpha(frame))
    alpha = layered[..., 3:].astype(np.uint16)
    alone = torch.from_numpy(layered[..., :3].copy()).movedim(-1, 0)
    if alpha.min() == _OPAQUE:
        return [alone]
    black = layered[..., :3] * alpha
    looks = [
        torch.from_numpy(((over + 127) // 255).astype(np.uint8)).movedim(-1, 0)
        for over in (black + 255 * (255 - alpha), black)
    ]
    return [looks[0], alone, looks[1]] if size is not None else looks[:1]


def is_layered(frame: Image.Image) -> bool:
    """Whether a picture may be transparent somewhere."""
    return frame.has_transparency_data or frame.mode in ("La", "RGBa", "PA")


def with_alpha(frame: Image.Image) -> Image.Image:
    """Return a picture with transparency as RGBA."""
    if frame.mode == "La":
        frame = frame.convert("LA")
    return frame if frame.mode == "RGBA" else frame.convert("RGBA")


def _rgb(frame: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(frame if frame.mode == "RGB" else frame.convert("RGB"))).movedim(-1, 0)


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
    return looks_at(upright(picture), name, None)[0]


def upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says; one that says nothing is handed on, not copied."""
    return picture if picture.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(picture)
