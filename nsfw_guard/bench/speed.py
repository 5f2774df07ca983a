"""The benchmark itself: load everything, warm it up, and time it in interleaved rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..errors import SettingError, one_line
from ..verdict import GuardResult
from . import gpu
from .memory import peak_of
from .plan import Plan, Timed
from .ratios import Key
from .results import CALL, Run
from .rounds import GRACE, LEAST_ROUNDS, Timer, interleave
from .settings import BenchSettings, Workload
from .work import checkpoints_in

PEER_KINDS = ("stock", "pipeline", "recipe")


def measure(settings: BenchSettings, on_step: Callable[[str], None] = lambda words: None) -> Run:
    """Measure what the settings ask for, within about their time.

    Args:
        settings: What to measure.
        on_step: Called with a few words on what is being done.

    Raises:
        SettingError: A setting that cannot be met here.
        CheckpointError: A checkpoint that is not there.
    """
    start = time.perf_counter()
    deadline = start + 60 * settings.minutes
    run = Run(settings, settings.workloads())
    timer = Timer(_wait_for(settings.torch_device))
    with checkpoints_in(settings.cache) as cache:
        calls = Plan(run, cache, timer, on_step).load()
        lengths = _warm_up(run, calls, timer, deadline, on_step)
        _look_at_memory(run, calls, lengths, deadline, on_step)
        if settings.torch_device.type == "cuda":
            for key, timed in calls.items():
                if timed.guard is not None:
                    run.traffic[key] = gpu.host_traffic(timed.once)
        run.samples = interleave(
            {key: _sampler(run, key, timed, timer, timer.repeats(lengths[key])) for key, timed in calls.items()},
            rounds=settings.rounds,
            seconds=60 * settings.minutes,
            deadline=deadline,
            on_case=lambda number, key: on_step(f"round {number} of {settings.rounds}: {said(key)}"),
        )
    if run.rounds < settings.rounds:
        run.notes.append(
            f"{run.rounds} of {settings.rounds} rounds were made in the {settings.minutes:g} minutes; "
            "--minutes gives more."
        )
    if run.rounds < LEAST_ROUNDS:
        run.notes.append(f"Fewer than {LEAST_ROUNDS} rounds show no spread: take these figures as a first look.")
    run.seconds = time.perf_counter() - start
    return run


def said(key: Key) -> str:
    """Name what is timed, for people."""
    runtime = f" {key.runtime}" if key.runtime not in ("", "auto") else ""
    images = f", {key.batch} of {key.width}x{key.height}" if key.width else f", {key.batch}" if key.batch else ""
    return f"{key.kind} {key.model} {key.dtype}".replace("  ", " ") + runtime + images


def _warm_up(
    run: Run, calls: dict[Key, Timed], timer: Timer, deadline: float, on_step: Callable[[str], None]
) -> dict[Key, float]:
    """Make the first calls, drop what fails or does not fit into the time, and return how long a call takes by now."""
    lengths: dict[Key, float] = {}
    main, *others = run.workloads
    _warm_up_some(run, calls, lengths, [key for key in calls if is_of(key, main)], timer, on_step)
    for load in others:
        keys = [key for key in calls if is_of(key, load) and key not in lengths]
        # Three rounds of the first workload are worth more than one of everything. The next one takes as long.
        expected = sum(lengths.values()) * len(keys) / max(len(lengths), 1)
        rounds = min(LEAST_ROUNDS, run.settings.rounds)
        end = time.perf_counter() + rounds * sum(lengths.values()) + (1 + rounds) * expected
        if not load.large and end > deadline + 60 * GRACE * run.settings.minutes:
            run.missing[load.label] = "there was no time for three rounds of it; --minutes gives more"
            run.workloads.remove(load)
            for key in keys:
                del calls[key]
            continue
        _warm_up_some(run, calls, lengths, keys, timer, on_step)
    return lengths


def _warm_up_some(
    run: Run,
    calls: dict[Key, Timed],
    lengths: dict[Key, float],
    keys: list[Key],
    timer: Timer,
    on_step: Callable[[str], None],
) -> None:
    for key in keys:
        timed = calls[key]
        on_step(f"warming up: {said(key)}")
        try:
            first = timed.warm_up or partial(timed.call, timed.prepare())
            run.first[key] = lengths[key] = timer.once(first)
        except Exception as error:
            if key.kind not in PEER_KINDS:
                raise
            if run.settings.peers:
                raise SettingError(f"{said(key)} failed: {error}") from error
            run.missing[f"{key.kind} {key.model or key.dtype}"] = f"it failed: {one_line(error)}"
            del calls[key]
            continue
        if lengths[key] < 1:
            lengths[key] = timer.once(partial(timed.call, timed.prepare()))
        if timed.guard is not None:
            run.described[key] = timed.guard.describe()


def is_of(key: Key, load: Workload) -> bool:
    """Whether something is timed on a kind of batch, or needs no images at all."""
    if key.width == 0:
        return key.batch in (0, load.batch)
    return (key.width, key.height, key.batch) == (load.width, load.height, load.batch)


def _look_at_memory(
    run: Run, calls: dict[Key, Timed], lengths: dict[Key, float], deadline: float, on_step: Callable[[str], None]
) -> None:
    """Measure peak memory in a call of its own, the first workload first, while there is time for three rounds."""
    reserve = min(LEAST_ROUNDS, run.settings.rounds) * sum(lengths.values())
    skipped = 0
    for key in sorted(calls, key=lambda key: not is_of(key, run.workloads[0])):
        if key.kind in ("matmul", "stages"):
            continue
        if time.perf_counter() + lengths[key] + reserve > deadline:
            skipped += 1
            continue
        on_step(f"memory: {said(key)}")
        run.memory[key] = peak_of(partial(calls[key].call, calls[key].prepare()), run.settings.torch_device)
    if skipped:
        run.notes.append(f"Peak memory of {skipped} cases was left out to have time for the rounds.")


def _sampler(run: Run, key: Key, timed: Timed, timer: Timer, repeats: int) -> Callable[[], dict[str, float]]:
    """Return what makes one sample: the median of a few calls, if they are short."""

    def sample() -> dict[str, float]:
        parts: list[dict[str, float]] = []
        for _ in range(repeats):
            given = timed.prepare()
            result: list[Any] = []
            seconds = timer.once(partial(_keep, result, timed.call, given))
            parts.append(result[0] if key.kind == "stages" else {CALL: seconds})
            _note_result(run, key, result[0])
        return {name: statistics.median(part[name] for part in parts) for name in parts[0]}

    return sample


def _keep(results: list[Any], call: Callable[[Any], Any], given: Any) -> None:
    results.append(call(given))


def _note_result(run: Run, key: Key, result: Any) -> None:
    if isinstance(result, GuardResult):
        run.flagged[key] = sum(result.flags)
        run.views[key] = sum(verdict.views for verdict in result.verdicts)
    elif key.kind in PEER_KINDS:
        run.flagged[key] = sum(result)


def _wait_for(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None
