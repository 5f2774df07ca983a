"""The frames of a GIF, by its blocks (GIF89a specification)."""

from __future__ import annotations

import io
import struct
from functools import partial

from PIL import Image

from ..errors import ImageError
from .canvas import Animation, Disposal, Part

_SCREEN = struct.Struct("<HHBBB")
_IMAGE = struct.Struct("<HHHHB")
_CONTROL = 0xF9
# Browsers take 4 for 3, as some old documents do.
_DISPOSALS = {2: Disposal.CLEAR, 3: Disposal.RESTORE, 4: Disposal.RESTORE}


def read_gif(data: bytes, max_pixels: int, name: str) -> Animation:
    """Return the frames of a GIF.

    Pillow fills what is not painted or is cleared with the background colour, which browsers do not know. It also
    keeps a disposal and a transparent colour for frames that say nothing of theirs.

    Raises:
        ImageError: A frame has more than ``max_pixels``.
    """
    width, height, flags, _, _ = _SCREEN.unpack_from(data.ljust(13, b"\0"), 6)
    at = 13
    table, at = _table(data, at, flags)
    parts: list[Part] = []
    control, controls, as_pillow = b"", 0, True
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x21:
            start = at + 2
            at = _behind_blocks(data, start)
            if data[start - 1 : start] == bytes([_CONTROL]):
                control, controls = data[start : start + 5], controls + 1
        elif data[at] == 0x2C and at + 10 <= len(data):
            left, top, wide, high, flags = _IMAGE.unpack_from(data, at + 1)
            if wide * high > max_pixels:
                raise ImageError(
                    f"{name} cannot be decoded: a frame of {wide}x{high} is more than {max_pixels} pixels."
                )
            own, start = _table(data, at + 10, flags)
            at = _behind_blocks(data, start + 1)
            alone = partial(_decode, data, (wide, high), own or table, control, flags & 0x40, (start, at))
            said = control[1] >> 2 & 7 if len(control) > 1 else 0
            box = (left, top, left + wide, top + high)
            parts.append(Part(box, _DISPOSALS.get(said, Disposal.KEEP), True, alone))
            as_pillow &= controls < 2
            control, controls = b"", 0
        else:
            at += 1
    if not parts:
        return Animation((width, height), [], True)
    first = parts[0].box
    size = (max(width, first[2]), max(height, first[3]))
    as_pillow &= first == (0, 0, *size) and all(part.disposal is Disposal.KEEP for part in parts[:-1])
    as_pillow &= all(part.box[2] <= size[0] and part.box[3] <= size[1] for part in parts)
    return Animation(size, parts, as_pillow)


def _table(data: bytes, at: int, flags: int) -> tuple[bytes, int]:
    """Return a table of colours, if there is one, and where it ends."""
    end = at + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    return data[at:end], end


def _behind_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1


def _decode(
    data: bytes, size: tuple[int, int], table: bytes, control: bytes, interlaced: int, span: tuple[int, int]
) -> Image.Image:
    """Decode one frame, which is made a file of its own."""
    bits = (len(table) // 3).bit_length() - 2
    parts = [b"GIF89a", _SCREEN.pack(*size, 0x80 | bits if table else 0, 0, 0), table]
    if len(control) == 5:
        parts.append(b"!\xf9" + control + b"\0")
    parts += [b",", _IMAGE.pack(0, 0, *size, interlaced), data[span[0] : span[1]], b";"]
    return Image.open(io.BytesIO(b"".join(parts)), formats=["GIF"]).convert("RGBA")
