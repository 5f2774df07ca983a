"""The command line: thin, one function per command, all over the same core.

Results go to standard output, progress and errors to standard error. Exit codes: 0 clean, 1 something flagged, 2 could
not run.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import __version__
from .audit_command import audit, verify
from .bench.command import bench
from .console import Cells, Color, Kind, Replacement, default_device, quiet, redaction_of
from .demo import NOTICE, STEPS
from .errors import GuardError, SettingError
from .generation.command import generate
from .scan.command import scan
from .scan.report.command import report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .guard import NsfwGuard
    from .verdict import Verdict

CLEAN, FLAGGED, FAILED = 0, 1, 2

app = typer.Typer(
    name="nsfw-guard",
    help="The safety check at the end of an image generator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console()
_err = Console(stderr=True)

Model = Annotated[str, typer.Option(help="A model card, a Hub id (org/name), or a checkpoint folder (./folder).")]
PolicyName = Annotated[
    str, typer.Option("--policy", help="A preset of the model card: strict, balanced, permissive, …")
]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        _out.print(__version__, highlight=False)
        raise typer.Exit(CLEAN)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where to write the pictures.")] = Path("nsfw-guard-demo"),
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; may be given several times.")] = None,
    redaction: Kind = "blur",
    cells: Cells = 16,
    color: Color = "black",
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
        guard = NsfwGuard("demo", policy=policy, redaction=redaction_of(redaction, cells, color, replacement))
        out.mkdir(parents=True, exist_ok=True)
        with _progress() as progress:
            task = progress.add_task("drawing", total=None)

            def on_step(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            drawings = generate(prompts, guard, seed=seed, steps=steps, on_step=on_step)
        table = Table("picture", "prompt", "p(triangle)", "verdict")
        for number, drawing in enumerate(drawings, start=1):
            path = out / f"{number:02d}.png"
            drawing.after.save(path)
            score = f"{drawing.verdict.score:.4f}"
            table.add_row(Text(str(path)), Text(drawing.prompt), score, _said(drawing.verdict))
        sheet = out / "contact_sheet.png"
        contact_sheet(drawings, redaction=guard.redaction.kind).save(sheet)
        _out.print(table)
        _out.print(f"Before and after, side by side: {sheet}", highlight=False, soft_wrap=True)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Pictures.", show_default=False)],
    model: Model = "freepik",
    policy: PolicyName = "balanced",
    threshold: Annotated[float | None, typer.Option(help="In [0, 1], instead of the policy's.")] = None,
    redaction: Kind = "blur",
    cells: Cells = 16,
    color: Color = "black",
    replacement: Replacement = None,
    redact_to: Annotated[
        Path | None, typer.Option(help="Write each picture that may be shown here: redacted if flagged, else a copy.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of a table.")] = False,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    views: Annotated[
        str, typer.Option(help="auto sees every part of a picture; card only what the model's own crop sees.")
    ] = "auto",
) -> None:
    """Print the verdict on pictures. Exit code 0: clean, 1: something flagged, 2: could not run."""
    with _failing_as_2():
        from dataclasses import replace

        from .guard import NsfwGuard

        quiet()
        guard = NsfwGuard(
            model,
            policy=policy,
            redaction=redaction_of(redaction, cells, color, replacement),
            device=device or default_device(),
            dtype=dtype,
            views=views,
        )
        if threshold is not None:
            guard.policy = replace(guard.policy, threshold=threshold)
        if redact_to is not None and guard.redaction.kind == "none":
            raise SettingError(
                "--redact-to with --redaction none would copy what is flagged; choose another redaction."
            )
        if redact_to is not None:
            redact_to.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    table = Table("file", "score", "threshold", "level", "verdict")
    with _progress(len(files) > 1) as progress:
        for path in progress.track(files, description="checking"):
            try:
                verdict = _check_file(guard, path, redact_to)
            except (GuardError, OSError) as error:
                rows.append({"file": str(path), "error": str(error)})
                table.add_row(Text(str(path)), "", "", "", Text("not checked", style="bold yellow"))
                _err.print(Text(f"error: {path}: {error}", style="yellow"), soft_wrap=True)
                continue
            rows.append({"file": str(path), **verdict.to_dict()})
            level = verdict.level.name.lower()
            table.add_row(Text(str(path)), f"{verdict.score:.4f}", f"{verdict.threshold:.2f}", level, _said(verdict))
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        _out.print(table)
    failed = any("error" in row for row in rows)
    raise typer.Exit(FAILED if failed else FLAGGED if any(row["flagged"] for row in rows) else CLEAN)


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


def main() -> None:
    """Run the command line."""
    app()


def _check_file(guard: NsfwGuard, path: Path, redact_to: Path | None) -> Verdict:
    from .images.settings import DecodeSettings
    from .images.sniff import read_file
    from .saving import format_of, redact_file

    data = read_file(path, DecodeSettings())  # once: what is checked is what is copied
    target = None if redact_to is None else redact_to / path.name
    if target is not None and target.exists():
        raise SettingError(f"{target} exists and is not overwritten; name another folder.")
    (verdict,) = guard.check(data)
    if target is not None:
        if verdict.flagged:
            data = redact_file(data, format_of(target.name), guard.redaction, guard.passes, reason=verdict.reason)
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(data)
        part.replace(target)
    return verdict


def _said(verdict: Verdict) -> Text:
    if verdict.flagged:
        return Text(f"flagged ({verdict.reason})", style="bold red")
    return Text("passed", style="green")


def _progress(visible: bool = True) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=_err, transient=True, disable=not visible)


@contextmanager
def _failing_as_2() -> Iterator[None]:
    try:
        yield
    except (GuardError, OSError) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    _err.print(Text(f"error: {error}", style="bold red"), soft_wrap=True)
    raise typer.Exit(FAILED) from error


app.command()(_failing_as_2()(bench))
app.command()(_failing_as_2()(scan))
app.command()(_failing_as_2()(generate))
audit.command()(_failing_as_2()(verify))
app.add_typer(audit, name="audit")
app.command()(_failing_as_2()(report))
