"""Calls of a guard run at once, in any number; a move or cast of its weights waits for them, and they for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import torch

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

    def shared(self, prepare: Callable[[], T]) -> Turn[T]:
        """Have the weights beside other calls, as ``prepare`` leaves them.

        Args:
            prepare: Brings them where the call needs them, within ``alone`` if they are elsewhere. What it returns is
                what the turn begins with.
        """
        return Turn(partial(self._begin, prepare), self._end)

    def alone(self, prepare: Callable[[], T] = lambda: None) -> Turn[T]:  # type: ignore[assignment, return-value]
        """Have the weights to oneself, once the calls of other threads are done; as for ``shared``."""
        return Turn(partial(self._claim, prepare), self._release)

    def _begin(self, prepare: Callable[[], T]) -> T:
        me = threading.get_ident()
        with self._free:
            self._free.wait_for(lambda: not self._moves or me in self._calls)
            prepared = prepare()
            self._calls[me] += 1
            return prepared

    def _end(self) -> None:
        me = threading.get_ident()
        with self._free:
            self._calls[me] -= 1
            if not self._calls[me]:
                del self._calls[me]
            self._free.notify_all()

    def _claim(self, prepare: Callable[[], T]) -> T:
        me = threading.get_ident()
        with self._free:
            self._moves += 1
            try:
                self._free.wait_for(lambda: not self._calls or me in self._calls)
            finally:
                self._moves -= 1
                self._free.notify_all()
            prepared = prepare()
            self._calls[me] += 1
            self._free.acquire()  # a second time: it is kept beyond this block
            return prepared

    def _release(self) -> None:
        self._end()
        self._free.release()


class Turn(Generic[T]):
    """A turn, while it lasts. No part of a compiled graph."""

    def __init__(self, begin: Callable[[], T], end: Callable[[], None]) -> None:
        self._begin, self._end = begin, end

    @torch.compiler.disable
    def __enter__(self) -> T:
        return self._begin()

    @torch.compiler.disable
    def __exit__(self, *_: object) -> None:
        self._end()
