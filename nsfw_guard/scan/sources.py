"""Where pictures are: files, folders, globs, lists, archives, tables, object stores."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import SettingError
from .entry import Entry, text_to_path
from .glob import expand_braces, find, fixed_part, has_braces, has_magic
from .kinds import HEAD, Choice, archive_kind
from .lists import check_list, read_list
from .local import file_entry, open_file, walk
from .places import common, is_local_file, parts_of, relative

__all__ = ["Sources", "is_local_file", "open_part", "open_path", "parse_sources"]

Wanted = Callable[[Entry], bool]


@dataclass(frozen=True)
class _Source:
    """One source.

    Attributes:
        find: Yields what is in it, archives not opened.
        base: What the paths in it have in front of what is below it, in parts.
        named: Whether its files were named one by one, so that their content may say what they are.
    """

    find: Callable[[], Iterator[Entry]]
    base: tuple[str, ...]
    named: bool = False


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
            for entry in source.find():
                yield from self._inside(entry, wanted, source.named)

    def relative_to_source(self, path: str) -> str:
        """Return where a row's path lies below what all sources have in common, for copying into another folder.

        Never absolute, without ``..``, drives and characters that only some systems take; members of archives are in
        a folder of the archive's name.
        """
        return relative(path, self._base)

    def _inside(self, entry: Entry, wanted: Wanted | None, named: bool) -> Iterator[Entry]:
        kind = None if entry.error else _archive_kind(entry, named)
        if kind is None:
            yield entry
        else:
            yield Entry(entry.path, error=f"{kind} archives are not read yet")


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
        found.append(_Source(lambda path=path: _listed(path, choice), parts_of(os.getcwd()), named=True))  # type: ignore[misc]
    return Sources(found, choice, column)


def open_path(path: str) -> BinaryIO:
    """Open what a row is about, for reading, seekable; see ``Entry.path``. Threads may do so at the same time.

    Raises:
        OSError: It is not there any more, or not readable.
    """
    return open_file(text_to_path(path))


def open_part(path: str, offset: int, size: int) -> BinaryIO:
    """Open a member of a tar by its place in it.

    Raises:
        OSError: It is not there any more, or not readable.
    """
    raise OSError(f"{path} cannot be opened: tar archives are not read yet")


def _source(text: str, choice: Choice) -> _Source:
    if not text:
        raise SettingError('A source is empty (""); name a file, a folder, a glob or a URL.')
    path = os.path.abspath(text)
    if os.path.lexists(path):
        return _existing(path, choice)
    if has_braces(text):
        names = [_source(name, choice) for name in list(expand_braces(text))]
        base = common([name.base for name in names])
        return _Source(lambda: (entry for name in names for entry in name.find()), base, named=True)
    if has_magic(text):
        if next(find(text, Choice()), None) is None:
            raise SettingError(f"{text} matches no picture, video or archive. Put it in quotes if a shell changes it.")
        return _Source(lambda: find(text, choice), parts_of(fixed_part(text)[0]))
    raise SettingError(f"There is no file or folder {text}. Name one that is there, a glob, or a URL such as s3://….")


def _existing(path: str, choice: Choice) -> _Source:
    if os.path.isdir(path):
        return _Source(lambda: walk(path, choice), parts_of(path))
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise SettingError(f"{path} is neither a file nor a folder; name one.")
    return _Source(lambda: iter([file_entry(path)]), parts_of(os.path.dirname(path)), named=True)


def _listed(path: str, choice: Choice) -> Iterator[Entry]:
    for name in read_list(path):
        inner = os.path.abspath(name)
        if os.path.isdir(inner):
            yield from walk(inner, choice)
        else:
            yield file_entry(inner)


def _archive_kind(entry: Entry, named: bool) -> str | None:
    name = text_to_path(entry.path)
    kind = archive_kind(name)
    if kind is None and named and is_local_file(entry.path):
        try:
            with open_file(name) as file:
                kind = archive_kind(name, file.read(HEAD))
        except OSError:
            return None  # whoever decodes it says why
    return kind
