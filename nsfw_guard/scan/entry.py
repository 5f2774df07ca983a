"""What is scanned: one picture or video, where it is, and what tells whether it has changed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple
from urllib.parse import quote_from_bytes, unquote, unquote_to_bytes

# Asked where content can be read only in passing: whether it is to be read.
Wanted = Callable[["Entry"], bool]

_BYTES = "bytes:"
_MEMBER = re.compile(r"(zip|tar|parquet)://([^:]*)::(.+)", re.DOTALL)
# What would end a member's name early, what makes that quoting unambiguous, and bytes that are no UTF-8.
_QUOTED = re.compile("[%#:\ud800-\udfff]")


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
        data: The content, where it is read in passing (compressed and remote tar archives, tables).
        offset: Where in its archive a member of a tar begins, so that nobody has to look for it again.
    """

    path: str
    size: int | None = None
    mtime: float | None = None
    etag: str | None = None
    error: str | None = None
    data: bytes | None = None
    offset: int | None = None

    @property
    def version(self) -> str:
        """The version of this file, as part of the ``etag`` of what is in it."""
        return self.etag or f"{self.size}-{self.mtime!r}"

    def open(self) -> BinaryIO:
        """Open the content for reading, seekable.

        Raises:
            OSError: It is not there any more, or not readable.
        """
        import io

        from .opening import open_part, open_path

        if self.data is not None:
            return io.BytesIO(self.data)
        if self.offset is not None and self.size is not None:
            return open_part(self.path, self.offset, self.size)
        return open_path(self.path)


class Member(NamedTuple):
    """What the path of a member says.

    Attributes:
        scheme: ``"zip"``, ``"tar"`` or ``"parquet"``.
        name: In the archive; of a table ``column/row``.
        number: Which one of several with this name, from 1.
        archive: The path of the archive.
    """

    scheme: str
    name: str
    number: int
    archive: str

    @property
    def path(self) -> str:
        """The path that says this."""
        return member_path(self.scheme, self.name, self.archive, number=self.number)


def member_path(scheme: str, name: str, archive: str, *, number: int = 1) -> str:
    """Return the path of a member; ``split_member`` takes it apart again."""
    return f"{scheme}://{quote_name(name)}{f'#{number}' if number > 1 else ''}::{archive}"


def split_member(path: str) -> Member | None:
    """Return what the path of a member says; ``None`` for the path of a file."""
    match = _MEMBER.fullmatch(path)
    if match is None:
        return None
    scheme, name, archive = match.groups()
    name, _, number = name.partition("#")
    return Member(scheme, unquote(name, errors="surrogateescape"), int(number) if number.isdigit() else 1, archive)


def quote_name(name: str) -> str:
    """Quote the few characters of a member's name that its path could not hold."""
    return _QUOTED.sub(lambda found: quote_from_bytes(os.fsencode(found[0]), safe=""), name)


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
