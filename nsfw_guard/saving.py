"""Redacted pictures as files, in the format that a file's name stands for, looked at as they are written."""

from __future__ import annotations

import io
from pathlib import PurePath

from PIL import Image

from .guard import NsfwGuard
from .images import read_images
from .redact import FILLED_REASONS, Redacted, Redaction, candidates, most_detailed


def format_of(name: str) -> str:
    """Return the format that a file's name stands for, if Pillow can write it; else PNG, whatever the name."""
    Image.init()
    kind = Image.EXTENSION.get(PurePath(name).suffix.lower(), "PNG")
    return kind if kind in Image.SAVE else "PNG"


def redact_file(guard: NsfwGuard, data: bytes, kind: str, *, reason: str | None = None) -> bytes:
    """Return the file of a redacted picture, of which nothing of the original but what is shown is left.

    Args:
        guard: Its redaction counts; with ``Redaction.verify`` it looks at the very file that is returned.
        data: The file of a flagged picture.
        kind: The format to write.
        reason: Why it was flagged; see ``Verdict``.

    Raises:
        ImageError: The picture cannot be decoded.
    """
    batch = read_images(data)
    redaction = guard.redaction
    written = b""

    def passes(step: Redaction) -> bool:
        nonlocal written
        written = _encode(batch.replace(Redacted(batch, {0: step})), kind)
        return not redaction.verify or all(guard.passes(read_images(written)))

    *steps, black = candidates(redaction, *next(batch.frames(0)).shape[-2:])
    if reason in FILLED_REASONS:
        steps = [step for step in steps if step.kind in ("fill", "replace")]
    most_detailed([*steps, black], passes)
    return written


def _encode(picture: Image.Image, kind: str) -> bytes:
    """Write a picture, all frames of it that the format can hold; as RGB where it cannot hold its mode."""
    animated = {"save_all": True} if getattr(picture, "n_frames", 1) > 1 and kind in Image.SAVE_ALL else {}
    file = io.BytesIO()
    try:
        picture.save(file, kind, **animated)
    except OSError:
        file = io.BytesIO()
        picture.convert("RGB").save(file, kind)
    return file.getvalue()
