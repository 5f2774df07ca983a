"""The scan of many machines: Ray Data runs the workers, and this process lists the files and writes the rows.

It is the only one that writes, so that folder, resuming and actions are those of the scan of one machine. Files go out
in small blocks, and each block comes back as a whole: when a worker dies, Ray gives its blocks to another one, and when
this process dies, only the blocks of that moment are done again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from ..errors import GuardError
from .entry import Entry
from .index import FLAGGED
from .listing import Listing
from .ray_session import RaySession, RaySettings
from .row import Row
from .sources import Sources
from .store import Store
from .summary import Summary
from .todo import Todo
from .worker import Answer, Orders

# How long it waits for an answer before it looks whether something else is to be done, in seconds.
_PATIENCE = 0.25
# How many answers may wait to be written.
_ANSWERS = 4


class ClusterScan:
    """One run over sources, by workers.

    Args:
        orders: For the workers.
        sources: What to scan; the workers open the files, so they must reach them under the same names.
        store: Where rows go, and what is done already.
        settings: Where the workers are, and how many.
        on_rows: Called with rows, once they are on the disk.
        on_flagged_before: Called with each file that was flagged before and has not changed.
        on_progress: Called every now and then, and at the end.
    """

    def __init__(
        self,
        orders: Orders,
        sources: Sources,
        store: Store,
        settings: RaySettings,
        *,
        on_rows: Callable[[list[Row]], None] = lambda rows: None,
        on_flagged_before: Callable[[Entry], None] = lambda entry: None,
        on_progress: Callable[[Summary], None] = lambda summary: None,
    ) -> None:
        self._orders, self._sources, self._store, self._settings = orders, sources, store, settings
        self._on_rows, self._on_flagged_before, self._on_progress = on_rows, on_flagged_before, on_progress
        self._session: RaySession | None = None
        self._began = self._said = self._busy = 0.0
        self.summary = Summary()

    def run(self) -> Summary:
        """Scan until every file has its row.

        What is done when an error or Ctrl-C ends it is on the disk.

        Raises:
            SettingError: Ray is not there.
            GuardError: A worker cannot load or run the model, or rows are missing.
            OSError: A part cannot be written.
        """
        self._began = time.monotonic()
        todo = Todo(self._store.out)
        try:
            with ExitStack() as stack:
                todo.write(self._new(stack))
                if self._session is not None:
                    workers = min(self._session.workers, todo.blocks)
                    answers = _Answers(self._session.answers(self._orders, todo.files, workers))
                    stack.callback(answers.stop)
                    self._take(answers, workers)
        finally:
            self._flush()
            todo.remove()
            self._report()
        if missing := self._store.index.claimed():
            raise GuardError(
                f"{missing} of {todo.entries} files have no row: the workers did not send one. What they sent is kept; "
                "run it again for the others."
            )
        return self.summary

    def _new(self, stack: ExitStack) -> Iterator[Entry]:
        """Yield the files that are to be scanned; with the first one, Ray: what is wrong with it is said at once."""
        listing = Listing(self._sources, self._store, self.summary)
        while (found := listing.next()) is not None:
            entry, status = found
            if status == "new":
                if self._session is None:
                    self._session = stack.enter_context(RaySession(self._settings))
                yield entry
            elif status in FLAGGED:
                self._on_flagged_before(entry)
            self._report(now_and_then=True)

    def _take(self, answers: _Answers, workers: int) -> None:
        while (answer := answers.next()) is not None:
            if answer.error is not None:
                raise GuardError(answer.error)
            for row in answer.rows:
                self._store.add(row)
                self.summary.count(row, duplicate=row.sha256 is not None and not row.decode_ms)
            self._busy += answer.busy / workers
            if self._store.is_due:
                self._flush()
            self._report(now_and_then=True)

    def _flush(self) -> None:
        rows = self._store.flush()
        if rows:
            self.summary.kept += len(rows)
            self._on_rows(rows)

    def _report(self, *, now_and_then: bool = False) -> None:
        now = time.monotonic()
        if now_and_then and now - self._said < _PATIENCE:
            return
        self._said = now
        self.summary.seconds = now - self._began
        self.summary.starved = max(0.0, self.summary.seconds - self._busy)
        self.summary.skipped = dict(self._sources.skipped)
        self._on_progress(self.summary)


class _Answers:
    """Answers of workers, waited for in a thread of their own: rows are written in time, and Ctrl-C is heard."""

    def __init__(self, answers: Iterator[Answer]) -> None:
        self._answers = answers
        self._queue: queue.Queue[Answer | BaseException | None] = queue.Queue(_ANSWERS)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="nsfw_guard-answers", daemon=True)
        self._thread.start()

    def next(self) -> Answer | None:
        """Return the next one, an empty one if there is none yet; ``None``: there will be none.

        Raises:
            GuardError: See ``RaySession.answers``.
        """
        try:
            found = self._queue.get(timeout=_PATIENCE)
        except queue.Empty:
            return Answer([], 0.0)
        if isinstance(found, BaseException):
            raise found
        return found

    def stop(self) -> None:
        """Take no more."""
        self._stopped.set()

    def _wait(self) -> None:
        try:
            for answer in self._answers:
                self._put(answer)
                if self._stopped.is_set():
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Answer | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_PATIENCE)
            except queue.Full:
                continue
            return
