"""The queue between decoding and the model: bounded, and it knows how long the model waited."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from .decode import Decoded
from .entry import Entry
from .evidence import Evidence
from .row import Row


@dataclass
class Job:
    """One file on its way to its row.

    Attributes:
        entry: The file, as it was when it was read.
        sha256: Of its content.
        decoded: What is in it.
        evidence: What the model said of its frames so far.
        error: Why there will be no score.
        transient: Whether that error may be gone the next time.
        known: The row of a file of the same content.
        same: Files of the same content that came while it was under way.
        decode_ms: How long reading, hashing and decoding took.
    """

    entry: Entry
    sha256: str | None = None
    decoded: Decoded | None = None
    evidence: Evidence = field(default_factory=Evidence)
    error: str | None = None
    transient: bool = False
    known: Row | None = None
    same: list[Entry] = field(default_factory=list)
    decode_ms: float = 0.0


@dataclass
class Item:
    """One frame of a job, or, with neither, its end."""

    job: Job
    frame: int = 0
    pixels: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """What it takes while it waits."""
        return 0 if self.pixels is None else self.pixels.nbytes


class Stopped(Exception):
    """The scan ends early: whoever puts something into the queue is to end too."""


class Queue:
    """Frames in the order in which they were decoded.

    Args:
        limit: How many bytes may wait; one frame always may.
        items: How many items may wait.
        producers: How many threads put items in; each says when it is done.
    """

    def __init__(self, limit: int, items: int, producers: int) -> None:
        self._limit = limit
        self._most = items
        self._producers = producers
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._stopped = False
        self._changed = threading.Condition()
        self.starved = 0.0  # for how many seconds the model waited for frames

    def put(self, item: Item) -> None:
        """Add an item; wait until there is room.

        Raises:
            Stopped: Nobody takes items any more.
        """
        with self._changed:
            while not self._stopped and self._is_full(item):
                self._changed.wait()
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._bytes += item.nbytes
            self._changed.notify_all()

    def _is_full(self, item: Item) -> bool:
        return len(self._items) >= self._most or bool(self._bytes and self._bytes + item.nbytes > self._limit)

    def done(self) -> None:
        """Say that a producer has put in its last item."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Let producers end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def take(self, frames: int, timeout: float) -> list[Item] | None:
        """Return what is there, up to so many frames; wait for the first one.

        Returns:
            The items, none after ``timeout`` seconds; ``None``: there are none, and there will be none.
        """
        with self._changed:
            began = time.monotonic()
            until = began + timeout
            while not self._items and self._producers and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            self.starved += time.monotonic() - began
            if not self._items:
                return [] if self._producers else None
            taken: list[Item] = []
            while self._items and (frames or self._items[0].pixels is None):
                item = self._items.popleft()
                taken.append(item)
                self._bytes -= item.nbytes
                frames -= item.pixels is not None
            self._changed.notify_all()
            return taken
