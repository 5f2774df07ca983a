"""What a worker of a cluster does: it holds the model, and makes rows of the blocks of entries that it is sent.

The files are read, decoded and scored by the engine of one machine, which runs as long as the worker does: while the
last files of one block are scored, those of the next are decoded.
"""

from __future__ import annotations

import json
import logging
import platform
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from ..errors import GuardError, SettingError, one_line
from ..guard import NsfwGuard
from ..identity import model_identity
from ..policy import Policy
from .engine import Scan
from .entry import Entry
from .evidence import Decider
from .row import Row
from .settings import ScanSettings
from .todo import table_to_entries

logger = logging.getLogger(__name__)

# So many results are remembered, for files of the same content.
_CONTENTS = 10_000
_ROWS = 256


@dataclass(frozen=True)
class Orders:
    """What a worker is told, and what the rows of all workers have in common.

    Attributes:
        guard: The keyword arguments of ``NsfwGuard``.
        policy: By which files are flagged.
        settings: How.
        model: Which weights, as ``model_identity`` says; others are refused.
        preprocessing: The same of what else scores depend on.
    """

    guard: dict[str, Any]
    policy: Policy
    settings: ScanSettings
    model: str
    preprocessing: str


class Worker:
    """Makes rows of entries; any number of threads may call it at the same time.

    What goes wrong with the model is no exception here, which Ray would wrap up and might try again: it is part of the
    answer.

    Args:
        orders: What is to be done.
    """

    def __init__(self, orders: Orders) -> None:
        self._desk = Desk()
        self._turn = threading.Lock()
        self._busy = 0.0
        self._scan: Scan | None = None
        try:
            self._scan = _scan(orders, self._desk)
        except Exception as error:
            logger.exception("The model cannot be used.")
            self._desk.fail(error)
        else:
            threading.Thread(target=self._run, name="nsfw_guard-scan", daemon=True).start()

    def __call__(self, table: Any) -> Any:
        """Look at the entries of a table.

        Args:
            table: See ``entries_to_table``.

        Returns:
            A table of one row; see ``table_to_answers``.
        """
        return answer_to_table(self._answer(table_to_entries(table)))

    def _answer(self, entries: list[Entry]) -> Answer:
        try:
            rows = self._desk.look(entries)
        except Exception as error:
            said = one_line(error, 1000) if isinstance(error, GuardError) else f"{type(error).__name__}: {error}"
            return Answer([], 0.0, f"A worker on {platform.node()} cannot go on. {' '.join(said.split())}")
        with self._turn:
            before, self._busy = self._busy, self._busy_so_far()
            return Answer(rows, self._busy - before)

    def _busy_so_far(self) -> float:
        return 0.0 if self._scan is None else max(self._busy, self._scan.summary.seconds - self._scan.summary.starved)

    def _run(self) -> None:
        try:
            if self._scan is not None:
                self._scan.run()
        except Exception as error:
            logger.exception("The scan has ended.")
            self._desk.fail(error)


@dataclass(frozen=True)
class Answer:
    """What a worker has to say of a block.

    Attributes:
        rows: In the order of the entries.
        busy: For how many seconds its model has not waited for frames since its last answer.
        error: Why there are no rows.
    """

    rows: list[Row]
    busy: float
    error: str | None = None


def answer_to_table(answer: Answer) -> Any:
    """Return a table of one row, which Ray does not divide, with the rows of the scan as JSON."""
    import pyarrow as pa

    rows = [json.dumps(row.to_record()) for row in answer.rows]
    columns = [("rows", pa.list_(pa.large_string())), ("busy", pa.float64()), ("error", pa.string())]
    return pa.table({"rows": [rows], "busy": [answer.busy], "error": [answer.error]}, schema=pa.schema(columns))


def table_to_answers(table: Any) -> Iterator[Answer]:
    """Yield the answers in a table, one in each row."""
    for answer in table.to_pylist():
        rows = [Row.from_record(json.loads(text)) for text in answer["rows"]]
        yield Answer(rows, answer["busy"], answer["error"])


@dataclass
class _Question:
    """Entries that somebody waits for."""

    open: Counter[str]
    rows: dict[str, Row] = field(default_factory=dict)


class Desk:
    """Stands in for sources and store of a scan: what it is asked about goes in, and the rows come back here."""

    def __init__(self) -> None:
        self._entries: SimpleQueue[Entry | None] = SimpleQueue()
        self._questions: list[_Question] = []
        self._contents: OrderedDict[str, Row] = OrderedDict()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._fresh: list[Row] = []
        self.skipped: Counter[str] = Counter()

    def look(self, entries: list[Entry]) -> list[Row]:
        """Return the rows of entries, in their order; wait for them.

        Raises:
            BaseException: What ended the scan.
        """
        question = _Question(Counter(entry.path for entry in entries))
        with self._changed:
            self._questions.append(question)
        for entry in entries:
            self._entries.put(entry)
        with self._changed:
            while question.open and self._failure is None:
                self._changed.wait()
            self._questions.remove(question)
            if self._failure is not None:
                raise self._failure
        return [question.rows[entry.path] for entry in entries]

    def fail(self, error: BaseException) -> None:
        """Let everybody who waits have an error, and whoever comes."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def close(self) -> None:
        """Let the scan end; nobody waits for an entry any more."""
        self._entries.put(None)

    # What a scan asks of its sources.

    def entries(self, wanted: Callable[[Entry], bool] | None = None) -> Iterator[Entry]:
        """Yield what is asked about, until ``close``."""
        while (entry := self._entries.get()) is not None:
            yield entry

    # What it asks of, and tells, its store.

    def status(self, entry: Entry) -> str:
        """Say that a file is to be scanned: whoever asks knows."""
        return "new"

    def claim(self, entry: Entry) -> None:
        """Nothing is to be noted."""

    def see(self, entry: Entry) -> None:
        """Nothing is to be noted."""

    def result(self, sha256: str) -> Row | None:
        """Return a row of this content that was made not long ago."""
        return self._contents.get(sha256)

    def add(self, row: Row) -> None:
        """Hand a row to whoever waits for it."""
        self._fresh.append(row)
        if row.sha256 is not None:
            self._contents[row.sha256] = row
            if len(self._contents) > _CONTENTS:
                self._contents.popitem(last=False)
        with self._changed:
            for question in self._questions:
                if row.path in question.open:
                    question.rows[row.path] = row
                    question.open[row.path] -= 1
                    if not question.open[row.path]:
                        del question.open[row.path]
            self._changed.notify_all()

    @property
    def is_due(self) -> bool:
        """Whether the scan may forget what it remembers of these rows."""
        return len(self._fresh) >= _ROWS

    def flush(self) -> list[Row]:
        """Return the rows since the last time."""
        rows, self._fresh = self._fresh, []
        return rows


def _scan(orders: Orders, desk: Desk) -> Scan:
    """Return the scan of a worker.

    Raises:
        GuardError: The model cannot be loaded, or is not the one of the other workers.
    """
    guard = NsfwGuard(**orders.guard)
    _same("The model", model_identity(guard), orders.model)
    _same("The preprocessing", orders.settings.preprocessing(guard), orders.preprocessing)
    decider = Decider(
        guard.card, guard.classifier.labels, orders.policy, model=orders.model, preprocessing=orders.preprocessing
    )
    return Scan(guard, desk, desk, decider, orders.settings, on_end=desk.close)


def _same(what: str, mine: str, others: str) -> None:
    if mine != others:
        raise SettingError(
            f"{what} on this worker is {mine}; expected {others}, as where the scan was started. Put the same "
            "checkpoint and the same version of nsfw_guard on every machine."
        )
