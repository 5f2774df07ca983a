"""The head of an audit log, kept in a small file beside it: how many lines there are, and the hash of the last one.

A log's chain says nothing of lines that are cut off its end, or all of them; this file does. It is written after each
line, so it is never ahead of a log that nobody has touched, and may be behind it after a crash. Whoever can write
both files can make both anew: against that, a head has to be kept elsewhere.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from .files import write_whole

_BEFORE = "head-of-"
_KEPT = re.compile(rb'\{"schema":1,"lines": *(\d{1,15}),"head":"([0-9a-f]{64})"\}\n')


class Head(NamedTuple):
    """What a head file says.

    Attributes:
        lines: How many lines the log had.
        head: The hash of the last of them; 64 zeros if there was none.
    """

    lines: int
    head: str


def head_file(log: Path) -> Path:
    """Return the name of the head file of a log."""
    return log.with_name(f"{_BEFORE}{log.name}" + ("" if log.suffix == ".jsonl" else ".jsonl"))


def read_head(log: Path) -> Head | None:
    """Return what the head file of a log says; ``None`` if there is none: older versions wrote none.

    Raises:
        ValueError: It is something else.
        OSError: It cannot be read.
    """
    path = head_file(log)
    try:
        with path.open("rb") as file:
            found = _KEPT.fullmatch(file.read(1024))
    except FileNotFoundError:
        return None
    if found is None:
        raise ValueError(f"{path.name} beside it says nothing that a head file says: it was changed")
    return Head(int(found[1]), found[2].decode())


def begin_head(log: Path, head: Head) -> None:
    """Write a head file that was not there, and bring it to the disk.

    Raises:
        OSError: The disk is full, or not writable.
    """
    write_whole(head_file(log), _line(head))


def keep_head(log: Path, head: Head) -> None:
    """Write a head over the one before, of the same length, so that there is always one or the other.

    Raises:
        OSError: It cannot be written.
    """
    descriptor = os.open(head_file(log), os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        os.write(descriptor, _line(head))
    finally:
        os.close(descriptor)


def missing_logs(folder: Path) -> list[Path]:
    """Return the logs ``audit-*.jsonl`` of a folder that have lines by their head files, and are not there."""
    found = []
    for path in sorted(folder.glob(f"{_BEFORE}audit-*.jsonl")):
        log = path.with_name(path.name.removeprefix(_BEFORE))
        try:
            head = read_head(log)
        except ValueError:
            head = None
        if not log.exists() and (head is None or head.lines > 0):
            found.append(log)
    return found


def headless_logs(folder: Path) -> list[Path]:
    """Return the logs of processes, ``audit-00000.jsonl`` and so on, that have no head file beside them."""
    return [log for log in sorted(folder.glob(f"audit-{'[0-9]' * 5}.jsonl")) if not head_file(log).exists()]


def _line(head: Head) -> bytes:
    text = {"schema": 1, "lines": 0, "head": head.head}
    said = json.dumps(text, separators=(",", ":")).replace('"lines":0', f'"lines":{head.lines:>15}')
    return said.encode() + b"\n"
