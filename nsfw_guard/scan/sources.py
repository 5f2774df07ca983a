"""Where pictures are: files, folders, globs, lists, archives, tables, object stores."""

from __future__ import annotations

from typing import BinaryIO

from .entry import text_to_path


def open_path(path: str) -> BinaryIO:
    """Open what a row is about, for reading, seekable; see ``Entry.path``.

    Raises:
        OSError: It is not there any more, or not readable.
    """
    return open(text_to_path(path), "rb")
