"""ICC profiles, PNG chunks and BMP headers, made by hand: what says how a picture's numbers stand for light."""

from __future__ import annotations

import struct
import zlib

import numpy as np

# xy of red, green, blue and white.
SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.3290)
ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290)
D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def gamma_curve(exponent):
    """A parametric curve, which unlike ``curv`` holds an exponent below 1 and above 256."""
    return b"para" + bytes(4) + struct.pack(">HHi", 0, 0, round(exponent * 65536))


def table_curve(values):
    """A sampled curve of numbers from 0 to 1."""
    levels = np.round(np.asarray(values) * 65535).astype(">u2").tobytes()
    return b"curv" + bytes(4) + struct.pack(">I", len(values)) + levels


def srgb_curve():
    numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para" + bytes(4) + struct.pack(">HH5i", 3, 0, *(round(number * 65536) for number in numbers))


def xyz(values):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(value) * 65536) for value in values))


def text(words):
    return b"desc" + bytes(4) + struct.pack(">I", len(words) + 1) + words.encode() + bytes(1 + 4 + 4 + 2 + 1 + 67)


def profile(tags, *, space=b"RGB ", pcs=b"XYZ ", version=0x02400000, kind=b"mntr"):
    """The bytes of a profile with such tags."""
    tags = {b"desc": text("made by hand"), b"wtpt": xyz(D50), **tags}
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), version, kind, space, pcs)
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", *(round(value * 65536) for value in D50))
    return head.ljust(128, b"\0") + table + body


def columns(primaries):
    """The XYZ of red, green and blue, adapted to D50 (Bradford)."""
    points = np.array(primaries).reshape(4, 2)
    rays = np.stack([points[:, 0] / points[:, 1], np.ones(4), (1 - points.sum(1)) / points[:, 1]])
    native = rays[:, :3] * np.linalg.solve(rays[:, :3], rays[:, 3])
    cones = (_BRADFORD @ np.array(D50)) / (_BRADFORD @ rays[:, 3])
    return np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD @ native


def matrix_tags(primaries=SRGB, curve=None):
    """The tags of a matrix profile; the curve is one for all channels, or three."""
    curves = curve if isinstance(curve, tuple) else (curve or srgb_curve(),) * 3
    tags = {}
    for letter, column, one in zip((b"r", b"g", b"b"), columns(primaries).T, curves, strict=True):
        tags[letter + b"XYZ"], tags[letter + b"TRC"] = xyz(column), one
    return tags


def matrix_profile(primaries=SRGB, curve=None, **more):
    return profile(matrix_tags(primaries, curve) | more.pop("tags", {}), **more)


def gray_profile(curve):
    return profile({b"kTRC": curve}, space=b"GRAY")


def lut16(channels, lattice, *, curves=None, entries=256):
    """A lut16Type tag to Lab: ``lattice`` is [grid, ..., grid, 3], of version 2's 16-bit Lab; curves [channels, n]."""
    grid = lattice.shape[0]
    curves = np.tile(np.linspace(0, 65535, entries), (channels, 1)) if curves is None else np.asarray(curves)
    data = b"mft2" + bytes(4) + struct.pack(">4B", channels, 3, grid, 0)
    data += struct.pack(">9i", *(65536 if index % 4 == 0 else 0 for index in range(9)))
    data += struct.pack(">HH", curves.shape[1], 2)
    data += np.round(curves).astype(">u2").tobytes() + np.round(lattice).astype(">u2").tobytes()
    return data + np.tile([0, 65535], (3, 1)).astype(">u2").tobytes()


def lab16(light):
    """Version 2's 16-bit Lab of XYZ relative to D50, [..., 3]."""
    ratio = np.clip(light / np.array(D50), 0, None)
    root = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    lab = np.stack(
        [116 * root[..., 1] - 16, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], axis=-1
    )
    return np.clip(lab * [652.80, 256, 256] + [0, 32768, 32768], 0, 65535)


def decoded(levels):
    """SRGB's numbers from 0 to 1 as linear light."""
    levels = np.asarray(levels, dtype=float)
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def rgb_lut_tag(*, curves=None, grid=33):
    """An A2B tag of sRGB itself, but for its input curves."""
    axis = np.linspace(0, 1, grid)
    colors = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    return lut16(3, lab16(decoded(colors) @ columns(SRGB).T), curves=curves)


def cmyk_profile(*, invert=False, grid=9):
    """Ink on paper, naively; ``invert`` shows ink as paper."""
    axis = np.linspace(0, 1, grid)
    c, m, y, k = np.meshgrid(axis, axis, axis, axis, indexing="ij")
    colors = np.stack([(1 - ink) * (1 - k) for ink in (c, m, y)], axis=-1)
    colors = 1 - colors if invert else colors
    tag = lut16(4, lab16(decoded(colors) @ columns(SRGB).T))
    return profile({b"A2B0": tag}, space=b"CMYK", pcs=b"Lab ", kind=b"prtr")


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def gama(exponent):
    return chunk(b"gAMA", struct.pack(">I", round(exponent * 100_000)))


def chrm(primaries):
    order = (*primaries[6:], *primaries[:6])
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in order)))


def cicp(primaries, transfer, matrix=0, full=1):
    return chunk(b"cICP", bytes((primaries, transfer, matrix, full)))


def iccp(data):
    return chunk(b"iCCP", b"made by hand\0\0" + zlib.compress(data))


def with_chunks(png, *chunks):
    """A PNG with chunks put behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]
