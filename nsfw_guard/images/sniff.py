"""What a file is, by its first bytes, and the one way to open an encoded picture."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, UnidentifiedImageError, features

from ..errors import ImageError, one_line, why
from .icons import windows_icon
from .settings import DecodeSettings

# How many of a file's first bytes tell what it is: five packets of a transport stream.
HEAD = 1024
# Kinds that Pillow opens and that are not decoded here: EPS is a program that Ghostscript would run, of the others
# Pillow knows the name only, or needs Windows.
REFUSED = ("EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5")


class Sniffed(NamedTuple):
    """What a file is likely to be.

    Attributes:
        media: ``None``: its first bytes are of no known kind; Pillow may know it all the same.
        format: Of pictures Pillow's name, or ``"HEIF"``; of films a name in lower case.
    """

    media: Literal["picture", "film"] | None = None
    format: str | None = None


# Place, bytes, kind. Pictures come first: bytes further on in them are content, and whoever made it chose it.
_MAGIC: tuple[tuple[int, bytes, Sniffed], ...] = (
    *(
        (0, start, Sniffed("picture", kind))
        for start, kind in (
            (b"\xff\xd8\xff", "JPEG"),
            (b"\x89PNG\r\n\x1a\n", "PNG"),
            (b"GIF87a", "GIF"),
            (b"GIF89a", "GIF"),
            (b"II*\0", "TIFF"),
            (b"MM\0*", "TIFF"),
            (b"II+\0", "TIFF"),
            (b"MM\0+", "TIFF"),
            (b"8BPS", "PSD"),
            (b"\0\0\0\x0cjP  ", "JPEG2000"),
            (b"\xff\x4f\xff\x51", "JPEG2000"),
            (b"icns", "ICNS"),
            (b"DDS ", "DDS"),
            (b"qoif", "QOI"),
        )
    ),
    (8, b"WEBP", Sniffed("picture", "WEBP")),  # after RIFF and a length
    *(
        (0, start, Sniffed("film", kind))
        for start, kind in (
            (b"\x1a\x45\xdf\xa3", "matroska"),
            (b"\0\0\1\xba", "mpeg"),
            (b"\0\0\1\xb3", "mpegvideo"),
            (b"FLV\1", "flv"),
            (b"OggS", "ogg"),
            (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
            (b"\x06\x0e\x2b\x34\x02\x05\x01\x01", "mxf"),
            (b".RMF", "rm"),
        )
    ),
    (8, b"AVI ", Sniffed("film", "avi")),
    *((4, box, Sniffed("film", "mov")) for box in (b"moov", b"mdat", b"wide", b"pnot")),
)
_ICONS = {b"\0\0\1\0": "ICO", b"\0\0\2\0": "CUR"}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_AVIF_BRANDS = (b"avif", b"avis")
_STILL_BRANDS = (b"mif1", b"mif2", b"msf1", b"miaf")
# Packets, and where the first begins: on discs each has a time stamp of 4 bytes before it.
_PACKETS = ((188, 0), (192, 4))
_DIB_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)


def sniff(head: bytes) -> Sniffed:
    """Return what a file is likely to be.

    Args:
        head: Its first ``HEAD`` bytes, or all.
    """
    for at, magic, kind in _MAGIC:
        if head.startswith(magic, at) and (at != 8 or head[:4] == b"RIFF"):
            return kind
    if head[:4] in _ICONS and head[4:6] not in (b"", b"\0\0"):  # without a picture it is a Targa
        return Sniffed("picture", _ICONS[head[:4]])
    if head[4:8] == b"ftyp":
        return _of_brands(brands(head))
    if (head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _DIB_HEADERS) or _is_targa(head):
        return Sniffed("picture", "TGA" if head[:2] != b"BM" else "BMP")
    for size, first in _PACKETS:
        starts = head[first::size]
        if len(starts) > 1 and not starts.strip(b"G"):
            return Sniffed("film", "mpegts")
    return Sniffed()


def brands(head: bytes) -> list[bytes]:
    """Return the brands of an ISO file, the major one first."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]


def _of_brands(found: list[bytes]) -> Sniffed:
    """Return what the brands of an ISO file say. No film has a picture's, so one of these decides."""
    if found[0] == b"jpx ":
        return Sniffed("picture", "JPEG2000")
    for brand in found:
        if brand in _AVIF_BRANDS + _HEIF_BRANDS:
            return Sniffed("picture", "AVIF" if brand in _AVIF_BRANDS else "HEIF")
    return Sniffed("picture", "HEIF") if any(brand in _STILL_BRANDS for brand in found) else Sniffed("film", "mov")


