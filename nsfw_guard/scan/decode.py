"""From a file's content to frames: pictures by Pillow, videos by PyAV; every fault is an ``ImageError``."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import ImageError
from ..images.color import coding_of, profile_of
from ..images.film import Film, is_film, open_film
from ..images.looks import Colors, looks_at
from ..images.orientation import ORIENTATION
from ..images.pictures import Picture, ways_up
from ..images.settings import DecodeSettings
from ..images.sniff import HEAD, open_picture, reading, sniff

# EXIF orientations that turn a picture by a quarter.
_TURNED = (5, 6, 7, 8)


class Decoded:
    """A file whose first frame could be decoded.

    Attributes:
        kind: ``"image"``, ``"animation"`` or ``"video"``.
        width: Of the first frame in full, upright, in pixels.
        height: Of the first frame in full, upright, in pixels.
        warnings: What of it cannot be looked at, and why.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        height: int,
        frames: Iterator[tuple[int, Tensor]],
        warnings: Sequence[str] = (),
    ) -> None:
        self.warnings = warnings
        self.kind = kind
        self.width = width
        self.height = height
        self._frames = frames

    def frames(self) -> Iterator[tuple[int, Tensor]]:
        """Decode the frames that are to be looked at, one by one, once.

        Yields:
            The index in the file, and the pixels ``[3, H, W]`` or ``[1, H, W]``, uint8, or floating point in [0, 1]; a
            frame that can be seen in several ways comes as often.

        Raises:
            ImageError: One is broken, or larger than the limit.
        """
        return self._frames


def decode(file: BinaryIO, settings: DecodeSettings, *, name: str) -> Decoded:
    """Open a picture or video, and decode its first frame.

    Args:
        file: The content, seekable, at its start; to be kept open until the last frame is read.
        settings: See there.
        name: What errors call it.

    Raises:
        ImageError: It is none, broken, truncated, or over a limit.
    """
    with reading(name, "read"):
        start = file.read(HEAD)
        file.seek(0)
    if not start:
        raise ImageError(f"{name} is empty.")
    if sniff(start).media == "film":
        return _film(open_film(file, settings, name=name))
    with reading(name, "read"):
        data = file.read(settings.max_bytes + 1)
    if len(data) > settings.max_bytes:
        raise ImageError(f"{name} has more than {settings.max_bytes} bytes. If you trust it, raise the limit.")
    try:
        return _decode_picture(data, settings, name)
    except ImageError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        file.seek(0)
        # FFmpeg takes the tiles of a HEIF or AVIF picture for films.
        if start[4:8] != b"ftyp" and is_film(file):
            file.seek(0)
            return _film(open_film(file, settings, name=name))
        raise ImageError(f"{name} is neither a picture nor a video of a known kind, or broken at its start.") from error


def _film(film: Film) -> Decoded:
    return Decoded("video", film.width, film.height, _looks(film, 0), film.warnings)


def _looks(film: Film, first: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each look of each frame by itself, counted from a number on."""
    for index, looks in film.frames():
        yield from ((first + index, look) for look in looks)


def every_nth(count: int, every: int) -> list[int]:
    """Return the frames 0, ``every``, 2 ``every``, … and the last of so many."""
    chosen = list(range(0, count, every))
    return chosen if chosen[-1] == count - 1 else [*chosen, count - 1]


def _decode_picture(data: bytes, settings: DecodeSettings, name: str) -> Decoded:
    picture = open_picture(data, name=name, max_pixels=settings.max_pixels)
    whole = Picture(picture, name, data=data, settings=settings, look_into_films=False)
    chosen = every_nth(whole.shown(), settings.every)
    if settings.max_frames is not None and len(chosen) > settings.max_frames:
        raise ImageError(
            f"{name} has {whole.shown()} frames, of which {len(chosen)} are to be looked at; the limit is "
            f"{settings.max_frames}."
        )
    colors = Colors(profile_of(picture, data), coding_of(picture, data), whole.warnings)
    first, size = _scaled(picture, settings, name, colors) or (_looks_of(whole, 0), None)
    if size is None:
        size = (first[0].shape[-1], first[0].shape[-2])
    films = [open_film(io.BytesIO(film), settings, name=name) for film in whole.films]
    whole.warnings.extend(warning for film in films for warning in film.warnings)

    def frames() -> Iterator[tuple[int, Tensor]]:
        yield from ((0, look) for look in first)
        count = len(whole.owners)
        for index in (*chosen[1:], *range(whole.shown(), count)):
            yield from ((index, look) for look in _looks_of(whole, index))
        for film in films:
            for index, look in _looks(film, count):
                yield index, look
            count = index + 1

    # The further pictures of an MPO are other views of the first, not a film.
    animated = bool(films) or whole.holds_sequence or (whole.shown() > 1 and picture.format != "MPO")
    return Decoded("animation" if animated else "image", *size, frames(), whole.warnings)


def _scaled(
    picture: Image.Image, settings: DecodeSettings, name: str, colors: Colors
) -> tuple[list[Tensor], tuple[int, int]] | None:
    """Decode a JPEG by its scaled transforms; return its looks and the full size, or ``None`` if nothing is gained."""
    if settings.size is None or settings.exact or picture.format not in ("JPEG", "MPO"):
        return None
    width, height = picture.size
    edge = 2 * settings.size
    if min(width, height) < 2 * edge:
        return None
    with reading(name, "decoded"):
        picture.draft(None, (edge, edge))
        picture.load()
        looks = [look for turned in ways_up(picture) for look in looks_at(turned, name, colors)]
        turned = picture.getexif().get(ORIENTATION) in _TURNED
    return looks, (height, width) if turned else (width, height)


def _looks_of(picture: Picture, index: int) -> list[Tensor]:
    return [look.data[0] for look in picture.looks(index, index + 1)]
