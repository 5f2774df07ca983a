"""Scans for the tests of the report: real files with drawn shapes, rows about them, and ``scan.json``."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import torch
from PIL import Image
from scanning import write_old

from nsfw_guard.demo.shapes import LABELS, random_scenes, render
from nsfw_guard.scan.entry import path_to_text
from nsfw_guard.scan.parts import FOLDER, MANIFEST, write_part
from nsfw_guard.scan.row import SCHEMA_VERSION, Row

MODEL = "demo@sha256:0123456789abcdef"
THRESHOLD = 0.5


def write_scan(out: Path, rows: list[Row], *, kind: str = "jsonl", per_part: int = 10_000, **manifest: object) -> Path:
    """Write a scan as the scanner does: parts, and what they are about."""
    (out / FOLDER).mkdir(parents=True)
    labels = list(dict.fromkeys(label for row in rows for label in row.labels))
    for number, start in enumerate(range(0, len(rows), per_part)):
        write = write_old if kind == "csv" else write_part
        write(out / FOLDER / f"part-{number:06}.{kind}", rows[start : start + per_part], labels)
    about = {
        "schema_version": SCHEMA_VERSION,
        "created": "2030-01-02T03:04:05+00:00",
        "model": MODEL,
        "policy": {"level": "medium", "threshold": THRESHOLD, "per_label": {}, "batch": "each"},
        "labels": list(LABELS),
        "format": kind,
        "sources": ["/data/pictures"],
        "summary": {"files": len(rows), "seconds": 12.5, "files_per_second": 80.0, "limit": "decoder", "skipped": {}},
    }
    (out / MANIFEST).write_text(json.dumps({**about, **manifest}), encoding="utf-8")
    return out


def row(path: str | Path, score: float | None = 0.1, **more: object) -> Row:
    """A row of a picture that was scored; flagged from the threshold on."""
    values: dict[str, object] = {
        "flagged": None if score is None else score >= THRESHOLD,
        "score": score,
        "threshold": THRESHOLD,
        "reason": "score" if score is not None and score >= THRESHOLD else None,
        "labels": {} if score is None else {"circle": 1 - score, "triangle": score},
        "kind": "image",
        "model": MODEL,
        "decode_ms": 5.0,
    }
    return Row(str(path), **{**values, **more})


def row_of(path: Path, score: float | None = 0.1, **more: object) -> Row:
    """A row about a file that is there, with its hash, size and time."""
    data, stat = path.read_bytes(), path.stat()
    known = {"sha256": hashlib.sha256(data).hexdigest(), "size": stat.st_size, "mtime": stat.st_mtime}
    return row(path_to_text(str(path)), score, **{**known, **more})


def failed(path: str | Path, error: str) -> Row:
    """A row about a file that could not be scored."""
    return row(path, None, error=error, kind=None)


def shapes(folder: Path, count: int, *, side: int = 320, seed: int = 0) -> list[Row]:
    """Draw pictures into some folders, and score them as the demo would: what is flagged are triangles."""
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    scenes = random_scenes(count, generator, empty=0.1)
    rows = []
    for index, scene in enumerate(scenes):
        height, width = chance.choice([(side, side), (side * 3 // 4, side), (side, side * 3 // 4)])
        place = folder / chance.choice(["2029/party", "2029/garden", "2030/inbox", "2030/export", "drafts"])
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{scene.label}_{index:04}.jpg"
        pixels = render([scene], (height, width))[0]
        array = (pixels.movedim(0, -1) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(array).save(path, quality=92)
        near = chance.random() ** 3
        score = 1 - 0.4 * near if scene.label == "triangle" else 0.48 * near**2
        labels = {label: (1 - score) * (0.9 if label == scene.label else 0.1 / 4) for label in LABELS}
        labels["triangle"] = score
        level = "high" if score >= THRESHOLD else "neutral"
        more = {"labels": labels, "width": width, "height": height, "views": 1, "level": level}
        rows.append(row_of(path, score, decode_ms=3 + 40 * chance.random() ** 4, frames=1, frame=0, **more))
    return rows
