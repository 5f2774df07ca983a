"""The command `nsfw-guard check`: verdicts on pictures, and copies that may be shown."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .console import (
    Cells,
    Color,
    ExitZero,
    Kind,
    Model,
    PolicyName,
    Replacement,
    default_device,
    quiet,
    redaction_of,
    stated,
)
from .errors import GuardError, ImageError, SettingError

if TYPE_CHECKING:
    from .check_files import Listed, Listing
    from .guard import NsfwGuard
    from .verdict import Verdict

CLEAN, FLAGGED, FAILED = 0, 1, 2


def check(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Pictures; folders, for every picture in them and below; globs; - for standard input.",
            show_default=False,
        ),
    ],
    model: Model = "freepik",
    policy: PolicyName = None,
    threshold: Annotated[float | None, typer.Option(help="In [0, 1], instead of the policy's.")] = None,
    redaction: Kind = None,
    cells: Cells = None,
    color: Color = None,
    replacement: Replacement = None,
    redact_to: Annotated[
        Path | None,
        typer.Option(
            help="Write each picture that may be shown here: redacted if flagged, else a copy. What comes from a "
            "folder keeps its place in it."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of a table.")] = False,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    views: Annotated[
        str | None, typer.Option(help="auto sees every part of a picture; card only what the model's own crop sees.")
    ] = None,
    exit_zero: ExitZero = False,
) -> None:
    """Print the verdict on pictures.

    Exit code 0: clean, 1: something flagged, 2: could not run, or something could not be looked at.
    """
    from .check_files import list_files
    from .guard import NsfwGuard

    quiet()
    guard = NsfwGuard(
        model,
        policy=policy,
        threshold=threshold,
        device=device or default_device(),
        **stated(redaction=redaction_of(redaction, cells, color, replacement), dtype=dtype, views=views),
    )
    listing = list_files(files, without=redact_to)
    if redact_to is not None:
        _refuse_copies(guard, listing, redact_to)
        redact_to.mkdir(parents=True, exist_ok=True)
    err = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    table = Table("file", "score", "threshold", "level", "verdict")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=len(listing.files) < 2) as progress:
        for file in progress.track(listing.files, description="checking"):
            try:
                verdict = _check_file(guard, file, redact_to)
            except (GuardError, OSError) as error:
                rows.append({"file": file.name, "error": str(error)})
                table.add_row(Text(file.name), "", "", "", Text("not checked", style="bold yellow"))
                err.print(Text(f"error: {file.name}: {error}", style="yellow"), soft_wrap=True)
                continue
            rows.append({"file": file.name, **verdict.to_dict()})
            level = verdict.level.name.lower()
            table.add_row(Text(file.name), f"{verdict.score:.4f}", f"{verdict.threshold:.2f}", level, said(verdict))
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        Console().print(table)
    if listing.skipped:
        passed = ", ".join(f"{count:,} {why}" for why, count in sorted(listing.skipped.items()))
        err.print(Text(f"Passed over in folders: {passed}. For archives and films: nsfw-guard scan."), soft_wrap=True)
    if any("error" in row for row in rows):
        raise typer.Exit(FAILED)
    raise typer.Exit(FLAGGED if any(row["flagged"] for row in rows) and not exit_zero else CLEAN)


def said(verdict: Verdict) -> Text:
    """Return a verdict in a word or two, for a table."""
    if verdict.flagged:
        return Text(f"flagged ({verdict.reason})", style="bold red")
    return Text("passed", style="green")


def _refuse_copies(guard: NsfwGuard, listing: Listing, redact_to: Path) -> None:
    if guard.redaction.kind == "none":
        raise SettingError("--redact-to with --redaction none would copy what is flagged; choose another redaction.")
    if any(file.path is None and file.error is None for file in listing.files):
        raise SettingError("--redact-to needs names, and standard input (-) has none; name files.")
    for one, other in listing.collisions():
        raise SettingError(
            f"{one.name} and {other.name} would both be written to {redact_to / one.place}; check them one after the "
            "other, each with a folder of its own for --redact-to."
        )


def _check_file(guard: NsfwGuard, file: Listed, redact_to: Path | None) -> Verdict:
    from .files import write_new
    from .saving import format_of, redact_file

    if file.error is not None:
        raise ImageError(file.error)
    data = _read(file)  # once: what is checked is what is copied
    target = None if redact_to is None else redact_to / file.place
    exists = f"{target} exists and is not overwritten; name another folder."
    if target is not None and os.path.lexists(target):
        raise SettingError(exists)
    (verdict,) = guard.check(data)
    if target is not None:
        if verdict.flagged:
            data = redact_file(data, format_of(target.name), guard.redaction, guard.passes, reason=verdict.reason)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_new(target, data)
        except FileExistsError as error:
            raise SettingError(exists) from error
    return verdict


def _read(file: Listed) -> bytes:
    from .images.settings import DecodeSettings
    from .images.sniff import read_file

    settings = DecodeSettings()
    if file.path is not None:
        return read_file(file.path, settings)
    data = sys.stdin.buffer.read(settings.max_bytes + 1)
    if len(data) > settings.max_bytes:
        raise ImageError(f"Standard input has more than {settings.max_bytes} bytes.")
    return data
