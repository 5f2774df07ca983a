"""The command line: thin, one function per command, all over the same core.

Results go to standard output, progress and errors to standard error. Exit codes: 0 clean, 1 something flagged, 2 could
not run.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import __version__
from .audit_command import audit, verify
from .bench.command import bench
from .check_command import CLEAN, FAILED, FLAGGED, check, said
from .console import Cells, Color, Kind, PolicyName, Replacement, quiet, redaction_of, stated
from .demo import NOTICE, STEPS
from .errors import GuardError, SettingError
from .files import write_whole
from .generation.command import generate
from .scan.command import scan
from .scan.report.command import report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import Image

app = typer.Typer(
    name="nsfw-guard",
    help="The safety check at the end of an image generator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console()
_err = Console(stderr=True)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        _out.print(__version__, highlight=False)
        raise typer.Exit(CLEAN)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where to write the pictures.")] = Path("nsfw-guard-demo"),
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; may be given several times.")] = None,
    redaction: Kind = None,
    cells: Cells = None,
    color: Color = None,
    replacement: Replacement = None,
    policy: PolicyName = "balanced",
    seed: Annotated[int, typer.Option(help="Of the first picture; each further one has the next.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = STEPS,
) -> None:
    """Draw pictures with an embedded Stable Diffusion pipeline, the guard in its safety_checker slot."""
    _out.print(Text(f"nsfw_guard demo. {NOTICE}", style="bold"), soft_wrap=True)
    with _failing_as_2():
        try:
            from .demo.generate import PROMPTS, generate
            from .demo.sheet import contact_sheet
        except ImportError as error:
            raise SettingError(f"The demo needs diffusers: pip install 'nsfw-guard[diffusers]' ({error}).") from error
        from .guard import NsfwGuard

        quiet()
        prompts = list(prompt or PROMPTS)
        guard = NsfwGuard("demo", policy=policy, **stated(redaction=redaction_of(redaction, cells, color, replacement)))
        out.mkdir(parents=True, exist_ok=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=_err, transient=True) as progress:
            task = progress.add_task("drawing", total=None)

            def on_step(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            drawings = generate(prompts, guard, seed=seed, steps=steps, on_step=on_step)
        table = Table("picture", "prompt", "p(triangle)", "verdict")
        for number, drawing in enumerate(drawings, start=1):
            path = out / f"{number:02d}.png"
            _save(drawing.after, path)
            score = f"{drawing.verdict.score:.4f}"
            table.add_row(Text(str(path)), Text(drawing.prompt), score, said(drawing.verdict))
        sheet = out / "contact_sheet.png"
        _save(contact_sheet(drawings, redaction=guard.redaction.kind), sheet)
        _out.print(table)
        _out.print(f"Before and after, side by side: {sheet}", highlight=False, soft_wrap=True)


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Everything that the cards say, as JSON.")] = False,
) -> None:
    """Print the model cards: licence, architecture, labels, presets with their sources."""
    from .cards import CARDS

    if as_json:
        sys.stdout.write(json.dumps([card.to_dict() for card in CARDS], indent=2) + "\n")
        return
    for card in CARDS:
        table = Table(
            title=f"{card.name}: {card.architecture}", title_justify="left", title_style="bold", show_header=False
        )
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        if card.revision:
            table.add_row("repository", Text(card.repo))
            table.add_row("revision", Text(card.revision))
        table.add_row("licence", card.license)
        table.add_row("labels", ", ".join(f"{label} → {level.name.lower()}" for label, level in card.levels.items()))
        spec = card.preprocess
        if spec is not None:
            table.add_row(
                "preprocessing", f"{spec.resize} to {spec.size}x{spec.size}, {spec.interpolation} ({spec.source})"
            )
        for name, preset in card.presets.items():
            table.add_row(name, Text(f"{preset.level.name.lower()} or worse ≥ {preset.threshold:g} ({preset.source})"))
        for figure in card.figures:
            table.add_row(figure.metric, Text(f"{figure.value:g}, {figure.data} ({figure.source})"))
        table.add_row("note", Text(card.note))
        _out.print(table)


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="A model card or a Hub id (org/name).")],
    to: Annotated[
        Path | None, typer.Option(help="A folder to copy to another machine; else the Hub's own cache.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A Hub revision instead of the card's own.")] = None,
) -> None:
    """Fetch a checkpoint ahead of time, for machines without a network."""
    from .checkpoint import download as fetch

    with _failing_as_2():
        folder = fetch(name, to=to, revision=revision)
    # As it is given as a model: without the dot, org/name would be a Hub id.
    where = folder if folder.is_absolute() else f"./{folder.as_posix()}"
    _out.print(f"{name} is in {where}", highlight=False, soft_wrap=True)


@app.command()
def coverage(
    classes: Annotated[bool, typer.Option("--classes", help="Name every class.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Class → mechanism, as JSON.")] = False,
) -> None:
    """Print how the pipeline classes of the installed diffusers are guarded. Exit code 1: one is not classified."""
    with _failing_as_2():
        try:
            from .integrations.diffusers_pipeline.coverage import coverage as found_in_diffusers
            from .integrations.diffusers_pipeline.table import MECHANISMS
        except ImportError as error:
            raise SettingError(f"This needs diffusers: pip install 'nsfw-guard[diffusers]' ({error}).") from error
        found = found_in_diffusers()
    unclassified = [name for name, how in found.items() if how == "unclassified"]
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        table = Table("mechanism", "classes", "what looks at the images")
        for how, what in MECHANISMS.items():
            names = [name for name, by in found.items() if by == how]
            table.add_row(how, str(len(names)), Text(f"{what}\n{', '.join(names)}" if classes else what))
        if unclassified:
            table.add_row(Text("unclassified", style="bold red"), str(len(unclassified)), ", ".join(unclassified))
        _out.print(table)
    raise typer.Exit(FLAGGED if unclassified else CLEAN)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: with what the process was given, or with other arguments.

    Whatever goes wrong ends with 2, also what Python itself would end with 1, and standard output that cannot be
    written to.
    """
    try:
        try:
            app(arguments, prog_name="nsfw-guard")
        finally:
            sys.stdout.flush()
    except OSError as error:
        _err.print(Text(f"error: {_text_of(error)}", style="bold red"), soft_wrap=True)
        # What is left of it cannot be written either: the process would end with a code of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(FAILED) from error
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(FAILED) from error


def _save(picture: Image.Image, path: Path) -> None:
    file = io.BytesIO()
    picture.save(file, "PNG")
    write_whole(path, file.getvalue())


@contextmanager
def _failing_as_2() -> Iterator[None]:
    try:
        yield
    except (GuardError, OSError) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    _err.print(Text(f"error: {_text_of(error)}", style="bold red"), soft_wrap=True)
    raise typer.Exit(FAILED) from error


def _text_of(error: Exception) -> str:
    """Return what an error says; of a disk that is full, where: files say their names, standard output has none."""
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EFBIG):
        return f"{error}: standard output"
    return str(error)


app.command()(_failing_as_2()(check))
app.command()(_failing_as_2()(bench))
app.command()(_failing_as_2()(scan))
app.command()(_failing_as_2()(generate))
audit.command()(_failing_as_2()(verify))
app.add_typer(audit, name="audit")
app.command()(_failing_as_2()(report))
