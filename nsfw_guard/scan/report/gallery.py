"""What the page shows one by one: the worst that was flagged and the nearest misses, each content once."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..row import Row
from .manifest import probability

# Of a content that is there more often, so many of its paths are listed.
PATHS_LISTED = 20


@dataclass
class Item:
    """One content, however often it was found.

    Attributes:
        row: What is known of it, from the first file that has it.
        score: In [0, 1]; the greatest of all its rows, and 1 for what is flagged without a score.
        copies: How many files have it.
        paths: The first of them.
    """

    row: Row
    score: float
    copies: int = 1
    paths: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What tells it from other contents: its hash, or its path if that is unknown."""
        return key_of(self.row)


class Best:
    """The contents with the highest scores, of any number of rows, in bounded memory.

    Args:
        limit: How many to keep.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[str, Item] = {}
        # What was dropped is below this, and so is every copy of it: it need not be kept again.
        self._floor: tuple[float, str] = (-1.0, "")

    def add(self, row: Row) -> None:
        """Take one row."""
        key, score = key_of(row), score_of(row)
        item = self._kept.get(key)
        if item is not None:
            item.copies += 1
            item.score = max(item.score, score)
            if len(item.paths) < PATHS_LISTED:
                item.paths.append(row.path)
        elif (score, key) > self._floor and self._limit:
            self._kept[key] = Item(row, score, paths=[row.path])
            if len(self._kept) >= 2 * self._limit + 64:
                self._drop()

    def items(self) -> list[Item]:
        """Return what is kept, the highest score first."""
        return sorted(self._kept.values(), key=lambda item: (item.score, item.key), reverse=True)[: self._limit]

    def _drop(self) -> None:
        kept = self.items()
        self._floor = (kept[-1].score, kept[-1].key)
        self._kept = {item.key: item for item in kept}


def key_of(row: Row) -> str:
    """Return what tells a row's content from others."""
    return row.sha256 or f"path:{row.path}"


def score_of(row: Row) -> float:
    """Return a row's score, in [0, 1]; what is flagged without one comes first."""
    score = probability(row.score)
    return score if score is not None else float(bool(row.flagged))
