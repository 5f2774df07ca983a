"""Files and folders of this machine: walked as they come, one folder at a time, without a list of what is in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from ..errors import why
from .entry import Entry, path_to_text
from .kinds import Choice

# Opening a pipe would wait for somebody to write to it; regular files do not care about the flag.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

# The parts of a name below where the walk began.
Parts = tuple[str, ...]
Identity = tuple[int, int]


class _Folder(NamedTuple):
    """One that is to be read: where it is, below the start, and what it is in."""

    path: str
    parts: Parts
    above: _Above | None


class _Above(NamedTuple):
    """The folders on the way to one, from the inside out."""

    identity: Identity
    above: _Above | None


def open_file(path: str) -> BinaryIO:
    """Open a regular file; never wait for a pipe, never read a device.

    Raises:
        OSError: It is none, not there or not readable.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS))  # noqa: SIM115 - the caller's
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(None, "Not a regular file", path)
    return file


def file_entry(path: str) -> Entry:
    """Return the entry of one file; if it is not there or no file, with its error."""
    text = path_to_text(path)
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        return Entry(text, error=f"cannot be opened: {why(error)}")
    if not stat.S_ISREG(found.st_mode):
        return Entry(text, error="cannot be opened: not a regular file")
    return Entry(text, found.st_size, found.st_mtime)


def walk(
    root: str,
    choice: Choice,
    *,
    enter: Callable[[Parts], bool] | None = None,
    pick: Callable[[Parts], bool] | None = None,
) -> Iterator[Entry]:
    """Yield the files below a folder that are chosen by name, and what cannot be read, as entries with an error.

    Links are followed, but into the same folder only once, and never into one on the way to them.

    Args:
        root: Where to begin.
        choice: Which names are taken, and the count of what is not.
        enter: Given the parts of a folder's name below ``root``: whether to go in; ``None``: always.
        pick: The same of files, in place of ``choice`` where it says yes or no; see ``glob.find``.
    """
    linked: set[Identity] = set()
    pending = [_Folder(root, (), None)]
    while pending:
        folder = pending.pop()
        try:
            here = os.stat(folder.path)
            items = os.scandir(folder.path)
        except OSError as error:
            yield Entry(path_to_text(folder.path), error=f"folder cannot be read: {why(error)}")
            continue
        above = _Above((here.st_dev, here.st_ino), folder.above)
        with items:
            while True:
                try:
                    item = next(items, None)
                except OSError as error:
                    yield Entry(path_to_text(folder.path), error=f"folder cannot be read to its end: {why(error)}")
                    break
                if item is None:
                    break
                parts = (*folder.parts, item.name)
                try:
                    is_folder = item.is_dir()
                    is_file = not is_folder and item.is_file()
                    dangling = not is_folder and not is_file and item.is_symlink()
                except OSError:  # a link to itself
                    is_folder, is_file, dangling = False, False, True
                if is_folder:
                    if enter is not None and not enter(parts):
                        continue
                    if item.is_symlink() and not _once(item.path, above, linked):
                        choice.skipped["folder seen already"] += 1
                        continue
                    pending.append(_Folder(item.path, parts, above))
                elif pick is not None and not pick(parts):
                    continue
                elif not is_file and not (dangling and not os.path.exists(item.path)):
                    choice.skipped["special file"] += 1
                elif pick is not None or choice.takes(item.name):
                    yield file_entry(item.path)


def _once(path: str, above: _Above | None, linked: set[Identity]) -> bool:
    """Return whether to go into a linked folder: not if it is on the way here, or a link led there before."""
    try:
        found = os.stat(path)
    except OSError:
        return True  # what reads it says why it cannot be read
    identity = (found.st_dev, found.st_ino)
    if identity in linked:
        return False
    while above is not None:
        if above.identity == identity:
            return False
        above = above.above
    linked.add(identity)
    return True
