"""GIF, PNG, BMP and ICO files made by hand, of which browsers show something else than Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from nsfw_guard.demo.shapes import draw
from nsfw_guard.images import to_picture

BLUE = (0x30, 0x50, 0xD0)
EDGE = 128


def mask(name, edge=EDGE):
    """Where a shape is, ``[H, W]``."""
    red = to_picture(draw(name, "red", "white")).getchannel("G").resize((edge, edge))
    return np.asarray(red) < 128


def strips(name, *, outside=False, height=4):
    """A shape, or what is around it, in strips: left, top, width, height; from its middle outwards."""
    inside, found = mask(name), []
    rows = np.flatnonzero(inside.any(axis=1))
    middle = (int(rows[0]) + int(rows[-1])) // 2
    for top in sorted(range(0, EDGE, height), key=lambda row: abs(row - middle)):
        columns = np.flatnonzero(inside[top])
        if not len(columns):
            spans = [(0, EDGE)] if outside else []
        else:
            left, right = int(columns[0]), int(columns[-1]) + 1
            spans = [(0, left), (right, EDGE)] if outside else [(left, right)]
        found += [(start, top, stop - start, height) for start, stop in spans if stop > start]
    return found


def lzw(pixels):
    """Codes of 3 bits, the table cleared before it grows."""
    codes = [4]
    for number, pixel in enumerate(pixels, 1):
        codes += [pixel] if number % 2 else [pixel, 4]
    bits = "".join(f"{code:03b}"[::-1] for code in [*codes, 5])
    data = bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    blocks = b"".join(bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255))
    return b"\2" + blocks + b"\0"


def gif(frames, size=(EDGE, EDGE)):
    """Frames of one colour, blue: a place, and a disposal."""
    data = b"GIF89a" + struct.pack("<HHBBB", *size, 0xF1, 0, 0) + bytes(BLUE) + b"\xff" * 9
    for (left, top, width, height), disposal in frames:
        data += b"!\xf9\4" + bytes([disposal << 2]) + struct.pack("<H", 2) + b"\0\0"
        data += b"," + struct.pack("<HHHHB", left, top, width, height, 0) + lzw([0] * (width * height))
    return data + b";"


WHOLE, CORNER = (0, 0, EDGE, EDGE), (0, 0, 1, 1)


def gif_cleared(name):
    return gif([(WHOLE, 1), *((strip, 2) for strip in strips(name)), (CORNER, 1)])


def gif_unpainted(name):
    return gif([(strip, 1) for strip in sorted(strips(name, outside=True), key=lambda strip: strip[1])])


def gif_not_cleared(name):
    """Pillow takes the first frame's disposal for that of the others, which have none."""
    return gif([(CORNER, 2), *((strip, 0) for strip in strips(name)), (CORNER, 1)])


def gif_first_restored(name):
    """What a first frame covered is transparent again."""
    return gif([(WHOLE, 3), *((strip, 1) for strip in strips(name))])


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth, color, rows, *chunks, size=None, interlace=0):
    """A PNG of rows as they are stored."""
    size = size or (EDGE, len(rows))
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + b"".join((chunk(b"IHDR", head), *chunks, chunk(b"IDAT", packed), chunk(b"IEND", b"")))


def _pixels(width, height, color):
    return zlib.compress(b"".join(b"\0" + bytes(color) * width for _ in range(height)))


def apng(frames, *, count=None, repeat=1, hidden=None, first=0):
    """Frames of one colour: a place, a disposal and a colour; ``hidden``: the still picture's, which is no frame."""
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", EDGE, EDGE, 8, 2, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">II", len(frames) if count is None else count, 0)) * repeat
    if hidden is not None:
        data += chunk(b"IDAT", _pixels(EDGE, EDGE, hidden))
    number = first
    for index, ((left, top, width, height), disposal, color) in enumerate(frames):
        data += chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, left, top, 2, 100, disposal, 0))
        number += 1
        packed = _pixels(width, height, color)
        if index == 0 and hidden is None:
            data += chunk(b"IDAT", packed)
        else:
            data += chunk(b"fdAT", struct.pack(">I", number) + packed)
            number += 1
    return data + chunk(b"IEND", b"")


BLACK = (0, 0, 0)


