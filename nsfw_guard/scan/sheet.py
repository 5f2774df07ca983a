"""Rows in CSV, which earlier versions went on from; today it is what ``export`` writes for others.

Cells may be as long as they come. The module csv takes 128 kB at most, and that limit is the process's: not ours to
raise.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from typing import Any

from .row import INTEGERS, LABEL_PREFIX, NUMBERS, Row

# How many characters a row may have; a damaged file can be one quoted cell to its end.
_LONGEST = 2**26
_CELL = re.compile(r'"([^"]*(?:""[^"]*)*)"|([^",\r\n]*)')


def rows_of(lines: Iterable[str]) -> Iterator[Row]:
    """Yield the rows of a part of an earlier version.

    Args:
        lines: See ``read_sheet``.

    Raises:
        ValueError: It is none.
        csv.Error: The same.
    """
    sheet = read_sheet(ended(lines))
    names = next(sheet, [])
    for cells in sheet:
        if len(cells) != len(names):
            raise ValueError(f"a row has {len(cells)} cells; expected {len(names)}")
        yield Row.from_record(_typed(dict(zip(names, cells, strict=True))))


def labels_of(lines: Iterable[str]) -> list[str]:
    """Return the labels that a part of an earlier version has columns for."""
    names = next(read_sheet(ended(lines)), [])
    return [name[len(LABEL_PREFIX) :] for name in names if name.startswith(LABEL_PREFIX)]


def ended(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines that all have an end: a last one without it can be read in part, as a number with fewer digits."""
    for line in lines:
        if not line.endswith("\n"):
            raise ValueError("its last line has no end")
        yield line


def read_sheet(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the cells of each row of what ``csv.writer`` has written.

    Args:
        lines: Each with its line feed at its end, of a file that is opened without any translation of line ends.

    Raises:
        ValueError: It is no CSV.
        csv.Error: The same.
    """
    parts: list[str] = []
    length = quotes = 0
    for line in lines:
        parts.append(line)
        length += len(line)
        quotes += line.count('"')
        if length > _LONGEST:
            raise ValueError(f"a row is longer than {_LONGEST} characters")
        if quotes % 2 == 0:  # else a quoted cell goes on in the next line
            yield _cells("".join(parts))
            parts, length, quotes = [], 0, 0
    if parts:
        raise ValueError("it ends within a quoted cell")


def _cells(row: str) -> list[str]:
    if len(row) <= csv.field_size_limit():
        return next(csv.reader([row], strict=True))
    row = row.removesuffix("\n").removesuffix("\r")
    cells: list[str] = []
    at = 0
    while at <= len(row):
        cell = _CELL.match(row, at)
        if cell is None or row[cell.end() : cell.end() + 1] not in ("", ","):
            raise ValueError("a cell goes on after its quotes")
        quoted, plain = cell.groups()
        cells.append(plain if quoted is None else quoted.replace('""', '"'))
        at = cell.end() + 1
    return cells


def _typed(record: dict[str, str]) -> dict[str, Any]:
    """Give the texts of a CSV file their types again; what is empty is no value."""
    typed: dict[str, Any] = {}
    for name, text in record.items():
        if text == "":
            typed[name] = "" if name in ("model", "preprocessing", "policy", "scanned") else None
        elif name in INTEGERS:
            typed[name] = int(text)
        elif name in NUMBERS or name.startswith(LABEL_PREFIX):
            typed[name] = float(text)
        elif name == "flagged":
            typed[name] = text == "True"
        else:
            typed[name] = text
    return typed
