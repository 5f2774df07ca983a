"""What a scan says in a terminal: how far it is, and at the end what it found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .summary import NAMED, Summary

if TYPE_CHECKING:
    from .actions import Actions

out = Console()
err = Console(stderr=True)


def show(summary: Summary, actions: Actions | None, folder: Path, *, rows: Path) -> None:
    """Print what was found and done."""
    share = f" ({summary.flagged / summary.files:.2%})" if summary.flagged else ""
    _line(
        f"{summary.files:,} files: {summary.flagged:,} flagged{share}, {summary.errors:,} could not be looked at.",
        bold=True,
    )
    parts = [f"{summary.scored:,} scored", f"{summary.duplicates:,} duplicates", f"{summary.before:,} done before"]
    _line(f"{', '.join(parts)}; {summary.seconds:,.1f} s, {rate(summary):,.1f} files/s.")
    if summary.scored:
        _line(f"The limit was the {summary.limit}: the model was busy {summary.busy:.0%} of the time.")
    _show_failures(summary, folder)
    if summary.skipped:
        what = ", ".join(f"{count:,} {why}" for why, count in sorted(summary.skipped.items()))
        _line(f"Passed over: {what}.")
    if actions is not None:
        _show_actions(actions)
    _line(f"Rows: {rows}. A page to look through them: nsfw-guard report {folder}")


def _show_failures(summary: Summary, folder: Path) -> None:
    for path, why in summary.failures.items():
        err.print(Text(_shown(f"error: {path}: {why}"), style="yellow"), soft_wrap=True)
    if (more := summary.errors - len(summary.failures)) > 0:
        said = f"… and {more:,} more that could not be looked at; all are in: nsfw-guard report {folder}"
        err.print(Text(_shown(said), style="yellow"), soft_wrap=True)


def rate(summary: Summary) -> float:
    """Return how many files a second got their rows."""
    return summary.done / summary.seconds if summary.seconds else 0.0


def _show_actions(actions: Actions) -> None:
    if actions.planned:
        _line(f"Dry run. To {actions.kind}: {len(actions.planned):,} files.")
        for path, to in list(actions.planned.items())[:NAMED]:
            _line(f"  {path} → {to}")
        if (more := len(actions.planned) - NAMED) > 0:
            _line(f"  … and {more:,} more; --json names them all.")
    else:
        _line(f"{actions.kind}: {actions.done:,} files, to {actions.folder}.")
    for path, why in list(actions.failed.items())[:NAMED]:
        err.print(Text(_shown(f"error: {path}: {why}"), style="yellow"), soft_wrap=True)
    if (more := len(actions.failed) - NAMED) > 0:
        err.print(Text(f"… and {more:,} more; --json names them all.", style="yellow"), soft_wrap=True)
    if actions.failed:
        said = f"error: {len(actions.failed):,} flagged files could not be dealt with: {actions.kind} did not succeed."
        err.print(Text(said, style="bold red"), soft_wrap=True)


def as_dict(actions: Actions | None) -> dict[str, object]:
    """Return what was done with flagged files, for JSON."""
    if actions is None:
        return {}
    return {"action": actions.kind, "acted": actions.done, "planned": actions.planned, "failed_actions": actions.failed}


def nothing(summary: Summary) -> str:
    """Return what to say where there was no file."""
    passed_over = ", ".join(f"{count:,} {why}" for why, count in sorted(summary.skipped.items()))
    return "error: There is no picture or video in the sources" + (
        f"; passed over: {passed_over}. --every-name looks at files of any name, --archives into archives in folders."
        if passed_over
        else "."
    )


def _line(text: str, *, bold: bool = False) -> None:
    out.print(Text(_shown(text), style="bold" if bold else ""), soft_wrap=True)


def _shown(text: str) -> str:
    """Return a text that a terminal can show: names may hold anything, also what would steer it."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Count(ProgressColumn):
    """How many are done, and of how many, once that is known."""

    def render(self, task: Task) -> Text:
        of = "" if task.total is None else f"/{int(task.total):,}"
        return Text(f"{int(task.completed):,}{of}")


def bar() -> Progress:
    """Return the progress bar of a scan."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Count(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=err, transient=True)
