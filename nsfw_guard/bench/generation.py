"""What a guard adds to batch generation: the same prompts with a bare pipeline, a guarded one, and the whole command.

The pipeline is the embedded demo, whose images are small and quickly made: with a larger one, the share is smaller.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..demo.shapes import FLAGGED_SHAPE
from ..errors import SettingError
from .report import surroundings
from .rounds import Spread, Timer, interleave, ratio
from .settings import BenchSettings, flagged_of, parse_size
from .show import footer, hardware
from .work import checkpoints_in, find_source, load_guard

IMAGES = 8
STEPS = 30
SIZE = "128x128"
DEMO = "demo"
_COLORS = ("red", "yellow", "green", "blue")
CASES = {
    "bare": "bare pipeline, PNG",
    "guarded": "attach(pipe, guard), PNG",
    "generation": "Generation: checked, PNG with metadata, audit log, all on the disk",
}


def measure(settings: BenchSettings, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Draw the same prompts in three ways, in interleaved rounds.

    Raises:
        SettingError: An option that means nothing here.
        CheckpointError: A checkpoint that is not there.
    """
    from nsfw_guard.integrations.diffusers_pipeline import attach

    from ..demo.generate import GUIDANCE, load_pipeline
    from ..generation import Generation

    models = tuple(dict.fromkeys(settings.models or (DEMO,)))
    sizes = [parse_size(size) for size in settings.sizes or (SIZE,)]
    choices = (models, sizes, settings.variants(), settings.batches or (1,))
    if max(map(len, choices)) > 1 or settings.peers:
        raise SettingError(
            "`nsfw-guard bench generate` takes one --model, --size, --batch, --dtype and --runtime, and no --peer."
        )
    start, device = time.perf_counter(), settings.torch_device
    (width, height), batch = sizes[0], (settings.batches or (1,))[0]
    flagged = flagged_of(settings.flagged, IMAGES)
    prompts = [
        f"a {_COLORS[i % 4]} {FLAGGED_SHAPE if i < flagged else 'circle'} on a white background" for i in range(IMAGES)
    ]
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "width": width, "height": height}
    with checkpoints_in(settings.cache) as cache, tempfile.TemporaryDirectory(prefix="nsfw-guard-bench-") as folder:
        source = find_source(models[0], weights=settings.weights, cache=cache)
        ((runtime, dtype),) = settings.variants()
        guard = load_guard(source, device, dtype, redaction=settings.redaction, runtime=runtime)
        bare, guarded = load_pipeline().to(device), attach(load_pipeline().to(device), guard)
        counts: dict[str, int] = {}

        def draw(pipe: Any, first: int, out: Path) -> None:
            some = prompts[first : first + batch]
            generators = [torch.Generator().manual_seed(first + i) for i in range(len(some))]
            output = pipe(some, generator=generators, **options)
            for index, image in enumerate(output.images, start=first):
                image.save(out / f"{index}.png")

        def one_round() -> dict[str, list[float]]:
            """The seconds of each batch, all three ways in turn: a slow moment of the machine hits all alike."""
            seconds: dict[str, list[float]] = {name: [] for name in CASES}
            with tempfile.TemporaryDirectory(dir=folder) as name:
                out = Path(name)
                run = Generation(guarded, out / "generation", batch_size=batch, arguments=options, name=DEMO)
                made = run.run([{"prompt": prompt, "seed": index} for index, prompt in enumerate(prompts)])
                for first in range(0, IMAGES, batch):
                    steps: dict[str, Callable[[], object]] = {
                        "bare": partial(draw, bare, first, out),
                        "guarded": partial(draw, guarded, first, out),
                        "generation": lambda: list(islice(made, batch)),
                    }
                    names = list(steps)
                    turn = first // batch % len(names)
                    for case in names[turn:] + names[:turn]:  # nobody is always the first
                        seconds[case].append(timer.once(steps[case]))
                seconds["generation"].append(timer.once(lambda: list(made)))  # its end
                counts.update(images=run.summary.done, flagged=run.summary.flagged)
            return seconds

        timer = Timer(lambda: torch.cuda.synchronize(device) if device.type == "cuda" else None)
        on_step("warming up")
        one_round()
        rounds = interleave(
            {"generate": one_round},
            rounds=settings.rounds,
            seconds=60 * settings.minutes,
            deadline=start + 60 * settings.minutes,
            on_case=lambda number, _: on_step(f"round {number} of {settings.rounds}"),
        )["generate"]
    samples = {name: [one[name] for one in rounds] for name in CASES}
    whole = {name: [sum(one) for one in found] for name, found in samples.items()}
    # Of each batch the median over the rounds, and of these the sum: a slow moment is in none of them.
    calm = {name: sum(map(statistics.median, zip(*found, strict=True))) for name, found in samples.items()}
    ratios = {name: Spread.of(ratio(whole[name], whole["bare"])) for name in CASES}
    return {
        **surroundings(device),
        "device": str(device),
        "size": [width, height],
        "batch": batch,
        "steps": STEPS,
        "redaction": settings.redaction,
        **counts,
        "model": source.name,
        "describe": guard.describe(),
        "rounds": len(rounds),
        "ms_per_image": {name: 1000 * one / IMAGES for name, one in calm.items()},
        "ratios": {name: found._replace(median=calm[name] / calm["bare"])._asdict() for name, found in ratios.items()},
        "seconds": time.perf_counter() - start,
    }


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report."""
    width, height = report["size"]
    table = Table(
        title=f"Batch generation, {width}x{height}, {report['steps']} steps, batches of {report['batch']}, "
        f"{report['flagged']} of {report['images']} images flagged, guard {report['model']}, on {hardware(report)}",
        title_justify="left",
        title_style="bold",
    )
    for name in ("", "ms per image", "÷ bare"):
        table.add_column(name, justify="right" if name else "left")
    for name, text in CASES.items():
        ms, times = report["ms_per_image"][name], report["ratios"][name]
        table.add_row(
            text,
            f"{ms:.4g}",
            f"{times['median']:.3f} ({times['low']:.3f}–{times['high']:.3f})",
        )
    console.print(table)
    notes = [
        f"{report['rounds']} rounds, interleaved batch by batch: the sum of the medians of each batch (least–most of a "
        "whole round). The first two leave their files in the system's memory; Generation waits for "
        "the disk.",
        *footer(report),
    ]
    console.print(Text("\n".join(notes), style="dim"), soft_wrap=True)
