"""What an encoded file says about its colours: chunks of PNG, boxes of AVIF and HEIC, headers of BMP."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

from .av1 import coding_in_stream
from .icc import Refused, read_profile
from .light import ORDINARY, PRIMARIES, SHOWN_TRANSFERS, Coding

_PNG = b"\x89PNG\r\n\x1a\n"
_ICO = (b"\0\0\1\0", b"\0\0\2\0")
_MOST_PARTS = 4096  # boxes or chunks that are gone through
_MOST_PROFILE = 16 << 20
# Where a film's pictures are described, from the top.
_TO_SAMPLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
# Bytes in front of the boxes within a box: version and flags, and what describes a picture.
_SKIPPED = {b"meta": 4, b"stsd": 8, b"av01": 78, b"hvc1": 78, b"hev1": 78, b"avc1": 78, b"avc3": 78, b"encv": 78}


def profile_of(picture: Image.Image, data: bytes | None) -> bytes | None:
    """Return the ICC profile that counts: in a PNG the first, and none beside cICP; Pillow itself reads none of BMP."""
    if data is not None:
        png = _png_in(data, picture.size)
        if png is not None:
            chunks = _chunks(png)
            return None if _of_cicp(chunks) is not None else _unpacked(chunks.get(b"iCCP"))
        if data[:2] == b"BM" and data[70:74] == b"DEBM":  # PROFILE_EMBEDDED
            at, size = struct.unpack_from("<II", data.ljust(134, b"\0"), 126)
            return data[14 + at : 14 + at + size] or None
    profile = picture.info.get("icc_profile")
    return bytes(profile) if isinstance(profile, (bytes, bytearray)) and profile else None


def coding_of(picture: Image.Image, data: bytes | None) -> Coding | None:
    """Return what a file says besides an ICC profile, if that counts and isn't sRGB.

    In PNG, cICP counts before iCCP, sRGB, and gAMA with cHRM, in this order (PNG specification, third edition); a part
    that is nonsense does not count. In AVIF and HEIC the primary picture's ``colr`` box counts where there is no
    profile.

    Args:
        picture: As Pillow opened it.
        data: The encoded file; ``None``: only what ``picture.info`` has of it.
    """
    if data is not None and (png := _png_in(data, picture.size)) is not None:
        coding = _of_png(_chunks(png))
    elif _counts(profile_of(picture, data)):
        return None
    elif data is not None and data[4:8] == b"ftyp":
        coding = _of_boxes(data) or _of_info(picture.info)
    else:
        coding = _of_info(picture.info)
    return None if coding is None or coding.plain else coding


def _counts(profile: bytes | None) -> bool:
    """Whether a profile is there and whole; one for other pictures counts too, and changes nothing."""
    if profile is None:
        return False
    try:
        read_profile(profile)
    except Refused:
        return False
    return True


def _of_cicp(chunks: dict[bytes, bytes]) -> Coding | None:
    code = chunks.get(b"cICP", b"")
    if len(code) != 4 or code[0] not in PRIMARIES or code[1] not in SHOWN_TRANSFERS or code[3] != 1:
        return None
    # Here, and only here, Chromium decodes a camera's curve as screens do, by BT.1886's exponent.
    camera = code[1] in ORDINARY and code[1] != 13
    return Coding(None, code[0], 1 / 2.4) if camera else Coding(code[1], code[0])


def _of_png(chunks: dict[bytes, bytes]) -> Coding | None:
    if (coding := _of_cicp(chunks)) is not None:
        return coding
    srgb = chunks.get(b"sRGB", b"")
    if (len(srgb) == 1 and srgb[0] < 4) or _counts(_unpacked(chunks.get(b"iCCP"))):
        return None
    return _of_gamma(_fixed(chunks.get(b"gAMA"), 1), _fixed(chunks.get(b"cHRM"), 8))


def _fixed(data: bytes | None, count: int) -> tuple[float, ...] | None:
    if data is None or len(data) != 4 * count:
        return None
    return tuple(value / 100_000 for value in struct.unpack(f">{count}I", data))


def _of_gamma(gamma: tuple[float, ...] | None, chromaticity: tuple[float, ...] | None) -> Coding | None:
    if gamma is None:  # chromaticities alone say nothing
        return None
    # A file names white first.
    primaries = None if chromaticity is None else (*chromaticity[2:], *chromaticity[:2])
    return Coding(None, primaries, gamma[0])


def _of_info(info: dict[Any, Any]) -> Coding | None:
    codes = info.get("nclx_profile")
    if isinstance(codes, dict):
        return Coding(_code(codes.get("transfer_characteristics")), _code(codes.get("color_primaries")))
    gamma, chromaticity = info.get("gamma"), info.get("chromaticity")
    if "srgb" in info or not isinstance(gamma, (int, float)):
        return None
    whole = isinstance(chromaticity, (tuple, list)) and len(chromaticity) == 8
    return _of_gamma((float(gamma),), tuple(float(value) for value in chromaticity or ()) if whole else None)


def _code(value: Any) -> int | None:
    return int(value) if isinstance(value, int) else None


def _png_in(data: bytes, size: tuple[int, int]) -> memoryview | None:
    """A PNG, or the one of this size in an ICO; without a copy."""
    view = memoryview(data)
    if data[:8] == _PNG:
        return view
    if data[:4] in _ICO:
        for index in range(int.from_bytes(data[4:6], "little")):
            entry = data[6 + 16 * index : 22 + 16 * index]
            at = int.from_bytes(entry[12:16], "little")
            if len(entry) == 16 and data[at : at + 8] == _PNG:
                within = struct.unpack_from(">II", data.ljust(at + 24, b"\0") if at + 24 > len(data) else data, at + 16)
                if within == size:
                    return view[at : at + int.from_bytes(entry[8:12], "little")]
    return None


def _chunks(png: memoryview) -> dict[bytes, bytes]:
    """The chunks in front of the pixels, the first of each name; those with a wrong checksum do not count."""
    chunks: dict[bytes, bytes] = {}
    at = 8
    for _ in range(_MOST_PARTS):
        head = bytes(png[at : at + 8])
        if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
            break
        length = int.from_bytes(head[:4], "big")
        if head[4:] in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM") and head[4:] not in chunks:
            body = bytes(png[at + 8 : at + 8 + length])
            if zlib.crc32(head[4:] + body) == int.from_bytes(png[at + 8 + length : at + 12 + length], "big"):
                chunks[head[4:]] = body
        at += 12 + length
    return chunks


def _unpacked(chunk: bytes | None) -> bytes | None:
    """The profile in a chunk: a name, how it is compressed, and the rest."""
    if chunk is None or (at := chunk.find(b"\0", 0, 80)) < 0:
        return None
    try:
        return zlib.decompressobj().decompress(chunk[at + 2 :], _MOST_PROFILE)
    except zlib.error:
        return b""  # one that is there, and refused


def _of_boxes(data: bytes) -> Coding | None:
    """The code points of the primary picture, or of the first film of a sequence."""
    view = memoryview(data)
    top = dict(reversed(list(_boxes(view))))  # the first of each name
    sequence = data[8:12] in (b"avis", b"msf1", b"hevc", b"hevx")
    places = [_of_track, _of_item] if sequence else [_of_item, _of_track]
    for place in places:
        if (coding := place(top)) is not None:
            return coding
    return _of_streams(view, top)


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The boxes in a place, in order: name and content. What does not fit ends it."""
    at = 0
    for _ in range(_MOST_PARTS):
        if at + 8 > len(data):
            return
        length, name, start = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8]), at + 8
        if length == 1:
            length, start = int.from_bytes(data[start : start + 8], "big"), at + 16
        end = len(data) if length == 0 else at + length
        if end < start or (end > len(data) and name == b"colr"):
            return
        yield name, data[min(start + _SKIPPED.get(name, 0), len(data)) : end]
        at = end


