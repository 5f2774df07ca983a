"""The frames and the transparent colour of a PNG, by its chunks (PNG specification, third edition)."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from .canvas import Animation, Disposal, Part

MAGIC = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_CONTROL = struct.Struct(">IIIIIHHBB")
_GRAY, _COLORS, _PALETTE = 0, 2, 3
_ANIMATED = (b"acTL", b"fcTL", b"fdAT")
# Of these, viewers differ in which they take of several, or of one that is damaged.
_ONCE = (b"IHDR", b"acTL", b"PLTE", b"tRNS")


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    end: int


class _Frame(NamedTuple):
    """A frame's ``fcTL``, and where its data are."""

    control: tuple[int, ...]
    spans: list[tuple[int, int]]


def read_png(data: bytes, name: str) -> Animation:
    """Return the frames of a PNG; of one that is no animation the picture.

    Pillow paints black what an animation without alpha clears, begins one whose first picture is not part of it with
    that, and misreads the transparent colour of gray below 8 bits and of 16 bits per colour.

    Raises:
        ImageError: Its chunks contradict each other, so that viewers show different pictures.
    """
    chunks = list(_chunks(data))
    _refuse_repeated(data, chunks, name)
    found = {chunk.kind: data[chunk.start : chunk.end] for chunk in chunks if chunk.kind in _ONCE}
    if len(found.get(b"IHDR", b"")) != _HEADER.size:
        raise ImageError(f"{name} cannot be decoded: it has no whole header.")
    width, height, depth, color, *_ = _HEADER.unpack(found[b"IHDR"])
    still = [(chunk.start, chunk.end) for chunk in chunks if chunk.kind == b"IDAT"]
    key = _key(found.get(b"tRNS", b""), depth, color)
    misread = key is not None and _is_misread(found[b"tRNS"], depth, color)

    def part(frame: _Frame) -> Part:
        _, wide, high, left, top, _, _, disposal, blend = frame.control
        alone = partial(_decode, data, found, (wide, high), key, frame.spans)
        return Part((left, top, left + wide, top + high), Disposal(disposal), blend == 1, alone)

    whole = (0, width, height, 0, 0, 0, 0, 0, 0)
    if b"acTL" not in found:
        if any(chunk.kind in _ANIMATED for chunk in chunks):
            raise ImageError(f"{name} cannot be decoded: it has frames, but no acTL. Viewers differ in what they show.")
        return Animation((width, height), [part(_Frame(whole, still))], not misread)
    frames, hidden = _frames(data, chunks, name)
    _refuse_contradictions(frames, found[b"acTL"], (width, height), hidden, name)
    parts = [part(frame) for frame in frames]
    kept = all(one.disposal is Disposal.KEEP for one in parts[:-1])
    return Animation((width, height), parts, kept and not hidden and not misread)


def _chunks(data: bytes) -> Iterator[_Chunk]:
    at = len(MAGIC)
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        yield _Chunk(kind, at + 8, at + 8 + length)
        at += 12 + length
        if kind == b"IEND":
            return


def _refuse_repeated(data: bytes, chunks: list[_Chunk], name: str) -> None:
    seen: set[bytes] = set()
    for kind, start, end in chunks:
        if kind in _ONCE and (kind in seen or b"IDAT" in seen):
            raise ImageError(
                f"{name} cannot be decoded: {kind.decode()} is there twice, or behind its pixels. "
                "Viewers differ in what they show."
            )
        checksum = int.from_bytes(data[end : end + 4], "big")
        if kind in (*_ONCE, b"fcTL") and zlib.crc32(data[start - 4 : end]) != checksum:
            raise ImageError(f"{name} cannot be decoded: its {kind.decode()} has a wrong checksum.")
        seen.add(kind)


