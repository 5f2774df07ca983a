"""What a scan did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .row import Row

# How many names are kept of files that have their rows anyway.
NAMED = 10


@dataclass
class Summary:
    """Counts of one run; a file is one picture or video.

    Attributes:
        files: How many were found.
        before: How many of them had their row already, unchanged.
        done: How many got a row in this run.
        kept: How many of these rows are on the disk.
        scored: How many the model looked at.
        duplicates: How many have the content of another, and so its result.
        flagged: How many are flagged, those before included.
        errors: How many could not be looked at, those before included.
        frames: How many frames the model looked at.
        bytes: Of the files that were read.
        seconds: How long it took so far.
        starved: For how many of these the model waited for frames.
        skipped: Files that were passed over: why → how many.
        listed: Whether all files are found.
        failures: Of the first that could not be looked at: path → why.
    """

    files: int = 0
    before: int = 0
    done: int = 0
    kept: int = 0
    scored: int = 0
    duplicates: int = 0
    flagged: int = 0
    errors: int = 0
    frames: int = 0
    bytes: int = 0
    seconds: float = 0.0
    starved: float = 0.0
    skipped: dict[str, int] = field(default_factory=dict)
    listed: bool = False
    failures: dict[str, str] = field(default_factory=dict)

    def count(self, row: Row, *, duplicate: bool) -> None:
        """Count a row of this run."""
        self.done += 1
        self.flagged += row.flagged is True
        if row.error is not None:
            self.fail(row.path, row.error)
        self.bytes += row.size or 0
        if duplicate:
            self.duplicates += 1
        elif row.error is None:
            self.scored += 1
            self.frames += row.frames or 0

    def fail(self, path: str, why: str) -> None:
        """Count a file that could not be looked at."""
        self.errors += 1
        if len(self.failures) < NAMED:
            self.failures[path] = " ".join(why.split())

    @property
    def limit(self) -> str:
        """What more of would make it faster: ``"model"`` or ``"decoder"``; the decoder's part includes reading."""
        # Where they take turns on the same cores, filling the queue is up to a quarter of the model's time.
        return "model" if self.busy >= 0.8 else "decoder"

    @property
    def busy(self) -> float:
        """For which share of the time the model was not waiting for frames, in [0, 1]."""
        return 1 - min(1.0, self.starved / self.seconds) if self.seconds else 0.0

    @property
    def is_clean(self) -> bool:
        """Whether every file was looked at, and none is flagged."""
        return not self.flagged and not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        return {
            "files": self.files,
            "before": self.before,
            "done": self.done,
            "scored": self.scored,
            "duplicates": self.duplicates,
            "flagged": self.flagged,
            "errors": self.errors,
            "frames": self.frames,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "files_per_second": round(self.done / self.seconds, 2) if self.seconds else 0.0,
            "limit": self.limit,
            "model_busy": round(self.busy, 3),
            "skipped": dict(self.skipped),
            "failures": dict(self.failures),
        }
