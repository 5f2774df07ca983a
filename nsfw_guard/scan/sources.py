"""Where pictures are: files, folders, globs, lists, archives, tables, object stores."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from ..errors import SettingError
from .entry import Entry, Member, Wanted, split_member, text_to_path
from .glob import expand_braces, find, fixed_part, has_braces, has_magic, is_found_by, name_matches
from .kinds import ARCHIVE_HEAD, Choice, archive_kind, is_media_name
from .lists import check_list, read_list
from .local import file_entry, open_file, walk
from .opening import open_part, open_path
from .places import Parts, common, is_local_file, parts_of, relative
from .remote import check_protocol, find_url, is_web, protocol_of, walk_url
from .tables import check_tables, table_entries
from .tars import tar_entries
from .zips import zip_entries

__all__ = ["Sources", "is_local_file", "open_part", "open_path", "parse_sources"]


@dataclass(frozen=True)
class _Source:
    """One source.

    Attributes:
        find: Yields what is in it, archives not opened.
        base: What all paths in it have in front, in parts.
        named: Whether its files were named one by one, so that their content may say what they are.
        members: Of archives that were named with members: these only.
        list: Where further sources are named.
        holds: Says of a local path whether it lies in this source; ``None``: only finding it tells.
        folder: Of this machine, in which all of its files lie; empty where none does.
    """

    find: Callable[[], Iterator[Entry]]
    base: Parts
    named: bool = False
    members: Member | None = None
    list: str | None = None
    holds: Callable[[str], bool] | None = None
    folder: str = ""


class Sources:
    """What is to be scanned; made by ``parse_sources``.

    Attributes:
        skipped: Why → how many files were passed over, so far.
    """

    def __init__(self, sources: Sequence[_Source], choice: Choice, column: str | None) -> None:
        self._sources = sources
        self._choice = choice
        self._column = column
        self._base = common([source.base for source in sources])
        # What rows of tables name, where not all sources can say by themselves what lies in them.
        self._open = any(source.holds is None for source in sources)
        self._named_by_tables: set[bytes] = set()

    @property
    def skipped(self) -> Counter[str]:
        """Why → how many files were passed over, so far."""
        return +self._choice.skipped

    def entries(self, wanted: Wanted | None = None) -> Iterator[Entry]:
        """Yield every picture and video, and whatever cannot be read as an entry with an error.

        Nothing is sorted and nothing is gathered: a folder is read as the system hands out its names.

        Args:
            wanted: Asked only where content can be read only in passing: whether it is to be read.
        """
        for source in self._sources:
            yield from self._of(source, wanted)

    def names(self, path: str) -> bool:
        """Return whether what a row is about was named by the user, himself or with the folder that it is in.

        A row of a table can name any file of this machine: that is not the user's word.
        """
        outer = _outer(path)
        if is_local_file(outer):
            local = text_to_path(outer)
            if any(source.holds is not None and source.holds(local) for source in self._sources):
                return True
        return self._open and _digest(outer) not in self._named_by_tables

    def leads_outside(self, path: str) -> bool:
        """Return whether a file of folders that were named lies elsewhere: a folder on the way to it is a link."""
        local = text_to_path(path)
        holding = [source for source in self._sources if source.holds is not None and source.holds(local)]
        if not holding or not all(source.folder for source in holding):
            return False
        real = Path(os.path.realpath(os.path.dirname(local)))
        roots = [source.folder for source in self._sources if source.folder]
        return not any(real.is_relative_to(os.path.realpath(root)) for root in roots)

    def relative_to_source(self, path: str) -> str:
        """Return where a row's path lies below what all sources have in common, for copying into another folder.

        Never absolute, without ``..``, drives and characters that only some systems take; members of archives are in
        a folder of the archive's name.
        """
        return relative(path, self._base)

    def _of(self, source: _Source, wanted: Wanted | None) -> Iterator[Entry]:
        if source.list is not None:
            for name in read_list(source.list):
                yield from self._of(_line(name, self._choice), wanted)
            return
        found = source.members is None
        for outer in source.find():
            for entry in self._inside(outer, wanted, source.named):
                if source.members is None or entry.error or _is_one_of(entry, source.members):
                    found = True
                    yield entry
        if not found and source.members is not None:
            yield Entry(source.members.path, error="cannot be opened: no such member")

    def _inside(self, entry: Entry, wanted: Wanted | None, named: bool) -> Iterator[Entry]:
        """Yield what is in an archive or table; any other file itself."""
        kind = None if entry.error else _archive_kind(entry, named)
        if kind == "zip":
            yield from zip_entries(entry, self._choice)
        elif kind == "tar":
            yield from tar_entries(entry, self._choice, wanted)
        elif kind == "parquet":
            for found in table_entries(entry, self._column, wanted):
                outer, own = _outer(found.path), found.path.startswith("parquet://")
                if self._open and not (outer == entry.path and (own or found.error)):
                    self._named_by_tables.add(_digest(outer))
                yield found
        else:
            yield entry


def parse_sources(
    sources: Sequence[str],
    *,
    lists: Sequence[str] = (),
    column: str | None = None,
    every_name: bool = False,
    archives: bool = False,
) -> Sources:
    """Take sources as they are typed; only what can be told quickly is checked.

    Args:
        sources: Files, folders, globs, archives, tables, URLs.
        lists: Files with a source per line or between NUL bytes; ``-`` is standard input.
        column: Of tables: which one; ``None`` finds those that hold pictures.
        every_name: Take the files in folders and archives whatever their names.
        archives: Look into the archives and tables in folders, too.

    Raises:
        SettingError: A source that is not there, a glob that matches nothing, an unknown protocol.
    """
    if not sources and not lists:
        raise SettingError("There is nothing to scan: name files, folders, globs or URLs, or a list with --list.")
    choice = Choice(every_name=every_name, archives=archives)
    found = [_source(text, choice) for text in sources]
    for path in lists:
        check_list(path)
        found.append(_Source(lambda: iter(()), parts_of(os.getcwd()), list=path))
    return Sources(found, choice, column)


def _source(text: str, choice: Choice) -> _Source:
    if not text:
        raise SettingError('A source is empty (""); name a file, a folder, a glob or a URL.')
    member = split_member(text)
    if member is not None:
        return replace(_source(member.archive, choice), members=member)
    protocol = protocol_of(text)
    if protocol == "file":
        text = unquote(text.partition("://")[2])
    elif protocol is not None:
        return _remote(text, choice)
    path = os.path.abspath(text)
    if os.path.lexists(path):
        return _existing(path, choice)
    if has_braces(text):
        return _several(text, choice)
    if has_magic(text):
        if next(find(text, Choice()), None) is None:
            raise SettingError(f"{text} matches no picture, video or archive. Put it in quotes if a shell changes it.")
        folder = fixed_part(text)[0]
        return _Source(partial(find, text, choice), parts_of(folder), holds=partial(is_found_by, text), folder=folder)
    raise SettingError(f"There is no file or folder {text}. Name one that is there, a glob, or a URL such as s3://….")


def _line(name: str, choice: Choice) -> _Source:
    """Take a line of a list: what it names is what is meant, and an error if it is not there."""
    member = split_member(name)
    if member is not None:
        return replace(_line(member.archive, choice), members=member)
    if protocol_of(name):
        return _Source(partial(find_url, name, choice), (), named=True)
    path = os.path.abspath(text_to_path(name))
    if os.path.isdir(path):
        return _Source(partial(walk, path, choice), ())
    return _Source(lambda: iter([file_entry(path)]), (), named=True)


def _several(text: str, choice: Choice) -> _Source:
    names = [_source(name, choice) for name in list(expand_braces(text))]
    tests = [name.holds for name in names if name.holds is not None]
    return _Source(
        lambda: (entry for name in names for entry in name.find()),
        common([name.base for name in names]),
        named=True,
        holds=(lambda path: any(test(path) for test in tests)) if len(tests) == len(names) else None,
    )


def _existing(path: str, choice: Choice) -> _Source:
    if os.path.isdir(path):
        return _Source(partial(walk, path, choice), parts_of(path), holds=partial(_lies_below, path), folder=path)
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise SettingError(f"{path} is neither a file nor a folder; name one.")
    if archive_kind(path) == "parquet":
        check_tables()
    return _Source(lambda: iter([file_entry(path)]), parts_of(os.path.dirname(path)), named=True, holds=path.__eq__)


def _outer(path: str) -> str:
    member = split_member(path)
    return path if member is None else member.archive


def _lies_below(folder: str, path: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _digest(path: str) -> bytes:
    return hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _remote(url: str, choice: Choice) -> _Source:
    check_protocol(url)
    if has_braces(url):
        return _several(url, choice)
    if has_magic(url) and not is_web(url):  # in the URLs of web servers a question mark is none
        return _Source(partial(_matching, url, choice), parts_of(fixed_part(url)[0]))
    base = parts_of(url)
    is_file = is_web(url) or is_media_name(url) or archive_kind(url) is not None
    return _Source(partial(find_url, url, choice), base[:-1] if is_file else base, named=True)


def _matching(url: str, choice: Choice) -> Iterator[Entry]:
    entry = None
    for entry in find(url, choice, walk=walk_url):
        yield entry
    if entry is None:
        yield Entry(url, error="matches no picture, video or archive")


def _is_one_of(entry: Entry, members: Member) -> bool:
    member = split_member(entry.path)
    if member is None:
        return False
    same = (member.name, member.number) == (members.name, members.number)
    return member.scheme == members.scheme and (same or name_matches(members.name, member.name))


def _archive_kind(entry: Entry, named: bool) -> str | None:
    name = text_to_path(entry.path)
    if not is_local_file(name):
        return archive_kind(name.partition("?")[0])
    kind = archive_kind(name)
    if kind is None and named:
        try:
            with open_file(name) as file:
                kind = archive_kind(name, file.read(ARCHIVE_HEAD))
        except OSError:
            return None  # whoever decodes it says why
    return kind