def _frames(data: bytes, chunks: list[_Chunk], name: str) -> tuple[list[_Frame], bool]:
    """Return the frames, and whether the still picture is none of them."""
    frames: list[_Frame] = []
    number, hidden, before = 0, False, b""
    for kind, start, end in chunks:
        wrong = False
        if kind in (b"fcTL", b"fdAT"):
            wrong = int.from_bytes(data[start : start + 4], "big") != number or end - start < 4
            number += 1
        if kind == b"fcTL":
            wrong |= end - start != _CONTROL.size or (bool(frames) and not frames[-1].spans)
            if not wrong:
                frames.append(_Frame(_CONTROL.unpack_from(data, start), []))
        elif kind == b"fdAT":
            wrong |= not frames or before == b"IDAT"
            if not wrong:
                frames[-1].spans.append((start + 4, end))
        elif kind == b"IDAT":
            hidden |= not frames
            wrong = len(frames) > 1 or (hidden and bool(frames))
            wrong |= not hidden and bool(frames[0].spans) and before != b"IDAT"
            if not wrong and not hidden:
                frames[0].spans.append((start, end))
        if wrong:
            raise ImageError(
                f"{name} cannot be decoded: its frames are out of order. Viewers differ in what they show."
            )
        before = kind
    return frames, hidden


def _refuse_contradictions(frames: list[_Frame], said: bytes, size: tuple[int, int], hidden: bool, name: str) -> None:
    if len(said) != 8 or int.from_bytes(said[:4], "big") != len(frames) or not all(frame.spans for frame in frames):
        raise ImageError(
            f"{name} cannot be decoded: it has other frames than its acTL says. Viewers differ in what they show."
        )
    for index, (_, wide, high, left, top, _, _, disposal, blend) in enumerate(frame.control for frame in frames):
        inside = wide and high and left + wide <= size[0] and top + high <= size[1]
        first = index == 0 and not hidden
        if not inside or disposal > 2 or blend > 1 or (first and (wide, high, left, top) != (*size, 0, 0)):
            raise ImageError(
                f"{name} cannot be decoded: frame {index} has a wrong place. Viewers differ in what they show."
            )


def _key(said: bytes, depth: int, color: int) -> tuple[int, ...] | None:
    """Return the samples of the transparent colour; of more bits than a sample has, the lower ones count."""
    count = {_GRAY: 1, _COLORS: 3}.get(color)
    if count is None or len(said) < 2 * count:
        return None
    return tuple(value & (1 << depth) - 1 for value in struct.unpack_from(f">{count}H", said))


def _is_misread(said: bytes, depth: int, color: int) -> bool:
    if depth == 16:
        return True
    values = struct.unpack_from(f">{len(said) // 2}H", said)
    return (color == _GRAY and depth in (1, 2, 4) and values[0] > 0) or any(value >= 1 << depth for value in values)


def _decode(
    data: bytes,
    found: dict[bytes, bytes],
    size: tuple[int, int],
    key: tuple[int, ...] | None,
    spans: list[tuple[int, int]],
) -> Image.Image:
    """Decode one frame, which is made a file of its own."""
    depth, color = found[b"IHDR"][8:10]
    chunks = [(b"IHDR", struct.pack(">II", *size) + found[b"IHDR"][8:])]
    chunks += [(kind, found[kind]) for kind in (b"PLTE", b"tRNS") if kind in found and color == _PALETTE]
    chunks += [(b"IDAT", data[start:end]) for start, end in spans] + [(b"IEND", b"")]
    file = MAGIC + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    picture = Image.open(io.BytesIO(file), formats=["PNG"])
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)[..., None]
        shown = Image.fromarray((values[..., 0] >> 8).astype(np.uint8))
    else:
        shown = picture.convert("RGB" if color == _COLORS else "L") if key is not None else picture
        values = np.asarray(shown).reshape(*shown.size[::-1], -1)
        if key is not None and depth == 16:
            values = values.astype(np.int64) << 8 | _low_bytes(file)
    layered = shown.convert("RGBA")
    if key is not None:
        scale = 255 // ((1 << depth) - 1) if depth < 8 else 1
        transparent = (values == np.array(key) * scale).all(axis=-1)
        layered.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    return layered


def _low_bytes(file: bytes) -> NDArray[Any]:
    """Decode the lower bytes of a PNG of three times 16 bits, which Pillow leaves out: as the upper ones of another."""
    picture = Image.open(io.BytesIO(file), formats=["PNG"])
    (tile,) = picture.tile
    changed: Any = (*tile[:3], "RGB;16L")
    picture.tile = [type(tile)(*changed) if hasattr(tile, "_fields") else changed]
    return np.asarray(picture)
