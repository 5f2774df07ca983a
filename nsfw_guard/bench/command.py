"""The command `nsfw-guard bench`: its options, and where its results go."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..errors import SettingError
from ..files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from .settings import BenchSettings

WHAT = ("speed", "memory", "startup", "generate", "scan", "scan-memory")
# Of these, --images says how many.
COUNTED = ("memory", "scan", "scan-memory")
STDOUT = "-"
FILE_WIDTH = 140


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="speed: time per image, beside the peers. memory: many large images in one call. startup: importing, "
            "and loading a checkpoint. generate: what it adds to batch generation with the demo pipeline. scan: files "
            "per second, beside decoding and the model alone, and a plain loop. scan-memory: with few files and many."
        ),
    ] = "speed",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A card (random weights at its architecture), a checkpoint folder or a Hub id (as they are). May be "
            "given several times, as may size, batch, dtype, peer and runtime. Default: falconsai, marqo, freepik.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Sizes, width x height. Default: 1024x1024 and 1344x768; 2048x2048 for memory."),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            help="Batch sizes. Every size is measured at the first batch size, every batch size at the first size. "
            "Default: 4; on a GPU 4, 1 and 16."
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="Dtypes of the guard: auto, float32, bfloat16, float16. Default: auto, and float32 for falconsai."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu. Default: the GPU if there is one.")] = None,
    flagged: Annotated[float, typer.Option(help="Share of the images that are flagged and redacted.")] = 0.25,
    redaction: Annotated[str, typer.Option(help="blur, pixelate, fill or none.")] = "blur",
    rounds: Annotated[int, typer.Option(help="Most interleaved rounds.")] = 5,
    minutes: Annotated[float, typer.Option(help="Begin no further round after this time.")] = 4.0,
    threads: Annotated[int | None, typer.Option(help="torch.set_num_threads for this process.")] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Peers: stock, pipeline, recipe, or none. Default: all that are installed.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="Runtimes: auto, torch, onnx, onnx-int8. Default: auto."),
    ] = None,
    weights: Annotated[str, typer.Option(help="What a card stands for: random weights, or the real ones.")] = "random",
    cache: Annotated[
        Path | None, typer.Option(help="Keep random checkpoints here. Default: a temporary folder.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="For memory, scan and scan-memory: how many. Default: 64, 48, 20000.")
    ] = None,
    as_json: Annotated[
        str | None, typer.Option("--json", help="Write everything as JSON to a file, or to - and nothing else.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw time per image to a .png, .svg or .pdf file.")] = None,
) -> None:
    """Measure the guard on this machine, beside what people use instead, on the same work in the same run.

    It runs offline, with random weights at the real architectures: time does not depend on them.

    The peers: the stock checker in a Stable Diffusion pipeline, transformers.pipeline, Freepik's recipe.

    The floor is the bare forward pass, the limit the machine's own matrix product. It needs the extra "bench".

    Exit code 2: could not run.
    """
    if what not in WHAT:
        raise SettingError(f"What to measure is {what!r}; expected one of {', '.join(WHAT)}.")
    if what != "speed" and plot is not None:
        raise SettingError(f"--plot draws the speed benchmark; {what} has no plot.")
    if what not in COUNTED and images is not None:
        raise SettingError(
            "--images is for `nsfw-guard bench memory`, scan and scan-memory; for speed, --batch says how many images."
        )
    if threads is not None and threads < 1:
        raise SettingError(f"threads is {threads}; expected a whole number of at least 1.")
    json_file = None if as_json in (None, STDOUT) else Path(str(as_json))
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise SettingError(f"--json is {json_file}, and there is no folder {json_file.absolute().parent}.")
    if plot is not None:
        from .plot import check_plot

        check_plot(plot)
    from .settings import BenchSettings

    settings = BenchSettings(
        models=model or (),
        sizes=size or (),
        batches=batch or (),
        dtypes=dtype or (),
        device=device,
        flagged=flagged,
        redaction=redaction,
        rounds=rounds,
        minutes=minutes,
        peers=peer or (),
        runtimes=runtime or (),
        weights=weights,
        cache=cache,
    )
    report, show = _measure(what, settings, threads, images)
    if json_file is not None:
        write_whole(json_file, json.dumps(report, indent=2).encode() + b"\n")
    if as_json == STDOUT:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        # A file has no width; what is written there is for a wide window.
        show(report, Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH))
    if plot is not None:
        from .plot import plot as draw

        draw(report, plot)


def _measure(
    what: str, settings: BenchSettings, threads: int | None, images: int | None
) -> tuple[dict[str, Any], Callable[[dict[str, Any], Console], None]]:
    """Measure with a line on standard error that says what is being done; return the report and what shows it."""
    import torch

    from .peers import quiet

    before = torch.get_num_threads()
    quiet()
    with Console(stderr=True).status("starting") as status, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own, of deprecated arguments

        def on_step(words: str) -> None:
            status.update(words)

        try:
            if threads is not None:
                torch.set_num_threads(threads)
            if what == "startup":
                from . import startup

                return startup.measure(settings, on_step), startup.show
            if what == "generate":
                from . import generation

                return generation.measure(settings, on_step), generation.show
            if what == "scan":
                from . import scanning

                return scanning.measure(settings, images, on_step), scanning.show
            if what == "scan-memory":
                from . import scan_memory

                return scan_memory.measure(settings, images, on_step), scan_memory.show
            if what == "memory":
                from . import footprint

                return footprint.measure(
                    settings, footprint.IMAGES if images is None else images, on_step
                ), footprint.show
            from . import report, speed
            from .show import show

            return report.make_report(speed.measure(settings, on_step)), show
        finally:
            torch.set_num_threads(before)
