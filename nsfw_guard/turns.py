"""Calls of a guard run at once, in any number; a move or cast of its weights waits for them, and they for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class PerThread(threading.local, Generic[T]):
    """A value of each thread; ``None`` before it is set. A copy of it, or what comes out of a pickle, is empty."""

    value: T | None = None

    def __reduce__(self) -> tuple[type[PerThread[T]], tuple[()]]:
        return PerThread, ()


class Turns:
    """Who may use the weights that threads share. Copies, and what comes out of a pickle, start anew.

    Whoever has a turn may take further ones at once: a hook within a call may move the weights.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._calls: Counter[int] = Counter()  # thread → how many turns it has
        self._moves = 0  # that wait: no call begins before them

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()

    @contextmanager
    def shared(self, prepare: Callable[[], T]) -> Iterator[T]:
        """Have the weights beside other calls, as ``prepare`` leaves them.

        Args:
            prepare: Brings them where the call needs them, within ``alone`` if they are elsewhere.

        Yields:
            What ``prepare`` returned.
        """
        me = threading.get_ident()
        with self._free:
            self._free.wait_for(lambda: not self._moves or me in self._calls)
            prepared = prepare()
            self._calls[me] += 1
        try:
            yield prepared
        finally:
            with self._free:
                self._calls[me] -= 1
                if not self._calls[me]:
                    del self._calls[me]
                self._free.notify_all()

    @contextmanager
    def alone(self, prepare: Callable[[], T] = lambda: None) -> Iterator[T]:  # type: ignore[assignment, return-value]
        """Have the weights to oneself, once the calls of other threads are done; as for ``shared``."""
        me = threading.get_ident()
        with self._free:
            self._moves += 1
            try:
                self._free.wait_for(lambda: not self._calls or me in self._calls)
            finally:
                self._moves -= 1
                self._free.notify_all()
            yield prepare()
