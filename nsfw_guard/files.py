"""Files that are there as a whole or not at all, and folders that one process at a time may write."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import SettingError


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets its name, and is on the disk, only when the block ends without an error.

    Until then, and after an error, what was there before is still there.

    Raises:
        OSError: The disk is full, or not writable.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            sync_file(file)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
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
