"""ICC profiles through littleCMS, of which only what browsers go by reaches it."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from .light import PRIMARIES, SHOWN_TRANSFERS, Coding

# Levels that differ by so little are the same: profiles of sRGB are rounded in different ways.
_SAME = 2
_COLUMNS = (b"rXYZ", b"gXYZ", b"bXYZ")
_CURVES = (b"rTRC", b"gTRC", b"bTRC", b"kTRC")
# A table for a rendering intent, in the order in which browsers look for one. They know no others.
_TABLES = (b"A2B0", b"A2B1")
_BACK = (b"B2A0", b"B2A1")
_RELATIVE = 1  # littleCMS's relative colorimetric intent: no black point compensation, as in browsers
_UNOPTIMIZED = 0x0100  # littleCMS's: else tables are resampled, and what lies between their points is lost
_CACHED_SIZE = 4 << 20
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_D50 = (0.9642, 1.0, 0.8249)


class Refused(Exception):
    """A profile that does not say how a picture is shown; the text says why."""


@dataclass(frozen=True)
class Profile:
    """A profile that was read.

    Attributes:
        mode: Of the pictures that it is for: ``"RGB"``, ``"L"`` or ``"CMYK"``.
        same: Such pictures are shown as they are stored, within 2/255.
        coding: What counts in its stead, of the tag ``cicp``.
        to_srgb: littleCMS's transform to sRGB; ``None``: not needed.
    """

    mode: str
    same: bool = False
    coding: Coding | None = None
    to_srgb: ImageCms.ImageCmsTransform | None = field(default=None, repr=False)

    def apply(self, picture: Image.Image) -> Image.Image:
        """Return the RGB picture of one in ``mode``, as it is shown."""
        if self.to_srgb is None:
            return picture.convert("RGB")
        shown = self.to_srgb.apply(picture)
        shown.info = {}
        return shown


def read_profile(data: bytes) -> Profile:
    """Read a profile and judge it. What it calls itself does not count.

    Raises:
        Refused: It is damaged, of an unknown kind, or littleCMS refuses it.
    """
    # What is hardly ever seen again is not kept: the cache stays within some 100 MB.
    read = _read_cached if len(data) <= _CACHED_SIZE else _read
    profile = read(data)
    if isinstance(profile, str):
        raise Refused(profile)
    return profile


def _read(data: bytes) -> Profile | str:
    try:
        return _judged(data)
    except Refused as error:
        return str(error)
    except (ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError, MemoryError, struct.error) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__


_read_cached = lru_cache(maxsize=16)(_read)


def _judged(data: bytes) -> Profile:
    tags = _tags(data)
    space = data[16:20]
    if space not in _MODES:
        raise Refused(f"it is for {space.decode('ascii', 'replace').strip() or 'no'} colours")
    mode = _MODES[space]
    # Made anew: littleCMS then sees no other tables, no names, and no sizes that are not so.
    lean = _lean(tags, space, data[20:24])
    if mode != "CMYK" and (coding := _cicp(tags.get(b"cicp", b""))) is not None:
        return Profile(mode, same=coding.plain, coding=coding)
    exact = _transform(lean, mode, _UNOPTIMIZED)
    if any(name in tags for name in _TABLES) or mode == "CMYK":
        return Profile(mode, to_srgb=exact)
    # Curves and a matrix.
    ramps = Image.fromarray(_ramps(mode))
    shown = np.asarray(exact.apply(ramps)).astype(np.int16)
    if np.abs(shown - np.asarray(ramps.convert("RGB"))).max() <= _SAME:
        return Profile(mode, same=True)
    quick = _transform(lean, mode, 0)
    faithful = np.abs(shown - np.asarray(quick.apply(ramps))).max() <= _SAME
    return Profile(mode, to_srgb=quick if faithful else exact)


def _transform(profile: bytes, mode: str, flags: int) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent(_RELATIVE),
        flags=flags,  # type: ignore[arg-type]  # Pillow's names for flags changed
    )


def _tags(data: bytes) -> dict[bytes, bytes]:
    """The tags by their name, the first of each.

    What a browser refuses is refused: where a PNG has such a profile, its gAMA counts.
    """
    if len(data) < 132 or data[36:40] != b"acsp":
        raise Refused("it is cut off, or no ICC profile")
    size, count = int.from_bytes(data[:4], "big"), int.from_bytes(data[128:132], "big")
    if size > len(data) or 132 + 12 * count > size:
        raise Refused(f"it says {size} bytes and {count} tags, and has {len(data)} bytes")
    if data[8] > 4:
        raise Refused(f"its version is {data[8]}, and 4 is the last that is known")
    if data[20:24] not in (b"XYZ ", b"Lab "):
        raise Refused("it connects to neither XYZ nor Lab")
    white = np.array(struct.unpack_from(">3i", data, 68)) / 65536
    if np.abs(white - _D50).max() > 0.01:
        raise Refused("its illuminant is not D50")
    tags: dict[bytes, bytes] = {}
    for at in range(132, 132 + 12 * count, 12):
        name, start, length = struct.unpack_from(">4sII", data, at)
        if start < 132 or length < 4 or start + length > size:
            raise Refused(f"its tag {name.decode('ascii', 'replace')!r} lies outside of it")
        tags.setdefault(name, data[start : start + length])
    for name in _BACK:
        if tags.get(name, b"mBA ")[:4] not in (b"mft1", b"mft2", b"mBA "):
            raise Refused(f"its tag {name.decode()!r} is none")
    return tags


def _cicp(tag: bytes) -> Coding | None:
    """H.273's code points in a profile, where a browser goes by them: of RGB, of full range, no logarithms."""
    if len(tag) < 12 or tag[:4] != b"cicp":
        return None
    primaries, transfer, matrix, full_range = tag[8:12]
    if primaries not in PRIMARIES or transfer not in SHOWN_TRANSFERS or matrix or full_range != 1:
        return None
    return Coding(transfer, primaries)


