"""Small copies of what is shown, made when the page is; what cannot be shown says why."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import dropwhile, takewhile

from PIL import Image, features

from ...errors import one_line
from ..entry import text_to_path
from ..row import Row
from ..sources import is_local_file, open_path
from .gallery import Item

SHORT, LONG = 160, 320
MOST_BYTES = 6144
# Of one encoded picture; a larger one is not worth the memory that it takes.
_MOST_READ = 256 * 2**20
_COPIES_TRIED = 3
# Fewer than a redacted picture has: on so small a copy, 16 still show what it was, and nobody looks at it again.
_CELLS = 4
# Modified times go through files that keep them as decimal numbers.
_SAME_TIME = 1e-3


class Gone(Exception):
    """What is there now is not what was scanned."""


@dataclass(frozen=True)
class Thumbnail:
    """A small copy, or why there is none.

    Attributes:
        data: Of an ``<img>``: a ``data:`` URI; ``None`` if there is no copy.
        why: Why not, in a few words.
    """

    data: str | None = None
    why: str = ""


def thumbnails(
    items: Sequence[Item], *, redacted: bool, workers: int, on_done: Callable[[int], None] | None = None
) -> list[Thumbnail]:
    """Make the small copies of what is shown, some at a time. Nothing that a file holds makes it fail.

    Args:
        items: What is shown.
        redacted: Burn a blur in that shows nothing but the mean colours of 8 cells along the short side.
        workers: How many at a time, at least 1.
        on_done: Called with how many are made.

    Returns:
        One per item.
    """
    made: list[Thumbnail] = []
    pool = ThreadPoolExecutor(workers, thread_name_prefix="thumbnail")
    try:
        for one in pool.map(lambda item: thumbnail(item, redacted=redacted), items):
            made.append(one)
            if on_done is not None:
                on_done(len(made))
    finally:
        pool.shutdown(cancel_futures=True)
    return made


def thumbnail(item: Item, *, redacted: bool) -> Thumbnail:
    """Make the small copy of one content, of the first of its files that still has it."""
    why = ""
    for path in item.paths[:_COPIES_TRIED]:
        try:
            picture = _reduce(_frame(path, item.row))
            return Thumbnail(_encode(_redact(picture, item.row) if redacted else picture))
        except FileNotFoundError:
            why = why or "the file is gone"
        except Gone as error:
            why = why or str(error)
        except MemoryError:
            why = why or "it does not fit into memory"
        except Exception as error:  # on broken files decoders raise nearly anything
            why = why or one_line(error, 120).lstrip(" :")
    return Thumbnail(why=why or "it has no path")


def _frame(path: str, row: Row) -> Image.Image:
    """Decode the frame that decided, as the scan did: upright, on white; a JPEG no larger than is needed here."""
    from ...images import to_picture  # with torch, which a page without pictures does not need
    from ...images.film import film_frame
    from ...images.settings import DecodeSettings
    from ..decode import decode

    index = row.frame or 0
    settings = DecodeSettings(size=SHORT, max_pixels=2 * DecodeSettings.max_pixels)  # the scan's may have been raised
    whole = row.kind != "video"
    _refuse_changed(path, row, by_time=not (whole and row.sha256))
    if not whole:
        with open_path(path) as stream:
            return to_picture(film_frame(stream, index, settings, name=""))
    with open_path(path) as stream:
        data = stream.read(_MOST_READ + 1)
    if len(data) > _MOST_READ:
        raise Gone(f"larger than {_MOST_READ // 2**20} MiB")
    if row.sha256 is not None and hashlib.sha256(data).hexdigest() != row.sha256:
        raise Gone("the file has changed since the scan")
    # Those between need not be looked at, but where a film follows a still: it is counted from behind that.
    for every in dict.fromkeys((max(1, index), 1)):
        frames = decode(io.BytesIO(data), replace(settings, every=every), name="").frames()
        looks = list(takewhile(lambda one: one[0] == index, dropwhile(lambda one: one[0] != index, frames)))
        if looks:  # the one on which there is most to see
            return to_picture(max((look for _, look in looks), key=lambda look: float(look.float().std())))
    raise Gone(f"has no frame {index}.")


def _refuse_changed(path: str, row: Row, *, by_time: bool) -> None:
    """Refuse a local file that is not what was scanned; where its content is hashed, its time does not matter."""
    if not is_local_file(path):
        return
    now = os.stat(text_to_path(path))
    if not stat.S_ISREG(now.st_mode):  # opening a pipe would wait for ever
        raise Gone("it is no file any more")
    moved = by_time and row.mtime is not None and abs(now.st_mtime - row.mtime) > _SAME_TIME
    if (row.size is not None and now.st_size != row.size) or moved:
        raise Gone("the file has changed since the scan")


def _reduce(picture: Image.Image) -> Image.Image:
    """Make a picture small."""
    width, height = picture.size
    scale = min(1, SHORT / min(width, height), LONG / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _redact(picture: Image.Image, row: Row) -> Image.Image:
    from ...images.pictures import pixels_of, to_picture
    from ...redact import FILLED_REASONS, Redaction, fill, redact

    hide = fill if row.reason in FILLED_REASONS else redact
    return to_picture(hide(pixels_of(picture, "it").float() / 255, Redaction("blur", cells=_CELLS)))


def _encode(picture: Image.Image) -> str:
    """Return a ``data:`` URI of at most 6 kB before its text coding; coarser, then smaller, until it fits."""
    kind = "WEBP" if features.check("webp") else "JPEG"
    while True:
        for quality in (66, 50, 35, 20):
            file = io.BytesIO()
            picture.save(file, kind, quality=quality)
            if file.tell() <= MOST_BYTES or max(picture.size) <= 32:
                text = base64.b64encode(file.getvalue()).decode()
                return f"data:image/{kind.lower()};base64,{text}"
        width, height = (max(1, side * 3 // 4) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
