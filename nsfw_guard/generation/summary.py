"""What a run has done: counts over all rows, and the exit code."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .prompts import BadRow
from .settings import ERROR, FINAL, KEEP, QUARANTINE, REDACT, RETRY, SKIP, STOP

CLEAN, FLAGGED, FAILED = 0, 1, 2
_WORDS = {
    KEEP: "kept",
    REDACT: "redacted",
    SKIP: "skipped",
    QUARANTINE: "quarantined",
    STOP: "stopped at",
    ERROR: "not drawn",
}


@dataclass
class Summary:
    """Counts of one run.

    Attributes:
        rows: Images that were asked for, by good rows.
        before: Of these, done by earlier runs into the same folder.
        share: Left to this process at the start.
        counts: Action → images, over all runs; ``"retry"`` → images of this run that were drawn again.
        bad_rows: What was no row.
        errors: Rows that this run could not draw or write, and why.
        seconds: From the first batch to the end.
        processes: That shared the work.
        failed: What ended the run early; ``None`` if it came to its end.
        audit: Name, number of lines and head of each log, to be kept elsewhere.
    """

    rows: int = 0
    before: int = 0
    share: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    bad_rows: list[BadRow] = field(default_factory=list)
    errors: list[BadRow] = field(default_factory=list)
    seconds: float = 0.0
    processes: int = 1
    failed: str | None = None
    audit: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Rows of which nothing is left to do."""
        return sum(self.counts[action] for action in FINAL)

    @property
    def flagged(self) -> int:
        """Rows that ended with a flagged image."""
        return self.done - self.counts[KEEP]

    @property
    def pending(self) -> int:
        """Rows that are left: after ``stop``, and after an error."""
        return self.rows - self.done - self.counts[ERROR]

    @property
    def exit_code(self) -> int:
        """2: something could not be done; 1: something was flagged; 0: neither."""
        if self.failed is not None or self.bad_rows or self.counts[ERROR]:
            return FAILED
        return FLAGGED if self.flagged else CLEAN

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``json.dumps`` takes."""
        return {
            "rows": self.rows,
            "before": self.before,
            **{_WORDS[action].replace(" ", "_"): self.counts[action] for action in _WORDS},
            "retried": self.counts[RETRY],
            "flagged": self.flagged,
            "pending": self.pending,
            "bad_rows": [{"line": bad.line, "problem": bad.problem} for bad in self.bad_rows],
            "errors": [{"line": bad.line, "problem": bad.problem} for bad in self.errors],
            "seconds": round(self.seconds, 3),
            "processes": self.processes,
            "failed": self.failed,
            "audit": self.audit,
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        parts = [f"{self.counts[action]} {word}" for action, word in _WORDS.items() if self.counts[action]]
        parts += [f"{self.pending} left"] if self.pending else []
        parts += [f"{len(self.bad_rows)} bad {'row' if len(self.bad_rows) == 1 else 'rows'}"] if self.bad_rows else []
        retried = f"; {self.counts[RETRY]} drawn again" if self.counts[RETRY] else ""
        before = f"; {self.before} of them by earlier runs" if self.before else ""
        images = "image" if self.rows == 1 else "images"
        return f"{self.rows} {images}: {', '.join(parts) or 'none'}{before}{retried}. {self.seconds:.1f} s"