def apng_cleared(name):
    return apng([(WHOLE, 0, BLACK), *((strip, 1, BLACK) for strip in strips(name)), (CORNER, 0, BLACK)])


def apng_behind_a_still(name):
    """The still picture is as blue as the frames, and is not there when they are shown."""
    return apng([(strip, 0, BLUE) for strip in strips(name)], hidden=BLUE)


def gray_key(name, depth):
    """Gray whose mean is the same everywhere: every second pixel of the shape is the transparent one."""
    edge = 512 if depth < 8 else EDGE
    inside, most = mask(name, edge), (1 << depth) - 1
    rows, columns = np.indices(inside.shape)
    odd = (rows + columns) % 2 == 1
    low, middle = most // 3, 2 * most // 3
    levels = np.where(inside, np.where(odd, most, low), middle) if depth < 8 else np.where(inside, most, most - 1)
    bits = (levels[..., None] >> np.arange(depth)[::-1] & 1).reshape(edge, -1)
    key = most if depth < 8 else most + 256
    packed = np.packbits(bits.astype(np.uint8), axis=1)
    return png(depth, 0, packed, chunk(b"tRNS", struct.pack(">H", key)), size=(edge, edge))


def wide_key(name, color):
    """16 bits: the transparent colour is one level away from the other."""
    channels = 3 if color == 2 else 1
    levels = np.where(mask(name)[..., None], 65535, 65534).repeat(channels, axis=2).astype(">u2")
    if color == 0:
        levels[0, 0] = 0
    return png(16, color, levels, chunk(b"tRNS", b"\xff\xff" * channels))


def narrow_key(name):
    """8 bits per colour: of a key of 9 bits the lower ones count."""
    levels = np.where(mask(name)[..., None], 255, 254).repeat(3, axis=2).astype(np.uint8)
    return png(8, 2, levels, chunk(b"tRNS", b"\1\xff" * 3))


def opened_wide_key(name):
    picture = Image.fromarray(np.where(mask(name), 65535, 65534).astype(np.uint16))
    picture.info["transparency"] = 65535
    return picture


def bmp(bits, compression, pixels, *, header=40, masks=(), table=b"", height=EDGE):
    head = struct.pack(
        "<IiiHHIIiiII", header, EDGE, height, 1, bits, compression, len(pixels), 0, 0, len(table) // 4, 0
    )
    head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0") + table
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


def bmp_alpha(name, header=40, *, down=False):
    levels = np.full((EDGE, EDGE, 4), 255, np.uint8)
    levels[mask(name), 3] = 0
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000) if header > 40 else ()
    rows = levels if down else levels[::-1]
    return bmp(32, 0, rows.tobytes(), header=header, masks=masks, height=-EDGE if down else EDGE)


def bmp_alpha_bit(name):
    levels = np.where(mask(name), 0x7FFF, 0xFFFF).astype("<u2")[::-1]
    return bmp(16, 3, levels.tobytes(), header=108, masks=(0x7C00, 0x3E0, 0x1F, 0x8000))


def bmp_runs(name, bits):
    """All is white; the shape's pixels are skipped."""
    data, value = b"", 0x11 if bits == 4 else 1
    for row in mask(name)[::-1]:
        columns = np.flatnonzero(row)
        if len(columns):
            first, last = int(columns[0]), int(columns[-1])
            data += bytes([first, value, 0, 2, last + 1 - first, 0, EDGE - last - 1, value])
        else:
            data += bytes([EDGE, value])
        data += b"\0\0"
    return bmp(bits, 1 if bits == 8 else 2, data[:-2] + b"\0\1", table=b"\xff\xff\xff\0" * 2)


def icon_of(png):
    """An icon of one PNG."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", EDGE, EDGE, 0, 0, 1, 32, len(png), 22) + png


def icon(count, *, overlapping=False):
    """An icon of so many small circles."""
    file = io.BytesIO()
    to_picture(draw("circle", "red", "white")).resize((16, 16)).save(file, "PNG")
    one, at = file.getvalue(), 6 + 16 * count
    entries = b"".join(
        struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(one), at + (0 if overlapping else index * len(one)))
        for index in range(count)
    )
    return struct.pack("<HHH", 0, 1, count) + entries + one * (1 if overlapping else count)
