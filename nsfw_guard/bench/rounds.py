"""Interleaved rounds: every case once, then all of them again, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Case = TypeVar("Case", bound=Hashable)
Value = TypeVar("Value")

# Fewer rounds than these show no spread worth printing.
LEAST_ROUNDS = 3
# What three rounds may cost beyond the time that was asked for, as a share of it.
GRACE = 0.2
# A call shorter than this is repeated within its round, and the median is its sample.
SHORT = 0.1
MOST_REPEATS = 20


class Spread(NamedTuple):
    """The median of some samples, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Return the spread of at least one sample."""
        return cls(statistics.median(samples), min(samples), max(samples))


def ratio(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the quotient of each round; both lists are in the order of the rounds."""
    return [a / b for a, b in zip(above, below, strict=True)]


class Timer:
    """Measures calls, waiting for the device before and after."""

    def __init__(self, wait: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.wait = wait
        self.clock = clock

    def once(self, call: Callable[[], object]) -> float:
        """Return the seconds of one call."""
        self.wait()
        start = self.clock()
        call()
        self.wait()
        return self.clock() - start

    def repeats(self, seconds: float) -> int:
        """Return how many calls of this length make one sample."""
        return max(1, min(MOST_REPEATS, math.ceil(SHORT / max(seconds, 1e-9))))


def interleave(
    cases: Mapping[Case, Callable[[], Value]],
    *,
    rounds: int,
    seconds: float,
    deadline: float,
    clock: Callable[[], float] = time.perf_counter,
    on_case: Callable[[int, Case], None] = lambda number, case: None,
) -> dict[Case, list[Value]]:
    """Run the cases A B C, A B C, …, until the rounds are done or the time is out.

    Args:
        cases: What to run, in this order.
        rounds: Most rounds. The first one always runs.
        seconds: The whole time that was asked for, of which three rounds may use a little more.
        deadline: On the clock: a round that would end later, going by the last one, is not begun.
        clock: In seconds.
        on_case: Called before each case with the number of the round, from 1.

    Returns:
        For each case its values, one for each round.
    """
    values: dict[Case, list[Value]] = {case: [] for case in cases}
    for number in range(1, rounds + 1):
        start = clock()
        for case, run in cases.items():
            on_case(number, case)
            values[case].append(run())
        end = clock()
        grace = GRACE * seconds if number < LEAST_ROUNDS else 0
        if end + (end - start) > deadline + grace:
            break
    return values
