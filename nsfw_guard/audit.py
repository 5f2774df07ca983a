"""The audit log: one JSON object per line, append-only, each line carrying the hash of the one before.

A line is ``{"schema":1,"sequence":…,"previous":…,"time":…, …,"hash":…}``. Its hash is the SHA-256 of its own bytes with
``,"hash":"…"`` taken out, so that nothing has to be agreed on but bytes; ``previous`` is the hash of the line before,
64 zeros in the first one. What the chain shows, and what it cannot: `verify`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from .audit_head import Head, begin_head, head_file, keep_head, read_head
from .errors import GuardError
from .files import lock, naming, sync_folder

logger = logging.getLogger(__name__)

SCHEMA = 1
GENESIS = "0" * 64
FILES = "audit-*.jsonl"
# No line of ours comes near; a file without line ends is not read into memory as one.
LONGEST = 2**24
_OWN = ("schema", "sequence", "previous", "time", "hash")
_START = f'{{"schema":{SCHEMA},"sequence":'.encode()
_HASH = re.compile(rb',"hash":"([0-9a-f]{64})"\}$')


class AuditError(GuardError):
    """An audit log that cannot be written or read, or that is not intact."""


@dataclass(frozen=True)
class AuditReport:
    """What `verify` found in one file.

    Attributes:
        path: Of the file.
        lines: How many intact lines there are, up to the problem if there is one.
        head: The hash of the last of them; 64 zeros if there is none. Kept elsewhere, it shows later that nothing was
            cut off.
        hashes: Which of the hashes that were asked for are among them.
        line: The number of the line that is not intact, from 1.
        problem: What is wrong with it; ``None`` if nothing is.
        torn: Whether that line is the last one and the beginning of one of ours, as a process leaves it that is killed
            while it writes; opening the log cuts it off.
        anchored: Whether a head file beside it was there, so that lines cut off its end would have been noticed.
    """

    path: Path
    lines: int
    head: str
    hashes: frozenset[str] = frozenset()
    line: int | None = None
    problem: str | None = None
    torn: bool = False
    anchored: bool = False

    @property
    def intact(self) -> bool:
        """Whether every line is what was written, in its place."""
        return self.problem is None


class AuditLog:
    """A file that lines are appended to, by one process at a time.

    What `append` has returned from is on the disk. A process that is killed while it writes leaves an incomplete last
    line, which nobody has been told of; opening the log cuts it off and says so in a line of its own. Its head is kept
    in a file beside it, ``head-of-….jsonl``.

    Args:
        path: Made if it is not there; its folder has to be.

    Attributes:
        path: Of the file.
        lines: How many there are.
        head: The hash of the last one; 64 zeros if there is none.

    Raises:
        AuditError: Another process writes to it, or it is not intact.
        OSError: It cannot be opened, or written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._thread = threading.Lock()
        self._process = os.getpid()
        new = not self.path.exists()
        if new:
            self._begin()
        self._file: BinaryIO | None = self.path.open("ab+", buffering=0)  # type: ignore[assignment]
        try:
            if not lock(self._file):
                raise AuditError(f"{self.path} is being written by another process; wait for it, or name another file.")
            if new:
                sync_folder(self.path.parent)
            report, cut = verify(self.path), 0
            if report.torn:
                cut = _mend(self._file)
                report = verify(self.path)
            if not report.intact:
                raise AuditError(
                    f"{self.path}, line {report.line}: {report.problem}. Nothing is appended to a log that is not "
                    "intact; move it away, or name another folder."
                )
            self.lines, self.head = report.lines, report.head
            if not report.anchored:  # of an older version
                begin_head(self.path, Head(self.lines, self.head))
            if cut:
                self.append({"event": "recovered", "cut_bytes": cut})
        except BaseException:
            self.close()
            raise

    def append(self, *records: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Append lines, all or none, and bring them to the disk.

        Args:
            records: What ``json.dumps`` takes; without the names that every line has.

        Returns:
            The lines as they were written.

        Raises:
            AuditError: The log is closed or removed, or was opened by another process; or a name of every line is used.
            OSError: The disk is full, or not writable; the log is as it was before.
        """
        with self._thread:
            if self._file is None or os.getpid() != self._process:
                raise AuditError(f"{self.path} is not open in this process; open it: AuditLog({str(self.path)!r}).")
            if os.fstat(self._file.fileno()).st_nlink == 0:
                raise AuditError(f"{self.path} was removed while it was written; nothing goes on without a log.")
            head, lines, written = self.head, [], b""
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            for sequence, record in enumerate(records, start=self.lines):
                if taken := [name for name in _OWN if name in record]:
                    raise AuditError(f"A record has {taken}, which every line has already; give them other names.")
                line = {"schema": SCHEMA, "sequence": sequence, "previous": head, "time": now, **record}
                text = json.dumps(line, separators=(",", ":"), allow_nan=False).encode()
                head = sha256(text).hexdigest()
                lines.append({**line, "hash": head})
                written += text[:-1] + f',"hash":"{head}"}}\n'.encode()
            self._write(written)
            self.head, self.lines = head, self.lines + len(lines)
            try:
                keep_head(self.path, Head(self.lines, self.head))
            except OSError as error:  # the lines are there; less is known of them
                logger.warning("%s cannot be written: %s", head_file(self.path), error)
            return lines

    def _begin(self) -> None:
        """Say that there is a log before there is one: an empty log without a head file is one that was emptied."""
        try:
            kept = read_head(self.path)
        except ValueError as error:
            raise AuditError(f"{self.path} is gone, and {error}. Move that away too.") from error
        if kept is not None and kept.lines:
            raise AuditError(
                f"{_gone(self.path, kept)}. Nothing is appended to a log that is not intact; move "
                f"{head_file(self.path).name} away too, or name another folder."
            )
        if kept is None:
            begin_head(self.path, Head(0, GENESIS))

    def _write(self, data: bytes) -> None:
        """Write at the end, as a whole or not at all."""
        file = self._file
        assert file is not None  # noqa: S101 - append has looked
        before = file.seek(0, os.SEEK_END)
        try:
            with naming(self.path):
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
        except BaseException:
            try:
                file.truncate(before)
            except OSError:
                self.close()  # it ends with half a line: nothing more may follow
            raise

    @property
    def closed(self) -> bool:
        """Whether nothing more can be appended: also after a write that failed and could not be taken back."""
        return self._file is None

    def close(self) -> None:
        """Let another process write."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def verify(path: str | Path, *, expect: Iterable[str] = ()) -> AuditReport:
    """Check the chain of one file, and what the head file beside it says.

    It shows a line that was edited, removed, added or moved, and by the head file also lines that were cut off its
    end, and a file that was emptied, replaced or removed. It cannot show that whoever can write both files has made
    both anew: for that, keep its ``head`` elsewhere and ask for it later.

    Args:
        path: Of the file.
        expect: Hashes to look for, such as the heads that were kept.

    Raises:
        OSError: It cannot be read.
    """
    path, wanted = Path(path), frozenset(expect)
    head, count = GENESIS, 0
    found: set[str] = set()
    kept: Head | None = None
    at_kept = GENESIS

    def report(problem: str | None = None, *, torn: bool = False) -> AuditReport:
        line = None if problem is None else count + 1
        return AuditReport(path, count, head, frozenset(found), line, problem, torn, kept is not None)

    try:
        kept = read_head(path)  # before the log, which may be growing
    except ValueError as error:
        return report(str(error))
    if kept is not None and kept.lines and not path.exists():
        return report(_gone(path, kept))

    if GENESIS in wanted:
        found.add(GENESIS)
    with naming(path), path.open("rb") as file:
        while line := file.readline(LONGEST):
            if not line.endswith(b"\n"):
                if len(line) == LONGEST:
                    return report(f"the line is longer than {LONGEST} bytes")
                ended = count + bool(_HASH.search(line))  # with the lines that lack only their end
                lost = kept is not None and ended < kept.lines
                return report("the line is incomplete", torn=not lost and _is_torn(line, follows=count > 0))
            try:
                hashed = _checked(line[:-1], count, head)
            except ValueError as error:
                return report(str(error))
            head, count = hashed, count + 1
            if head in wanted:
                found.add(head)
            if kept is not None and count == kept.lines:
                at_kept = head
    if kept is None and count == 0:
        return report("there is none: the file is empty, and no head file says that nothing was written to it")
    if kept is not None and count < kept.lines:
        return report(f"it and all after it were cut off: {head_file(path).name} says that there were {kept.lines}")
    if kept is not None and at_kept != kept.head:
        return report(f"{head_file(path).name} has another hash of line {kept.lines}: the log was made anew")
    return report()


def read(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log that was verified; an incomplete last one is left out.

    Raises:
        AuditError: A line is no JSON object.
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise AuditError(f"{path}, line {number}: it is no JSON object.")
            yield record


def audit_files(folder: str | Path) -> list[Path]:
    """Return the audit logs of a folder, in the order of their names."""
    return sorted(Path(folder).glob(FILES))


def gone(path: Path, problem: str) -> AuditReport:
    """Return the report on a log that is not there."""
    return AuditReport(path, 0, GENESIS, line=1, problem=problem)


def _gone(path: Path, kept: Head) -> str:
    return f"{path.name} is gone, which had {kept.lines} lines by {head_file(path).name}"


def _checked(line: bytes, sequence: int, previous: str) -> str:
    """Return the hash of a line that is intact and in its place.

    Raises:
        ValueError: It is not; the message says why.
    """
    match = _HASH.search(line)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # the latter of what is nested too deeply
        record = None
    if not isinstance(record, dict) or match is None:
        raise ValueError("it is not a line of an audit log")
    if not _is_hash_of(match, line):
        raise ValueError("its content does not match its hash: it was changed")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {record.get('schema')!r}; this version knows {SCHEMA}")
    if record.get("previous") != previous or record.get("sequence") != sequence:
        raise ValueError("it does not follow the line before: lines were removed, added or moved")
    return match.group(1).decode()


def _is_hash_of(match: re.Match[bytes], line: bytes) -> bool:
    return sha256(line[: match.start()] + b"}").hexdigest().encode() == match.group(1)


def _is_torn(line: bytes, *, follows: bool) -> bool:
    """Whether an incomplete line is the beginning of one of ours; zeros at its end are of a machine that went down.

    Args:
        line: What there is of it.
        follows: Whether there are lines of ours before it: a file of nothing but zeros is somebody else's.
    """
    if match := _HASH.search(line):  # it lacks only its end, or was changed
        return _is_hash_of(match, line)
    written = line.rstrip(b"\0")
    return written.startswith(_START) or (_START.startswith(written) and (follows or bool(written)))


def _mend(file: BinaryIO) -> int:
    """End a torn last line if it lacks only its end, or cut it off; return how many bytes."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - LONGEST))
    tail = file.read()
    torn = tail[tail.rfind(b"\n") + 1 :]
    if _HASH.search(torn):
        file.write(b"\n")
        os.fsync(file.fileno())
        return 0
    file.truncate(end - len(torn))
    os.fsync(file.fileno())
    return len(torn)
