"""What a running scan knows of the rows on disk, in a database of its own: memory does not grow with their number.

It is made from the parts when a scan starts, and is gone when it ends; the parts alone say what was done.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .entry import Entry
from .row import Row

# What rows of equal content share.
_CONTENT = (
    "flagged", "score", "threshold", "level", "reason", "labels", "kind", "width", "height", "frames", "frame",
    "views", "model", "preprocessing", "policy", "evidence", "error", "warning",
)  # fmt: skip
# What was flagged before it broke off counts as an error, too.
FLAGGED_IN_PART = "flagged in part"
FLAGGED = ("flagged", FLAGGED_IN_PART)


class Index:
    """Paths with the version that was scanned, and results by content.

    Args:
        file: Of the database; what is there is overwritten.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        file.unlink(missing_ok=True)
        # One connection, with which the threads of a scan take turns.
        self._turn = threading.Lock()
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        # It is made anew after a crash: nothing has to be on the disk.
        self._database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -8000;"
            "CREATE TABLE paths (path BLOB PRIMARY KEY, version BLOB, part INTEGER, status TEXT, seen INTEGER)"
            "WITHOUT ROWID;"
            "CREATE TABLE contents (sha256 BLOB PRIMARY KEY, result TEXT) WITHOUT ROWID;"
            "BEGIN"
        )

    def close(self) -> None:
        """Remove it."""
        with self._turn:  # SQLite would crash, were a thread in it that a second Ctrl-C has left running
            self._database.close()
        self._file.unlink(missing_ok=True)

    def _run(self, statement: str, *values: Any) -> Any:
        try:
            with self._turn:
                return self._database.execute(statement, values).fetchone()
        except sqlite3.OperationalError as error:
            raise OSError(f"{self._file} cannot be written or read: {error}") from error

    def status(self, path: str, version: bytes | None = None) -> str:
        """Say what is known of a version of a file; without one, of whichever there is.

        Returns:
            ``"clean"``, ``"error"`` or one of ``FLAGGED``; ``"claimed"``: it is under way, or was seen; ``"new"``:
            nothing.
        """
        found = self._run("SELECT version, status, seen FROM paths WHERE path = ?", _digest(path))
        if found is None or version not in (None, found[0]):
            return "new"
        return "claimed" if found[2] else str(found[1])

    def see(self, path: str) -> None:
        """Note that a file was come across: the same version once more, in another source, is none to count."""
        self._run("UPDATE paths SET seen = 1 WHERE path = ?", _digest(path))

    def part(self, path: str) -> int | None:
        """Return the number of the part that has a file's row; ``None``: no part has it."""
        found = self._run("SELECT part FROM paths WHERE path = ?", _digest(path))
        return None if found is None else found[0]

    def claim(self, path: str, version: bytes) -> None:
        """Note that a version of a file is being scanned; the part that has its last row stays known."""
        self._run(
            "INSERT INTO paths VALUES (?, ?, NULL, 'claimed', 0) "
            "ON CONFLICT (path) DO UPDATE SET version = excluded.version, status = excluded.status, "
            "seen = 0",
            _digest(path),
            version,
        )

    def claimed(self) -> int:
        """Return how many files are claimed and have no row."""
        return int(self._run("SELECT COUNT(*) FROM paths WHERE status = 'claimed'")[0])

    def add(self, row: Row, part: int, *, final: bool = True, seen: bool = False) -> int | None:
        """Note that a part has a file's row; return the number of the part that had it before.

        Args:
            row: The row.
            part: The number of the part.
            final: Whether that file is done as long as it does not change.
            seen: Whether it was come across by the scan that is running.
        """
        before = self.part(row.path)
        version = version_of(row) if final else b""
        values = (_digest(row.path), version, part, _status(row), seen)
        self._run("INSERT OR REPLACE INTO paths VALUES (?, ?, ?, ?, ?)", *values)
        return before

    def move(self, path: str, part: int) -> None:
        """Note that another part has a file's row now."""
        self._run("UPDATE paths SET part = ? WHERE path = ?", part, _digest(path))

    def learn(self, row: Row) -> None:
        """Note the result of a content."""
        if row.sha256 is not None:
            values = asdict(row)
            result = json.dumps([values[name] for name in _CONTENT])
            self._run("INSERT OR REPLACE INTO contents VALUES (?, ?)", bytes.fromhex(row.sha256), result)

    def result(self, sha256: str) -> Row | None:
        """Return a row with the result of a content, and nothing about a file; ``None``: it is not known."""
        found = self._run("SELECT result FROM contents WHERE sha256 = ?", bytes.fromhex(sha256))
        if found is None:
            return None
        return replace(Row(path="", sha256=sha256), **dict(zip(_CONTENT, json.loads(found[0]), strict=True)))


def version_of(what: Row | Entry, model: str = "", preprocessing: str = "") -> bytes:
    """Return what says which version of a file was scanned, with which model and preprocessing; a row has its own."""
    if isinstance(what, Row):
        model, preprocessing = what.model, what.preprocessing
    return _digest(json.dumps([what.size, what.mtime, what.etag, model, preprocessing]))


def _status(row: Row) -> str:
    if row.flagged:
        return "flagged" if row.error is None else FLAGGED_IN_PART
    return "clean" if row.error is None else "error"


def _digest(text: str) -> bytes:
    # 128 bits: among 10^9 names the chance that any two are the same is 10^-21.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
