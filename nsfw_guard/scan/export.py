"""The rows of a scan as one CSV file, for spreadsheets and others; the scan itself goes on from its parts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from ..files import whole_file
from .parts import columns_of, labels_in, number_of, old_parts, part_files, read_part, write_part
from .row import Row

NAME = "rows.csv"
# What spreadsheets take for the beginning of a formula, also in the wide forms of East Asian texts.
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"


def write_csv(out: Path, rows: Iterator[Row]) -> Path:
    """Write rows as ``rows.csv``, in UTF-8; what was there is replaced.

    No text in it is run by a spreadsheet: one that begins with ``=``, ``+``, ``-``, ``@``, white space, a control
    character or ``'`` has one ``'`` before it, and every text is in quotes.

    Args:
        out: The folder of the scan.
        rows: All that there are.

    Returns:
        The file.

    Raises:
        OSError: The disk is full, or not writable.
    """
    labels = list(dict.fromkeys(label for part in part_files(out) for label in labels_in(part)))
    columns = columns_of(labels)
    with whole_file(out / NAME) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
        sheet = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
        sheet.writerow(columns)
        for row in rows:
            record = row.to_record()
            values = (record.get(name) for name in columns)
            sheet.writerow([neutral(value) if isinstance(value, str) else value for value in values])
        text.detach()
    return out / NAME


def neutral(text: str) -> str:
    """Return a text that no spreadsheet runs; taking away one ``'`` in front gives what it was."""
    first = text[:1]
    runs = first in _FORMULA or first == "'" or first.isspace() or not first.isprintable()
    return f"'{text}" if first and runs else text


def convert_csv(out: Path, suffix: str) -> None:
    """Convert the parts that an earlier version wrote as CSV. It can be cut off at any moment, and goes on.

    Args:
        out: The folder of the scan, which nobody else has open.
        suffix: Of the format to convert them to.

    Raises:
        SettingError: A part is damaged.
        OSError: The disk is full, or not writable.
    """
    whole = {number_of(part) for part in part_files(out) if part.suffix != ".csv"}
    for old in old_parts(out):
        if number_of(old) not in whole:
            write_part(old.with_suffix(suffix), read_part(old), labels_in(old))
        old.unlink()