def _is_targa(head: bytes) -> bool:
    # It has no magic. A transport stream's second byte is hardly ever below 2, and all of these never fit by chance.
    return len(head) > 18 and head[1] < 2 and head[2] in (1, 2, 3, 9, 10, 11) and head[16] in (1, 8, 15, 16, 24, 32)


def open_picture(data: bytes, *, name: str, max_pixels: int | None = None) -> Image.Image:
    """Open an encoded picture as people see it; it is decoded when it is needed.

    Of icons the largest picture is opened, of layered files the composite: ``frame_count`` tells how many frames may
    be sought, and a picture with one must not be sought at all.

    Args:
        data: The file.
        name: What errors call it.
        max_pixels: More than so many are refused; ``None``: ``PIL.Image.MAX_IMAGE_PIXELS``.

    Raises:
        ImageError: It is none, broken, too large, of a refused kind, or needs what is not installed.
    """
    media, kind = sniff(data[:HEAD])
    if media == "film":
        raise ImageError(f"{name} is a film; expected a picture. For films there is nsfw-guard scan.")
    with reading(name, "opened as a picture"):
        if kind == "HEIF":
            picture = _open_heif(data, name)
        else:
            if kind in ("ICO", "CUR"):
                data = windows_icon(data)
            elif kind == "AVIF":
                data = _avif(data, name)
            picture = Image.open(io.BytesIO(data), formats=_formats())
        refuse_bomb(picture, name, max_pixels)
        if picture.format == "PSD":
            _refuse_without_composite(picture, name)
    return picture


def frame_count(picture: Image.Image) -> int:
    """Return how many frames of a picture people see one after the other, at least 1."""
    # Pillow takes a Photoshop file's layers for frames, without its composite.
    return 1 if picture.format == "PSD" else max(1, getattr(picture, "n_frames", 1))


def read_file(path: str | Path, settings: DecodeSettings) -> bytes:
    """Read a picture's file.

    Raises:
        ImageError: There is none, it is no regular file, or has more than ``settings.max_bytes``.
    """
    name = str(path) if len(str(path)) <= 200 else f"{str(path)[:197]}…"
    try:
        # Opening a pipe waits for ever, and some devices do something then.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{name} cannot be opened: it is a folder, pipe or device; expected a regular file.")
        with open(path, "rb") as file:
            data = file.read(settings.max_bytes + 1)
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be opened: {why(error)}") from error
    if len(data) > settings.max_bytes:
        raise ImageError(f"{name} has more than {settings.max_bytes} bytes. If you trust it, raise the limit.")
    return data


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


def refuse_bomb(picture: Image.Image, name: str, max_pixels: int | None = None) -> None:
    """Refuse what is larger than the limit, or the process's own; Pillow itself only warns up to twice that."""
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    if limit is not None and math.prod(picture.size) > limit:
        raised = "PIL.Image.MAX_IMAGE_PIXELS" if max_pixels is None else "the limit"
        raise ImageError(
            f"{name} is refused as a decompression bomb: {picture.width}x{picture.height} is more than {limit} pixels. "
            f"If you trust it, raise {raised}."
        )


def _open_heif(data: bytes, name: str) -> Image.Image:
    """Open by pillow-heif, which is not registered: that would change what all of the process opens."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError(f"{name}: HEIC and HEIF need pillow-heif: pip install 'nsfw-guard[scan]'") from error
    return HeifImageFile(io.BytesIO(data))  # type: ignore[no-any-return]


def _avif(data: bytes, name: str) -> bytes:
    """Return an AVIF under a major brand that Pillow takes."""
    if "AVIF" not in _formats() or not features.check("avif"):
        raise ImageError(f"{name}: AVIF needs a newer Pillow: pip install 'pillow>=11.3'")
    if data[8:12] in _AVIF_BRANDS:
        return data
    return data[:8] + (b"avif" if b"avif" in brands(data[:HEAD]) else b"avis") + data[12:]


def _refuse_without_composite(picture: Image.Image, name: str) -> None:
    for number, _, content in getattr(picture, "resources", ()):
        if number == 1057 and content[4:5] == b"\0":  # a version, then whether the composite is a real one
            raise ImageError(f"{name} holds layers only; expected a composite: save it for maximum compatibility.")


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in REFUSED]
