"""Writing redacted pictures, in the format that a file's name stands for."""

from __future__ import annotations

from pathlib import PurePath
from typing import IO

from PIL import Image


def format_of(name: str) -> str:
    """Return the format that a file's name stands for, if Pillow can write it; else PNG, whatever the name."""
    Image.init()
    kind = Image.EXTENSION.get(PurePath(name).suffix.lower(), "PNG")
    return kind if kind in Image.SAVE else "PNG"


def save_picture(picture: Image.Image, file: IO[bytes], kind: str) -> None:
    """Write a picture, all frames of it that the format can hold; as RGB where it cannot hold its mode."""
    animated = {"save_all": True} if getattr(picture, "n_frames", 1) > 1 and kind in Image.SAVE_ALL else {}
    try:
        picture.save(file, kind, **animated)
    except OSError:
        file.seek(0)
        file.truncate()
        picture.convert("RGB").save(file, kind)
