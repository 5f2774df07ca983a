"""Hearing of every step that one scheduler object takes, for the time of a call.

The object gets a subclass made for it alone. Nothing of ours is among its attributes: pipelines that copy a scheduler,
or its attributes, to step the copies apart get ordinary ones, which nobody hears of.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .record import Record, current_record
from .swap import ordinary_copies

# Called after a step with the scheduler, what the step was given, by name, and what it returned.
Listener = Callable[[Any, dict[str, Any], Any], None]
_STEP = ("model_output", "timestep", "sample")
_EXCHANGING = threading.Lock()


@contextmanager
def hearing(scheduler: Any, record: Record, listener: Listener) -> Iterator[None]:
    """Tell the listener of every step that the scheduler takes in the call of this record.

    Calls that share a scheduler, one within the other or in two threads, have a listener each.
    """
    entry = (record, listener)
    with _EXCHANGING:
        if "_listeners" not in vars(type(scheduler)):
            scheduler.__class__ = _heard_class(type(scheduler))
        listeners = type(scheduler)._listeners
        listeners.append(entry)
    try:
        yield
    finally:
        with _EXCHANGING:
            listeners[:] = [other for other in listeners if other is not entry]
            if not listeners:
                scheduler.__class__ = type(scheduler)._unguarded


def _heard_class(cls: Any) -> Any:
    """A subclass for one object, which tells of its steps; of none that the object's copies take."""
    listeners: list[tuple[Record, Listener]] = []
    order = _order_of(cls)

    def step(self: Any) -> Any:
        plain = vars(self).get("step") or super(heard, self).step  # the user's own, set on the object, comes first

        @functools.wraps(plain)  # pipelines ask for its parameters
        def step(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs)
            given = dict.fromkeys(_STEP) | dict(zip(order, args, strict=False)) | kwargs
            for listener in _concerned(listeners):
                listener(self, given, result)
            return result

        return step

    def exchange(self: Any, value: Any) -> None:
        vars(self)["step"] = value

    def take_back(self: Any) -> None:
        del vars(self)["step"]

    members = {"step": property(step, exchange, take_back), "_listeners": listeners, **ordinary_copies(cls)}
    alike = _Alike if type(cls) is type else type("_Alike", (_Alike, type(cls)), {})
    heard: Any = alike(cls.__name__, (cls,), members)
    return heard


class _Alike(type):
    """The class of a subclass that equals its class, to those who compare: Bria asks for ``type(scheduler)``."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is vars(cls)["_unguarded"]

    def __hash__(cls) -> int:
        return hash(vars(cls)["_unguarded"])


def _concerned(listeners: list[tuple[Record, Listener]]) -> list[Listener]:
    """Who is told of a step: the innermost call of this thread; in a thread that a pipeline started, the only one."""
    record = current_record()
    if record is None:
        return [listener for _, listener in listeners] if len(listeners) == 1 else []
    return [listener for other, listener in listeners if other is record]


def _order_of(cls: type) -> tuple[str, ...]:
    """The parameters of a scheduler's step in their order, which not all have alike; the usual if it hides them."""
    for base in cls.__mro__:
        if "step" in vars(base):
            names = tuple(inspect.signature(vars(base)["step"]).parameters)[1:]
            if set(_STEP) <= set(names):
                return names
    return _STEP
