"""Icons and cursors, each of whose pictures is made a file of its own, so that all of them can be opened alike."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..errors import ImageError

_DIRECTORY = struct.Struct("<HHH")
_ENTRY = struct.Struct("<BBBBHHII")
_DIB = struct.Struct("<IiiHHI")
_PNG = b"\x89PNG\r\n\x1a\n"
# Apple's kinds, by what Pillow calls their sizes; of the old ones, which are colours only, the mask beside them.
_APPLE = {
    b"ic10": 1024, b"ic09": 512, b"ic14": 512, b"ic08": 256, b"ic13": 256, b"ic07": 128, b"ic12": 64, b"icp6": 64,
    b"icp5": 32, b"ic11": 32, b"icp4": 16, b"it32": 128, b"ih32": 48, b"il32": 32, b"is32": 16,
}  # fmt: skip
_APPLE_MASKS = {b"it32": b"t8mk", b"ih32": b"h8mk", b"il32": b"l8mk", b"is32": b"s8mk"}


class Icon(NamedTuple):
    """One picture of an icon.

    Attributes:
        name: Such as ``"icon 32x32"``.
        data: A file with this picture alone.
    """

    name: str
    data: bytes


def windows_icon(data: bytes) -> bytes:
    """Return an ICO or CUR with the picture alone that people see first: the largest, of these the deepest.

    What cannot be taken apart is returned as it is.
    """
    icons = windows_icons(data)
    return icons[0].data if icons else data


def windows_icons(data: bytes, most: int = 64) -> list[Icon]:
    """Return the pictures of an ICO or CUR, the one that people see first in front.

    Raises:
        ImageError: There are more than so many, or they overlap.
    """
    if len(data) < _DIRECTORY.size:
        return []
    count = _DIRECTORY.unpack_from(data)[2]
    if count > most:
        raise ImageError(f"the icon has {count} pictures; expected at most {most}.")
    found = []
    taken = 0
    for place in range(count):
        at = _DIRECTORY.size + place * _ENTRY.size
        if at + _ENTRY.size > len(data):
            break
        width, height, _, _, _, _, size, start = _ENTRY.unpack_from(data, at)
        taken += len(data[start : start + size])
        if taken > len(data):
            raise ImageError("the icon's pictures overlap; expected each in a place of its own.")
        body, bits = _body(data[start : start + size])
        entry = _ENTRY.pack(width, height, 0, 0, 1, bits, len(body), _DIRECTORY.size + _ENTRY.size)
        size_now = (width or 256, height or 256)
        icon = Icon(f"icon {size_now[0]}x{size_now[1]}", _DIRECTORY.pack(0, 1, 1) + entry + body)
        found.append((size_now[0] * size_now[1], bits, icon))
    return [icon for *_, icon in sorted(found, key=lambda one: one[:2], reverse=True)]


def alone_in(icon: Icon) -> bytes:
    """Return the picture of an ICO or CUR as it stands there: a PNG, or a bitmap without its file's header."""
    return icon.data[_DIRECTORY.size + _ENTRY.size :]


def _body(body: bytes) -> tuple[bytes, int]:
    """Return a picture so that Pillow shows it as people see it, and the bits by which that takes its alpha."""
    if body.startswith(_PNG) or len(body) < 40:
        return body, 32
    header, width, height, _, bits, compression = _DIB.unpack_from(body)
    if header < 40 or bits not in (1, 4, 8, 16, 24, 32) or compression not in (0, 3) or width < 1 or height < 2:
        return body, bits
    colours = int.from_bytes(body[32:36], "little") or 2**bits if bits <= 8 else 0
    start = header + (12 if compression == 3 and header == 40 else 0) + 4 * min(colours, 256)
    rows = height // 2  # below the colours lies a mask
    stop = start + (width * bits + 31) // 32 * 4 * rows
    mask = (width + 31) // 32 * 4 * rows
    if stop > len(body):
        return body, bits  # cut off: an error when it is opened
    if bits == 32 and any(body[start + 3 : stop : 4]):
        return body, 32
    # Without alpha the mask counts, which Pillow looks for at the end. Where there is none, all is opaque.
    return body[:stop] + body[stop : stop + mask].ljust(mask, b"\0"), min(bits, 24)


def apple_icons(data: bytes, most: int = 64) -> tuple[list[Icon], list[str]]:
    """Return the pictures of an ICNS, at most so many and one more, and the kinds of others, which nothing here opens.

    The one that Pillow opens, too, is among them.
    """
    blocks: dict[bytes, bytes] = {}
    found: list[Icon] = []
    unknown = []
    at = 8
    while at + 8 <= len(data) and len(found) <= most:
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "big")
        if size < 8:
            break
        block = data[at : at + size]
        blocks.setdefault(kind, block)
        at += size
    for kind, block in blocks.items():
        if kind in _APPLE:
            edge = _APPLE[kind]
            found.append(Icon(f"icon {edge}x{edge}", _icns(block, blocks.get(_APPLE_MASKS.get(kind, b""), b""))))
        elif kind in (b"ic04", b"ic05", b"icsb", b"icsB", b"sb24", b"SB24", b"\xfd\xd9\x2f\xa8"):
            unknown.append(kind.decode("latin-1"))
    return found[: most + 1], unknown


def _icns(*blocks: bytes) -> bytes:
    body = b"".join(blocks)
    return b"icns" + (8 + len(body)).to_bytes(4, "big") + body
