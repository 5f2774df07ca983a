"""Scanning files: the whole scan beside its two halves, decoding alone and the model alone, and beside a plain loop.

The same JPEGs for all, in interleaved rounds. Decoding includes reading and hashing. The loop is what people write:
Pillow opens each file in full and ``transformers.pipeline`` looks at it.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..errors import SettingError
from ..guard import NsfwGuard
from ..images import to_picture
from ..scan.decode import decode
from ..scan.run import run_scan
from ..scan.settings import ScanSettings
from ..scan.sources import parse_sources
from .peers import TransformersPipeline
from .report import surroundings
from .rounds import Spread, interleave, ratio
from .settings import BenchSettings, Workload, parse_size
from .show import footer, hardware
from .work import checkpoints_in, find_source, load_guard, make_images

FILES = 48
SIZE = "2048x1536"
QUALITY = 90
LOOP = "plain loop"


def measure(settings: BenchSettings, files: int | None, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Write JPEGs and scan them, in interleaved rounds with everything that a scan is compared with.

    Args:
        settings: Models, runtimes, dtypes, one size, device, rounds and minutes count.
        files: How many JPEGs; ``None``: ``FILES``.
        on_step: Called with a few words on what is being done.

    Raises:
        SettingError: An option that means nothing here.
    """
    sizes = [parse_size(size) for size in settings.sizes or (SIZE,)]
    if len(sizes) != 1 or settings.batches or settings.peers:
        raise SettingError("`nsfw-guard bench scan` scans files of one --size: leave out --batch and --peer.")
    width, height = sizes[0]
    files = FILES if files is None else files
    device = settings.torch_device
    start = time.perf_counter()
    with checkpoints_in(settings.cache) as cache, tempfile.TemporaryDirectory(prefix="nsfw-guard-bench-") as kept:
        folder = Path(kept) / "files"
        on_step(f"writing {files} JPEGs")
        size = _write_jpegs(folder, files, width, height)
        paths = sorted(folder.iterdir())
        cases: dict[tuple[str, str], Callable[[], float]] = {}
        models: dict[str, dict[str, str]] = {}
        for model in dict.fromkeys(settings.models or ("marqo", "falconsai")):
            on_step(f"loading {model}")
            source = find_source(model, weights=settings.weights, cache=cache)
            for runtime, dtype in settings.variants():
                guard = load_guard(source, device, dtype, redaction="none", runtime=runtime)
                made = str(guard.describe()["dtype"]).removeprefix("torch.")
                name = f"{source.name} {made}{'' if runtime == 'auto' else ' ' + runtime.partition('-')[0]}"
                if name not in models:
                    models[name] = {"model": source.name, "dtype": made, "runtime": runtime}
                    out = Path(kept) / f"out-{len(models)}"
                    cases |= {(name, case): call for case, call in _cases(guard, folder, out, device)}
            cases[source.name, LOOP] = partial(_plain_loop, TransformersPipeline(source, device).pipeline, paths)
        for case, call in cases.items():
            on_step(f"warming up: {' '.join(case)}")
            call()
        samples = interleave(
            cases,
            rounds=settings.rounds,
            seconds=60 * settings.minutes,
            deadline=start + 60 * settings.minutes,
            on_case=lambda number, case: on_step(f"round {number} of {settings.rounds}: {' '.join(case)}"),
        )
    return {
        **surroundings(device),
        "device": str(device),
        "files": files,
        "size": [width, height],
        "mean_bytes": size // files,
        "decode_threads": ScanSettings().threads,
        "rounds": len(next(iter(samples.values()))),
        "models": [_row(name, about, files, samples) for name, about in models.items()],
        "seconds": time.perf_counter() - start,
    }


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report."""
    width, height = report["size"]
    table = Table(
        title=f"JPEGs of {width}x{height}, {report['mean_bytes'] / 1e3:.0f} kB, on {hardware(report)}",
        title_justify="left",
        title_style="bold",
    )
    for name in ("", "files/s"):
        table.add_column(name, justify="right" if name else "left")
    for model in report["models"]:
        table.add_section()
        for name, spread in model["files_per_second"].items():
            table.add_row(f"{model['name']}: {name}", _text(spread))
        for name, spread in model["ratios"].items():
            table.add_row(Text(f"{model['name']}: {name}", style="bold"), _text(spread))
    console.print(table)
    notes = [
        f"Medians (least–most) of {report['rounds']} interleaved rounds over {report['files']} files, "
        f"{report['decode_threads']} decoding threads. The halves have the machine to themselves, one after the other; "
        "a scan shares it between them. The loop's pipeline sees only the card's own view: of a centre crop, not the "
        "borders.",
        *footer(report),
    ]
    console.print(Text("\n".join(notes), style="dim"), soft_wrap=True)


def _cases(guard: NsfwGuard, folder: Path, out: Path, device: torch.device) -> list[tuple[str, Callable[[], float]]]:
    paths = sorted(folder.iterdir())
    settings = ScanSettings()
    decoded = [_decode(path, guard, settings) for path in paths]
    return [
        ("scan", partial(_scan, guard, folder, out, "auto")),
        ("scan, the card's view only", partial(_scan, guard, folder, out, "card")),
        ("decode alone", partial(_decode_alone, guard, settings, paths)),
        ("model alone", partial(_model_alone, guard, decoded, device)),
    ]


def _scan(guard: NsfwGuard, folder: Path, out: Path, views: str) -> float:
    shutil.rmtree(out, ignore_errors=True)
    guard.views = views
    sources = parse_sources([str(folder)])
    start = time.perf_counter()
    summary = run_scan(guard, sources, out)
    seconds = time.perf_counter() - start
    if summary.errors or summary.duplicates:
        raise RuntimeError(f"{summary.errors} errors and {summary.duplicates} duplicates among files that are neither")
    return seconds


def _decode(path: Path, guard: NsfwGuard, settings: ScanSettings) -> Tensor:
    """Read, hash and decode one file, as a scan does."""
    data = path.read_bytes()
    hashlib.sha256(data).hexdigest()
    ((_, pixels),) = decode(io.BytesIO(data), settings.decoding(guard), name=str(path)).frames()
    return pixels


def _decode_alone(guard: NsfwGuard, settings: ScanSettings, paths: list[Path]) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(settings.threads) as pool:
        for _ in pool.map(lambda path: _decode(path, guard, settings), paths):
            pass
    return time.perf_counter() - start


def _model_alone(guard: NsfwGuard, decoded: list[Tensor], device: torch.device) -> float:
    guard.views = "auto"
    start = time.perf_counter()
    for first in range(0, len(decoded), guard.batch_size):
        guard.check([pixels.to(device) for pixels in decoded[first : first + guard.batch_size]])
    return time.perf_counter() - start


def _plain_loop(pipeline: Any, paths: list[Path]) -> float:
    start = time.perf_counter()
    for path in paths:
        with Image.open(path) as picture:
            pipeline(picture)
    return time.perf_counter() - start


def _write_jpegs(folder: Path, count: int, width: int, height: int) -> int:
    """Write different JPEGs of colours, edges and noise; return how many bytes they are together."""
    folder.mkdir(parents=True)
    total = 0
    for number in range(count):
        (pixels,) = make_images(Workload(width, height, 1, 0), torch.device("cpu"), seed=number)
        file = folder / f"{number:06}.jpg"
        to_picture((pixels + 1) / 2).save(file, quality=QUALITY)
        total += file.stat().st_size
    return total


def _row(
    name: str, about: Mapping[str, str], files: int, samples: Mapping[tuple[str, str], list[float]]
) -> dict[str, Any]:
    mine = (name, about["model"])  # the loop is the model's, whatever a guard runs it with
    found = {case: seconds for (of, case), seconds in samples.items() if of in mine}
    slower = [max(pair) for pair in zip(found["decode alone"], found["model alone"], strict=True)]
    return {
        **about,
        "name": name,
        "files_per_second": {
            name: Spread.of([files / one for one in seconds])._asdict() for name, seconds in found.items()
        },
        "ratios": {
            "scan ÷ the slower half": Spread.of(ratio(slower, found["scan"]))._asdict(),
            "scan ÷ plain loop": Spread.of(ratio(found[LOOP], found["scan"]))._asdict(),
            "the card's view only ÷ plain loop": Spread.of(
                ratio(found[LOOP], found["scan, the card's view only"])
            )._asdict(),
        },
    }


def _text(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.3g} ({spread['low']:.3g}–{spread['high']:.3g})"
