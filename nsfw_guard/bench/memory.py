"""Peak memory of one call, above what was there before it."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_EVERY = 0.002  # seconds between two looks, where the system keeps no high-water mark


class Peak(NamedTuple):
    """Peak bytes above the level before the call; ``None`` where it cannot be told.

    Attributes:
        host: Of the process's resident memory.
        gpu: Of what torch has allocated on the device.
    """

    host: int | None
    gpu: int | None


def peak_of(call: Callable[[], object], device: torch.device) -> Peak:
    """Run a call once and return its peak memory. Its result is dropped, but counts while the call lasts."""
    gc.collect()
    _give_back()
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
    host = _marked(call) if _can_mark() else _sampled(call)
    if not gpu:
        return Peak(host, None)
    torch.cuda.synchronize(device)
    return Peak(host, torch.cuda.max_memory_allocated(device) - allocated)


def how() -> str:
    """Say how the host's memory is measured here."""
    if _can_mark():
        return "the kernel's high-water mark of resident memory, reset before the call"
    return "resident memory looked at every 2 ms" if _rss() is not None else "not measured: pip install psutil"


def _marked(call: Callable[[], object]) -> int | None:
    # Writing 5 resets the high-water mark to what is resident now (Linux, proc_pid_clear_refs(5)).
    _CLEAR.write_text("5", encoding="ascii")
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _sampled(call: Callable[[], object]) -> int | None:
    before = _rss()
    if before is None:
        call()
        return None
    highest, done = [before], threading.Event()

    def look() -> None:
        while not done.wait(_EVERY):
            highest[0] = max(highest[0], _rss() or 0)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(highest[0], _rss() or 0) - before


def _rss() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


def _can_mark() -> bool:
    try:
        _CLEAR.write_text("5", encoding="ascii")
        return _status("VmHWM") > 0
    except (OSError, KeyError):
        return False


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024


def _give_back() -> None:
    """Hand freed memory back to the system, so that a call cannot use again what an earlier one left."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return  # not glibc
