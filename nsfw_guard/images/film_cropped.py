"""What part of its frames a film's container tells players to show: MP4's clean aperture, Matroska's cropping."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ..errors import ImageError
from .containers import BOXES, elements

# Of an index; that of a film of a day has fewer bytes. And how many parts of a frame, of all tracks together.
_LONGEST, _MOST = 2**26, 8
_SEGMENT, _TRACKS, _TRACK, _VIDEO = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"
_CUTS = (b"\x54\xcc", b"\x54\xbb", b"\x54\xdd", b"\x54\xaa")  # left, top, right, bottom


class Crop(NamedTuple):
    """What is cut off, in pixels; or, with a size, the part of it around the middle, which may be moved."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    aperture: tuple[float, float, float, float] | None = None

    def of(self, width: int, height: int) -> tuple[slice, slice]:
        """Return the rows and columns of a frame of a size; the whole if nothing is left."""
        left, top, right, bottom = self.left, self.top, width - self.right, height - self.bottom
        if self.aperture is not None:
            wide, high, across, down = self.aperture
            left, top = round((width - wide) / 2 + across), round((height - high) / 2 + down)
            right, bottom = round(left + wide), round(top + high)
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if left >= right or top >= bottom:
            return slice(None), slice(None)
        return slice(top, bottom), slice(left, right)


def crops_of(file: BinaryIO) -> list[Crop]:
    """Return how a film's container crops frames, of all tracks together, each once.

    Raises:
        ImageError: There are more than 8, or the index is far too long.
    """
    file.seek(0)
    start = file.read(8)
    found: dict[Crop, None] = {}
    if start[4:8] in BOXES:
        found.update(dict.fromkeys(_apertures(file)))
    elif start[:4] == b"\x1a\x45\xdf\xa3":
        found.update(dict.fromkeys(_matroska(file)))
    found.pop(Crop(), None)
    if len(found) > _MOST:
        raise ImageError(f"the film crops its frames in {len(found)} ways; the limit is {_MOST}.")
    return list(found)


def _apertures(file: BinaryIO) -> Iterator[Crop]:
    size, at = file.seek(0, io.SEEK_END), 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        length = int.from_bytes(header[8:16], "big") if length == 1 else length or size - at
        if length < 8:
            return
        if kind == b"moov":
            if length > _LONGEST:
                raise ImageError(f"the film's index has more than {_LONGEST} bytes.")
            file.seek(at)
            yield from _clean(file.read(length))
        at += length


def _clean(index: bytes) -> Iterator[Crop]:
    at = index.find(b"clap")
    while at >= 0:
        if index[at - 4 : at] == (40).to_bytes(4, "big"):
            told = [int.from_bytes(index[place : place + 4], "big", signed=True) for place in range(at + 4, at + 36, 4)]
            if all(told[1::2]):
                wide, high, across, down = (told[place] / told[place + 1] for place in range(0, 8, 2))
                yield Crop(aperture=(wide, high, across, down))
        at = index.find(b"clap", at + 4)


def _matroska(file: BinaryIO) -> Iterator[Crop]:
    file.seek(0)
    size = file.seek(0, io.SEEK_END)
    for name, start, stop in elements(file, 0, size):
        for inner, first, last in elements(file, start, stop) if name == _SEGMENT else ():
            if inner == _TRACKS:
                if last - first > _LONGEST:
                    raise ImageError(f"the film's index has more than {_LONGEST} bytes.")
                yield from _track_crops(file, first, last)


def _track_crops(file: BinaryIO, start: int, stop: int) -> Iterator[Crop]:
    for track, *inside in elements(file, start, stop):
        for part, *within in elements(file, *inside) if track == _TRACK else ():
            if part == _VIDEO:
                cuts = dict.fromkeys(_CUTS, 0)
                for name, first, last in elements(file, *within):
                    if name in cuts:
                        file.seek(first)
                        cuts[name] = int.from_bytes(file.read(min(last - first, 8)), "big")
                left, top, right, bottom = cuts.values()
                yield Crop(left, top, right, bottom)
