"""Peak memory of the guard over many large images in one call: bounded by a micro-batch, whatever the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import SettingError
from ..guard import NsfwGuard
from ..verdict import GuardResult
from .memory import how, peak_of
from .report import surroundings
from .settings import BenchSettings, Workload, flagged_of, parse_size
from .show import footer, hardware
from .work import VALUE_RANGE, checkpoints_in, find_source, load_guard, make_images, policy_that_flags

IMAGES = 64
SIZE = "2048x2048"
# Of these, the first is about one micro-batch and the last is everything: the same peak means that it is bounded.
_SHARES = (0.25, 0.5, 1.0)


def measure(settings: BenchSettings, images: int, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Send a quarter, half and all of the images through each guard, and look at the peak memory of each call.

    Raises:
        SettingError: Not enough memory for the images themselves, or not one size.
        CheckpointError: A checkpoint that is not there.
    """
    sizes = [parse_size(size) for size in settings.sizes or (SIZE,)]
    if len(sizes) != 1 or settings.batches:
        raise SettingError("`nsfw-guard bench memory` takes one --size, and --images instead of --batch.")
    if images < 1:
        raise SettingError(f"images is {images}; expected a whole number of at least 1.")
    device, (width, height) = settings.torch_device, sizes[0]
    one = 3 * 4 * width * height
    _refuse_too_many(images, one, device)
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    everything = torch.empty(images, 3, height, width, device=device)
    for index in range(images):
        everything[index] = make_images(Workload(width, height, 1, 0), device, seed=index)[0]
    with checkpoints_in(settings.cache) as cache:
        for model in settings.wanted_models:
            source = find_source(model, weights=settings.weights, cache=cache)
            for runtime, dtype in settings.variants():
                on_step(f"memory: {model}")
                guard = load_guard(source, device, dtype, redaction=settings.redaction, runtime=runtime)
                for share in _SHARES:
                    count = max(1, round(share * images))
                    on_step(f"memory: {model}, {count} of {width}x{height}")
                    wanted = flagged_of(settings.flagged, count)
                    rows.append({"model": source.name, **_peak(guard, everything[:count], wanted, device)})
    return {
        **surroundings(device),
        "device": str(device),
        "size": [width, height],
        "redaction": settings.redaction,
        "memory_by": how(),
        "results": rows,
        "seconds": time.perf_counter() - start,
    }


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report."""
    width, height = report["size"]
    table = Table(
        title=f"Peak memory of one call above weights and input, {width}x{height} float32, on {hardware(report)}",
        title_justify="left",
        title_style="bold",
    )
    for name in ("model", "images", "flagged", "input MB", "output MB", "peak MB", "extra MB", "ms per image"):
        table.add_column(name, justify="left" if name == "model" else "right")
    last = None
    for row in report["results"]:
        if last is not None and row["model"] != last:
            table.add_section()
        last = row["model"]
        numbers = (row["input_mb"], row["output_mb"], row["peak_mb"], row["extra_mb"])
        shown = ["not measured" if number is None else f"{number:.0f}" for number in numbers]
        name = f"{row['model']} {row['dtype']}"
        table.add_row(name, str(row["images"]), str(row["flagged"]), *shown, f"{row['ms_per_image']:.4g}")
    console.print(table)
    note = (
        "Extra is the peak less the copy of the batch that comes back when something is flagged: what the guard needs "
        f"for itself. Measured in a warm call, by {report['memory_by']}."
    )
    console.print(Text("\n".join([note, *footer(report)]), style="dim"), soft_wrap=True)


def _peak(guard: NsfwGuard, images: torch.Tensor, wanted: int, device: torch.device) -> dict[str, Any]:
    policy = policy_that_flags(guard, images, wanted)  # warms up as well
    guard.policy = policy
    found: dict[str, Any] = {}

    def call() -> None:
        start = time.perf_counter()
        result: GuardResult = guard.apply(images, value_range=VALUE_RANGE)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found["seconds"] = time.perf_counter() - start
        found["flagged"] = sum(result.flags)
        copied = result.images.data_ptr() != images.data_ptr()
        found["output"] = result.images.numel() * result.images.element_size() if copied else 0

    peak = peak_of(call, device)
    top = peak.gpu if device.type == "cuda" else peak.host
    return {
        "dtype": str(guard.describe()["dtype"]).removeprefix("torch."),
        "images": len(images),
        "flagged": found["flagged"],
        "input_mb": images.numel() * images.element_size() / 1e6,
        "output_mb": found["output"] / 1e6,
        "peak_mb": None if top is None else top / 1e6,
        "extra_mb": None if top is None else max(0.0, top - found["output"]) / 1e6,
        "ms_per_image": 1000 * found["seconds"] / len(images),
        "describe": guard.describe(),
    }


def _refuse_too_many(images: int, bytes_each: int, device: torch.device) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            import psutil
        except ImportError:
            return
        free = psutil.virtual_memory().available
    # The images, the copy that comes back, and room for a model with its activations.
    room = free - 2_000_000_000
    if 2 * images * bytes_each > room:
        fits = max(1, int(room // (2 * bytes_each)))
        raise SettingError(
            f"{images} such images and the copy that comes back take {2 * images * bytes_each / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free; pass --images {fits}, or a smaller --size."
        )
