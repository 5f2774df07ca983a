"""EXIF's orientation, as it is written down."""

from __future__ import annotations

import struct

ORIENTATION = 0x0112  # EXIF's tag
_SHORT = 3


def has_orientation(exif: object) -> bool:
    """Return whether EXIF holds an orientation of the type that it must have: others are ignored by some viewers."""
    if not isinstance(exif, bytes):
        return False
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return False
    try:
        (at,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        entries = [struct.unpack_from(f"{order}HHI", data, at + 2 + 12 * index) for index in range(count)]
    except struct.error:
        return False
    found = [entry[1:] for entry in entries if entry[0] == ORIENTATION]
    return found == [(_SHORT, 1)]
