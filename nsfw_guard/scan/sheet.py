"""The rows of a CSV file, with cells as long as they come.

The module csv takes a cell of 128 kB at most, and that limit is the process's: not ours to raise.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator

# How many characters a row may have; a damaged file can be one quoted cell to its end.
_LONGEST = 2**26
_CELL = re.compile(r'"([^"]*(?:""[^"]*)*)"|([^",\r\n]*)')


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
