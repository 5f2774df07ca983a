"""How long importing the package takes, and constructing a guard from a checkpoint, in fresh processes.

A guard is compared with what loading cannot do without: safetensors' own load of the same file, and the construction of
the module, both on the meta device, where no number is made, and by its library's default, where all are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import GuardError, SettingError
from ..weights import WEIGHTS
from .report import surroundings
from .rounds import Spread, interleave, ratio
from .settings import BenchSettings
from .show import footer, hardware
from .work import Source, checkpoints_in, find_source

_IMPORT = """
import json, time
start = time.perf_counter()
import nsfw_guard
print(json.dumps({"import": time.perf_counter() - start}))
"""
# Libraries are imported before the clock starts, and each thing is done twice: what is imported or set up at its first
# use is in the first figure only.
_PREPARE = """
import contextlib, importlib, json, os, sys, time
given = json.loads(sys.argv[1])
for name in given["modules"]:
    importlib.import_module(name)
import torch, transformers
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
"""
_GUARD = (
    _PREPARE
    + """
from nsfw_guard import CARDS, NsfwGuard
card = CARDS.get(given["card"]) if given["card"] else None
def build():
    NsfwGuard(given["folder"], card=card, dtype=given["dtype"])
print(json.dumps({"guard": timed(build), "guard again": timed(build)}))
"""
)
_REFERENCE = (
    _PREPARE
    + """
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageClassification as Auto
config = AutoConfig.from_pretrained(given["folder"], local_files_only=True)
def load():
    load_file(os.path.join(given["folder"], given["weights"]))
def read():
    for tensor in load_file(os.path.join(given["folder"], given["weights"])).values():
        tensor.flatten().view(torch.uint8).max()
def on_meta():
    with torch.device("meta"):
        Auto.from_config(config)
def by_default():
    Auto.from_config(config)
found = {}
for name, call in (("load_file", load), ("meta", on_meta), ("default", by_default), ("load_file, read", read)):
    found[name] = timed(call)
    found[name + " again"] = timed(call)
print(json.dumps(found))
"""
)


def measure(settings: BenchSettings, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Run the import, the guards and their references in fresh processes, in interleaved rounds.

    Raises:
        SettingError: An option that means nothing here.
        CheckpointError: A checkpoint that is not there.
    """
    if settings.sizes or settings.batches or settings.peers or settings.runtimes:
        raise SettingError(
            "`nsfw-guard bench startup` looks at no image: leave out --size, --batch, --runtime and --peer."
        )
    start = time.perf_counter()
    with checkpoints_in(settings.cache) as cache:
        on_step("writing the checkpoints")
        sources = [find_source(model, weights=settings.weights, cache=cache) for model in settings.wanted_models]
        cases: dict[str, Callable[[], dict[str, float]]] = {"import": lambda: fresh(_IMPORT)}
        for source in sources:
            given = _given(source)
            cases[f"reference {source.name}"] = partial(fresh, _REFERENCE, given)
            for dtype in settings.dtypes or (given["stored"], "auto"):
                cases[f"guard {source.name} {dtype}"] = partial(fresh, _GUARD, {**given, "dtype": dtype})
        samples = interleave(
            cases,
            rounds=settings.rounds,
            seconds=60 * settings.minutes,
            deadline=start + 60 * settings.minutes,
            on_case=lambda number, case: on_step(f"round {number} of {settings.rounds}: {case}"),
        )
    imports = [sample["import"] for sample in samples["import"]]
    return {
        **surroundings(settings.torch_device),
        "device": "cpu",
        "rounds": len(imports),
        "import_ms": _ms(imports),
        "models": [_row(source, samples) for source in sources],
        "seconds": time.perf_counter() - start,
    }


def fresh(code: str, given: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Run code in a fresh Python and return the JSON that it prints last.

    Raises:
        GuardError: It failed.
    """
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code, json.dumps(given)], capture_output=True, text=True, check=False, timeout=3600
    )
    if done.returncode:
        raise GuardError(f"A fresh process failed: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report."""
    found = report["import_ms"]
    console.print(f"import nsfw_guard: {_text(found)} ms", highlight=False)
    table = Table(
        title=f"Loading a checkpoint, in ms: first in a process, and again; on {hardware(report)}",
        title_justify="left",
        title_style="bold",
    )
    for name in ("", "first", "again"):
        table.add_column(name, justify="right" if name else "left")
    for model in report["models"]:
        table.add_section()
        for name, pair in model["ms"].items():
            table.add_row(f"{model['model']}: {name}", _text(pair["first"]), _text(pair["again"]))
        for name, pair in model["ratios"].items():
            table.add_row(Text(f"{model['model']}: {name}", style="bold"), _text(pair["first"]), _text(pair["again"]))
    console.print(table)
    notes = [
        f"Medians (least–most) of {report['rounds']} interleaved rounds. Ratios are to load_file and the "
        "module's construction, on the meta device or by its library's default. load_file maps the file and reads "
        "nothing; the guard looks at every weight once, for NaN.",
        *footer(report),
    ]
    console.print(Text("\n".join(notes), style="dim"), soft_wrap=True)


def _given(source: Source) -> dict[str, Any]:
    """What a fresh process is told; the modules are those that the model's class lives in."""
    import torch

    from ..cards import CARDS
    from ..classifier import stored_dtype
    from .peers import load_reference

    stored = stored_dtype(source.folder)
    network = load_reference(source, torch.device("cpu"), stored)
    modules = {type(module).__module__ for module in network.modules()}
    return {
        "folder": str(source.folder),
        "card": source.card.name if source.card.name in CARDS else "",
        "weights": WEIGHTS,
        "stored": str(stored).removeprefix("torch."),
        "modules": sorted(name for name in modules if name.split(".")[0] in ("transformers", "timm")),
    }


def _row(source: Source, samples: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    reference = samples[f"reference {source.name}"]
    guards = {
        case.removeprefix(f"guard {source.name} "): found
        for case, found in samples.items()
        if case.startswith(f"guard {source.name} ")
    }
    names = {
        "load_file": "load_file",
        "load_file, read": "load_file, every byte read",
        "meta": "module on meta",
        "default": "module by default",
    }
    ms = {text: _pair(reference, name) for name, text in names.items()}
    ratios: dict[str, Any] = {}
    for dtype, found in guards.items():
        ms[f"guard {dtype}"] = _pair(found, "guard")
        for module in ("meta", "default"):
            ratios[f"guard {dtype} ÷ (load_file + {names[module]})"] = {
                when: _ratio(found, reference, module, again) for when, again in (("first", ""), ("again", " again"))
            }
    return {"model": source.name, "ms": ms, "ratios": ratios}


def _ratio(
    guard: list[dict[str, float]], reference: list[dict[str, float]], module: str, again: str
) -> dict[str, float]:
    below = [one["load_file" + again] + one[module + again] for one in reference]
    return Spread.of(ratio([one["guard" + again] for one in guard], below))._asdict()


def _pair(samples: list[dict[str, float]], name: str) -> dict[str, dict[str, float]]:
    return {
        "first": _ms([sample[name] for sample in samples]),
        "again": _ms([sample[f"{name} again"] for sample in samples]),
    }


def _ms(seconds: list[float]) -> dict[str, float]:
    return Spread.of([1000 * one for one in seconds])._asdict()


def _text(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.4g} ({spread['low']:.4g}–{spread['high']:.4g})"
