"""Writing a report: rows to counts, counts and small pictures to one page, at once or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ...errors import SettingError
from ...files import write_new, write_whole
from .describe import describe, headline_of
from .gallery import Best
from .latest import OnStep, latest_rows
from .manifest import Manifest, read_manifest
from .page import MARK, build_page
from .tally import Tally
from .thumbnails import Thumbnail, thumbnails

NAME = "report.html"
LIMIT, MISSES = 2000, 500


@dataclass(frozen=True)
class Report:
    """A page that was written.

    Attributes:
        path: Where it is.
        headline: What it says first.
        files: How many files the scan looked at.
        flagged: How many it flagged.
        failed: How many it could not read.
        pictures: How many small copies of pictures the page contains.
        redacted: Whether those are redacted.
        size: Of the page, in bytes.
    """

    path: Path
    headline: str
    files: int
    flagged: int
    failed: int
    pictures: int
    redacted: bool
    size: int


def write_report(
    out: str | Path,
    *,
    output: str | Path | None = None,
    limit: int = LIMIT,
    misses: int = MISSES,
    pictures: bool = True,
    redacted: bool = False,
    title: str | None = None,
    workers: int | None = None,
    on_step: OnStep | None = None,
) -> Report:
    """Write the page about a scan: one HTML file that needs nothing else and asks for nothing.

    The page contains small copies of what is shown, as it was scanned: whoever gets the page gets them. ``redacted``
    burns a blur into them, and ``pictures=False`` leaves them out.

    Args:
        out: The folder that ``nsfw-guard scan --out`` wrote.
        output: The file; default ``report.html`` in ``out``. A report that is there is replaced, nothing else is.
        limit: How many flagged contents to show at most, those with the highest scores.
        misses: How many contents that were passed to show at most, those with the highest scores.
        pictures: Whether to make small copies of them.
        redacted: Whether to blur those copies for good.
        title: Of the page; default from what was scanned.
        workers: How many pictures to decode at a time; default the number of CPUs, at most 8.
        on_step: Called with what is done, how much of it is, and of how much.

    Returns:
        What was written.

    Raises:
        SettingError: There is no scan, it is damaged or of another version, or a setting makes no sense.
        OSError: The file cannot be written; what was there is still there.
    """
    for name, value, least in (("limit", limit, 0), ("misses", misses, 0), ("workers", workers, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise SettingError(f"{name} is {value!r}; expected a whole number of at least {least}.")
    if redacted and not pictures:
        raise SettingError("A page without pictures has none to redact: choose --redacted or --no-thumbnails.")
    out = Path(out)
    manifest = read_manifest(out)
    target = _check_target(Path(output) if output is not None else out / NAME)

    tally = Tally(Best(limit), Best(misses))
    for row in latest_rows(out, on_step):
        tally.add(row)
    flagged, passed = tally.shown()
    items = [*flagged, *passed]
    small = [Thumbnail()] * len(items)
    if pictures:
        small = thumbnails(
            items,
            redacted=redacted,
            workers=workers or min(8, os.cpu_count() or 1),
            on_done=None if on_step is None else lambda done: on_step("pictures", done, len(items)),
        )
    shown = "none" if not pictures else "redacted" if redacted else "plain"
    data = describe(manifest, tally, items, len(flagged), small, shown)
    page = build_page(title or _title_of(manifest), headline_of(tally), data, small)
    _write(target, page)
    return Report(
        path=target,
        headline=headline_of(tally),
        files=tally.files,
        flagged=tally.flagged,
        failed=tally.failed,
        pictures=data["pictures"]["count"],
        redacted=redacted,
        size=len(page),
    )


def _title_of(manifest: Manifest) -> str:
    """Name a page after what was scanned."""
    if not manifest.sources:
        return "Scan report"
    first = manifest.sources[0].rstrip("/\\")
    name = first if "://" in first else Path(first).name or first
    more = len(manifest.sources) - 1
    return f"Scan of {name}{f' and {more} more' if more else ''}"


def _write(target: Path, page: bytes) -> None:
    """Write the page; what came to be there meanwhile and is no report stays."""
    try:
        write_new(target, page)
    except FileExistsError:
        write_whole(_check_target(target), page)


def _check_target(target: Path) -> Path:
    if not target.absolute().parent.is_dir():
        raise SettingError(f"--output is {target}, and there is no folder {target.absolute().parent}.")
    if target.is_dir():
        raise SettingError(f"--output is {target}, which is a folder; name a file in it: {target / NAME}")
    if target.exists():
        with target.open("rb") as file:
            ours = file.read(len(MARK)) == MARK.encode()
        if not ours:
            raise SettingError(f"{target} exists and is no report; it is not overwritten. Name another: --output FILE")
    return target
