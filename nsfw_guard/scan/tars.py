"""Members of tar archives and webdataset shards: read where they are; of compressed and remote ones in passing."""

from __future__ import annotations

import io
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from ..errors import one_line
from .entry import Entry, Member, Wanted, member_path, text_to_path
from .kinds import Choice
from .local import open_file
from .opening import Kept, open_outer, slice_of
from .places import is_local_file
from .remote import open_stream

logger = logging.getLogger(__name__)

# What is read in passing is held in memory, a member at a time: no more than this.
MOST_BYTES = 2**29
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x5d\x00\x00")
_ZSTD = b"\x28\xb5\x2f\xfd"

# Name → offset and size of each member that has it.
Index = dict[str, list[tuple[int, int]]]


def tar_entries(archive: Entry, choice: Choice, wanted: Wanted | None) -> Iterator[Entry]:
    """Yield the pictures and videos in a tar archive; where it is damaged, an entry with the error.

    Args:
        archive: The file.
        choice: Which names are taken, and the count of what is not.
        wanted: Whether the content of an entry is to be read, where it is read in passing.
    """
    numbers: Counter[str] = Counter()
    try:
        with _open(archive.path) as tar:
            plain = not isinstance(tar.fileobj, tarfile._Stream)  # type: ignore[attr-defined]
            for info in _members(tar):
                if info.isdir():
                    continue
                if not info.isreg():
                    choice.skipped["link" if info.issym() or info.islnk() else "special file"] += 1
                    continue
                numbers[info.name] += 1
                if not choice.takes_member(info.name):
                    continue
                path = member_path("tar", info.name, archive.path, number=numbers[info.name])
                entry = Entry(path, info.size, float(info.mtime), archive.version, _error(info, plain))
                if entry.error is None and plain:
                    entry = replace(entry, offset=info.offset_data)
                elif entry.error is None and (wanted is None or wanted(entry)):
                    entry = replace(entry, data=_read(tar, info))
                yield entry
    except Exception as error:
        text = f"is no tar archive that can be read to its end: {one_line(error)}"
        yield Entry(archive.path, archive.size, archive.mtime, archive.etag, text)


def open_member(member: Member) -> BinaryIO:
    """Open a member for reading, seekable; of a compressed archive it is looked for from the start.

    Raises:
        OSError: There is none of this name, or the archive is damaged before it.
    """
    index = _indexes.get(member.archive) if is_local_file(member.archive) else None
    if index is not None:
        places = index.get(member.name, [])
        if member.number <= len(places):
            offset, size = places[member.number - 1]
            return slice_of(open_outer(member.archive), offset, size, member.name)
    else:
        number = 0
        with _open(member.archive) as tar:
            for info in _members(tar):
                number += info.isreg() and info.name == member.name
                if number == member.number:
                    if info.size > MOST_BYTES:
                        raise OSError(f"{member.name} has more than {MOST_BYTES} bytes")
                    return io.BytesIO(_read(tar, info))
    raise FileNotFoundError(2, "No such member", f"{member.name} in {member.archive}")


class _Header(tarfile.TarInfo):
    """A header; notes when the archive ends as it should, which tarfile does not tell from damage."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> Any:  # noqa: D102 - tarfile's
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.ended = True
            raise


def _open(path: str) -> tarfile.TarFile:
    """Open an archive: what is compressed or remote as a stream."""
    if not is_local_file(path):
        return tarfile.open(fileobj=open_stream(path), mode="r|*", tarinfo=_Header)
    file = open_file(text_to_path(path))
    start = file.read(6)
    file.seek(0)
    try:
        return tarfile.open(fileobj=file, mode="r|*" if start.startswith(_COMPRESSED) else "r:", tarinfo=_Header)
    except Exception as error:
        file.close()
        if start.startswith(_ZSTD):
            raise OSError(f"this Python does not read zstd ({one_line(error)}); unpack it with zstd -d") from error
        raise


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members without keeping them.

    Raises:
        OSError: The archive does not end where it should.
    """
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        yield info
    if not getattr(tar, "ended", False):
        raise OSError("a header is damaged, or its end is missing")


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    data = b"" if file is None else file.read()
    if len(data) < info.size:
        raise OSError("unexpected end of data")
    return data


def _error(info: tarfile.TarInfo, plain: bool) -> str | None:
    if info.issparse():
        return "is stored as a sparse file, which is not supported; unpack the archive"
    if not plain and info.size > MOST_BYTES:
        return f"has more than {MOST_BYTES} bytes, too many to be read from a compressed or remote tar; unpack it"
    return None


def _index(path: str) -> Index | None:
    """Return where the members of an archive are; ``None`` if it is compressed."""
    index: Index = {}
    with _open(path) as tar:
        if isinstance(tar.fileobj, tarfile._Stream):  # type: ignore[attr-defined]
            return None
        try:
            for info in _members(tar):
                if info.isreg() and not info.issparse():
                    index.setdefault(info.name, []).append((info.offset_data, info.size))
        except Exception as error:
            # What was found before the damage was scanned, and can still be opened.
            logger.warning("%s is damaged: %s", path, one_line(error))
    return index


_indexes = Kept(_index, count=4)
