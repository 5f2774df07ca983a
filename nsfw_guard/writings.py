"""Other ways to write the bytes of a file as text than base64 and hex, and what escapes make of all of them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote_to_bytes

# A file's beginning is known by so many characters, a multiple of what each of the alphabets is decoded by.
_HEAD = 40
_BASE32 = re.compile(r"[A-Z2-7]{40,}")
_BASE85 = re.compile(r"[0-9A-Za-z!#$%&()*+\-;<=>?@^_`{|}~]{40,}")
_ASCII85 = re.compile(r"(?:<~|^|(?<=\"))([!-uz\s]{40,})")
_UU = re.compile(r"^begin [0-7]{3,4} .*\n((?:.*\n)*?)(?:`|\s*)\nend", re.MULTILINE)
# The bytes of a file as a list of numbers.
_LEVELS = re.compile(r"(?:\d{1,3}[\s,;]+){24,}\d{1,3}")
_LEVEL = re.compile(r"\d+")
# Pictures that are text: PNM, XBM, XPM.
_PICTURE = re.compile(r"\s*(?:P[1-3]\s|#define\s|/\* XPM \*/)")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_PERCENT = re.compile(r"%[0-9a-fA-F]{2}")
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "b": "\b", "0": "\0"}
# A file whose bytes are characters, within a text.
_BINARY_FILE = re.compile(r"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP", re.DOTALL)
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\ud800-\udfff]")
_MOST_NO_TEXT = 16


def files_in(text: str, begins_like_a_file: Callable[[bytes], bool]) -> Iterator[bytes]:
    """Return the files that a text holds in base32, base85, Ascii85, uuencoding, or a character for each byte."""
    for pattern, decode in (
        (_BASE32, _from_base32),
        (_BASE85, _from_base85),
        (_ASCII85, _from_ascii85),
    ):
        for found in pattern.finditer(text):
            written = "".join(found[found.lastindex or 0].split())
            if begins_like_a_file(decode(written[:_HEAD])):
                yield decode(written)
    for found in _LEVELS.finditer(text):
        numbers = [int(number) for number in _LEVEL.findall(found[0])]
        if max(numbers) < 256 and begins_like_a_file(bytes(numbers[:_HEAD])):
            yield bytes(numbers)
    for found in _UU.finditer(text):
        try:
            yield b"".join(map(binascii.a2b_uu, found[1].splitlines()))
        except ValueError:
            continue
    for found in _BINARY_FILE.finditer(text):
        yield text[found.start() :].encode("latin-1", "replace")
    if _PICTURE.match(text):
        yield text.encode("latin-1", "replace")


def without_escapes(text: str) -> Iterator[str]:
    """Return what a text is without the escapes of JSON or of Python's ``repr``, and those of URLs, if it has any."""
    if "\\" in text:
        yield (plain := _ESCAPE.sub(_escaped, text))
        if "\n" in plain or "\r" in plain:
            yield plain.replace("\r", "").replace("\n", "")
    if _PERCENT.search(text):
        yield unquote_to_bytes(text).decode("latin-1")
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        yield text.encode("utf-8", "surrogateescape").decode("latin-1")


def is_no_text(text: str) -> bool:
    """Whether so many characters are none of a text that it is the bytes of something."""
    some = len(_NO_TEXT.findall(text))
    return some > _MOST_NO_TEXT and some * 64 > len(text)


def _escaped(found: re.Match[str]) -> str:
    code = found[1] or found[2]
    return chr(int(code, 16)) if code else _LETTERS.get(found[3], found[3])


def _from_base32(text: str) -> bytes:
    return base64.b32decode(text[: len(text) // 8 * 8])


def _from_base85(text: str) -> bytes:
    try:
        return base64.b85decode(text)
    except ValueError:
        return b""


def _from_ascii85(text: str) -> bytes:
    try:
        return base64.a85decode(text.partition("~")[0])
    except ValueError:
        return b""
