"""A run as plain values: what ``--json`` writes, and what the tables and the plot are drawn from."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from typing import Any

from .machine import commit, describe_machine, process_settings, versions
from .memory import how
from .ratios import Key, find_ratios
from .results import CALL, Run
from .rounds import Spread
from .speed import said
from .stages import STAGES

SCHEMA = 2


def surroundings(device: Any) -> dict[str, Any]:
    """Return what belongs beside every figure: when, where, with what, by which command."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["nsfw-guard", *sys.argv[1:]]),
        "commit": commit(),
        "machine": describe_machine(device),
        "versions": versions(),
        "process": process_settings(),
    }


def make_report(run: Run) -> dict[str, Any]:
    """Return everything that a run found, ready for ``json.dumps``."""
    settings = run.settings
    return {
        **surroundings(settings.torch_device),
        "device": str(settings.torch_device),
        "redaction": settings.redaction,
        "rounds": run.rounds,
        "rounds_wanted": settings.rounds,
        "minutes_wanted": settings.minutes,
        "seconds": run.seconds,
        "memory_by": how(),
        "workloads": [
            {"size": [load.width, load.height], "batch": load.batch, "flagged": load.flagged, "large": load.large}
            for load in run.workloads
        ],
        "models": [
            {
                "model": name,
                "card": source.card.identity,
                "architecture": source.card.architecture,
                "random_weights": source.random,
                "dtypes": run.models[name],
                "auto": run.auto.get(name),
                "gflop": run.flop[name] / 1e9,
            }
            for name, source in run.sources.items()
        ],
        "results": [_result(run, key) for key in run.samples if key.kind not in ("stages", "matmul")],
        "matrix_rates": [_rate(run, key) for key in run.samples if key.kind == "matmul"],
        "ratios": find_ratios(run.facts()),
        "stages": [_stages(run, key) for key in run.samples if key.kind == "stages"],
        "missing": run.missing,
        "notes": run.notes,
    }


def _result(run: Run, key: Key) -> dict[str, Any]:
    seconds = [sample[CALL] for sample in run.samples[key]]
    ms = Spread.of([1000 * one / key.batch for one in seconds])
    peak, traffic = run.memory.get(key), run.traffic.get(key)
    described = run.described.get(key)
    return {
        "name": said(key),
        "kind": key.kind,
        "model": key.model,
        "dtype": key.dtype,
        "runtime": key.runtime,
        "size": [key.width, key.height] if key.width else None,
        "batch": key.batch,
        "flagged": run.flagged.get(key),
        "views": run.views.get(key),
        "seconds": seconds,
        "ms_per_image": ms._asdict(),
        "images_per_second": 1000 / ms.median,
        "first_call_ms": 1000 * run.first[key],
        "peak_host_mb": None if peak is None or peak.host is None else peak.host / 1e6,
        "peak_gpu_mb": None if peak is None or peak.gpu is None else peak.gpu / 1e6,
        "host_traffic": traffic and traffic._asdict(),
        "describe": described,
    }


def _rate(run: Run, key: Key) -> dict[str, Any]:
    rates = Spread.of([run.matrix_flop / sample[CALL] / 1e9 for sample in run.samples[key]])
    return {"dtype": key.dtype, "gflop_per_second": rates._asdict()}


def _stages(run: Run, key: Key) -> dict[str, Any]:
    samples = run.samples[key]
    whole = Spread.of([sum(sample.values()) for sample in samples]).median
    call = run.samples[key._replace(kind="guard")]
    return {
        "model": key.model,
        "dtype": key.dtype,
        "size": [key.width, key.height],
        "batch": key.batch,
        "stages": [
            {
                "stage": stage,
                "ms_per_image": 1000 * (median := Spread.of([sample[stage] for sample in samples]).median) / key.batch,
                "share": median / whole,
            }
            for stage in STAGES
        ],
        "sum_ms_per_image": 1000 * whole / key.batch,
        "call_ms_per_image": 1000 * Spread.of([sample[CALL] for sample in call]).median / key.batch,
    }
