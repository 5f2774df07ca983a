"""The colours that an AV1 bitstream names itself: they count where an AVIF's boxes name none."""

from __future__ import annotations

from .light import Coding

_SEQUENCE_HEADER = 1
_MOST_UNITS = 16  # the header comes first, or behind a delimiter


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def __call__(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the header is cut off")
        return (self._value >> self._left) & ((1 << count) - 1)


def coding_in_stream(data: memoryview) -> Coding | None:
    """Return the code points in the sequence header, where a stream starts with one that names some.

    Args:
        data: Open bitstream units, with their lengths (AV1 specification, 5.3).
    """
    at = 0
    for _ in range(_MOST_UNITS):
        if at >= len(data) or data[at] & 0x82 != 2:  # no unit, or one without its length
            return None
        kind, at = data[at] >> 3 & 15, at + (2 if data[at] & 4 else 1)
        length = shift = 0
        while at < len(data) and shift < 56:
            byte = data[at]
            length |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        if kind == _SEQUENCE_HEADER:
            try:
                return _color_config(_Bits(bytes(data[at : at + min(length, 256)])))
            except ValueError:
                return None
        at += length
    return None


def _color_config(bits: _Bits) -> Coding | None:
    """Go through a sequence header (5.5.1) to its colours (5.5.2)."""
    profile, _still, reduced = bits(3), bits(1), bits(1)
    if reduced:
        bits(5)
    else:
        _operating_points(bits)
    width_bits, height_bits = bits(4) + 1, bits(4) + 1
    bits(width_bits + height_bits)
    if not reduced and bits(1):  # frame ids
        bits(7)
    bits(3)
    if not reduced:
        bits(4)
        order_hint = bits(1)
        bits(2 * order_hint)
        screen_content = 2 if bits(1) else bits(1)
        if screen_content and not bits(1):
            bits(1)
        bits(3 * order_hint)
    bits(3)
    deep = bits(1)
    if profile == 2 and deep:
        bits(1)
    if profile != 1:
        bits(1)
    if not bits(1):
        return None
    primaries, transfer = bits(8), bits(8)
    return Coding(transfer, primaries)


def _operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits(1):  # timing
        bits(64)
        if bits(1):
            zeros = 0
            while not bits(1):
                zeros += 1
            bits(zeros if zeros < 32 else 0)
        if bits(1):  # a decoder model
            delay_bits = bits(5) + 1
            bits(42)
    delayed = bits(1)
    for _ in range(bits(5) + 1):
        bits(12)
        if bits(5) > 7:
            bits(1)
        if delay_bits and bits(1):
            bits(2 * delay_bits + 1)
        if delayed and bits(1):
            bits(4)
