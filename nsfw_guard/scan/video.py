"""Videos, frame by frame, by PyAV."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from ..errors import ImageError

if TYPE_CHECKING:
    from .decode import Decoded, DecodeSettings


def is_video(file: BinaryIO) -> bool:
    """Return whether PyAV finds a video stream in a file."""
    return False


def decode_video(file: BinaryIO, settings: DecodeSettings, *, name: str) -> Decoded:
    """Open a video, and decode its first frame; see ``decode``."""
    raise ImageError(f"{name}: videos are not decoded yet.")
