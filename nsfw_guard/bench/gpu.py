"""What a guarded call costs a GPU's host: how often it waits for the device, and what is copied back."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch


class HostTraffic(NamedTuple):
    """One warm call, seen from the host.

    Attributes:
        synchronisations: How often the host waited for the device.
        bytes_to_host: What was copied from the device to the host.
        largest_copy: The largest of those copies, in bytes.
    """

    synchronisations: int
    bytes_to_host: int
    largest_copy: int


def host_traffic(call: Callable[[], object]) -> HostTraffic:
    """Make two calls on the current CUDA device, which must be warm: one to count in, one to profile."""
    waits = count_synchronisations(call)
    copies = copies_to_host(call)
    return HostTraffic(waits, sum(copies), max(copies, default=0))


def count_synchronisations(call: Callable[[], object]) -> int:
    """Count the synchronising operations of one call, as torch's debug mode for them warns of each."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    # Switching the mode on warns as well, that it is a prototype.
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def copies_to_host(call: Callable[[], object]) -> list[int]:
    """Return the size in bytes of each copy from the device to the host in one call."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return copies_in(json.loads(path.read_text(encoding="utf-8")))


def copies_in(trace: dict[str, list[dict[str, object]]]) -> list[int]:
    """Return the size in bytes of each copy from the device to the host in a profiler's trace."""
    found = []
    for event in trace["traceEvents"]:
        arguments = event.get("args")
        if "Memcpy DtoH" in str(event.get("name")) and isinstance(arguments, dict):
            found.append(int(arguments.get("bytes", 0)))
    return found
