"""What the page shows, as plain values for JSON: no number that is none, no text that is markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from ... import __version__
from ..places import common
from ..row import Row
from .folders import Folders, name_of
from .gallery import Item
from .manifest import Manifest, finite, probability
from .tally import Tally
from .thumbnails import Thumbnail

FOLDERS_SHOWN = 100


def headline_of(tally: Tally) -> str:
    """Return what was found, in one line, such as ``12,345 files · 87 flagged (0.7 %) · 3 could not be read``."""
    checked = tally.files - tally.failed
    rate = f" ({percent(tally.flagged, checked)})" if tally.flagged else ""
    files = "1 file" if tally.files == 1 else f"{tally.files:,} files"
    return f"{files} · {tally.flagged:,} flagged{rate} · {tally.failed:,} could not be read"


def percent(part: int, whole: int) -> str:
    """Return a share in percent; never ``0 %`` or ``100 %`` of what is not."""
    if not whole or not part:
        return "0 %"
    share = 100 * part / whole
    if share < 0.01:
        return "<0.01 %"
    if part < whole and share >= 99:
        return f"{math.floor(10 * share) / 10} %"
    return f"{share:.{0 if share >= 10 else 1 if share >= 0.1 else 2}f} %"


def describe(
    manifest: Manifest, tally: Tally, items: Sequence[Item], misses_from: int, pictures: Sequence[Thumbnail], shown: str
) -> dict[str, Any]:
    """Return everything that the page's script needs but the pictures.

    Args:
        manifest: What the scan says about itself.
        tally: What was counted.
        items: What is shown: flagged ones, then misses.
        misses_from: The index of the first miss.
        pictures: One per item.
        shown: ``"plain"``, ``"redacted"`` or ``"none"``: what the pictures are.
    """
    summary = manifest.summary or {}
    folders = tally.folders
    root = common([folder for folder in folders.counts if folder])
    worst = [[name_of(folder), *counts] for folder, counts in folders.worst(FOLDERS_SHOWN)]
    threshold = manifest.threshold if manifest.threshold is not None else tally.threshold
    entries = [
        _item(item, "flagged" if index < misses_from else "miss", folders, pictures[index].why)
        for index, item in enumerate(items)
    ]
    entries += [_item(Item(row, 0.0, paths=[row.path]), "error", folders, "") for row in tally.failed_rows]
    return {
        "id": manifest.identity,
        "version": __version__,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "scan": {
            "created": manifest.created,
            "model": manifest.model or tally.model,
            "preprocessing": manifest.preprocessing,
            "policy": manifest.policy if _plain(manifest.policy) else {},
            "threshold": threshold,
            "sources": list(manifest.sources),
            "finished": manifest.summary is not None,
            "seconds": finite(summary.get("seconds")),
            "rate": finite(summary.get("files_per_second")),
            "limit": summary.get("limit") if summary.get("limit") in ("model", "decoder") else None,
            "duplicates": finite(summary.get("duplicates")),
            "skipped": _numbers(summary.get("skipped")),
        },
        "counts": {
            "files": tally.files,
            "passed": tally.passed,
            "flagged": tally.flagged,
            "failed": tally.failed,
            "bytes": tally.size,
            "rate": percent(tally.flagged, tally.files - tally.failed),
        },
        "bins": {"passed": tally.passed_bins, "flagged": tally.flagged_bins, "without": tally.without_score},
        "labels": _order(tally.labels, manifest.labels),
        "kinds": dict(tally.kinds.most_common()),
        "reasons": dict(tally.reasons.most_common()),
        "folders": {"root": name_of(root), "depth": folders.depth, "total": len(folders.counts), "rows": worst},
        "failures": sorted(
            ([message, failure.files, failure.paths] for message, failure in tally.failures.items()),
            key=lambda entry: -int(entry[1]),  # type: ignore[call-overload]
        ),
        "slowest": [[row.path, finite(row.decode_ms), finite(row.size), row.kind or ""] for row in tally.slowest()],
        "items": entries,
        "pictures": {"kind": shown, "count": sum(picture.data is not None for picture in pictures)},
    }


def _item(item: Item, group: str, folders: Folders, why: str) -> dict[str, Any]:
    row: Row = item.row
    values = {
        "group": group,
        "key": item.key,
        "path": row.path,
        "paths": item.paths[1:],
        "copies": item.copies,
        "folder": name_of(folders.place(row.path)),
        "sha256": row.sha256 or "",
        "score": None if group == "error" or probability(row.score) is None else item.score,
        "threshold": probability(row.threshold),
        "level": row.level,
        "reason": row.reason,
        "labels": _numbers(row.labels),
        "kind": row.kind or "",
        "width": finite(row.width),
        "height": finite(row.height),
        "frames": finite(row.frames),
        "frame": finite(row.frame),
        "views": finite(row.views),
        "bytes": finite(row.size),
        "model": row.model,
        "error": (row.error or "it was not scored") if group == "error" else None,
        "why": why,
    }
    return {name: value for name, value in values.items() if value not in (None, "", [], {})}


def _order(labels: dict[str, list[int]], known: Sequence[str]) -> list[list[Any]]:
    """Labels with their counts, in the model's order; then those of other models."""
    names = [*(label for label in known if label in labels), *(label for label in labels if label not in known)]
    return [[label, *labels[label]] for label in names]


def _numbers(value: Any) -> dict[str, float]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {str(name): number for name, what in pairs if (number := finite(what)) is not None}


def _plain(value: Any) -> bool:
    """Whether JSON can hold a value: ``json.loads`` makes numbers that it cannot, such as NaN."""
    if isinstance(value, dict):
        return all(_plain(item) for item in value.values())
    if isinstance(value, list):
        return all(map(_plain, value))
    return not isinstance(value, float) or finite(value) is not None
