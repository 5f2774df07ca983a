"""What a scan found, counted in one pass over its rows, in bounded memory."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from ..row import Row
from .folders import Folders
from .gallery import Best, Item
from .manifest import finite, probability

BINS = 50
SLOWEST = 20
FAILED_LISTED = 500
EXAMPLES = 5
MESSAGES = 100
_OTHERS = "other reasons"
# What is flagged for these reasons has no score; its 1.0 would be a bar that no picture made.
_WITHOUT_SCORE = ("non_finite", "too_long", "early", "unscored")


@dataclass
class Failure:
    """Why files could not be scored: how many of them, and the first ones."""

    files: int = 0
    paths: list[str] = field(default_factory=list)


@dataclass
class Tally:
    """Counts of rows, and what the page shows of them one by one.

    Attributes:
        flagged_best: The flagged contents with the highest scores.
        misses_best: The contents that were passed with the highest scores.
        files: How many rows.
        passed: How many were scored and not flagged.
        flagged: How many were flagged.
        failed: How many could not be scored.
        size: Of all files of which it is known, in bytes.
        passed_bins: Scores of what was passed, in 50 equal bins of [0, 1].
        flagged_bins: Scores of what was flagged.
        without_score: How many were flagged without a score.
        labels: Most likely label → ``[files, flagged]``.
        kinds: Kind → files.
        reasons: Reason → flagged files.
        failures: Message → the files about which it is.
        failed_rows: The first files that could not be scored.
        folders: Counts per folder.
    """

    flagged_best: Best
    misses_best: Best
    files: int = 0
    passed: int = 0
    flagged: int = 0
    failed: int = 0
    size: int = 0
    passed_bins: list[int] = field(default_factory=lambda: [0] * BINS)
    flagged_bins: list[int] = field(default_factory=lambda: [0] * BINS)
    without_score: int = 0
    labels: dict[str, list[int]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: dict[str, Failure] = field(default_factory=dict)
    failed_rows: list[Row] = field(default_factory=list)
    folders: Folders = field(default_factory=Folders)
    threshold: float | None = None
    model: str = ""
    _slowest: list[tuple[float, int, Row]] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count one row. What is neither flagged nor passed was not checked, whether it says why or not."""
        failed = row.error is not None or row.flagged is None
        self.files += 1
        self.size += int(finite(row.size) or 0)
        self.folders.add(row.path, flagged=not failed and bool(row.flagged), failed=failed)
        taken = finite(row.decode_ms) or 0.0
        if taken > 0:
            slow = (taken, -self.files, row)
            (heapq.heappush if len(self._slowest) < SLOWEST else heapq.heappushpop)(self._slowest, slow)
        if failed:
            self._add_failed(row)
            return
        self.kinds[row.kind or "image"] += 1
        self.threshold = probability(row.threshold) if self.threshold is None else self.threshold
        self.model = self.model or row.model
        if labels := {label: p for label, p in row.labels.items() if finite(p) is not None}:
            counter = self.labels.setdefault(max(labels, key=lambda label: labels[label]), [0, 0])
            counter[0] += 1
            counter[1] += bool(row.flagged)
        score = probability(row.score)
        if row.flagged:
            self.flagged += 1
            self.reasons[row.reason or "score"] += 1
            self.flagged_best.add(row)
        else:
            self.passed += 1
            self.misses_best.add(row)
        if score is None or row.reason in _WITHOUT_SCORE:
            self.without_score += 1
        else:
            (self.flagged_bins if row.flagged else self.passed_bins)[min(int(score * BINS), BINS - 1)] += 1

    def slowest(self) -> list[Row]:
        """Return the files that took longest to decode, the longest first."""
        return [row for _, _, row in sorted(self._slowest, reverse=True)]

    def shown(self) -> tuple[list[Item], list[Item]]:
        """Return the flagged and the nearest misses; what has a flagged copy is no miss."""
        flagged = self.flagged_best.items()
        known = {item.key for item in flagged}
        return flagged, [item for item in self.misses_best.items() if item.key not in known]

    def _add_failed(self, row: Row) -> None:
        self.failed += 1
        if len(self.failed_rows) < FAILED_LISTED:
            self.failed_rows.append(row)
        # Messages name their file; without it, those with one cause are one.
        message = " ".join(str(row.error or "it was not scored").replace(row.path, "…").split())[:300]
        if message not in self.failures and len(self.failures) >= MESSAGES:
            message = _OTHERS
        failure = self.failures.setdefault(message, Failure())
        failure.files += 1
        if len(failure.paths) < EXAMPLES:
            failure.paths.append(row.path)
