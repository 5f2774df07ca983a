"""Opening what a row is about: a file, a URL, a member of an archive, in any thread of any process."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, Generic, TypeVar

from ..errors import one_line
from .entry import split_member, text_to_path
from .local import open_file
from .places import is_local_file

T = TypeVar("T")


def open_path(path: str) -> BinaryIO:
    """Open what a row is about, for reading, seekable; see ``Entry.path``. Threads may do so at the same time.

    Raises:
        OSError: It is not there any more, or not readable.
    """
    member = split_member(path)
    if member is None:
        return open_outer(path)
    try:
        if member.scheme == "zip":
            from .zips import open_member
        elif member.scheme == "tar":
            from .tars import open_member
        else:
            from .tables import open_member
        return open_member(member)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{member.name} in {member.archive} cannot be opened: {one_line(error)}") from error


def open_outer(path: str) -> BinaryIO:
    """Open a file of this machine or at a URL.

    Raises:
        OSError: It is not there any more, or not readable.
    """
    if is_local_file(path):
        return open_file(text_to_path(path))
    from .remote import open_url

    return open_url(path)


def open_part(path: str, offset: int, size: int) -> BinaryIO:
    """Open a member of a tar by its place in it.

    Raises:
        OSError: It is not there any more, or not readable.
    """
    member = split_member(path)
    if member is None:
        raise OSError(f"{path} is no member of an archive")
    return slice_of(open_outer(member.archive), offset, size, path)


def slice_of(file: BinaryIO, offset: int, size: int, name: str) -> BinaryIO:
    """Return so many bytes of a file as a file; closing it closes the whole.

    Raises:
        OSError: The file ends before.
    """
    if file.seek(0, io.SEEK_END) < offset + size:
        file.close()
        raise OSError(f"{name} cannot be read: the archive ends before it does")
    return io.BufferedReader(_Slice(file, offset, size))


def stamp(path: str) -> Any:
    """Return what tells whether a file of this machine has changed; of a URL, nothing."""
    if not is_local_file(path):
        return None
    found = os.stat(text_to_path(path))
    return found.st_size, found.st_mtime_ns, found.st_ino


class Kept(Generic[T]):
    """The last few archives that were opened, or their tables of contents, for all threads of this process.

    Args:
        open_one: Opens the archive at a path.
        count: How many are kept.
    """

    def __init__(self, open_one: Callable[[str], T], count: int = 8) -> None:
        self._open_one = open_one
        self._count = count
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, Any], T] = OrderedDict()
        # A process that was forked off shares the open files' positions with its parent: it begins anew.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def get(self, path: str) -> T:
        """Return an archive, opened now or before; a changed one is opened again."""
        key = (path, stamp(path))
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._open_one(path)
                if len(self._kept) > self._count:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._kept = OrderedDict()


class _Slice(io.RawIOBase):
    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._offset + self._at)
        data = self._file.read(count)
        if len(data) < count:
            raise OSError("The archive was cut off while it was read")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
