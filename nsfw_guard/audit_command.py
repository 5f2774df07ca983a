"""The command `nsfw-guard audit`: is a log what was written?"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from .errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    images: Annotated[
        Path | None,
        typer.Option(
            help="The folder with the pictures, or the quarantine. What is missing, changed, not in the logs, or "
            "flagged and not redacted is said."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Check that no line was edited, removed, added or moved. Exit code 0: intact, 1: broken, 2: could not be read.

    With --images, each picture in a folder is compared with what the logs say of it, byte for byte.

    Each head that is printed stands for the whole log up to there. The file head-of-… beside a log has it, too: so a
    log that was emptied, cut or removed is noticed. Whoever can write both can make both anew, and only a head that
    was kept elsewhere shows that: --expect HEAD.
    """
    expected = [one.strip().lower() for one in expect or ()]
    for one in expected:
        if not re.fullmatch("[0-9a-f]{64}", one):
            raise SettingError(f"--expect is {one!r}; expected a SHA-256, 64 hex digits, as `audit verify` prints it.")
    reports = [report for path in paths for report in _reports(path, expected)]
    missing = [one for one in expected if not any(one in report.hashes for report in reports)]
    found = None
    if images is not None:
        from .audit_images import compare_images

        found = compare_images(_lines(reports), images, quarantine=_is_quarantine(images, paths))
    if as_json:
        said: dict[str, object] = {"files": [_plain(one) for one in reports], "missing": missing}
        if found is not None:
            said["images"] = {**asdict(found), "folder": str(found.folder)}
        sys.stdout.write(json.dumps(said, indent=2) + "\n")
    else:
        out = Console()
        for report in reports:
            out.print(_said(report), soft_wrap=True)
        for one in missing:
            text = f"broken: {one} is in none of them: lines were cut off, or the log was made anew"
            out.print(Text(text, style="bold red"), soft_wrap=True)
        if found is not None:
            for picture in found.differences:
                text = f"{found.folder}: {picture.file} {picture.problem}"
                out.print(Text(text, style="bold red"), soft_wrap=True)
            text = f"{found.folder}: {found.same} of the {found.expected} pictures in the logs are there as written"
            out.print(Text(text), soft_wrap=True)
    differences = () if found is None else found.differences
    if any(one.unreadable for one in differences):
        raise typer.Exit(FAILED)
    raise typer.Exit(BROKEN if missing or differences or not all(one.intact for one in reports) else INTACT)


def _reports(path: Path, expect: list[str]) -> list[AuditReport]:
    """Check a log, or all of a folder: also those that are not there any more."""
    from .audit import FILES, audit_files, gone, verify
    from .audit_head import headless_logs, missing_logs
    from .generation.settings import HEADS, MANIFEST

    if not path.is_dir():
        return [verify(path, expect=expect)]
    reports = [verify(file, expect=expect) for file in sorted({*audit_files(path), *missing_logs(path)})]
    if not reports and (path / MANIFEST).exists():
        return [gone(path / "audit-00000.jsonl", f"is not there, and the run that wrote it has its {MANIFEST} here")]
    if not reports:
        raise SettingError(f"{path} holds no audit log ({FILES}).")
    if _manifest(path).get(HEADS) is True:
        said = "the head file beside the log is not there, which every log of this run had"
        lost = headless_logs(path)
        reports = [replace(one, problem=said, line=1) if one.intact and one.path in lost else one for one in reports]
    count = max((_processes(line) for line in _lines(reports)), default=0)
    there = {report.path.name for report in reports}
    names = [f"audit-{index:05d}.jsonl" for index in range(count)]
    said = f"is not there; {count} processes shared a run, each with a log"
    return [*reports, *(gone(path / name, said) for name in names if name not in there)]


def _processes(line: dict[str, Any]) -> int:
    """How many processes a run had, by the line with which each of them begins; 0 for other lines."""
    process = line.get("process")
    if line.get("event") != "start" or not isinstance(process, list) or len(process) != 2:
        return 0
    return process[1] if isinstance(process[1], int) and 0 < process[1] < 100_000 else 0


def _lines(reports: list[AuditReport]) -> Iterator[dict[str, Any]]:
    """Yield the lines that are intact."""
    from .audit import read

    for report in reports:
        if report.lines:
            yield from islice(read(report.path), report.lines)


def _is_quarantine(folder: Path, logs: list[Path]) -> bool:
    """Whether a folder is where a run of one of the logs has put the originals of flagged images."""
    from .generation.settings import QUARANTINE

    for path in logs:
        settings = _manifest(path if path.is_dir() else path.parent).get("settings")
        name, _, where = str(settings.get("on_flag") if isinstance(settings, dict) else "").partition("=")
        if name == QUARANTINE and Path(where).resolve() == folder.resolve():
            return True
    return False


def _manifest(folder: Path) -> dict[str, Any]:
    """Return what a run says of itself in its folder; nothing if there is none, or none that can be read."""
    from .generation.settings import MANIFEST

    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _said(report: AuditReport) -> Text:
    if report.intact:
        hint = "" if report.anchored else "; there is no head file: lines cut off its end would not be seen"
        return Text(f"{report.path}: intact, {report.lines} lines, head {report.head}{hint}")
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
        "anchored": report.anchored,
    }
