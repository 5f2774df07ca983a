"""Thumbnails in XMP: there, pictures are written in base64."""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Iterator

from .thumbnails import jpeg_segments

# How a JPEG or PNG begins in base64, as an element's text or an attribute; a new line may be written as an entity.
_PICTURE = re.compile(rb"""[>"'\s;]((?:/9j/|iVBORw0KGgo)[A-Za-z0-9+/=\s&#;]{64,})""")
_STARTS = (b"/9j/", b"iVBORw0KGgo")
_NO_BASE64 = re.compile(rb"&#?\w*;|[^A-Za-z0-9+/]")
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"  # an identity of 32 bytes, the whole's size and a place follow


def coded_pictures(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where a picture in base64 begins and ends; coded pixels hardly ever look like it."""
    if not any(start in data for start in _STARTS):  # most files, in a fraction of the time
        return
    for match in _PICTURE.finditer(data):
        yield match.span(1)


def decoded(data: bytes, start: int, stop: int) -> bytes:
    """Return a picture that is written in base64."""
    letters = _NO_BASE64.sub(b"", data[start:stop])
    return base64.b64decode(letters[: len(letters) - (len(letters) % 4 == 1)] + b"==")


def xmp_of_jpeg(data: bytes) -> Iterator[bytes]:
    """Yield the XMP of a JPEG, and what was too long for one segment, put together."""
    further: dict[bytes, list[tuple[int, bytes]]] = defaultdict(list)
    for marker, start, stop in jpeg_segments(data):
        body = data[start:stop] if marker == 0xE1 else b""
        if body.startswith(_XMP):
            yield body
        elif body.startswith(_EXTENSION):
            head = len(_EXTENSION) + 32
            further[body[:head]].append((int.from_bytes(body[head + 4 : head + 8], "big"), body[head + 8 :]))
    for parts in further.values():
        yield b"".join(part for _, part in sorted(parts))
