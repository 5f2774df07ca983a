"""Encoded pictures and films, as bytes or within text: finding them, looking at them, putting redacted ones back."""

from __future__ import annotations

import base64
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from PIL import Image

from .errors import ImageError
from .images import read_images, to_picture
from .images.film import FilmReader
from .images.settings import DecodeSettings
from .images.sniff import HEAD, open_picture, read_file, reading, sniff
from .writings import files_in, is_no_text, without_escapes

# No picture of 8x8 is encoded in less.
_SHORTEST = 24
_LONGEST_PATH = 1024
# Text in the alphabets of base64, with what percent-encoding and line breaks make of it in a URL; and hexadecimal.
_URL = re.compile(
    r"data:(?P<media>[\w/+.-]*)(?:;[\w=+.-]+)*?(?P<coded>;base64)?,(?P<content>[^\"'<>)]*)", re.IGNORECASE
)
_RUN = re.compile(r"[A-Za-z0-9+/_-]{32,}={0,2}")
# In lines, as in mails.
_LINES = re.compile(r"(?:[A-Za-z0-9+/_-]{32,}(?:\r?\n|(?:\\r)?\\n)[ \t>]*)+[A-Za-z0-9+/_-]*={0,2}")
_BREAK = re.compile(r"\\[rn]")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_HEX = re.compile(r"(?:(?:0x|\\x)?[0-9a-fA-F]{2}[\s:,]*){24,}")
_BETWEEN_HEX = re.compile(r"0x|\\x|[\s:,]")
_WRAPPED = re.compile(r"[A-Za-z0-9+/_\-=\s]+")
# With something in it: the name of the element alone draws nothing.
_DRAWN = re.compile(r"<(?:[\w.-]+:)?svg(?:\s[^>]*)?>[^<]*<(?!/)|data:image/svg\+xml[;,]", re.IGNORECASE)
_WRITTEN = re.compile(rb"[A-Za-z0-9+/_-]{32}")
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\xff]")
# As files in base64 begin, wherever in a run of its letters that is: PNG, JPEG, GIF, WebP and AVI, TIFF, Matroska.
_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "_9j_", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "GkXfo")

# Looks at what ``read_images`` takes; returns it, or if something is flagged a list of the same with that redacted.
Check = Callable[[Any], Any]


class Coded(NamedTuple):
    """A file that is written as text.

    Attributes:
        start: Where it begins in the text.
        stop: Where it ends.
        data: The file.
        write: Writes another file in the same way.
    """

    start: int
    stop: int
    data: bytes
    write: Callable[[bytes], str]


def begins_like_a_picture(data: bytes) -> bool:
    """Whether bytes begin like those of a picture or a film; a Targa begins like nothing."""
    found = sniff(data[:HEAD])
    return len(data) >= _SHORTEST and found.media is not None and found.format != "TGA"


def holds_pictures(text: str) -> bool:
    """Whether a text holds an encoded picture or film, or a drawing (SVG), or is the path of such a file."""
    if is_path(text) or _DRAWN.search(text) or next(coded_in(text), None) is not None or is_no_text(text):
        return True
    return any(_DRAWN.search(other) for other in without_escapes(text)) or next(_written_in(text), None) is not None


def is_path(text: str) -> bool:
    """Whether a text is the path of a picture or a film that is there."""
    if not 0 < len(text) <= _LONGEST_PATH or not text.isprintable():
        return False
    try:
        if not stat.S_ISREG(os.stat(text).st_mode):
            return False
        with open(text, "rb") as file:
            return begins_like_a_picture(file.read(HEAD))
    except (OSError, ValueError):
        return False


def coded_in(text: str) -> Iterator[Coded]:
    """Find pictures and films in a text: in base64 or hex, in data: URLs, or with a character for each byte."""
    if len(text) < _SHORTEST:
        return
    head = text[:HEAD]
    if _BINARY.search(head) and max(head) <= "\xff":
        data = text.encode("latin-1", "replace")
        if begins_like_a_picture(data):
            yield Coded(0, len(text), data, lambda data: data.decode("latin-1"))
            return
    end = 0
    for coded in sorted(_candidates(text), key=lambda coded: (coded.start, -coded.stop)):
        if coded.start >= end and _is_file(coded.data):
            yield coded
            end = coded.stop


def look_at_text(text: str, check: Check, name: str) -> str:
    """Look at the pictures and films in a text.

    Returns:
        The text itself; or one that holds redacted pictures (PNG) where flagged ones were.

    Raises:
        ImageError: One that is broken; a drawing; the path of a file that is flagged: nothing takes that back.
    """
    if is_path(text):
        data = read_file(text, DecodeSettings())
        if look_at_bytes(data, check, name) is not data:
            raise ImageError(f"{name} is the path of a file that is flagged. The host has written it: delete it.")
        return text
    if _DRAWN.search(text) or any(_DRAWN.search(other) for other in without_escapes(text)):
        raise ImageError(f"{name} is a drawing (SVG), which cannot be looked at; expected a picture.")
    seen: list[bytes] = []
    parts, end, changed = [], 0, False
    for coded in coded_in(text):
        seen.append(coded.data)
        done = look_at_bytes(coded.data, check, name)
        changed = changed or done is not coded.data
        parts += [text[end : coded.start], text[coded.start : coded.stop] if done is coded.data else coded.write(done)]
        end = coded.stop
    whole = end == len(text) and len(seen) == 1 and len(seen[0]) == end  # a file, character by character
    others = () if whole else chain(_written_in(text), _overlapping(text) if seen else ())
    for file, certain in others:
        if file in seen:
            continue
        try:
            done = look_at_bytes(file, check, name)
        except ImageError:
            if certain or not seen:
                raise
            continue  # what is no escape was read as one
        seen.append(file)
        if done is not file:
            raise ImageError(f"{name} is a text that holds a flagged picture, which nothing can be put in place of.")
    if not seen and is_no_text(text):
        raise ImageError(f"{name} is a str of {len(text)} bytes that are no text; expected a text, or a picture.")
    return "".join([*parts, text[end:]]) if changed else text


