"""The command `nsfw-guard audit`: is a log what was written?"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from .errors import SettingError

if TYPE_CHECKING:
    from .audit import AuditReport

audit = typer.Typer(help="Logs of decisions, each line of which carries the hash of the one before.")
INTACT, BROKEN, FAILED = 0, 1, 2


@audit.callback()
def _audit() -> None:
    """Keep ``verify`` a command of its own: typer makes a group of one the command itself."""


def verify(
    paths: Annotated[list[Path], typer.Argument(help="Logs, or folders of them (audit-*.jsonl).", show_default=False)],
    expect: Annotated[
        list[str] | None,
        typer.Option(help="A hash that has to be there, such as a head printed earlier. May be given several times."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of text.")] = False,
) -> None:
    """Check that no line was edited, removed, added or moved. Exit code 0: intact, 1: broken, 2: could not be read.

    Each head that is printed stands for the whole log up to there. Keep it where the log's writer cannot write: whoever
    can rewrite a log can also chain it anew, or cut lines off its end, and only --expect HEAD shows that.
    """
    from .audit import verify as check

    expected = [one.strip().lower() for one in expect or ()]
    for one in expected:
        if not re.fullmatch("[0-9a-f]{64}", one):
            raise SettingError(f"--expect is {one!r}; expected a SHA-256, 64 hex digits, as `audit verify` prints it.")
    reports = [check(file, expect=expected) for path in paths for file in _files(path)]
    missing = [one for one in expected if not any(one in report.hashes for report in reports)]
    if as_json:
        sys.stdout.write(json.dumps({"files": [_plain(one) for one in reports], "missing": missing}, indent=2) + "\n")
    else:
        out = Console()
        for report in reports:
            out.print(_said(report), soft_wrap=True)
        for one in missing:
            text = f"broken: {one} is in none of them: lines were cut off, or the log was made anew"
            out.print(Text(text, style="bold red"), soft_wrap=True)
    raise typer.Exit(BROKEN if missing or not all(report.intact for report in reports) else INTACT)


def _files(path: Path) -> list[Path]:
    from .audit import FILES, audit_files

    if not path.is_dir():
        return [path]
    files = audit_files(path)
    if not files:
        raise SettingError(f"{path} holds no audit log ({FILES}).")
    return files


def _said(report: AuditReport) -> Text:
    if report.intact:
        return Text(f"{report.path}: intact, {report.lines} lines, head {report.head}")
    hint = " (as a killed process leaves it; the next run cuts it off)" if report.torn else ""
    text = f"{report.path}: broken at line {report.line}: {report.problem}{hint}; {report.lines} intact lines before it"
    return Text(text, style="bold red")


def _plain(report: AuditReport) -> dict[str, object]:
    return {
        "path": str(report.path),
        "intact": report.intact,
        "lines": report.lines,
        "head": report.head,
        "line": report.line,
        "problem": report.problem,
        "torn": report.torn,
    }
