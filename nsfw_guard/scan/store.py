"""The rows of a scan on disk: appended while it runs, one per file when it ends, whatever happened in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..files import FolderLock, whole_file
from .entry import Entry
from .export import convert_csv
from .index import FLAGGED, Index, version_of
from .parts import (
    FOLDER,
    FORMATS,
    MANIFEST,
    count_rows,
    join_parts,
    labels_in,
    number_of,
    parquet,
    part_files,
    paths_in,
    read_manifest,
    read_part,
    write_part,
)
from .row import SCHEMA_VERSION, Row

# A part is written when there are so many rows, or so many seconds after the last one: what a kill can cost.
ROWS_PER_PART = 2000
SECONDS_PER_PART = 10.0
# Parts are put together, when a scan ends, up to so many rows.
ROWS_PER_MERGED_PART = 50_000


class Store:
    """A folder with the rows of a scan, which one process at a time may open.

    Args:
        out: The folder; it is made if it is not there.
        form: ``"parquet"``, ``"jsonl"`` or ``"csv"``, whose rows are kept as they are there already, or as JSONL.
        model: Of this scan; see ``Row``.
        preprocessing: Of this scan; see ``Row``.
        labels: The model's.
        redecide: Gives a row of this model and preprocessing that was decided by another policy the present one's.
        retry_errors: Whether files that could not be decoded are tried again. Those that could not be read always are.
        accept: Is shown the manifest of rows that are there, before any of them is decided again, and raises to stop.

    Attributes:
        out: The folder.
        manifest: What the last scan wrote about itself; empty if there was none.
        index: What is known of the rows.

    Raises:
        SettingError: Another scan has it open, or it holds something else than a scan of this format.
        OSError: It cannot be written.
    """

    def __init__(
        self,
        out: Path,
        form: str,
        *,
        model: str,
        preprocessing: str,
        labels: tuple[str, ...],
        redecide: Callable[[Row], Row] = lambda row: row,
        retry_errors: bool = False,
        accept: Callable[[dict[str, Any]], None] = lambda manifest: None,
    ) -> None:
        if form not in (*FORMATS, "csv"):
            raise SettingError(f"--format is {form!r}; expected one of {', '.join((*FORMATS, 'csv'))}.")
        if form == "parquet":
            parquet()
        self.out = out
        self._model, self._preprocessing, self._labels = model, preprocessing, labels
        self._redecide = redecide
        out.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(out, "scan")
        try:
            self.manifest = read_manifest(out, missing_ok=True)
            (out / FOLDER).mkdir(exist_ok=True)
            kept = {part.suffix for part in part_files(out)} - {".csv"}
            self._suffix = f".{form}" if form in FORMATS else kept.pop() if len(kept) == 1 else ".jsonl"
            if part_files(out):
                accept(self.manifest)  # what is refused stays as it is, for the version that wrote it too
            convert_csv(out, self._suffix)
            parts = part_files(out)
            if other := [part for part in parts if part.suffix != self._suffix]:
                raise SettingError(
                    f"{out} holds a scan in the format {other[0].suffix[1:]}; expected {self._suffix[1:]}. Go on with "
                    f"--format {other[0].suffix[1:]}, or name another folder."
                )
            for left in (out / FOLDER).glob(".part-*.tmp"):
                left.unlink()
            self._next = number_of(parts[-1]) + 1 if parts else 1
            self._buffer: list[Row] = []
            self._written = time.monotonic()
            self._stale: set[int] = set()
            self.index = Index(out / ".index.sqlite")
            self._read(parts, retry_errors)
        except BaseException:
            self._lock.release()
            raise

    def status(self, entry: Entry) -> str:
        """Say what is known of a file as it is now; see ``Index.status``.

        ``"gone"``: it was flagged, and cannot be opened any more, as when it was moved; its row stays what it is.
        Where the source does not say what would tell a change, as some web servers do not, nothing is known.
        """
        status = self.index.status(entry.path, version_of(entry, self._model, self._preprocessing))
        if entry.error is not None and status == "new":
            last = self.index.status(entry.path)
            if last in FLAGGED:
                return "gone"
            if last == "claimed":
                return last
        return "new" if entry.mtime is None and entry.etag is None and status != "claimed" else status

    def claim(self, entry: Entry) -> None:
        """Note that a file is being scanned: the same file once more, in another source, is none to scan."""
        self.index.claim(entry.path, version_of(entry, self._model, self._preprocessing))

    def see(self, entry: Entry) -> None:
        """Note that a file which needs no scan was come across."""
        self.index.see(entry.path)

    def result(self, sha256: str) -> Row | None:
        """Return a row with the result of a content; ``None``: it is not known."""
        return self.index.result(sha256)

    def add(self, row: Row) -> None:
        """Take a row; it is on the disk after the next ``flush``."""
        self._buffer.append(row)

    @property
    def is_due(self) -> bool:
        """Whether it is time to flush."""
        return len(self._buffer) >= ROWS_PER_PART or (
            bool(self._buffer) and time.monotonic() - self._written >= SECONDS_PER_PART
        )

    def flush(self) -> list[Row]:
        """Write the rows that were added since the last time as a part; return them.

        Raises:
            OSError: The disk is full, or not writable; the parts that are there stay.
        """
        rows, part = self._buffer, self._path(self._next)
        self._written = time.monotonic()
        if rows:
            write_part(part, rows, self._labels)
            self._buffer = []
            self._note(rows, self._next, final=True, seen=True)
            self._next += 1
        return rows

    def rows(self) -> Iterator[Row]:
        """Yield every row on the disk that no later one has taken the place of."""
        for part in part_files(self.out):
            yield from self._current(part)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write what the scan is, beside the parts."""
        manifest = {"schema_version": SCHEMA_VERSION, **manifest}
        with whole_file(self.out / MANIFEST) as file:
            file.write(json.dumps(manifest, indent=2).encode() + b"\n")

    def tidy(self) -> None:
        """Remove rows that a later one has taken the place of, and put small parts together."""
        for part in part_files(self.out):
            if number_of(part) in self._stale:
                self._rewrite(part, self._current(part))
        self._stale.clear()
        self._merge()

    def close(self) -> None:
        """Let go of the folder."""
        self.index.close()
        self._lock.release()

    def _path(self, number: int) -> Path:
        return self.out / FOLDER / f"part-{number:06d}{self._suffix}"

    def _read(self, parts: list[Path], retry_errors: bool) -> None:
        """Learn what is done, and decide again what another policy has decided."""
        for part in parts:
            number, changed = number_of(part), False
            for row in read_part(part):
                decided = self._now(row)
                changed |= decided != row
                self._note([decided], number, final=row.error is None or (bool(row.sha256) and not retry_errors))
            if changed:
                self._rewrite(part, (self._now(row) for row in self._current(part)))

    def _now(self, row: Row) -> Row:
        mine = (row.model, row.preprocessing) == (self._model, self._preprocessing)
        return self._redecide(row) if mine else row

    def _note(self, rows: list[Row], part: int, *, final: bool, seen: bool = False) -> None:
        for row in rows:
            before = self.index.add(row, part, final=final, seen=seen)
            if before is not None:
                self._stale.add(before)
            if final and (row.model, row.preprocessing) == (self._model, self._preprocessing):
                self.index.learn(row)

    def _current(self, part: Path) -> Iterator[Row]:
        """Yield the rows of a part that are their files' last ones."""
        number = number_of(part)
        last: dict[str, int] = {}
        if number in self._stale:  # the same file may be in it twice
            last = {row.path: position for position, row in enumerate(read_part(part))}
        for position, row in enumerate(read_part(part)):
            if self.index.part(row.path) == number and last.get(row.path, position) == position:
                yield row

    def _rewrite(self, part: Path, rows: Iterator[Row]) -> None:
        if not write_part(part, rows, labels_in(part)):
            part.unlink()

    def _merge(self) -> None:
        """Put neighbouring small parts together, under the last one's name.

        A kill in between leaves rows twice: the later one counts, and the next scan removes the other.
        """
        group: list[Path] = []
        total = 0
        for part in [*part_files(self.out), None]:
            rows = 0 if part is None else count_rows(part)
            if group and (part is None or total + rows > ROWS_PER_MERGED_PART):
                if len(group) > 1:
                    self._join(group)
                group, total = [], 0
            if part is not None:
                group.append(part)
                total += rows

    def _join(self, parts: list[Path]) -> None:
        join_parts(parts, parts[-1])
        for part in parts[:-1]:
            part.unlink()
        number = number_of(parts[-1])
        for path in paths_in(parts[-1]):
            self.index.move(path, number)
