"""Ray: a cluster that is there, or one of this machine alone for as long as a scan takes."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import GuardError, SettingError, one_line
from .todo import read_todo, table_to_entries
from .worker import Answer, Orders, Worker, answer_to_table, table_to_answers

logger = logging.getLogger(__name__)

# How many blocks a worker looks at at a time, so that its model does not wait between them, and how many it has.
_AT_A_TIME = 2
_IN_FLIGHT = 3
# A block is tried again so often when its worker dies; then a file in it is what kills them.
_RETRIES = 4
# Of a Ray of this machine alone, in bytes: what it holds are entries and rows.
_OBJECT_STORE = 2**29


@dataclass(frozen=True)
class RaySettings:
    """Where the workers of a scan are, how many, and with what model.

    Attributes:
        guard: The keyword arguments of ``NsfwGuard`` there. A folder must be there under the same name; without a
            device, it is the GPU where a worker has one.
        address: Of a cluster, as ``ray.init`` takes it: ``"auto"`` or ``"host:port"``; ``None``: what ``RAY_ADDRESS``
            says, or else a Ray of this machine alone, which ends with the scan.
        workers: How many; ``None``: as many as fit.
        cpus: Cores for each worker, which has as many threads that read and decode.
        gpus: GPUs for each worker, also parts of one; ``None``: one where there are any.

    Raises:
        SettingError: A number is out of its range, or an address cannot be used.
    """

    guard: Mapping[str, Any]
    address: str | None = None
    workers: int | None = None
    cpus: int = 2
    gpus: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("--actors", self.workers), ("--cpus-per-actor", self.cpus)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingError(f"{name} is {value!r}; expected a whole number of at least 1.")
        if self.gpus is not None and not 0 <= self.gpus < 1000:
            raise SettingError(f"--gpus-per-actor is {self.gpus!r}; expected a number of at least 0.")
        if self.address is not None and (not self.address.strip() or self.address.startswith("ray://")):
            raise SettingError(
                f"--address is {self.address!r}; expected auto or host:port of a machine of the cluster. From outside "
                "of it, send the scan there: ray job submit --address http://HEAD:8265 -- nsfw-guard scan … "
                "--engine ray"
            )


class RaySession:
    """A connection to Ray, for a ``with`` block; a Ray that it has started ends with it, one that was there does not.

    Args:
        settings: See there.

    Attributes:
        workers: How many there can be.
        gpus: How many each has.

    Raises:
        SettingError: Ray is not installed, cannot be reached, or has not what a worker needs.
    """

    def __init__(self, settings: RaySettings) -> None:
        self._settings = settings
        self._ray = _ray()
        # Somebody else's connection is used, and left.
        self._mine = not self._ray.is_initialized()
        self.workers, self.gpus = 0, 0.0

    def __enter__(self) -> RaySession:
        """Connect."""
        try:
            if self._mine:
                self._connect(self._settings.address or os.environ.get("RAY_ADDRESS") or "local")
            self._size(self._ray.cluster_resources())
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect; the workers end."""
        self._leave()

    def answers(self, orders: Orders, files: list[Path], workers: int) -> Iterator[Answer]:
        """Have the workers look at what is to be done; yield their answers as they come.

        Args:
            orders: For them.
            files: Of a ``Todo``; they are read on this machine only.
            workers: How many.

        Raises:
            GuardError: Ray cannot go on: workers die again and again, the cluster is gone.
        """
        from ray.data import ActorPoolStrategy, DataContext, read_datasource

        device = orders.guard.get("device") or ("cuda" if self.gpus else "cpu")
        orders = replace(orders, guard={**orders.guard, "device": device})
        context = DataContext.get_current().copy()
        # Every row, which is a whole block of entries or of rows, by itself: it is sent on as soon as it is there.
        context.target_max_block_size = context.target_min_block_size = 1
        context.enable_progress_bars = False
        context.raise_original_map_exception = True  # instead of one that says only that there was one
        context.execution_no_progress_timeout_s = -1  # a film may take its time
        with DataContext.current(context):
            rows = read_datasource(_datasource(files), num_cpus=0, concurrency=1).map_batches(
                _Actor,
                fn_constructor_args=(orders,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=self._settings.cpus,
                num_gpus=self.gpus or None,
                compute=ActorPoolStrategy(
                    size=workers,
                    max_tasks_in_flight_per_actor=_IN_FLIGHT,
                    max_concurrent_calls_per_actor=_AT_A_TIME,
                    enable_true_multi_threading=True,
                ),
            )
        try:
            for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from table_to_answers(batch)
        except Exception as error:
            logger.debug("Ray has ended the scan.", exc_info=True)
            raise GuardError(f"Ray has ended the scan. {_why(error)}") from error

    def _connect(self, address: str) -> None:
        alone = {}
        if address == "local":
            cpus, gpus = self._settings.cpus, _gpus_here()
            share = (1.0 if gpus else 0.0) if self._settings.gpus is None else self._settings.gpus
            workers = self._settings.workers or max(1, int(gpus / share) if share else (os.cpu_count() or 1) // cpus)
            alone = {
                "num_cpus": workers * cpus,
                "num_gpus": gpus,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE,
            }
        else:
            _knock(address)
        quiet = {**_QUIET, **(_ALONE if alone else {})}
        said = {name: os.environ.get(name) for name in quiet}
        os.environ.update(quiet)
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **alone)
        except Exception as error:
            raise SettingError(f"Ray cannot be reached at {address!r}: {one_line(error)}") from error
        finally:
            for name, value in said.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it has to say comes as an error

    def _size(self, there: dict[str, float]) -> None:
        """Decide how many workers there will be."""
        cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        self.gpus = (1.0 if gpus else 0.0) if self._settings.gpus is None else self._settings.gpus
        fit = int(cpus // self._settings.cpus)
        if self.gpus:
            fit = min(fit, int(gpus / self.gpus))
        self.workers = self._settings.workers or max(1, fit)
        if fit < self.workers:
            logger.warning(
                "Ray has %g CPUs and %g GPUs, room for %d of %d workers with %d CPUs and %g GPUs each; the others "
                "wait until there is more.",
                cpus, gpus, fit, self.workers, self._settings.cpus, self.gpus,
            )  # fmt: skip

    def _leave(self) -> None:
        if self._mine:
            self._ray.shutdown()


# In the environment while Ray starts: what goes wrong comes as an error.
_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
# The same of a Ray that is ours alone.
_ALONE = {"RAY_USAGE_STATS_ENABLED": "0"}
# How long a machine may take to answer at all, in seconds.
_ANSWERS = 15.0


def _knock(address: str) -> None:
    """Refuse an address where nobody is: Ray itself would try for minutes.

    Raises:
        SettingError: Nobody is.
    """
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise SettingError(f"--address is {address!r}; expected auto or host:port, such as 10.0.0.5:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS).close()
    except OSError as error:
        raise SettingError(f"Ray cannot be reached at {address!r}: {one_line(error)}") from error


class _Actor(Worker):
    """A worker that gives a block up that has ended others again and again; Ray itself would try it for ever."""

    def __call__(self, table: Any) -> Any:
        """Look at the entries of a table; see ``Worker``."""
        from ray._private.worker import global_worker

        tries = global_worker.core_worker.get_current_task_attempt_number()
        if tries <= _RETRIES:
            return super().__call__(table)
        entries = table_to_entries(table)
        return answer_to_table(
            Answer(
                [],
                0.0,
                f"A block of {len(entries)} files, from {entries[0].path} to {entries[-1].path}, has ended its worker "
                f"{tries} times. Look for one that is too large for the memory of a worker, or ends a decoder.",
            )
        )


def _datasource(files: list[Path]) -> Any:
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Todo(Datasource):
        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            size = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda file=file: read_todo(file), size) for file in files]

        def estimate_inmemory_data_size(self) -> None:
            return None

        @property
        def supports_distributed_reads(self) -> bool:
            return False

    return Todo()


def _why(error: Exception) -> str:
    """Return what has gone wrong in Ray, or in a worker, whose own error has come with Ray's."""
    cause = getattr(error, "cause", None)
    cause = cause if isinstance(cause, Exception) else error
    return f"{type(cause).__name__}: {one_line(cause, 500)}"


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingError(f"--engine ray needs Ray: pip install 'nsfw-guard[ray]' ({error})") from error
    return ray
