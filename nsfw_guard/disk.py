"""What makes files survive a process that is killed, and keeps two processes from writing the same one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and bring it to the disk; nothing of it stays if that fails.

    Raises:
        OSError: The disk is full, or not writable.
    """
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there under its name as a whole, and on the disk, or not at all.

    Raises:
        OSError: The disk is full, or not writable.
    """
    part = path.with_name(f".{path.name}.tmp")
    write_synced(part, data)
    part.replace(path)
    sync_folder(path.parent)


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
