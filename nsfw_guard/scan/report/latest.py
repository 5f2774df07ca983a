"""Which rows count: a scan that was killed may have written a path again, and then the last row of it does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...errors import SettingError, one_line
from ..parts import part_files, paths_in, read_part
from ..row import Row

_T = TypeVar("_T")
_DIGEST = 16
OnStep = Callable[[str, int, int], None]


def latest_rows(out: Path, on_step: OnStep | None = None) -> Iterator[Row]:
    """Yield the last row of every path, in the order in which they were written.

    The parts are read twice. What is held meanwhile is a digest of 16 bytes per row, and while they are sorted about
    60 bytes; a million rows take some 60 MB.

    Args:
        out: The folder of the scan.
        on_step: Called with what is done, how much of it is, and of how much.

    Raises:
        SettingError: A part is damaged. Leaving it out could leave out what is flagged.
    """
    parts = part_files(out)  # once: a scan that is still running goes on to write others
    step = on_step or (lambda what, done, total: None)
    digests = bytearray()
    for number, part in enumerate(parts, start=1):
        for digest in _whole(part, map(_digest, paths_in(part))):
            digests += digest
        step("reading", number, 2 * len(parts))
    counts = _last_of_each(digests)
    at = 0
    for number, part in enumerate(parts, start=len(parts) + 1):
        for row in _whole(part, read_part(part)):
            if at >= len(counts):
                raise SettingError(f"{part} changed while it was read; write the report again.")
            if counts[at]:
                yield row
            at += 1
        step("reading", number, 2 * len(parts))


def _last_of_each(digests: bytearray) -> np.ndarray:
    """Whether each digest is the last of those that are equal to it."""
    keys = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((keys[:, 0], keys[:, 1]))  # stable: equal ones stay in the order of the rows
    sorted_keys = keys[order]
    last = np.ones(len(keys), dtype=bool)
    last[:-1] = (sorted_keys[1:] != sorted_keys[:-1]).any(axis=1)
    counts = np.zeros(len(keys), dtype=bool)
    counts[order[last]] = True
    return counts


def _digest(path: str) -> bytes:
    return hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


def _whole(part: Path, items: Iterator[_T]) -> Iterator[_T]:
    """Yield what a part holds; whatever reading it raises is said as what it is."""
    try:
        yield from items
    except SettingError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise SettingError(
            f"{part} cannot be read ({one_line(error)}). Delete it and run the same scan again: it scans what the part "
            "was about, and nothing else."
        ) from error
