"""Files that are there as a whole or not at all, and folders that one process at a time may write."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import SettingError

# What a disk that is full says, or one on which nobody may have more.
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # not every system has quotas


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets its name, and is on the disk, only when the block ends without an error.

    Until then, and after an error, what was there before is still there.

    Raises:
        OSError: The disk is full, or not writable.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            sync_file(file)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the block say where it was: that a disk is full says by itself nothing of which one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), str(path)) from error


def place_new(source: Path, target: Path) -> None:
    """Give a file another name, which nothing has yet. Whoever has that name keeps it, also one who came just now.

    It gets the new name before it loses the old one: a kill in between leaves both, and the same call again ends it.
    On file systems without hard links it is copied under the new name, where a kill can leave a part of it, never
    instead of anything.

    Args:
        source: A file on the disk; no link.
        target: The new name; in the same file system, or the file is copied.

    Raises:
        FileExistsError: Something has that name, also a link to nothing.
        OSError: It cannot be written, or the file changed meanwhile; it keeps its name.
    """
    before = os.lstat(source)
    try:
        if os.name == "nt":
            os.rename(source, target)  # which refuses a name that is taken, there
        else:
            os.link(source, target)
    except FileExistsError:
        if not is_other_name(source, target):
            raise
    except OSError:  # another file system, or one without hard links, or a file of somebody else
        _copy_new(source, target)
    try:
        sync_folder(target.parent)
        unlink_same(source, before)
    except OSError:
        if source.exists() and _version(os.lstat(source)) == _version(before):  # so nothing has happened
            target.unlink(missing_ok=True)
        raise


def unlink_same(path: Path, was: os.stat_result) -> None:
    """Remove a file that is still the one that was looked at.

    Raises:
        OSError: It is another one, or was written to.
    """
    try:
        now = os.lstat(path)
    except FileNotFoundError:
        return
    if _version(now) != _version(was):
        raise OSError(errno.EBUSY, "changed while it was copied; it is left", str(path))
    path.unlink(missing_ok=True)


def is_other_name(one: Path, other: Path) -> bool:
    """Return whether two names are hard links to one content; a name that is the same one, spelt otherwise, is not."""
    try:
        mine, there = os.lstat(one), os.lstat(other)
        if not os.path.samestat(mine, there) or there.st_nlink < 2:
            return False
        return not os.path.samestat(os.stat(one.parent), os.stat(other.parent)) or _spelling(one) != _spelling(other)
    except OSError:
        return False


def write_new(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file that is there under its name as a whole, and on the disk, or not at all; see ``place_new``.

    Any number of processes may write into the folder at the same time.

    Raises:
        FileExistsError: Something has that name; it stays.
        OSError: The disk is full, or not writable.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        write_synced(temporary, data, private=private)
        place_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_new(source: Path, target: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with open(source, "rb") as content:
        mode = os.fstat(content.fileno()).st_mode & 0o777
        file = open(target, "wb", opener=lambda name, _: os.open(name, flags, mode))  # noqa: SIM115 - closed below
        try:
            with naming(target), file:
                shutil.copyfileobj(content, file)
                sync_file(file)
            with suppress(OSError):  # of times and rights, a file system without hard links may keep none
                shutil.copystat(source, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _version(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _spelling(path: Path) -> str:
    return unicodedata.normalize("NFC", path.name).casefold()  # some systems do not tell these apart


def sync_file(file: IO[Any]) -> None:
    """Bring what was written to a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system, and its file system, can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # so say some network file systems
            raise
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file and bring it to the disk; nothing of it stays if that fails.

    Args:
        path: Where; what is there is overwritten.
        data: Its content.
        private: Whether only its owner may read it.

    Raises:
        OSError: The disk is full, or not writable.
    """
    try:
        mode = 0o600 if private else 0o666  # less what the user's umask takes
        with naming(path), open(path, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            sync_file(file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there under its name as a whole, and on the disk, or not at all.

    Raises:
        OSError: The disk is full, or not writable.
    """
    with whole_file(path) as file:
        file.write(data)


class FolderLock:
    """Held by one process at a time; the system lets go of it when that process ends, however it ends.

    Args:
        folder: It must exist.
        doing: What the holder is doing, for the error of the next one: ``"scan"``.

    Raises:
        SettingError: Another process holds it.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        self._file = (folder / ".lock").open("ab")
        if not lock(self._file):
            self._file.close()
            raise SettingError(
                f"{folder} is in use by another {doing} that is still running; wait for it, or name another folder."
            )

    def release(self) -> None:
        """Let go of it. The file stays: removing it would let two processes hold two files of one name."""
        self._file.close()


def lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed, however the process ends; ``False`` if another one has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(2**40)  # far behind the end: a locked range cannot be read there
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
