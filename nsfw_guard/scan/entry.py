"""What is scanned: one picture or video, where it is, and what tells whether it has changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

_BYTES = "bytes:"


@dataclass(frozen=True)
class Entry:
    """One picture or video, without its content. It can be pickled, and opened on another machine that has the source.

    Attributes:
        path: Its name in the rows, and what ``open_path`` opens: an absolute local path, a URL, or of a member
            ``zip://inner.jpg::/data/archive.zip``, ``tar://…::…``, ``parquet://column/row::/data/table.parquet``.
        size: In bytes; ``None`` if the source does not say.
        mtime: When it was last changed, in seconds since 1970; ``None`` if the source does not say.
        etag: What else tells a version from another: an object store's ETag, a member's checksum and archive's version.
        error: Why it cannot be opened, if that is known already: an unreadable folder, a damaged archive.
        data: The content, where it can only be read in passing (compressed tar archives).
    """

    path: str
    size: int | None = None
    mtime: float | None = None
    etag: str | None = None
    error: str | None = None
    data: bytes | None = None

    def open(self) -> BinaryIO:
        """Open the content for reading, seekable.

        Raises:
            OSError: It is not there any more, or not readable.
        """
        import io

        from .sources import open_path

        return io.BytesIO(self.data) if self.data is not None else open_path(self.path)


def path_to_text(path: str) -> str:
    """Return a local path as text that UTF-8 can hold, which names with undecodable bytes cannot."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return _BYTES + quote_from_bytes(os.fsencode(path), safe="/")
    return path


def text_to_path(text: str) -> str:
    """Return the local path that ``path_to_text`` made text of."""
    return os.fsdecode(unquote_to_bytes(text[len(_BYTES) :])) if text.startswith(_BYTES) else text