def look_at_bytes(data: bytes, check: Check, name: str) -> bytes:
    """Look at an encoded picture or film.

    Args:
        data: The file.
        check: Looks at pictures.
        name: What messages call it.

    Returns:
        The same object; or a PNG of what is redacted, of a film that is flagged its first flagged frame.

    Raises:
        ImageError: It is neither, or broken.
    """
    if next(coded_in(text := data.decode("latin-1")), None) is not None and not begins_like_a_picture(data):
        return data if (done := look_at_text(text, check, name)) is text else done.encode("latin-1")
    if sniff(data[:HEAD]).media == "film":
        film = FilmReader(data, DecodeSettings(), name=name)
        for index in range(film.count):
            looks = list(film.looks(index))
            if (done := check(looks)) is not looks:
                return _as_png(to_picture(done[0]))
        return data
    try:
        batch = read_images([data])
    except ImageError as error:
        raise ImageError(
            f"{name} is {len(data)} bytes that are no picture or film that can be looked at; expected PNG, JPEG "
            f"or the like, or pictures as PIL, NumPy or tensors ({error})."
        ) from error
    given = batch.items[0].original
    done = check(batch)
    return data if done is batch or done[0] is given else _as_png(done[0])


def _as_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    several = getattr(picture, "n_frames", 1) > 1
    shown = picture if picture.mode in ("RGB", "L", "RGBA", "LA") or several else picture.convert("RGB")
    shown.save(file, "PNG", **({"save_all": True} if several else {}))
    return file.getvalue()


def _is_file(data: bytes) -> bool:
    if len(data) < _SHORTEST:
        return False
    if begins_like_a_picture(data) or _DRAWN.search(data[:HEAD].decode("latin-1")):
        return True
    try:  # what has no certain beginning has to be whole
        with reading("it", "read"):
            open_picture(data, name="it").load()
    except ImageError:
        return _is_text_of_a_file(data)
    return True


def _is_text_of_a_file(data: bytes) -> bool:
    """Whether bytes are base64 once more."""
    return _WRITTEN.match(data) is not None and next(coded_in(data.decode("latin-1")), None) is not None


def _written_in(text: str) -> Iterator[tuple[bytes, bool]]:
    """Find the files that cannot be replaced where they are: in other alphabets, and under escapes.

    Yields:
        A file, and whether there is one for certain.
    """
    if len(text) < _SHORTEST:
        return
    yield from ((data, True) for data in files_in(text, begins_like_a_picture) if _is_file(data))
    for other in without_escapes(text):
        yield from ((coded.data, False) for coded in coded_in(other))
        yield from ((data, False) for data in files_in(other, begins_like_a_picture) if _is_file(data))


def _overlapping(text: str) -> Iterator[tuple[bytes, bool]]:
    """Find the files that begin within those of ``coded_in``; as for ``_written_in``."""
    end = 0
    for coded in sorted(_candidates(text), key=lambda coded: (coded.start, -coded.stop)):
        if coded.start < end and _is_whole(coded.data):
            yield coded.data, False
        end = max(end, coded.stop if _is_file(coded.data) else 0)


def _is_whole(data: bytes) -> bool:
    if not begins_like_a_picture(data) or sniff(data[:HEAD]).media != "picture":
        return False
    try:
        read_images([data])
    except ImageError:
        return False
    return True


def _candidates(text: str) -> Iterator[Coded]:
    for found in _URL.finditer(text):
        content = unquote_to_bytes(found["content"])
        data = _from_base64(content.decode("latin-1")) if found["coded"] else content
        yield Coded(*found.span(), data, lambda data: f"data:image/png;base64,{_to_base64(data)}")
    for found in _HEX.finditer(text):
        yield Coded(*found.span(), bytes.fromhex(_BETWEEN_HEX.sub("", found[0])), bytes.hex)
    whole = [(0, len(text))] if _WRAPPED.fullmatch(text) else []
    runs = [found.span() for pattern in (_LINES, _RUN) for found in pattern.finditer(text)]
    for start, stop in [*whole, *runs]:
        inside = [text.find(letters, start, stop) for letters in _BEGINNINGS]
        for at in {start, *(at for at in inside if at > start)}:
            coded = _BREAK.sub("", text[at:stop])
            yield Coded(at, stop, _from_base64(coded), _to_base64_url if {"-", "_"} & {*coded} else _to_base64)


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _to_base64_url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def _from_base64(text: str) -> bytes:
    letters = _NOT_BASE64.sub("", text.replace("-", "+").replace("_", "/"))
    letters = letters[: len(letters) - (len(letters) % 4 == 1)]
    return base64.b64decode(letters + "=" * (-len(letters) % 4))
