"""What reviewers decided on a page, read from the CSV file that it exports: the labels that calibration uses.

The columns are ``path``, ``sha256``, ``score``, ``flagged``, ``decision``, ``model``, ``threshold`` and
``reviewed_at``; one line per content, in UTF-8 with a byte order mark, as spreadsheets want it.

A spreadsheet runs what begins with ``=``, ``+``, ``-`` or ``@`` as a formula. A text that begins with one of them, with
white space or with ``'`` is written with one ``'`` before it, which spreadsheets show as text; reading takes away
exactly one ``'``. So nothing runs and nothing is lost: ``=a.jpg`` is written ``'=a.jpg``, and ``'a.jpg`` ``''a.jpg``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from ...errors import SettingError
from .manifest import probability

COLUMNS = ("path", "sha256", "score", "flagged", "decision", "model", "threshold", "reviewed_at")
DECISIONS = ("unsafe", "safe")


@dataclass(frozen=True)
class Decision:
    """What a person decided on one content.

    Attributes:
        path: Of the first file that has it; see ``Row.path``.
        sha256: Of the content, in hex; empty if it is unknown.
        score: In [0, 1]; ``None`` if there was none.
        flagged: Whether the guard had flagged it.
        unsafe: Whether it is unsafe, says the person.
        model: Whose score it is.
        threshold: With which it was compared, in [0, 1].
        reviewed_at: When, UTC, ISO 8601.
    """

    path: str
    sha256: str
    score: float | None
    flagged: bool
    unsafe: bool
    model: str
    threshold: float | None
    reviewed_at: str


def read_decisions(file: str | Path) -> list[Decision]:
    """Read the decisions that a report exported.

    Args:
        file: The CSV file.

    Returns:
        The decisions, in the file's order.

    Raises:
        SettingError: It is no such file, or a line of it makes no sense; none is left out.
    """
    with Path(file).open(encoding="utf-8-sig", newline="") as lines:
        try:
            reader = csv.DictReader(lines, strict=True)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise SettingError(
                    f"{file} has no column {missing[0]!r}; expected the CSV file that a report exports, with the "
                    f"columns {', '.join(COLUMNS)}."
                )
            return [_decision(record, f"{file}, line {reader.line_num}") for record in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise SettingError(f"{file} is no CSV file ({error}); expected the one that a report exports.") from error


def _decision(record: dict[str, str | None], where: str) -> Decision:
    cells = {name: record.get(name) for name in COLUMNS}
    texts = {name: value[1:] if value.startswith("'") else value for name, value in cells.items() if value is not None}
    if len(texts) < len(COLUMNS) or None in record:
        raise SettingError(f"{where} has another number of cells than the columns, which are {len(COLUMNS)}.")
    if texts["decision"] not in DECISIONS:
        raise SettingError(f"{where}: the decision is {texts['decision']!r}; expected unsafe or safe.")
    flagged = texts["flagged"].lower()  # spreadsheets write TRUE
    if flagged not in ("true", "false"):
        raise SettingError(f"{where}: flagged is {texts['flagged']!r}; expected true or false.")
    return Decision(
        path=texts["path"],
        sha256=texts["sha256"],
        score=_number(texts["score"], f"{where}: the score"),
        flagged=flagged == "true",
        unsafe=texts["decision"] == "unsafe",
        model=texts["model"],
        threshold=_number(texts["threshold"], f"{where}: the threshold"),
        reviewed_at=texts["reviewed_at"],
    )


def _number(text: str, what: str) -> float | None:
    if not text:
        return None
    try:
        number = probability(float(text))
    except ValueError:
        number = None
    if number is None:
        raise SettingError(f"{what} is {text!r}; expected a number in [0, 1].")
    return number
