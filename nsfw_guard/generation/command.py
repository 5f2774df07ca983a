"""The command `nsfw-guard generate`: its options, its progress, and what it prints."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..console import Cells, Color, ExitZero, Kind, PolicyName, Replacement, quiet, redaction_of, stated
from ..errors import GuardError, SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .run import Generation
    from .summary import Summary

DEMO = "demo"


def generate(
    prompts: Annotated[
        Path,
        typer.Argument(
            help="A .txt file, one prompt per line; .jsonl or .csv, with the names prompt, id, seed, and arguments of "
            "the pipeline (negative_prompt, width, image, …; pictures by path)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where images and logs go; a run that was cut off goes on there.")],
    pipeline: Annotated[
        str, typer.Option(help="A diffusers pipeline: a Hub id, a folder, or demo, the embedded one that draws shapes.")
    ],
    revision: Annotated[str | None, typer.Option(help="Of the pipeline, on the Hub.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="What checks: a model card, a Hub id, or a checkpoint folder (./folder). Default: freepik; demo for "
            "demo."
        ),
    ] = None,
    policy: PolicyName = None,
    redaction: Kind = None,
    cells: Cells = None,
    color: Color = None,
    replacement: Replacement = None,
    on_flag: Annotated[
        str,
        typer.Option(
            help="What becomes of a flagged image: redact; skip; retry or retry=N, with other seeds, and then redact; "
            "quarantine=FOLDER, the original there and nothing anywhere else; stop."
        ),
    ] = "redact",
    batch_size: Annotated[int, typer.Option(help="Most images that are drawn at once.")] = 1,
    num_images: Annotated[int, typer.Option(help="Of each prompt.")] = 1,
    steps: Annotated[int | None, typer.Option(help="The same as --set num_inference_steps=N.")] = None,
    seed: Annotated[int, typer.Option(help="What the seeds of rows without one are derived from.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, an argument of every call. May be given several times."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the pipeline: auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu. Default: the GPU if there is one.")] = None,
    prompt_in_file: Annotated[
        str, typer.Option(help="Which images have their prompt in them: unflagged, all or never.")
    ] = "unflagged",
    prompt_in_log: Annotated[
        bool, typer.Option("--prompt-in-log", help="Write prompts, and what errors say, into the log.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Draw nothing if one row is bad.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON, and no progress.")] = False,
    exit_zero: ExitZero = False,
) -> None:
    """Draw the prompts of a file with a guarded pipeline, into a folder with a log of every decision.

    Of several GPUs: accelerate launch -m nsfw_guard.generation PROMPTS --out FOLDER --exit-zero …

    Exit code 0: clean, 1: something flagged, 2: something could not be done. Launchers take any but 0 for a crash:
    with --exit-zero, flagged images are none.
    """
    given = _settings(set_ or [], steps)
    if pipeline == DEMO:
        from ..demo import NOTICE, STEPS

        if not as_json:
            Console(stderr=True).print(Text(NOTICE, style="bold"), soft_wrap=True)
        # What it was trained for.
        given = {"num_inference_steps": STEPS, "guidance_scale": 3.0, **given}
    if not prompts.is_file():
        raise SettingError(f"{prompts} is no file; expected one of prompts: .txt, .jsonl or .csv.")
    try:
        from .run import Generation
    except ImportError as error:
        raise SettingError(f"This needs diffusers: pip install 'nsfw-guard[diffusers]' ({error}).") from error
    from ..guard import NsfwGuard
    from .launch import is_launched, processes
    from .summary import CLEAN, FLAGGED

    here = processes()
    pipe, name = _load(pipeline, revision, dtype, device or str(here.device))
    generation = Generation(
        pipe,
        out,
        guard=NsfwGuard(
            model or (DEMO if pipeline == DEMO else None),
            policy=policy,
            **stated(redaction=redaction_of(redaction, cells, color, replacement)),
        ),
        on_flag=on_flag,
        batch_size=batch_size,
        num_images=num_images,
        seed=seed,
        arguments=given,
        name=name,
        prompt_in_file=prompt_in_file,
        prompt_in_log=prompt_in_log,
        strict=strict,
    )
    main = here.index == 0
    try:
        _run(generation, prompts, main=main, bar=main and not as_json)
    except (Exception, KeyboardInterrupt) as error:
        if generation.summary.failed is None:
            raise
        said = str(error) if isinstance(error, (GuardError, OSError)) else ""
        name = generation.summary.failed if isinstance(error, Exception) else type(error).__name__
        _say(f"error: {said}" if said else f"error: {name}; the same command goes on from here")
    else:
        if main and generation.summary.failed is not None:
            _say(f"error in another process: {generation.summary.failed}")
    if main:
        _show(generation.summary, out, as_json=as_json)
        if generation.summary.exit_code == FLAGGED and not exit_zero and is_launched():
            text = "Something was flagged: exit code 1, which the launcher will call a failure. --exit-zero makes it 0."
            Console(stderr=True).print(Text(text, style="yellow"), soft_wrap=True)
    here.agree()  # a launcher ends all when one ends with 1: not before the summary is said
    code = generation.summary.exit_code
    raise typer.Exit(CLEAN if exit_zero and code == FLAGGED else code)


def _run(generation: Generation, prompts: Path, *, main: bool, bar: bool) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[flagged]} flagged"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    bars = Progress(*columns, console=console, transient=True, disable=not bar)
    with bars as progress, _saying_warnings(console):
        task = progress.add_task("drawing", total=None, rate="", flagged=0)

        def on_ready(summary: Summary) -> None:
            several = f" (1 of {summary.processes} processes)" if summary.processes > 1 else ""
            progress.update(task, total=summary.share, description=f"drawing{several}")

        flagged = 0
        for made in generation.run(prompts, on_ready=on_ready):
            if made.error is not None:
                text = f"error: {prompts}, line {made.line}: {made.id}: {made.error}"
                console.print(Text(text, style="yellow"), soft_wrap=True)
            flagged += made.verdict is not None and made.verdict.flagged
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, flagged=flagged, rate=f"{speed:.2f} images/s" if speed else "")


@contextmanager
def _saying_warnings(console: Console) -> Iterator[None]:
    """Print what the run warns of, such as bad rows, instead of whatever else is done with warnings."""

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(Text(record.getMessage(), style="yellow"), soft_wrap=True)

    logger, handler = logging.getLogger(__package__), Said(logging.WARNING)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _show(summary: Summary, out: Path, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(summary.to_dict(), indent=2) + "\n")
        return
    console = Console()
    console.print(Text(str(summary)), soft_wrap=True)
    text = f"Images and logs are in {out}. To keep elsewhere, for `nsfw-guard audit verify --expect`:"
    console.print(Text(text), soft_wrap=True)
    for log in summary.audit:
        console.print(Text(f"  {log['file']}: {log['lines']} lines, head {log['head']}"), soft_wrap=True)


def _load(pipeline: str, revision: str | None, dtype: str, device: str) -> tuple[Any, str]:
    """Load a pipeline; return it and what it is called in metadata: never a path."""
    import diffusers
    import torch

    from ..placement import parse_device, parse_dtype

    quiet()
    place, kind = parse_device(device), parse_dtype(dtype)
    if pipeline == DEMO:
        from ..demo.generate import load_pipeline

        pipe = load_pipeline().to(place)
        return (pipe if kind in (None, torch.float32) else pipe.to(kind)), DEMO
    if kind is None:
        kind = torch.float32 if place is None or place.type == "cpu" else torch.bfloat16
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            pipeline, revision=revision, torch_dtype=kind, use_safetensors=True, trust_remote_code=False
        )
        pipe.set_progress_bar_config(disable=True)
        pipe = pipe.to(place)
    except Exception as error:  # of broken files the libraries raise nearly anything; and there is the GPU's memory
        kind_of = "" if isinstance(error, (OSError, ValueError, ImportError)) else f"{type(error).__name__}: "
        raise SettingError(f"The pipeline {pipeline!r} cannot be loaded: {kind_of}{error}") from error
    return pipe, _called(pipeline, revision)


def _called(pipeline: str, revision: str | None) -> str:
    """A folder's own name, or repository@commit."""
    if Path(pipeline).exists():
        return Path(pipeline).resolve().name
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(pipeline, "model_index.json", revision=revision)
    return f"{pipeline}@{Path(found).parent.name}" if isinstance(found, str) else pipeline


def _settings(given: list[str], steps: int | None) -> dict[str, Any]:
    from .prompts import value_of

    arguments: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or not name.isidentifier() or name in arguments:
            raise SettingError(f"--set is {one!r}; expected NAME=VALUE, each name once, such as guidance_scale=5.")
        arguments[name] = value_of(name, text)
    if steps is not None:
        if "num_inference_steps" in arguments:
            raise SettingError("--steps and --set num_inference_steps say the same; give one of them.")
        arguments["num_inference_steps"] = steps
    return arguments


def _say(text: str) -> None:
    Console(stderr=True).print(Text(text, style="bold red"), soft_wrap=True)
