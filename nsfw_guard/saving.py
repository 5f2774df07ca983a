"""Redacted pictures as files, in the format that a file's name stands for, looked at as they are written."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from PIL import Image

from .images import read_images
from .images.held import file_of
from .images.pictures import WRITTEN
from .images.sniff import REFUSED
from .redact import Judge, Redacted, Redaction, candidates, is_filled_unseen, most_detailed

logger = logging.getLogger(__name__)


def format_of(name: str) -> str:
    """Return the format that a file's name stands for, if Pillow can write and read it; else PNG, whatever the name."""
    Image.init()
    kind = Image.EXTENSION.get(PurePath(name).suffix.lower(), "PNG")
    return kind if kind in Image.SAVE and kind in Image.OPEN and kind not in REFUSED else "PNG"


def redact_file(
    data: bytes, kind: str, redaction: Redaction, judge: Judge | None = None, *, reason: str | None = None
) -> bytes:
    """Return the file of a redacted picture, of which nothing of the original but what is shown is left.

    Args:
        data: The file of a flagged picture.
        kind: The format to write.
        redaction: How, at most.
        judge: Looks at the very file that is returned; ``None``: nobody does.
        reason: Why it was flagged; see ``Verdict``.

    Raises:
        ImageError: The picture cannot be decoded.
    """
    batch = read_images(data)
    written = b""

    def passes(step: Redaction) -> bool:
        nonlocal written
        written = _encode(batch.replace(Redacted(batch, {0: step})), kind)
        return judge is None or step is steps[-1] or all(judge(read_images(written)))

    steps = candidates(redaction, *next(batch.frames(0)).shape[-2:])
    if is_filled_unseen(reason, redaction):
        steps = [replace(redaction, kind="fill", image=None, verify=False)]
    elif judge is None or not redaction.verify:
        steps = [redaction]
    most_detailed(steps, passes)
    return written


def _encode(picture: Image.Image, kind: str) -> bytes:
    """Write a picture, all frames of it that the format can hold; where it cannot be written so, as a PNG."""
    count = getattr(picture, "n_frames", 1)
    made = picture.format if picture.format != "MPO" else "JPEG"
    if count > 1 and kind == made:
        return file_of(picture) or b""  # as it was made, with its frames and times
    if count > 1 and kind not in Image.SAVE_ALL:
        logger.warning("%s holds one picture: of %d frames the first is written", kind, count)
    try:
        return _saved(picture, kind)
    except Exception as error:  # sizes and modes that a format does not have raise nearly anything
        logger.debug("%s: %s", kind, error)
    try:
        return _saved(picture.convert("RGB"), kind)
    except Exception:
        return _saved(picture, "PNG") if picture.mode in ("L", "RGB", "RGBA") else _saved(picture.convert("RGB"), "PNG")


def _saved(picture: Image.Image, kind: str) -> bytes:
    options: dict[str, Any] = {}
    if getattr(picture, "n_frames", 1) > 1 and kind in Image.SAVE_ALL:
        options = {"save_all": True, **WRITTEN.get(kind, {})}
    elif kind == "ICO":
        options = {"sizes": [picture.size]}
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
