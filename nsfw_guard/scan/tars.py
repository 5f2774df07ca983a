"""Members of tar archives and webdataset shards: read where they are; of compressed and remote ones in passing."""

from __future__ import annotations

import io
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from ..errors import one_line
from .entry import Entry, Member, Wanted, member_path, text_to_path
from .kinds import Choice
from .links import Names
from .local import open_file
from .opening import Kept, open_outer, slice_of
from .places import is_local_file
from .remote import open_stream

logger = logging.getLogger(__name__)

# What is read in passing is held in memory, a member at a time: no more than this.
MOST_BYTES = 2**29
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x5d\x00\x00")
_ZSTD = b"\x28\xb5\x2f\xfd"


class Place(NamedTuple):
    """Where the content of a member is.

    Attributes:
        number: Of the member in its archive, from 0.
        offset: In the archive; of a compressed one, unpacked.
        size: In bytes.
        error: Why it cannot be read.
    """

    number: int
    offset: int
    size: int
    error: str | None


def tar_entries(archive: Entry, choice: Choice, wanted: Wanted | None) -> Iterator[Entry]:
    """Yield the pictures and videos in a tar archive; where it is damaged, an entry with the error.

    Args:
        archive: The file.
        choice: Which names are taken, and the count of what is not.
        wanted: Whether the content of an entry is to be read, where it is read in passing.
    """
    numbers: Counter[str] = Counter()
    links = False
    try:
        with _open(archive.path) as tar:
            plain = _is_plain(tar)
            for info in _members(tar):
                links = links or _is_link(info)
                if info.isdir() or _is_link(info):
                    continue
                if not _is_file(info):
                    choice.skipped["special file"] += 1
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
    if links:
        yield from _behind_links(archive, choice, wanted)


def _behind_links(archive: Entry, choice: Choice, wanted: Wanted | None) -> Iterator[Entry]:
    """Yield what links lead to, under their names; of what is read in passing in another pass."""
    index = _indexes.get(archive.path)
    later: dict[int, list[Entry]] = {}
    for name, number, place in index.names.links():
        if place is None or not choice.takes_member(name):
            choice.skipped["link"] += place is None
            continue
        path = member_path("tar", name, archive.path, number=number)
        if isinstance(place, str):
            yield Entry(path, None, None, archive.version, place)
            continue
        entry = Entry(path, place.size, None, archive.version, place.error)
        if place.error is not None:
            yield entry
        elif index.plain:
            yield replace(entry, offset=place.offset)
        elif wanted is None or wanted(entry):
            later.setdefault(place.number, []).append(entry)
        else:
            yield entry
    why = "is not there any more"
    try:
        for number, data in _contents(archive.path, later):
            yield from (replace(entry, data=data) for entry in later.pop(number))
    except Exception as error:
        why = one_line(error)
    yield from (replace(entry, error=f"cannot be read: {why}") for entries in later.values() for entry in entries)


def _contents(path: str, wanted: dict[int, list[Entry]]) -> Iterator[tuple[int, bytes]]:
    """Yield the contents of the members with some numbers, as long as any are wanted."""
    if not wanted:
        return
    with _open(path) as tar:
        for number, info in enumerate(_members(tar)):
            if number in wanted:
                yield number, _read(tar, info)
                if not wanted:
                    return


def open_member(member: Member) -> BinaryIO:
    """Open a member for reading, seekable; of a compressed archive it is looked for from the start.

    Raises:
        OSError: There is none of this name, or the archive is damaged before it.
    """
    if _is_stream(member.archive):
        count = 0
        with _open(member.archive) as tar:
            for info in _members(tar):
                count += _is_file(info) and info.name == member.name
                if count == member.number:
                    return _unpacked(tar, info, member)
    index = _indexes.get(member.archive)
    found = index.names.of(member.name)
    place = found[member.number - 1] if member.number <= len(found) else None
    if place is None or isinstance(place, str) or place.error is not None:
        why = "No such member" if place is None else place if isinstance(place, str) else place.error
        raise FileNotFoundError(2, why, f"{member.name} in {member.archive}")
    if index.plain:
        return slice_of(open_outer(member.archive), place.offset, place.size, member.name)
    with _open(member.archive) as tar:
        info = next(islice(_members(tar), place.number, None))
        return _unpacked(tar, info, member)


def _unpacked(tar: tarfile.TarFile, info: tarfile.TarInfo, member: Member) -> BinaryIO:
    if info.size > MOST_BYTES:
        raise OSError(f"{member.name} has more than {MOST_BYTES} bytes")
    return io.BytesIO(_read(tar, info))


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


def _is_link(info: tarfile.TarInfo) -> bool:
    return info.issym() or info.islnk()


def _is_file(info: tarfile.TarInfo) -> bool:
    """Whether a member is unpacked as a file; so are those of kinds that nobody knows."""
    return info.isreg() or info.type not in tarfile.SUPPORTED_TYPES


def _is_plain(tar: tarfile.TarFile) -> bool:
    return not isinstance(tar.fileobj, tarfile._Stream)  # type: ignore[attr-defined]


def _is_stream(path: str) -> bool:
    """Whether an archive can be read from its start only: what is compressed or remote."""
    if not is_local_file(path):
        return True
    with open_file(text_to_path(path)) as file:
        return file.read(6).startswith(_COMPRESSED)


class _Index(NamedTuple):
    """What is in an archive; ``plain``: its members can be read where they are."""

    names: Names[Place]
    plain: bool


def _index(path: str) -> _Index:
    names: Names[Place] = Names()
    with _open(path) as tar:
        plain = _is_plain(tar)
        try:
            for number, info in enumerate(_members(tar)):
                if _is_file(info):
                    names.add(info.name, Place(number, info.offset_data, info.size, _error(info, plain)))
                elif info.isdir():
                    names.add_folder(info.name)
                elif _is_link(info):
                    names.add_link(info.name, info.linkname, hard=info.islnk())
        except Exception as error:
            # What was found before the damage was scanned, and can still be opened.
            logger.warning("%s is damaged: %s", path, one_line(error))
    return _Index(names, plain)


_indexes = Kept(_index, count=4)
