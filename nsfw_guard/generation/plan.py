"""Which rows are drawn together, with which seeds, and which of them are not what they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .folder import State
from .prompts import PromptRow
from .settings import ERROR, seed_of_attempt


@dataclass(frozen=True)
class Job:
    """One attempt at one row.

    Attributes:
        row: What is to be drawn.
        attempt: Which attempt it is, from 0.
    """

    row: PromptRow
    attempt: int = 0

    @property
    def seed(self) -> int:
        """Of this attempt."""
        return seed_of_attempt(self.row.seed, self.attempt)


def batches_of(rows: Iterable[PromptRow], key: Callable[[PromptRow], str | None], size: int) -> list[list[PromptRow]]:
    """Put rows of equal keys together, in order; those without a key stay alone.

    Args:
        rows: All of a run, the done ones too, so that those that are left keep their company when a run goes on.
        key: What rows of one batch have in common.
        size: Most rows of a batch.
    """
    batches: list[list[PromptRow]] = []
    filling: dict[str, list[PromptRow]] = {}
    for row in rows:
        shared = key(row)
        batch = None if shared is None else filling.get(shared)
        if batch is None or len(batch) >= size:
            batch = []
            batches.append(batch)
            if shared is not None:
                filling[shared] = batch
        batch.append(row)
    return batches


def why_changed(row: PromptRow, state: State | None) -> str | None:
    """Return why a row cannot go by what the log says of its id; ``None`` if it can."""
    if state is None or state.action == ERROR or state.request == row.request:
        return None
    return f"the id {row.id!r} was asked for with another prompt, seed or arguments before; give it another id"
