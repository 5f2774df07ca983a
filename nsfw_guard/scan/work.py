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

# Producers that need a greater part of the model's time than this to fill the queue are not made to wait for it.
_SHARE = 0.25


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
        in_turn: Producers wait while what was taken is worked on, as long as they fill the queue again in a fraction of
            that time. For those that need the same cores: a parallel loop waits for whichever core was taken from it,
            so that decoding costs the model about twice the time that it takes by itself.
    """

    def __init__(self, limit: int, items: int, producers: int, *, in_turn: bool = False) -> None:
        self._limit = limit
        self._most = items
        self._producers = producers
        self._in_turn = in_turn
        self._items: deque[Item] = deque()
        self._frames = 0
        self._bytes = 0
        self._paused = False  # it is the model's turn
        self._crowded = False  # a producer waits for room
        self._stopped = False
        self._changed = threading.Condition()
        self._taken_at = 0.0
        self.starved = 0.0  # for how many seconds the model waited for frames

    def put(self, item: Item) -> None:
        """Add an item; wait until there is room.

        Raises:
            Stopped: Nobody takes items any more.
        """
        with self._changed:
            while not self._stopped and (self._paused or self._is_full(item)):
                if not (self._paused or self._crowded):
                    self._crowded = True
                    self._changed.notify_all()
                self._changed.wait()
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._frames += item.pixels is not None
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
        """Return what is there, up to so many frames; wait for the first one, or for all of them if it goes in turn.

        Returns:
            The items, none after ``timeout`` seconds; ``None``: there are none, and there will be none.
        """
        with self._changed:
            began = time.monotonic()
            until = began + timeout
            was_paused, self._paused = self._paused, False
            if was_paused:
                self._changed.notify_all()
            while not self._is_ready(frames) and self._producers and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            now = time.monotonic()
            self.starved += now - began
            if was_paused and now - began > _SHARE * (began - self._taken_at):
                self._in_turn = False  # they wait for something else than a core, or have more to do than the model
            self._taken_at = now
            if not self._items:
                return [] if self._producers else None
            taken: list[Item] = []
            while self._items and (frames or self._items[0].pixels is None):
                item = self._items.popleft()
                taken.append(item)
                self._bytes -= item.nbytes
                self._frames -= item.pixels is not None
                frames -= item.pixels is not None
            self._paused = self._in_turn and any(item.pixels is not None for item in taken)
            self._crowded = False
            self._changed.notify_all()
            return taken

    def _is_ready(self, frames: int) -> bool:
        return (self._frames >= frames or self._crowded) if self._in_turn else bool(self._items)
