"""Thumbnails and previews in a picture's metadata: EXIF, JFIF, Photoshop's resources, TIFF's further directories."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from PIL import Image

# Marker, any fill, and the marker that follows: tables, sizes, applications' and comments.
_JPEG = re.compile(rb"\xff\xd8\xff+[\xc0-\xc4\xdb\xdd\xe0-\xef\xfe]")
# The beginning of EXIF: its first directory follows at once.
_EXIF = re.compile(rb"II\*\0\x08\0\0\0|MM\0\*\0\0\0\x08")
_MOST_DIRECTORIES = 10_000
# Of EXIF; more is an attack.
_MOST_EXIF = 64
_SUB_DIRECTORIES, _STRIPS, _TILES, _PHOTOSHOP = 330, 273, 324, 34377
_SIZES = {1: 1, 3: 2, 4: 4, 7: 1, 13: 4, 16: 8, 18: 8}  # of the types of numbers and bytes


def jpegs_in(data: bytes, start: int = 0) -> Iterator[int]:
    """Yield the places at which a JPEG begins: coded pixels never look like it, and one that holds another is two."""
    for match in _JPEG.finditer(data, start):
        at = match.end()
        following = at + int.from_bytes(data[at : at + 2], "big")
        if following > at + 1 and data[following : following + 1] == b"\xff":
            yield match.start()


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, start and end of each segment of a JPEG, up to that of its first scan."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        if data[at + 1] == 0xFF:  # fill
            at += 1
            continue
        length = max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        yield data[at + 1], at + 4, at + 2 + length
        if data[at + 1] in (0xDA, 0xD9):
            return
        at += 2 + length


def raw_jfif(data: bytes) -> Iterator[Image.Image]:
    """Yield the thumbnails without compression in a JPEG's first segments."""
    for marker, start, stop in jpeg_segments(data):
        if marker != 0xE0:
            continue
        body = data[start:stop]
        if body.startswith(b"JFIF\0"):
            yield from _raw(body, 12)
        elif body.startswith((b"JFXX\0\x11", b"JFXX\0\x13")):
            yield from _raw(body, 6, palette=body[5] == 0x11)


def _raw(body: bytes, at: int, *, palette: bool = False) -> Iterator[Image.Image]:
    if len(body) < at + 2 or not body[at] or not body[at + 1]:
        return
    size = body[at], body[at + 1]
    pixels = at + 2 + (768 if palette else 0)
    needed = size[0] * size[1] * (1 if palette else 3)
    # One that is cut off shows what there is of it.
    picture = Image.frombytes("P" if palette else "RGB", size, body[pixels : pixels + needed].ljust(needed, b"\0"))
    if palette:
        picture.putpalette(body[at + 2 : pixels].ljust(768, b"\0"))
    yield picture.convert("RGB")


