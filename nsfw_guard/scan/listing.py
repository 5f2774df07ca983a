"""What a scan has in front of it: the files of its sources, each with what is known of it already."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from .entry import Entry
from .index import FLAGGED, FLAGGED_IN_PART
from .summary import Summary

# What is said of files that failed before; their rows say why.
_FAILED = {
    "error": "could not be looked at before either, and has not changed; --retry-errors tries it again",
    FLAGGED_IN_PART: "could be looked at in part only",
    "gone": "is not there any more",
}


class Found(Protocol):
    """Where entries come from; ``Sources`` are."""

    @property
    def skipped(self) -> Counter[str]:
        """Why → how many files were passed over, so far."""

    def entries(self, wanted: Callable[[Entry], bool] | None = None) -> Iterator[Entry]:
        """Yield them; ``wanted`` says whether content that can be read only in passing is to be read."""


class Known(Protocol):
    """What is known of files; a ``Store`` knows."""

    def status(self, entry: Entry) -> str:
        """Say what is known of a file as it is now; see ``Index.status``."""

    def claim(self, entry: Entry) -> None:
        """Note that a file is being scanned."""

    def see(self, entry: Entry) -> None:
        """Note that a file which needs no scan was come across."""


class Listing:
    """Hands out every file once, to any thread, and counts it.

    Args:
        sources: Where they come from.
        known: What is done already; what is not is claimed as it is handed out.
        summary: Where they are counted.
    """

    def __init__(self, sources: Found, known: Known, summary: Summary) -> None:
        self._known, self._summary = known, summary
        self._entries = sources.entries(wanted=lambda entry: known.status(entry) == "new")
        self._turn = threading.Lock()

    def next(self) -> tuple[Entry, str] | None:
        """Return the next file and what is known of it, ``"new"`` if nothing is; ``None``: there is none."""
        with self._turn:
            for entry in self._entries:
                status = self._known.status(entry)
                if status == "claimed":
                    continue
                self._summary.files += 1
                if status == "new":
                    self._known.claim(entry)
                else:
                    self._known.see(entry)
                    self._summary.before += 1
                    self._summary.flagged += status in (*FLAGGED, "gone")
                    if status in _FAILED:
                        self._summary.fail(entry.path, entry.error or _FAILED[status])
                return entry, status
            self._summary.listed = True
            return None
