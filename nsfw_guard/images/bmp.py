"""The alpha of a BMP, which Pillow leaves out and browsers show."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

_HEADER = struct.Struct("<IiiHHIIiiII")
_RGB, _RLE8, _RLE4, _FIELDS = 0, 1, 2, 3


def layered_bmp(data: bytes, picture: Image.Image) -> Image.Image | None:
    """Return a BMP with its alpha.

    That is what a header's mask names, the fourth byte of 32 bits, or where run lengths leave pixels out.

    Args:
        data: The file.
        picture: As Pillow opened it.

    Returns:
        RGBA; ``None``: it is opaque, or Pillow shows its alpha.
    """
    if len(data) < 14 + _HEADER.size or picture.mode == "RGBA":
        return None
    size, width, height, _, bits, compression, *_ = _HEADER.unpack_from(data, 14)
    if size < _HEADER.size:
        return None
    if (bits, compression) in ((8, _RLE8), (4, _RLE4)):
        return _of_runs(data, size, (width, height), bits)
    if bits not in (16, 32) or compression not in (_RGB, _FIELDS):
        return None
    mask = _alpha_mask(data, size, bits, compression)
    start = int.from_bytes(data[10:14], "little") or 14 + size + (12 if size == 40 and compression == _FIELDS else 0)
    row = (width * bits + 31) // 32 * (32 // bits)
    count = row * abs(height)
    if not mask or start + count * bits // 8 > len(data):
        return None  # a file that is cut off is refused when it is decoded
    values = np.frombuffer(data, f"<u{bits // 8}", count, start).reshape(-1, row)[:, :width]
    low = (mask & -mask).bit_length() - 1
    most = mask >> low
    alpha = ((values.astype(np.int64) & mask) >> low) * 255 // most
    if not alpha.any() or alpha.min() == 255:
        return None
    layered = picture.convert("RGBA")
    layered.putalpha(Image.fromarray((alpha if height < 0 else alpha[::-1]).astype(np.uint8)))
    return layered


def _alpha_mask(data: bytes, size: int, bits: int, compression: int) -> int:
    """Return the bits that are alpha, where they are one group."""
    said = int.from_bytes(data[66:70], "little") if size >= 56 else 0
    if not said and bits == 32:
        # Some viewers show a fourth byte of which the header says nothing.
        colors = 0xFFFFFF if compression == _RGB else _or(struct.unpack_from("<III", data.ljust(66, b"\0"), 54))
        said = 0xFFFFFFFF & ~colors
    said &= (1 << bits) - 1
    group = said + (said & -said)
    return said if said and not group & said else 0


def _or(values: tuple[int, ...]) -> int:
    return values[0] | values[1] | values[2]


def _of_runs(data: bytes, size: int, shape: tuple[int, int], bits: int) -> Image.Image | None:
    """Decode run lengths, as Windows' documentation on bitmap compression has them; ``None``: all is painted."""
    width, height = shape
    if width < 1 or height < 1:
        return None
    count = int.from_bytes(data[46:50], "little") or 1 << bits
    at = int.from_bytes(data[10:14], "little") or 14 + size + 4 * count
    pixels, painted = np.zeros((height, width), np.uint8), np.zeros((height, width), bool)
    x = y = 0
    while at + 2 <= len(data) and y < height:
        length, value = data[at], data[at + 1]
        at += 2
        if length:
            run = [value] * length if bits == 8 else [value >> 4, value & 15] * (length // 2 + 1)
        elif value == 0:
            x, y = 0, y + 1
            continue
        elif value == 1:
            break
        elif value == 2:
            x, y, at = x + data[at], y + data[at + 1], at + 2
            continue
        else:
            length, stored = value, value if bits == 8 else (value + 1) // 2
            block = data[at : at + stored]
            run = list(block) if bits == 8 else [half for one in block for half in (one >> 4, one & 15)]
            at += stored + stored % 2
        end = min(x + length, width)
        run = run[: max(end - x, 0)]
        pixels[y, x : x + len(run)] = run
        painted[y, x : x + len(run)] = True
        x += length
    if painted.all():
        return None
    table = np.zeros((256, 3), np.uint8)
    stored_table = np.frombuffer(data[14 + size : 14 + size + 4 * min(count, 256)], np.uint8)
    colors = stored_table[: len(stored_table) // 4 * 4].reshape(-1, 4)
    table[: len(colors)] = colors[:, 2::-1]
    layered = np.dstack([table[pixels], np.where(painted, 255, 0).astype(np.uint8)])
    return Image.fromarray(layered[::-1].copy())
