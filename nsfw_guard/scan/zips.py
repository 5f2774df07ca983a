"""Members of zip archives."""

from __future__ import annotations

import io
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from ..errors import one_line
from .entry import Entry, Member, member_path, text_to_path
from .kinds import Choice
from .opening import Kept, open_outer
from .places import is_local_file

_ENCRYPTED = 0x1


def zip_entries(archive: Entry, choice: Choice) -> Iterator[Entry]:
    """Yield the pictures and videos in a zip archive; if it is damaged, an entry with the error.

    Args:
        archive: The file.
        choice: Which names are taken, and the count of what is not.
    """
    try:
        opened = _opened.get(archive.path)
    except Exception as error:
        text = f"is no zip archive that can be read: {one_line(error)}"
        yield Entry(archive.path, archive.size, archive.mtime, archive.etag, text)
        return
    numbers: Counter[str] = Counter()
    several = len(opened.NameToInfo) < len(opened.filelist)
    for info in opened.filelist:
        if info.is_dir():
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            choice.skipped["link"] += 1
            continue
        if several:  # as many as the archive has; all are looked at, whichever an unpacker would keep
            numbers[info.filename] += 1
        if not choice.takes_member(info.filename):
            continue
        path = member_path("zip", info.filename, archive.path, number=numbers[info.filename] or 1)
        closed = "is encrypted" if info.flag_bits & _ENCRYPTED else None
        yield Entry(path, info.file_size, None, f"{info.CRC:08x}-{archive.version}", closed)


def open_member(member: Member) -> BinaryIO:
    """Open a member for reading, seekable; nothing is unpacked ahead of what is read.

    Raises:
        OSError: There is none of this name.
    """
    opened = _opened.get(member.archive)
    found: Any = opened.NameToInfo.get(member.name)
    if len(opened.NameToInfo) < len(opened.filelist):
        same = [info for info in opened.filelist if info.filename == member.name and not info.is_dir()]
        found = same[member.number - 1] if member.number <= len(same) else None
    elif member.number != 1:
        found = None
    if found is None:
        raise FileNotFoundError(2, "No such member", f"{member.name} in {member.archive}")
    return io.BufferedReader(_Unpacked(opened.open(found)))


class _Unpacked(io.RawIOBase):
    """A member, whose faults are ``OSError``s: zipfile raises whatever its decompressors do."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except Exception as error:
            raise OSError(f"The archive is damaged: {one_line(error)}") from error

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            raise OSError(f"The archive is damaged: {one_line(error)}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            del self._file  # and with it the archive, if nobody else uses it
        super().close()


def _open(path: str) -> zipfile.ZipFile:
    if not is_local_file(path):
        return zipfile.ZipFile(open_outer(path))
    open_outer(path).close()  # a pipe would make zipfile wait
    return zipfile.ZipFile(text_to_path(path))  # which closes what it opens itself when nobody uses it any more


_opened = Kept(_open)
