"""The command `nsfw-guard scan`: its options, its progress, and what it says at the end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ..console import Cells, Color, ExitZero, Kind, Replacement, default_device, quiet, redaction_of, stated
from ..errors import SettingError
from . import said
from .summary import Summary

if TYPE_CHECKING:
    from .ray_session import RaySettings
    from .sources import Sources

# How often a line says how far it is, where there is no terminal.
_SECONDS_PER_LINE = 30.0
# As shells say of what Ctrl-C has ended.
INTERRUPTED = 130


def scan(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs, archives (zip, tar), Parquet tables, URLs (https://, s3://, gs://, …).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="A folder for the rows. A scan that was interrupted goes on in it.")] = ...,  # type: ignore[assignment]
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", help="A list of sources, one per line (or NUL-separated); - is standard input."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model card, a Hub id (org/name), or a checkpoint folder (./folder). Default: that of --out, else "
            "freepik."
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="A preset of the model card: strict, balanced, permissive, … Default: that of --out, else balanced."
        ),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="In [0, 1], instead of the policy's.")] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="parquet or jsonl; csv: also all rows as rows.csv when the scan has ended. Default: that of --out, "
            "else parquet.",
        ),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Of Parquet tables: the column with the pictures.")] = None,
    every: Annotated[
        int | None,
        typer.Option(help="Animations and videos: frames from one look to the next. Default: that of --out, else 1."),
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--no-exact",
            help="Decode JPEGs in full, not at twice the size that the model sees. Default: that of --out, else not.",
            show_default=False,
        ),
    ] = None,
    rejudge: Annotated[
        bool,
        typer.Option(
            "--rejudge", help="Judge all of --out anew, by another model, policy or views than before; review it again."
        ),
    ] = False,
    every_name: Annotated[
        bool, typer.Option("--every-name", help="In folders, also files whose names are not those of pictures.")
    ] = False,
    archives: Annotated[bool, typer.Option("--archives", help="Look into archives that lie in folders.")] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Try again what could not be decoded before.")
    ] = False,
    move: Annotated[Path | None, typer.Option(help="Move flagged files here.")] = None,
    copy: Annotated[Path | None, typer.Option(help="Copy flagged files here.")] = None,
    link: Annotated[Path | None, typer.Option(help="Link to flagged files from here.")] = None,
    redact_to: Annotated[Path | None, typer.Option(help="Write redacted copies of flagged pictures here.")] = None,
    redaction: Kind = None,
    cells: Cells = None,
    color: Color = None,
    replacement: Replacement = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Scan, and only say what would be moved, copied, linked or redacted.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu. Default: the GPU if there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16, float16; int8 goes with --runtime onnx.")
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="auto, torch or onnx.")] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="auto sees every part of a picture; card only what the model's own crop sees. Default: that of --out, "
            "else auto."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Most views in one forward pass. Default: 16.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that read and decode. Default: one for each CPU core, 2 to 16.")
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(help="Refuse pictures with more pixels than this. With a greater one, add --retry-errors."),
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Refuse pictures in files larger than this. With a greater one, as above.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: this process; ray: workers of a Ray cluster, or of a Ray of this machine.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster: auto or host:port. Default: RAY_ADDRESS, or else this machine alone."),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(help="Ray: how many workers, each with the model. Default: all that fit.")
    ] = None,
    cpus_per_actor: Annotated[
        int | None, typer.Option(help="Ray: CPU cores for each worker; it has as many threads. Default: 2.")
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="Ray: GPUs for each worker, such as 0.5. Default: 1 where there are any.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON on standard output.")] = False,
    exit_zero: ExitZero = False,
) -> None:
    """Look at every picture and video of some sources, and write a row about each.

    It can be interrupted at any moment, and run again: only what is new, changed or not done yet is looked at.

    Exit codes: 0 every file was looked at and none is flagged; 1 something is flagged, or could not be looked at; 2
    could not run, found nothing to look at, or could not do with a flagged file what was asked; 130 interrupted.
    """
    chosen = {
        kind: to
        for kind, to in zip(("move", "copy", "link", "redact"), (move, copy, link, redact_to), strict=True)
        if to
    }
    if len(chosen) > 1:
        raise SettingError("Choose one of --move, --copy, --link and --redact-to.")
    if dry_run and not chosen:
        raise SettingError(
            "--dry-run goes with --move, --copy, --link or --redact-to; without one nothing but --out is written."
        )
    from ..cards import CARDS
    from ..files import FULL
    from ..guard import NsfwGuard
    from ..identity import model_identity
    from ..images.settings import DecodeSettings
    from .actions import Actions
    from .export import NAME
    from .parts import FOLDER, part_files
    from .run import run_scan
    from .settings import ScanSettings
    from .sources import parse_sources
    from .standing import Standing, standing

    given = list(sources or [])
    found = parse_sources(given, lists=lists or (), column=column, every_name=every_name, archives=archives)
    if every_name or archives:
        _refuse_inside(out, given)
    before = standing(out) or Standing("")
    form = form or before.form or "parquet"
    if model is None and before.model is None and part_files(out):
        raise SettingError(
            f"{out} was scanned with {before.identity or 'a model'}, and does not say where that is: name it, --model."
        )
    settings = ScanSettings(
        exact=bool(before.exact if exact is None else exact),
        every=(before.every or 1) if every is None else every,
        workers=workers,
        max_pixels=DecodeSettings.max_pixels if max_pixels is None else max_pixels,
        max_bytes=DecodeSettings.max_bytes if max_bytes is None else max_bytes,
        retry_errors=retry_errors,
    )
    shown = redaction_of(redaction, cells, color, replacement)
    _settle(settings.max_pixels)
    model = model or before.model or "freepik"
    model = os.path.abspath(model) if os.path.isdir(model) and model not in CARDS else model
    loaded = stated(model=model, dtype=dtype, views=views or before.views, batch_size=batch_size, runtime=runtime)
    ray = _ray(
        engine, {**loaded, "device": device},
        address=address, workers=actors, cpus=cpus_per_actor, gpus=gpus_per_actor,
    )  # fmt: skip
    if ray:
        device = "cpu"
    elif runtime != "onnx":  # which knows where it runs
        device = device or default_device()
    guard = NsfwGuard(**loaded, **stated(redaction=shown), policy=policy, device=device)
    if policy is None and before.policy is not None and before.identity == model_identity(guard):
        guard.policy = before.policy  # another model's numbers would mean nothing
    if threshold is not None:
        guard.threshold = threshold
    actions = None
    for kind, folder in chosen.items():
        actions = Actions(
            kind,
            folder,
            sources=found,
            given=given,
            out=out,
            redaction=guard.redaction,
            judge=guard.passes,
            dry_run=dry_run,
        )
    with said.bar() as progress:
        task = progress.add_task("scanning", total=None, note="")
        if not lists and all(map(os.path.isdir, given)):
            counted = parse_sources(given, every_name=every_name, archives=archives)
            _count(counted, lambda total: progress.update(task, total=total))

        latest = Summary()
        said_at = 0.0

        def on_progress(summary: Summary) -> None:
            nonlocal latest, said_at
            latest = summary
            note = f"{said.rate(summary):,.1f} files/s, {summary.flagged:,} flagged, {summary.errors:,} failed"
            progress.update(task, completed=summary.before + summary.done, note=note)
            if summary.listed:
                progress.update(task, total=summary.files)
            if not said.err.is_terminal and summary.seconds - said_at >= _SECONDS_PER_LINE:  # a log file has no bar
                said_at = summary.seconds
                said.err.print(f"{summary.files:,} files, {note}", highlight=False)

        try:
            summary = run_scan(
                guard,
                found,
                out,
                settings,
                form=form,
                given=[*given, *(f"--list {name}" for name in lists or ())],
                actions=actions,
                ray=ray,
                rejudge=rejudge,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            note = f"Interrupted. {latest.kept:,} files of this run have their rows; run it again to go on."
            said.err.print(Text(note, style="bold yellow"), soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise OSError(f"{error}. Free some space and run the same command again: it goes on from here.") from error
    if not summary.files:
        said.err.print(Text(said.nothing(summary), style="bold red"), soft_wrap=True)
        raise typer.Exit(2)
    if as_json:
        sys.stdout.write(json.dumps({**summary.to_dict(), **said.as_dict(actions)}, indent=2) + "\n")
    else:
        said.show(summary, actions, out, rows=out / (NAME if form == "csv" else FOLDER))
    if actions is not None and actions.failed:
        raise typer.Exit(2)
    if exit_zero and not summary.errors:
        raise typer.Exit(0)
    raise typer.Exit(0 if summary.is_clean else 2 if exit_zero else 1)


def _refuse_inside(out: Path, given: list[str]) -> None:
    """Refuse a folder for the rows in which their own files would be looked at."""
    from .actions import lies_in

    for source in given:
        if lies_in(out, source):
            raise SettingError(
                f"--out {out} lies in {source}, and with --every-name or --archives its own rows would be looked at; "
                "choose a folder outside of it."
            )


def _count(sources: Sources, on_total: Callable[[int], None]) -> None:
    """Count the files of folders meanwhile, for the time that is left."""

    def count() -> None:
        with contextlib.suppress(Exception):  # whatever it is, the scan itself will say it
            on_total(sum(1 for _ in sources.entries(wanted=lambda entry: False)))

    threading.Thread(target=count, name="nsfw_guard-count", daemon=True).start()


def _ray(engine: str, guard: dict[str, Any], **given: Any) -> RaySettings | None:
    given = {name: value for name, value in given.items() if value is not None}
    if engine == "ray":
        from .ray_session import RaySettings

        return RaySettings(guard, **given)
    if engine != "local":
        raise SettingError(f"--engine is {engine!r}; expected local or ray.")
    if given:
        raise SettingError(
            "--address, --actors, --cpus-per-actor and --gpus-per-actor go with --engine ray; the local engine is this "
            "process."
        )
    return None


def _settle(max_pixels: int) -> None:
    """Switch off the libraries' own progress bars and limits: this process is ours, and the scan has its own."""
    import warnings

    from PIL import Image

    quiet()
    Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
