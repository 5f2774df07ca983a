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
from .links import LONGEST, Names
from .opening import Kept, open_outer
from .places import is_local_file

_ENCRYPTED = 0x1
_UTF8 = 0x800


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
    links = False
    for info in opened.filelist:
        if info.is_dir():
            continue
        if _target(opened, info) is not None:
            links = True
            continue
        numbers[info.filename] += 1  # as many as the archive has; all are looked at, whichever an unpacker would keep
        if choice.takes_member(info.filename):
            yield _entry(archive, info.filename, numbers[info.filename], info)
    if not links:
        return
    for name, number, found in _names(opened).links():
        if found is None or not choice.takes_member(name):
            choice.skipped["link"] += found is None
            continue
        if isinstance(found, str):
            yield Entry(member_path("zip", name, archive.path, number=number), None, None, archive.version, found)
        else:
            yield _entry(archive, name, number, found)


def _entry(archive: Entry, name: str, number: int, info: zipfile.ZipInfo) -> Entry:
    path = member_path("zip", name, archive.path, number=number)
    closed = "is encrypted" if info.flag_bits & _ENCRYPTED else None
    return Entry(path, info.file_size, None, f"{info.CRC:08x}-{archive.version}", closed)


def open_member(member: Member) -> BinaryIO:
    """Open a member for reading, seekable; nothing is unpacked ahead of what is read.

    Raises:
        OSError: There is none of this name.
    """
    opened = _opened.get(member.archive)
    only = opened.NameToInfo.get(member.name)
    found: zipfile.ZipInfo | str | None = only
    several = len(opened.NameToInfo) < len(opened.filelist)
    if several or member.number != 1 or (only is not None and _target(opened, only) is not None):
        all_found = _names(opened).of(member.name)
        found = all_found[member.number - 1] if member.number <= len(all_found) else None
    if found is None or isinstance(found, str):
        raise FileNotFoundError(2, found or "No such member", f"{member.name} in {member.archive}")
    return io.BufferedReader(_Unpacked(opened.open(found)))


def _names(opened: zipfile.ZipFile) -> Names[zipfile.ZipInfo]:
    names: Names[zipfile.ZipInfo] = Names()
    for info in opened.filelist:
        target = None if info.is_dir() else _target(opened, info)
        if info.is_dir():
            names.add_folder(info.filename)
        elif target is None:
            names.add(info.filename, info)
        else:
            names.add_link(info.filename, target, hard=False)
    return names


def _target(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> str | None:
    """Return where a symbolic link leads; ``None`` for files, and for links with the content of one.

    Unpackers that know no links write that content under the name.
    """
    if not stat.S_ISLNK(info.external_attr >> 16) or info.file_size > LONGEST:
        return None
    from ..images.sniff import HEAD, sniff  # with torch, which a report's page does not need

    try:
        data = opened.read(info)
    except Exception:  # encrypted, or damaged: whoever opens it as a file says so
        return None
    if not data or b"\0" in data or sniff(data[:HEAD]).media:
        return None
    return data.decode("utf-8" if info.flag_bits & _UTF8 else "cp437", "surrogateescape")  # as zipfile does names


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