def _lean(tags: dict[bytes, bytes], space: bytes, connection: bytes) -> bytes:
    """Make a profile of those tags that say how pictures are shown."""
    table = next((tags[name] for name in _TABLES if name in tags), None)
    if table is not None:
        kept = {b"A2B0": table}
    else:
        wanted = _CURVES[3:] if space == b"GRAY" else (*_COLUMNS, *_CURVES[:3])
        missing = [name.decode() for name in wanted if name not in tags]
        if missing:
            raise Refused(f"it has no {missing[0]} among its {len(tags)} tags")
        kept = {name: _short(tags[name]) if name in _CURVES else tags[name] for name in wanted}
    kept[b"wtpt"] = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in _D50))
    index, body = b"", b""
    for name, tag in kept.items():
        index += struct.pack(">4sII", name, 132 + 12 * len(kept) + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    size = 132 + len(index) + len(body)
    head: bytes = struct.pack(">I4sI4s4s4s12x4s28x", size, bytes(4), 0x04300000, b"mntr", space, connection, b"acsp")
    head += struct.pack(">3i", *(round(value * 65536) for value in _D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(kept)) + index + body


def _short(curve: bytes) -> bytes:
    """Sample a long table at the 256 levels there are: littleCMS refuses very long ones."""
    count = int.from_bytes(curve[8:12], "big")
    if curve[:4] != b"curv" or count <= 256 or len(curve) < 12 + 2 * count:
        return curve
    values = np.frombuffer(curve, ">u2", count, 12)
    sampled = np.interp(np.linspace(0, count - 1, 256), np.arange(count), values)
    table: bytes = np.round(sampled).astype(">u2").tobytes()
    return curve[:8] + struct.pack(">I", 256) + table


@lru_cache(maxsize=2)
def _ramps(mode: str) -> NDArray[np.uint8]:
    """All levels of gray, and for RGB ``[4, 256, 3]`` of each channel too.

    That is enough for a matrix: light that one channel adds to another is seen where the other has none. What it takes
    away, the other would have to add itself, or gray is no longer gray.
    """
    level = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return level[None]
    ramps = np.zeros((4, 256, 3), np.uint8)
    ramps[0] = level[:, None]
    for channel in range(3):
        ramps[1 + channel, :, channel] = level
    return ramps
