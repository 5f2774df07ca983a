"""Files that are there as a whole or not at all, and folders that one process at a time may write."""

from __future__ import annotations

import os
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
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderLock:
    """Held by one process at a time; the system lets go of it when that process ends, however it ends.

    Args:
        folder: It must exist.
        doing: What the holder is doing, for the error of the next one: ``"scan"``.

    Raises:
        SettingError: Another process holds it.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        self._file: IO[Any] = (folder / ".lock").open("a+")
        try:
            _lock(self._file)
        except OSError as error:
            self._file.close()
            raise SettingError(
                f"{folder} is in use by another {doing} that is still running; wait for it, or name another folder."
            ) from error

    def release(self) -> None:
        """Let go of it. The file stays: removing it would let two processes hold two files of one name."""
        self._file.close()


def _lock(file: IO[Any]) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
