"""Scan a folder: draw some pictures, look at all of them, look again, and read the rows.

On the command line: nsfw-guard scan FOLDER --out scanned --model demo, and nsfw-guard report scanned
"""

import tempfile
from pathlib import Path

import torch
from PIL import Image

from nsfw_guard import NsfwGuard
from nsfw_guard.demo.shapes import random_scenes, render
from nsfw_guard.scan import parse_sources, read_rows, run_scan


def draw(folder: Path, count: int) -> None:
    """Draw shapes; the demo's stand-in for what is to be found is the triangle."""
    pictures = render(random_scenes(count, torch.Generator().manual_seed(7)), 256)
    for number, pixels in enumerate(pictures):
        array = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        path = folder / f"{number % 3}" / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


with tempfile.TemporaryDirectory() as folder:
    pictures, out = Path(folder) / "pictures", Path(folder) / "scanned"
    draw(pictures, 60)
    (pictures / "broken.jpg").write_text("this is no picture")

    guard = NsfwGuard("demo")
    for when in ("first", "again"):
        summary = run_scan(guard, parse_sources([str(pictures)]), out)
        print(
            f"{when}: {summary.files} files, {summary.scored} scored, {summary.before} done before, "
            f"{summary.flagged} flagged, {summary.errors} could not be looked at"
        )

    rows = sorted(read_rows(out), key=lambda row: -(row.score or 0))
    for row in [*rows[:3], *(row for row in rows if row.error)]:
        print(f"{Path(row.path).relative_to(pictures)}: {row.error or f'{row.score:.4f}, {row.reason}'}")
