"""The scan of one machine: threads that read and decode, a bounded queue, the model, and rows on the disk."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from ..errors import GuardError, ImageError, one_line
from ..guard import NsfwGuard
from ..images.settings import DecodeSettings
from ..images.sniff import HEAD
from ..placement import execution_device
from ..verdict import Scores
from .decode import decode
from .entry import Entry
from .evidence import Decider, now
from .index import FLAGGED
from .kinds import looks_like_video
from .listing import Found, Known, Listing
from .row import Row
from .settings import ScanSettings, cores
from .sources import is_local_file
from .summary import Summary
from .work import Item, Job, Queue, Stopped

logger = logging.getLogger(__name__)

_BLOCK = 2**20
# How long the model waits for a frame before it looks whether something else is to be done, in seconds.
_PATIENCE = 0.25
# How many batches may wait for the model.
_BATCHES = 4


class Rows(Known, Protocol):
    """Where rows go: a ``Store``, or, in a worker of a cluster, whoever asked for them."""

    @property
    def is_due(self) -> bool:
        """Whether it is time to flush."""

    def add(self, row: Row) -> None:
        """Take a row; it is kept after the next ``flush``."""

    def flush(self) -> list[Row]:
        """Keep the rows that were added since the last time; return them."""

    def result(self, sha256: str) -> Row | None:
        """Return a row with the result of a content; ``None``: it is not known."""


class Scan:
    """One run over sources.

    Args:
        guard: Looks at the frames.
        sources: What to scan.
        store: Where rows go, and what is done already.
        decider: Makes the rows.
        settings: How.
        on_rows: Called with rows, once they are on the disk.
        on_flagged_before: Called with each file that was flagged before and has not changed, by any thread.
        on_progress: Called every now and then, and at the end.
        on_end: Called before it waits for its threads: where entries come from may be waiting itself.
    """

    def __init__(
        self,
        guard: NsfwGuard,
        sources: Found,
        store: Rows,
        decider: Decider,
        settings: ScanSettings,
        *,
        on_rows: Callable[[list[Row]], None] = lambda rows: None,
        on_flagged_before: Callable[[Entry], None] = lambda entry: None,
        on_progress: Callable[[Summary], None] = lambda summary: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._guard, self._sources, self._store, self._decider = guard, sources, store, decider
        self._settings = settings
        self._decoding: DecodeSettings = settings.decoding(guard)
        self._on_rows, self._on_flagged_before, self._on_progress = on_rows, on_flagged_before, on_progress
        self._on_end = on_end
        shared = execution_device(guard).type == "cpu" and torch.get_num_threads() + settings.threads > cores()
        self._queue = Queue(settings.queue_bytes, _BATCHES * guard.batch_size, settings.threads, in_turn=shared)
        self._failure: BaseException | None = None
        # By content: what is under way, and what is decided and not on the disk yet.
        self._contents = threading.Lock()
        self._under_way: dict[str, Job] = {}
        self._recent: dict[str, Row] = {}
        self.summary = Summary()
        self._listing = Listing(sources, store, self.summary)

    def run(self) -> Summary:
        """Scan until every file has its row.

        What is done when an error or Ctrl-C ends it is on the disk.

        Raises:
            OSError: A part cannot be written.
            GuardError: The model cannot be run.
        """
        began = time.monotonic()
        threads = [
            threading.Thread(target=self._produce, name=f"nsfw_guard-decode-{number}", daemon=True)
            for number in range(self._settings.threads)
        ]
        try:
            for thread in threads:
                thread.start()
            while (items := self._queue.take(self._guard.batch_size, _PATIENCE)) is not None:
                self._score(items)
                if self._store.is_due:
                    self._flush()
                self._report(began)
            if self._failure is not None:
                raise self._failure
        finally:
            self._queue.stop()
            self._on_end()
            try:
                self._flush()  # first: a second Ctrl-C, while it waits for the threads, costs no row
            finally:
                for thread in threads:
                    if thread.ident is not None:  # it was started
                        thread.join()
            self._report(began)
        return self.summary

    def _report(self, began: float) -> None:
        self.summary.seconds = time.monotonic() - began
        self.summary.starved = self._queue.starved
        self.summary.skipped = dict(self._sources.skipped)
        self._on_progress(self.summary)

    def _flush(self) -> None:
        rows = self._store.flush()
        if rows:
            self.summary.kept += len(rows)
            with self._contents:
                self._recent.clear()  # the index has them now
            self._on_rows(rows)

    # What the decoding threads do.

    def _produce(self) -> None:
        try:
            while (found := self._listing.next()) is not None:
                entry, status = found
                if status == "new":
                    self._read(entry)
                elif status in FLAGGED:
                    self._on_flagged_before(entry)
        except Stopped:
            pass
        except BaseException as error:  # listing itself failed: the scan is not complete, and must not say it is
            self._failure = error
            self._queue.stop()
        finally:
            self._queue.done()

    def _read(self, entry: Entry) -> None:
        """Read, hash and decode one file, and put its frames into the queue, and its end behind them."""
        job = Job(entry)
        began, waited = time.monotonic(), 0.0
        try:
            if entry.error is not None:
                raise ImageError(entry.error)
            with entry.open() as file:
                job.entry = entry = _as_opened(entry, file)
                content, job.sha256 = _read_and_hash(entry, file, self._settings.max_bytes)
                if not self._is_first(job):
                    return
                # Without a name: the row has it, and other files of this content get the same error.
                job.decoded = decode(content, self._decoding, name="")
                for index, pixels in job.decoded.frames():
                    before = time.monotonic()
                    self._queue.put(Item(job, index, pixels))
                    waited += time.monotonic() - before
                if content is file and _as_opened(entry, file) != entry:
                    job.transient = True  # what was hashed is not what was looked at
                    raise ImageError("changed while it was read; scan again")
        except Stopped:
            raise
        except OSError as error:
            job.error, job.transient = one_line(error), True
        except GuardError as error:
            job.error = one_line(error).lstrip(" :")
        except Exception as error:  # a decoder's own: whatever it is, this file has not been looked at
            logger.debug("%s", entry.path, exc_info=True)
            job.error = f"{type(error).__name__}: {one_line(error)}"
            job.transient = isinstance(error, MemoryError)
        job.decode_ms = 1000 * (time.monotonic() - began - waited)
        self._queue.put(Item(job))

    def _is_first(self, job: Job) -> bool:
        """Whether nothing of this content is known or under way; otherwise the file gets that result."""
        sha256 = job.sha256 or ""
        with self._contents:
            if (other := self._under_way.get(sha256)) is not None:
                other.same.append(job.entry)
                return False
            known = self._recent.get(sha256)
            if known is None:
                known = self._store.result(sha256)
            if known is None:
                self._under_way[sha256] = job
                return True
        self._queue.put(Item(Job(job.entry, sha256, known=known)))
        return False

    # What the model's thread does.

    def _score(self, items: list[Item]) -> None:
        frames = [item for item in items if item.pixels is not None]
        for item, scores in zip(frames, self._classify(frames), strict=True):
            if isinstance(scores, Scores):
                item.job.evidence.add(scores, 0, item.frame)
            else:
                item.job.error = item.job.error or one_line(scores)
        for item in items:
            if item.pixels is None:
                self._finish(item.job)

    def _classify(self, frames: list[Item]) -> list[Scores | ImageError]:
        """Classify frames together; where one is refused, each by itself, so that only that one has an error."""
        if not frames:
            return []
        device = execution_device(self._guard)
        images: list[Tensor] = [item.pixels.to(device, non_blocking=True) for item in frames if item.pixels is not None]
        try:
            return _each(self._guard.classify(images))
        except ImageError as error:
            if len(frames) == 1:
                return [error]
            return [result for item in frames for result in self._classify([item])]

    def _finish(self, job: Job) -> None:
        row = self._row(job)
        with self._contents:
            if self._under_way.get(job.sha256 or "") is job:
                del self._under_way[job.sha256 or ""]
                self._recent[job.sha256 or ""] = row
        self._take(row, duplicate=job.known is not None)
        for entry in job.same:
            self._take(_of_same_content(row, entry), duplicate=True)

    def _row(self, job: Job) -> Row:
        if job.known is not None:
            return _of_same_content(job.known, job.entry)
        size = {} if job.decoded is None else {
            "kind": job.decoded.kind, "width": job.decoded.width, "height": job.decoded.height,
            "warning": "; ".join(job.decoded.warnings) or None,
        }  # fmt: skip
        return self._decider.row(
            job.entry.path,
            job.evidence,
            error=job.error,
            sha256=None if job.transient else job.sha256,
            size=job.entry.size,
            mtime=job.entry.mtime,
            etag=job.entry.etag,
            decode_ms=round(job.decode_ms, 2),
            **size,
        )

    def _take(self, row: Row, *, duplicate: bool) -> None:
        self._store.add(row)
        self.summary.count(row, duplicate=duplicate)


def _as_opened(entry: Entry, file: BinaryIO) -> Entry:
    """The entry of a local file as it is now that it is open; others cannot be asked."""
    if entry.data is not None or not is_local_file(entry.path):
        return entry
    status = os.fstat(file.fileno())
    return replace(entry, size=status.st_size, mtime=status.st_mtime)


def _read_and_hash(entry: Entry, file: BinaryIO, max_bytes: int) -> tuple[BinaryIO, str]:
    """Return the content, from its start, and its SHA-256; a video's is read in blocks, and stays where it is.

    Raises:
        ImageError: A picture of more than ``max_bytes``, or a file that changed meanwhile.
    """
    start = file.read(HEAD)
    digest = hashlib.sha256(start)
    if looks_like_video(start, entry.path):
        while block := file.read(_BLOCK):
            digest.update(block)
        file.seek(0)
        content = file
    else:
        rest = file.read(max(0, max_bytes + 1 - len(start)))
        if len(start) + len(rest) > max_bytes:
            raise ImageError(f"is larger than {max_bytes} bytes; raise --max-bytes if you trust it")
        digest.update(rest)
        content = io.BytesIO(start + rest)
    if _as_opened(entry, file) != entry:
        raise ImageError("changed while it was read; scan again")
    return content, digest.hexdigest()


def _each(scores: Scores) -> list[Scores | ImageError]:
    """One for each image."""
    return [
        Scores(scores.card, scores.labels, (views,), (problem,))
        for views, problem in zip(scores.probabilities, scores.problems, strict=True)
    ]


def _of_same_content(row: Row, entry: Entry) -> Row:
    return replace(
        row, path=entry.path, size=entry.size, mtime=entry.mtime, etag=entry.etag, scanned=now(), decode_ms=0.0
    )
