"""The processes of one accelerate launch: which one this is, and what all of them have to agree on."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Any

import torch

from ..errors import GuardError

# How long the first process to be done waits for the last. One that ends, however, is noticed at once.
_PATIENCE = timedelta(days=30)


class Processes:
    """This process among those that share the work.

    Attributes:
        index: Of this one, from 0.
        count: Of all.
        device: Where this one computes: a GPU if there is one.
    """

    def __init__(self) -> None:
        self.index = 0
        self.count = 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in order; waits until all of them have come here."""
        return [value]

    def agree(self, error: BaseException | None = None) -> None:
        """Wait for all, and go on only if none has failed.

        Raises:
            GuardError: Another process has failed; if it was this one, its own error.
        """
        said = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = [f"process {index}: {text}" for index, text in enumerate(said) if text is not None]
        if failed:
            raise GuardError(f"Another process of this launch has failed. {failed[0]}")


class _Launched(Processes):
    """One of several that accelerate, or torchrun, has started."""

    def __init__(self) -> None:
        import torch.distributed as dist
        from accelerate import PartialState

        gpu = torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())
        # Without a GPU it has to be told, or it takes each process for the only one.
        state = PartialState() if gpu else PartialState(cpu=True)
        if not dist.is_initialized():
            dist.init_process_group(backend="gloo")
        self.index, self.count = dist.get_rank(), dist.get_world_size()
        self.device = state.device if state.device.type != "cpu" else torch.device("cpu")
        # Of its own: NCCL gives up on whoever waits for minutes, and would need the GPU for a word.
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
        # Its threads abort an interpreter that ends before them: a clean run would look like one that failed.
        atexit.register(_end)

    def gather(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            raise GuardError(f"Another process of this launch is gone ({str(error).splitlines()[0]}).") from error
        return values


def _end() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def is_launched() -> bool:
    """Whether a launcher has started this process, for which any exit code but 0 is a failure; also of one process."""
    return any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"))


_processes: list[Processes] = []


def processes() -> Processes:
    """Return this process's place: alone, unless a launcher has said otherwise.

    Raises:
        GuardError: There are others, and accelerate is not installed.
    """
    if not _processes:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
            try:
                _processes.append(_Launched())
            except ImportError as error:
                raise GuardError(f"Several processes need accelerate: pip install accelerate ({error}).") from error
        else:
            _processes.append(Processes())
    return _processes[0]
