"""Thumbnails and previews in a picture's metadata: EXIF, JFIF, Photoshop's resources, TIFF's further directories."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

from PIL import Image

from .budget import Budget

# Marker, any fill, and the marker that follows: tables, sizes, applications' and comments.
_JPEG = re.compile(rb"\xff\xd8\xff+[\xc0-\xc4\xdb\xdd\xe0-\xef\xfe]")
# The beginning of EXIF: its first directory follows at once.
_EXIF = re.compile(rb"II\*\0\x08\0\0\0|MM\0\*\0\0\0\x08")
# Of EXIF; more is an attack.
_MOST_EXIF = 64
_MOST_ENTRIES = 1024  # of a directory
_MOST_BELOW = 64  # directories below another one
_SUB_DIRECTORIES, _STRIPS, _TILES, _PHOTOSHOP = 330, 273, 324, 34377
_SIZES = {1: 1, 3: 2, 4: 4, 7: 1, 13: 4, 16: 8, 18: 8}  # of the types of numbers and bytes


def jpegs_in(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[int]:
    """Yield the places at which a JPEG begins: coded pixels never look like it, and one that holds another is two."""
    for match in _JPEG.finditer(data, start, len(data) if stop is None else stop):
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


def photoshop_resources(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Yield the numbers of Photoshop's resources, and where each one's content begins and ends."""
    at, stop = start, len(data) if stop is None else min(stop, len(data))
    while at < stop and data[at : at + 4] in (b"8BIM", b"MeSa", b"AgHg", b"PHUT", b"DCSR"):
        number = int.from_bytes(data[at + 4 : at + 6], "big")
        at += 6
        at += (data[at] // 2 + 1) * 2 if at < len(data) else 1
        length = int.from_bytes(data[at : at + 4], "big")
        yield number, at + 4, min(at + 4 + length, stop)
        at += 4 + length + length % 2


def psd_sections(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the sections of a Photoshop file begin and end: its colours, resources and layers."""
    at = 26
    for _ in range(3):
        start = at + 4
        at = start + int.from_bytes(data[at:start], "big")
        yield start, at


def has_layers(data: bytes) -> bool:
    """Return whether a Photoshop file has a layer that is not hidden; what cannot be told counts as one."""
    *_, (start, stop) = psd_sections(data)
    length = int.from_bytes(data[start : min(start + 4, stop)], "big")
    if not length:
        return stop - start > 8  # 16 and 32 bits have their layers further on
    count = abs(int.from_bytes(data[start + 4 : start + 6], "big", signed=True))
    at = start + 6
    for _ in range(count):
        at += 18 + 6 * int.from_bytes(data[at + 16 : at + 18], "big")
        if data[at : at + 4] != b"8BIM" or not data[at + 10] & 2:
            return True
        at += 16 + int.from_bytes(data[at + 12 : at + 16], "big")
    return False


def is_raw_photoshop(head: bytes) -> bool:
    """Return whether the first 28 bytes of a resource are those of a thumbnail without compression."""
    if len(head) < 28:
        return False
    kind, width, height, stride = struct.unpack_from(">4I", head)
    return bool(kind == 0 and 0 < width <= 4096 and 0 < height <= 4096 and 3 * width <= stride <= 2**16)


def raw_photoshop(content: bytes) -> Image.Image:
    """Return the thumbnail of a resource, which has no compression. One that is cut off shows what there is of it."""
    _, width, height, stride = struct.unpack_from(">4I", content)
    height = min(height, (len(content) - 28) // stride + 1)
    needed = stride * height
    return Image.frombytes("RGB", (width, height), content[28 : 28 + needed].ljust(needed, b"\0"), "raw", "RGB", stride)


class _Tiff(NamedTuple):
    """How numbers are written, where the first directory's place is, and the formats of places and entries."""

    order: str
    at: int
    place: str
    counted: str
    entry: str

    @property
    def bytes_order(self) -> Literal["little", "big"]:
        return "little" if self.order == "<" else "big"

    @classmethod
    def of(cls, data: bytes) -> _Tiff | None:
        order = {b"II": "<", b"MM": ">"}.get(data[:2])
        version = data[2:4] if order == ">" else data[3:1:-1]
        if order is None or version not in (b"\0\x2a", b"\0\x2b"):
            return None
        big = version == b"\0\x2b"
        return cls(order, 8 if big else 4, "Q" if big else "I", "Q" if big else "H", "HHQ8s" if big else "HHI4s")


class Directory(NamedTuple):
    """A directory of a TIFF: its place, whether it has pixels, the places below it, and Photoshop's resources."""

    place: int
    pixels: bool
    below: list[int]
    resources: list[tuple[int, int]]


def tiff_directories(data: bytes, entries: Budget) -> Iterator[Directory]:
    """Yield the directories of a TIFF, and those below them, each once.

    Raises:
        ImageError: They are not to be believed: they overlap, or have far too many entries.
    """
    form = _Tiff.of(data)
    if form is None:
        return
    seen: set[int] = set()
    waiting = [_number(data, form.at, form, form.place)]
    while waiting:
        place = waiting.pop(0)
        while place and place not in seen:
            seen.add(place)
            directory, place = _directory(data, form, place, entries)
            yield directory
            waiting += directory.below


def _directory(data: bytes, form: _Tiff, place: int, entries: Budget) -> tuple[Directory, int]:
    """Return a directory, and the place of the one that follows it."""
    entry = struct.Struct(form.order + form.entry)
    first = place + struct.calcsize("=" + form.counted)
    told = _number(data, place, form, form.counted)
    count = min(told, max(0, len(data) - first) // entry.size)
    entries.spend(1 + count)
    if count > _MOST_ENTRIES:
        entries.refuse(f"a directory has {count} entries")
    found = Directory(place, False, [], [])
    for at in range(first, first + count * entry.size, entry.size):
        tag, kind, number, value = entry.unpack_from(data, at)
        if tag in (_STRIPS, _TILES):
            found = found._replace(pixels=True)
        elif tag in (_SUB_DIRECTORIES, _PHOTOSHOP) and kind in _SIZES:
            start, stop = at + entry.size - len(value), at + entry.size
            if number * _SIZES[kind] > len(value):
                start = int.from_bytes(value, form.bytes_order)
                stop = start + number * _SIZES[kind]
            if tag == _PHOTOSHOP:
                found.resources.append((start, min(stop, len(data))))
            elif number > _MOST_BELOW:
                entries.refuse(f"a directory has {number} below it")
            elif _SIZES[kind] > 1:
                size = _SIZES[kind]
                found.below.extend(
                    int.from_bytes(data[at : at + size], form.bytes_order)
                    for at in range(start, start + number * size, size)
                )
    return found, _number(data, first + told * entry.size, form, form.place)


def _number(data: bytes, at: int, form: _Tiff, kind: str) -> int:
    size = struct.calcsize("=" + kind)
    return int.from_bytes(data[at : at + size], form.bytes_order)


def beginning_at(data: bytes, place: int) -> tuple[int, bytes]:
    """Return what makes the directory at a place the first one of a TIFF: the place of some bytes, and the bytes."""
    form = _Tiff.of(data)
    return (form.at, struct.pack(form.order + form.place, place)) if form is not None else (0, b"")


def exif_in(data: bytes) -> Iterator[bytes]:
    """Yield what looks like EXIF in a file of another kind, each with what follows it."""
    for match in islice(_EXIF.finditer(data), _MOST_EXIF):
        yield data[match.start() : match.start() + 2**20]


def exif_raw(exif: bytes, entries: Budget) -> Iterator[tuple[int, bytes]]:
    """Yield, for each thumbnail without JPEG compression in EXIF, what makes it a TIFF that shows it."""
    for directory in tiff_directories(exif, entries):
        if directory.pixels:
            yield beginning_at(exif, directory.place)


def tiff_inner(data: bytes, entries: Budget) -> tuple[list[tuple[int, bytes]], list[tuple[int, int]]]:
    """Return, of a TIFF, what shows each directory below another one, and where Photoshop's resources are.

    Raises:
        ImageError: They are not to be believed, or of one kind there are more than 64.
    """
    below: dict[int, None] = {}
    resources: dict[tuple[int, int], None] = {}
    for directory in tiff_directories(data, entries):
        below.update(dict.fromkeys(directory.below))
        resources.update(dict.fromkeys(directory.resources))
        if max(len(below), len(resources)) > _MOST_BELOW:
            entries.refuse(f"it has more than {_MOST_BELOW} directories below others, or as many of Photoshop's parts")
    return [beginning_at(data, place) for place in below], [*resources]