def photoshop_resources(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the numbers and contents of Photoshop's resources."""
    at = 0
    while data[at : at + 4] in (b"8BIM", b"MeSa", b"AgHg", b"PHUT", b"DCSR"):
        number = int.from_bytes(data[at + 4 : at + 6], "big")
        at += 6
        at += (data[at] // 2 + 1) * 2 if at < len(data) else 1
        length = int.from_bytes(data[at : at + 4], "big")
        yield number, data[at + 4 : at + 4 + length]
        at += 4 + length + length % 2


def psd_resources(data: bytes) -> bytes:
    """Return the section of a Photoshop file that holds its resources."""
    at = 30 + int.from_bytes(data[26:30], "big")
    return data[at + 4 : at + 4 + int.from_bytes(data[at : at + 4], "big")]


def raw_photoshop(content: bytes) -> Image.Image | None:
    """Return the thumbnail of a resource, if it is one without compression."""
    if len(content) < 28:
        return None
    kind, width, height, stride = struct.unpack_from(">4I", content)
    if kind != 0 or not 0 < width <= 4096 or not 0 < height <= 4096 or stride < 3 * width:
        return None
    needed = stride * height
    return Image.frombytes("RGB", (width, height), content[28 : 28 + needed].ljust(needed, b"\0"), "raw", "RGB", stride)


class _Tiff(NamedTuple):
    """How numbers are written, where the first directory's place is, and the formats of places and entries."""

    order: str
    at: int
    place: str
    counted: str
    entry: str

    @classmethod
    def of(cls, data: bytes) -> _Tiff | None:
        order = {b"II": "<", b"MM": ">"}.get(data[:2])
        version = data[2:4] if order == ">" else data[3:1:-1]
        if order is None or version not in (b"\0\x2a", b"\0\x2b"):
            return None
        big = version == b"\0\x2b"
        return cls(order, 8 if big else 4, "Q" if big else "I", "Q" if big else "H", "HHQ8s" if big else "HHI4s")


def tiff_directories(data: bytes) -> Iterator[tuple[int, dict[int, list[int] | bytes]]]:
    """Yield the place of each directory of a TIFF, and of its entries those that are numbers or bytes."""
    form = _Tiff.of(data)
    if form is None:
        return
    seen: set[int] = set()
    following = _number(data, form.at, form, form.place)
    while following and following not in seen and len(seen) < _MOST_DIRECTORIES:
        seen.add(following)
        start = following
        entry = struct.Struct(form.order + form.entry)
        first = start + struct.calcsize("=" + form.counted)
        count = min(_number(data, start, form, form.counted), 65_535)
        values: dict[int, list[int] | bytes] = {}
        for at in range(first, first + count * entry.size, entry.size):
            if at + entry.size > len(data):
                break
            tag, kind, number, value = entry.unpack_from(data, at)
            if tag in (_SUB_DIRECTORIES, _STRIPS, _TILES, _PHOTOSHOP) and kind in _SIZES:
                values[tag] = _values(data, form, kind, number, value)
        yield start, values
        following = _number(data, first + count * entry.size, form, form.place)


def _values(data: bytes, form: _Tiff, kind: int, count: int, value: bytes) -> list[int] | bytes:
    size = _SIZES[kind]
    if count * size > len(value):
        start = int.from_bytes(value, "little" if form.order == "<" else "big")
        value = data[start : start + min(count * size, len(data))]
    if size == 1:
        return value[:count]
    order = "little" if form.order == "<" else "big"
    whole = len(value) // size * size
    numbers = [int.from_bytes(value[at : at + size], order) for at in range(0, min(whole, 1024), size)]  # type: ignore[arg-type]
    return numbers[:count]


def _number(data: bytes, at: int, form: _Tiff, kind: str) -> int:
    size = struct.calcsize("=" + kind)
    return int.from_bytes(data[at : at + size], "little" if form.order == "<" else "big")


def beginning_at(data: bytes, place: int) -> bytes:
    """Return a TIFF whose first directory is the one at a place."""
    form = _Tiff.of(data)
    if form is None:
        return data
    told = struct.pack(form.order + form.place, place)
    return data[: form.at] + told + data[form.at + len(told) :]


def exif_in(data: bytes) -> Iterator[bytes]:
    """Yield what looks like EXIF in a file of another kind, each with what follows it."""
    for match in islice(_EXIF.finditer(data), _MOST_EXIF):
        yield data[match.start() : match.start() + 2**20]


def exif_raw(exif: bytes) -> Iterator[bytes]:
    """Yield, for each thumbnail without JPEG compression in EXIF, a TIFF that shows it."""
    for place, values in tiff_directories(exif):
        if _STRIPS in values or _TILES in values:
            yield beginning_at(exif, place)


def tiff_inner(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return, of a TIFF, one file for each sub-directory, and Photoshop's resources."""
    below: list[bytes] = []
    resources: list[bytes] = []
    places: set[int] = set()
    for _, values in tiff_directories(data):
        for place in values.get(_SUB_DIRECTORIES, []):
            if place not in places:
                places.add(place)
                below.append(beginning_at(data, place))
        content = values.get(_PHOTOSHOP)
        if isinstance(content, bytes):
            resources.append(content)
    return below, resources
