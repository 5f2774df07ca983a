"""How much memory a scan takes, and how long a file, with few files and with many: small pictures, fresh processes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import SettingError
from .report import surroundings
from .settings import BenchSettings
from .show import footer, hardware
from .startup import fresh

FEW, MANY = 1_000, 20_000
PER_FOLDER = 1_000

# The demo's model, which is quick: what grows with files grows with any model.
_SCAN = """
import json, sys, time
from pathlib import Path
given = json.loads(sys.argv[1])
import torch, transformers
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(given["threads"])
from nsfw_guard import NsfwGuard
from nsfw_guard.bench.memory import peak_of
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.sources import parse_sources
import nsfw_guard.scan.parts
nsfw_guard.scan.parts.parquet()
guard = NsfwGuard("demo")
guard.check(torch.rand(16, 3, 32, 32))
found = {}
def call():
    start = time.perf_counter()
    summary = run_scan(guard, parse_sources([given["files"]]), given["out"])
    found.update(seconds=time.perf_counter() - start, files=summary.files, scored=summary.scored, errors=summary.errors)
status = Path("/proc/self/status")
def resident():
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmRSS"].split()[0]) * 1024
before = resident()
peak = peak_of(call, torch.device("cpu")).host
print(json.dumps({**found, "before": before, "peak": before + peak}))
"""


def measure(settings: BenchSettings, files: int | None, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Scan few small pictures, and many, each in a fresh process.

    Args:
        settings: Nothing of it counts but the threads of this process.
        files: How many are many; ``None``: ``MANY``.
        on_step: Called with a few words on what is being done.

    Raises:
        SettingError: An option that means nothing here, a number that is not many, or a system that does not say how
            much memory a process has.
    """
    import torch

    refused = (settings.models, settings.sizes, settings.batches, settings.dtypes, settings.runtimes, settings.peers)
    if any(refused):
        raise SettingError("`nsfw-guard bench scan-memory` takes --images and --threads only.")
    many = MANY if files is None else files
    if many <= FEW:
        raise SettingError(f"--images is {many}; expected more than {FEW}, with which it is compared.")
    if not Path("/proc/self/status").is_file():
        raise SettingError("This system has no /proc/self/status, by which memory is measured here.")
    start = time.perf_counter()
    rows = []
    for count in (FEW, many):
        with tempfile.TemporaryDirectory(prefix="nsfw-guard-bench-") as kept:
            on_step(f"writing {count:,} pictures")
            _write(Path(kept) / "files", count)
            on_step(f"scanning {count:,} pictures")
            given = {"files": f"{kept}/files", "out": f"{kept}/out", "threads": torch.get_num_threads()}
            found: Mapping[str, Any] = fresh(_SCAN, given)
            parts = sum(part.stat().st_size for part in (Path(kept) / "out/parts").iterdir())
            rows.append({**found, "rows_bytes": parts})
    return {
        **surroundings(torch.device("cpu")),
        "device": "cpu",
        "results": rows,
        "memory_ratio": rows[1]["peak"] / rows[0]["peak"],
        "time_ratio": (rows[1]["seconds"] / rows[1]["files"]) / (rows[0]["seconds"] / rows[0]["files"]),
        "seconds": time.perf_counter() - start,
    }


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report."""
    table = Table(
        title=f"Scanning small pictures with the demo's model, on {hardware(report)}",
        title_justify="left",
        title_style="bold",
    )
    for name in ("files", "peak resident MB", "before the scan MB", "ms per file", "bytes of rows per file"):
        table.add_column(name, justify="right")
    for row in report["results"]:
        table.add_row(
            f"{row['files']:,}",
            f"{row['peak'] / 1e6:.0f}",
            f"{row['before'] / 1e6:.0f}",
            f"{1000 * row['seconds'] / row['files']:.3g}",
            f"{row['rows_bytes'] / row['files']:.0f}",
        )
    console.print(table)
    said = f"Memory: {report['memory_ratio']:.3f} times as much; time per file: {report['time_ratio']:.2f} times."
    console.print(said, highlight=False)
    console.print(Text("\n".join(footer(report)), style="dim"), soft_wrap=True)


def _write(folder: Path, count: int) -> None:
    """Write different pictures of 32x32, a thousand in a folder."""
    generator = np.random.default_rng(0)
    for number in range(count):
        if number % PER_FOLDER == 0:
            inner = folder / f"{number // PER_FOLDER:05}"
            inner.mkdir(parents=True)
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(inner / f"{number:08}.jpg")