def _nclx(box: memoryview) -> Coding | None:
    if bytes(box[:4]) != b"nclx" or len(box) < 10:
        return None
    primaries, transfer = struct.unpack_from(">HH", box, 4)
    return Coding(transfer, primaries)


def _of_track(top: dict[bytes, memoryview]) -> Coding | None:
    places = [top]
    for name in _TO_SAMPLES:
        boxes = [place[name] for place in places if name in place]
        places = [{inner: content} for box in boxes for inner, content in _boxes(box)]
    for place in places:
        for sample in place.values():
            for name, box in _boxes(sample):
                if name == b"colr" and (coding := _nclx(box)) is not None:
                    return coding
    return None


def _of_item(top: dict[bytes, memoryview]) -> Coding | None:
    within = dict(_boxes(top[b"meta"])) if b"meta" in top else {}
    parts = dict(_boxes(within[b"iprp"])) if b"iprp" in within else {}
    properties = list(_boxes(parts[b"ipco"])) if b"ipco" in parts else []
    codings = [_nclx(box) if name == b"colr" else None for name, box in properties]
    primary = _number(within.get(b"pitm"))
    mine = _associated(parts.get(b"ipma"), primary)
    for index in mine:
        if index <= len(codings) and (coding := codings[index - 1]) is not None:
            return coding
    # None is the primary picture's own: that of its tiles, whichever they are.
    return next((coding for coding in codings if coding is not None and not coding.plain), None)


def _of_streams(data: memoryview, top: dict[bytes, memoryview]) -> Coding | None:
    """The code points in the bitstream of a picture, whichever it is: its tiles' or its alpha's may count too."""
    iloc = dict(_boxes(top[b"meta"])).get(b"iloc") if b"meta" in top else None
    streams = (coding_in_stream(data[at:]) for at in _locations(iloc))
    return next((coding for coding in streams if coding is not None and not coding.plain), None)


def _locations(iloc: memoryview | None) -> Iterator[int]:
    """Where items start in the file (ISO/IEC 14496-12, 8.11.3)."""
    if iloc is None or len(iloc) < 8:
        return
    version, at = iloc[0], 6
    offset_size, length_size, base_size, index_size = iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4, iloc[5] & 15

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(iloc[at - size : at], "big")

    for _ in range(min(number(4 if version == 2 else 2), _MOST_PARTS)):
        number((4 if version == 2 else 2) + (2 if version else 0) + 2)
        base = number(base_size)
        for extent in range(number(2)):
            if at >= len(iloc):
                return
            number(index_size if version else 0)
            start = base + number(offset_size)
            number(length_size)
            if extent == 0:
                yield start


def _number(pitm: memoryview | None) -> int | None:
    return None if pitm is None or len(pitm) < 6 else int.from_bytes(pitm[4 : 8 if pitm[0] else 6], "big")


def _associated(ipma: memoryview | None, item: int | None) -> list[int]:
    """The numbers, from 1, of an item's properties."""
    if ipma is None or item is None or len(ipma) < 8:
        return []
    wide_items, wide_properties = ipma[0] > 0, ipma[3] & 1
    at = 8
    while at < len(ipma):
        step = 4 if wide_items else 2
        which, count = (
            int.from_bytes(ipma[at : at + step], "big"),
            int.from_bytes(ipma[at + step : at + step + 1], "big"),
        )
        at += step + 1
        size = 2 if wide_properties else 1
        if which == item:
            each = [int.from_bytes(ipma[at + size * one : at + size * (one + 1)], "big") for one in range(count)]
            return [value & (0x7FFF if wide_properties else 0x7F) for value in each]
        at += size * count
    return []
