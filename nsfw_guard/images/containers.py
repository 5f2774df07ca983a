"""Whether a video's container is whole: FFmpeg takes a missing or damaged part for the end, or leaves it out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_CLUSTER = b"\x1f\x43\xb6\x75"
# What may be in a segment of Matroska: seek head, information, tracks, clusters, cues, chapters, tags, attachments,
# nothing, a checksum; and in a cluster: times, blocks, groups of them, positions, sizes, …
_IN_SEGMENT = (
    b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", _CLUSTER, b"\x1c\x53\xbb\x6b", b"\x10\x43\xa7\x70",
    b"\x12\x54\xc3\x67", b"\x19\x41\xa4\x69", b"\xec", b"\xbf",
)  # fmt: skip
_IN_CLUSTER = (b"\xe7", b"\xa3", b"\xa0", b"\xa7", b"\xab", b"\xaf", b"\x58\x54", b"\xec", b"\xbf")
BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_CUT_OFF = "is cut off: it is shorter than it says"
_DAMAGED = "is damaged: its parts are not where it says"


def container_fault(file: BinaryIO) -> str | None:
    """Return what is wrong with an MP4, Matroska or AVI file as a whole; ``None``: nothing, or of another kind.

    Only sizes are read, no content.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(64)
    if start[:4] == b"RIFF":
        # A last byte of padding is often left out.
        return _CUT_OFF if 8 + int.from_bytes(start[4:8], "little") > size + 1 else None
    if start[:4] == _EBML:
        return _matroska_fault(file, size)
    return _boxes_fault(file, size) if start[4:8] in BOXES else None


def _boxes_fault(file: BinaryIO, size: int) -> str | None:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # to the end of the file, or no box
            return None
        at += length
        if at > size and header[4:8] in (b"mdat", b"moov", b"moof"):
            return _CUT_OFF
    return None


def _matroska_fault(file: BinaryIO, size: int) -> str | None:
    file.seek(4)
    length = _length(file)
    file.seek(length or 0, io.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return _DAMAGED
    length = _length(file)
    if length is None:  # written as it was recorded: nobody knew how long it would be
        return None
    end = file.tell() + length
    return _CUT_OFF if end > size else _elements_fault(file, end, _IN_SEGMENT)


def _elements_fault(file: BinaryIO, end: int, known: tuple[bytes, ...]) -> str | None:
    """Go through the elements up to a place: each must be a known one, and the last end there."""
    while (at := file.tell()) < end:
        first = file.read(1)
        name = first + file.read(8 - first[0].bit_length()) if first else b""
        length = _length(file) if name in known else None
        if name in known and length is None:
            return None
        if length is None or file.tell() + length > end or at >= end:
            return _DAMAGED
        after = file.tell() + length
        if name == _CLUSTER and (fault := _elements_fault(file, after, _IN_CLUSTER)):
            return fault
        file.seek(after)
    return None


def elements(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each element of Matroska between two places, and where its content begins and ends.

    One of unknown length goes on to the end.
    """
    while start < stop:
        file.seek(start)
        first = file.read(1)
        name = first + file.read(8 - first[0].bit_length()) if first and first[0] else b""
        if not name:
            return
        length = _length(file)
        begins = file.tell()
        start = stop if length is None else min(begins + length, stop)
        yield name, begins, start


def _length(file: BinaryIO) -> int | None:
    """Read a length, whose own length is that of the zeros in front of it; ``None``: unknown."""
    first = file.read(1)
    if not first:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + file.read(extra), "big")
    return None if value == 2 ** (7 * (extra + 1)) - 1 else value
