"""The command `nsfw-guard report`: its options, its progress, and what it says of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text


def report(
    scan: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that `nsfw-guard scan --out` wrote.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option(help="Where to write the page. Default: report.html in DIR.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="Show at most so many flagged pictures, the highest scores first.")] = 2000,
    misses: Annotated[int, typer.Option(help="Show at most so many pictures that were passed, the nearest.")] = 500,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails/--no-thumbnails", help="Without, the page contains no pictures at all.")
    ] = True,
    redacted: Annotated[
        bool, typer.Option("--redacted", help="Burn a blur into every picture, so that the page can be passed on.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="Of the page.", show_default=False)] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many pictures to decode at a time.", show_default=False)
    ] = None,
) -> None:
    """Write one HTML page about a scan: counts, scores, folders, failures, and what was flagged, for review.

    The page works without a network and contains small copies of what it shows. Reviewers' decisions are exported as
    CSV.

    Exit code 2: could not run.
    """
    from .write import write_report

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, int] = {}

        def on_step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)  # type: ignore[arg-type]

        written = write_report(
            scan,
            output=output,
            limit=limit,
            misses=misses,
            pictures=thumbnails,
            redacted=redacted,
            title=title,
            workers=workers,
            on_step=on_step,
        )
    console = Console()
    console.print(Text(written.headline, style="bold"), soft_wrap=True)
    console.print(Text(f"{written.path} ({written.size / 1e6:.1f} MB)"), soft_wrap=True)
    if written.redacted:
        said = f"It contains {written.pictures:,} small pictures, blurred for good."
    elif written.pictures:
        said = (
            f"It contains {written.pictures:,} small copies of pictures as they were scanned: whoever gets the page "
            "gets them. To pass it on: --redacted or --no-thumbnails."
        )
    else:
        said = "It contains no pictures."
    console.print(Text(said), soft_wrap=True)
