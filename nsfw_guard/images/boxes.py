"""The boxes of which HEIF, AVIF and MP4 files are made: the films and the further pictures in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..errors import ImageError
from .budget import Budget, for_bytes

# A film among other bytes has few boxes at its top; more of them, or more beginnings of films, are an attack.
_MOST_BOXES = 256
_MOST_STARTS = 4096
# Kinds of items that are pictures: AV1, HEVC, and what is made of others.
_PICTURES = (b"av01", b"hvc1", b"grid", b"iovl", b"iden", b"tmap", b"jpeg", b"avc1", b"j2k1", b"unci", b"mski", b"vvc1")


class Box(NamedTuple):
    """A box: its kind, where its content begins, and where it ends."""

    kind: bytes
    start: int
    stop: int


def boxes(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[Box]:
    """Yield the boxes between two places, up to the first bytes that are none."""
    stop = len(data) if stop is None else stop
    for _ in range(_MOST_BOXES):
        size, kind, header = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], 8
        if size == 1:
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        size = stop - start if size == 0 else size
        if start + 8 > stop or size < header or not all(32 <= letter < 127 for letter in kind):
            return
        yield Box(kind, start + header, min(start + size, stop))
        start += size


def films_behind(data: bytes, name: str) -> Iterator[tuple[int, int]]:
    """Yield where the films that are appended to a picture, or wrapped in it, begin and end, in the file's order.

    Each goes on to the end of its boxes. What no player can play, for want of an index, is none; nor is sound alone,
    which some cameras append.

    Raises:
        ImageError: There are far too many places at which one may begin, or they overlap.
    """
    budget = for_bytes(len(data), name)
    at = 4  # the file's own begins there
    for _ in range(_MOST_STARTS):
        at = data.find(b"ftyp", at + 1)
        if at < 0:
            return
        if not 16 <= int.from_bytes(data[at - 4 : at], "big") <= 1024:
            continue
        parts = list(boxes(data, at - 4))
        if any(part.kind in (b"moov", b"moof") and not _sound_alone(data, part, budget) for part in parts):
            budget.spend(parts[-1].stop - at)
            yield at - 4, parts[-1].stop
    raise ImageError(f"{name} has more than {_MOST_STARTS} places at which a film may begin.")


def other_tracks(data: bytes) -> bool:
    """Return whether an AVIF's index has a track that is not AV1's pictures: players show it, and Pillow does not."""
    for index in boxes(data):
        if index.kind != b"moov":
            continue
        at = data.find(b"stsd", index.start, index.stop)
        if at < 0 or data.find(b"vide", index.start, index.stop) >= 0:
            return True
        while at >= 0:  # version and flags, how many entries there are, the first one's size and kind
            if data[at + 8 : at + 12] != b"\0\0\0\1" or data[at + 16 : at + 20] != b"av01":
                return True
            at = data.find(b"stsd", at + 4, index.stop)
    return False


def _sound_alone(data: bytes, index: Box, budget: Budget) -> bool:
    budget.spend(index.stop - index.start)

    def holds(kind: bytes) -> bool:
        return data.find(kind, index.start, index.stop) >= 0

    return holds(b"soun") and not holds(b"vide") and not holds(b"pict")


def has_top_box(data: bytes, kind: bytes) -> bool:
    """Return whether an ISO file has a box of a kind at its top."""
    return any(box.kind == kind for box in boxes(data))


def without_roles(data: bytes) -> bytes:
    """Return a HEIF whose thumbnails and auxiliary pictures are pictures like the others: no reference says better."""
    changed = bytearray(data)
    for part in _meta(data):
        if part.kind == b"iref":
            for reference in boxes(data, part.start + 4, part.stop):
                if reference.kind in (b"thmb", b"auxl"):
                    changed[reference.start - 4 : reference.start] = b"none"
    return bytes(changed)


def other_primaries(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield, for each picture of an AVIF but the primary one and tiles, what makes it the primary: a place, bytes."""
    meta = {part.kind: part for part in _meta(data)}
    if not {b"pitm", b"iinf"} <= meta.keys():
        return
    place = meta[b"pitm"].start + 4
    wide = 4 if data[place - 4] else 2
    primary = int.from_bytes(data[place : place + wide], "big")
    tiles = _tiles(data, meta.get(b"iref"))
    for item in _items(data, meta[b"iinf"]):
        if item != primary and item not in tiles and item < 256**wide:
            yield place, item.to_bytes(wide, "big")


def _meta(data: bytes) -> Iterator[Box]:
    for box in boxes(data):
        if box.kind == b"meta":
            yield from boxes(data, box.start + 4, box.stop)
            return


def _items(data: bytes, listed: Box) -> Iterator[int]:
    """Yield the numbers of the items that are pictures."""
    at = listed.start + (8 if data[listed.start] else 6)
    for box in boxes(data, at, listed.stop):
        version = data[box.start]
        wide = 4 if version > 2 else 2
        kind = box.start + 4 + wide + 2
        if box.kind == b"infe" and version >= 2 and data[kind : kind + 4] in _PICTURES:
            yield int.from_bytes(data[box.start + 4 : box.start + 4 + wide], "big")


def _tiles(data: bytes, references: Box | None) -> set[int]:
    """Return the numbers of the items of which others are made."""
    tiles: set[int] = set()
    if references is not None:
        wide = 4 if data[references.start] else 2
        for box in boxes(data, references.start + 4, references.stop):
            if box.kind == b"dimg":
                first = box.start + wide + 2
                tiles |= {int.from_bytes(data[at : at + wide], "big") for at in range(first, box.stop - wide + 1, wide)}
    return tiles
