"""What tests of scans share: a folder with a bit of everything, and what two scans must have in common."""

import csv

import pytest
import torch
from PIL import Image

from nsfw_guard.demo.shapes import Scene, render
from nsfw_guard.identity import model_identity
from nsfw_guard.scan.parts import columns_of, read_rows
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources
from nsfw_guard.scan.todo import entries_to_table
from nsfw_guard.scan.worker import Orders, table_to_answers

# What workers make their guards of.
GUARD = {"model": "demo", "dtype": "float32", "batch_size": 4}
# Of a row, what two scans need not have in common.
TIMES = ("decode_ms", "scanned")


def draw(path, shape="circle", color="red", size=96):
    """Draw a shape into a file of the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _image(shape, color, size).save(path)
    return path


@pytest.fixture
def mixed_folder(tmp_path):
    """A folder with 16 files: drawings, a copy, an animation, and four that cannot be looked at."""
    folder = tmp_path / "in"
    for number, shape in enumerate(["circle", "square", "heart", "triangle", "cross"] * 2):
        draw(folder / f"{number % 3}/{number}.{'jpg' if number % 2 else 'png'}", shape, "red", 64 + 8 * number)
    (folder / "copy.png").write_bytes((folder / "0/3.jpg").read_bytes())
    first, *others = (_image(shape, "red", 64) for shape in ("circle", "triangle", "square"))
    first.save(folder / "film.gif", save_all=True, append_images=others, duration=100)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    whole = (folder / "1/1.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return folder


def rows_of(out):
    """Path → row; every path once."""
    rows = list(read_rows(out))
    assert len({row.path for row in rows}) == len(rows)
    return {row.path: row for row in rows}


def comparable(row):
    """Return what the same file must have in the rows of two scans, to be compared with ``same``."""
    record = {name: value for name, value in row.to_record().items() if name not in TIMES and name != "evidence"}
    for place, (frame, view) in enumerate(row.looked_at):
        record[f"frame of view {place}"] = frame
        record.update((f"view {place}, label {label}", value) for label, value in enumerate(view))
    return record


def same(record):
    """Return what equals a record of ``comparable`` but for how float32 rounds in another batch."""
    return pytest.approx(record, abs=1e-5)


def assert_same_rows(out, other):
    """Two scans have a row for each of the same files, and say the same."""
    mine, others = rows_of(out), rows_of(other)
    assert set(mine) == set(others)
    for path, row in mine.items():
        assert comparable(row) == same(comparable(others[path]))


def write_old(part, rows, labels):
    """Write a part as earlier versions did, in CSV."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8", newline="") as file:
        sheet = csv.DictWriter(file, columns_of(labels), restval="")
        sheet.writeheader()
        sheet.writerows(row.to_record() for row in rows)


def orders_for(here, /, **changed):
    """Return what workers are told, for the model of a guard."""
    settings = ScanSettings(workers=2)
    known = {"model": model_identity(here), "preprocessing": settings.preprocessing(here)}
    return Orders(**{"guard": GUARD, "policy": here.policy, "settings": settings, **known, **changed})


def entries_of(folder):
    """Return the entries of a folder."""
    return list(parse_sources([str(folder)]).entries())


def ask(worker, entries):
    """Return what a worker answers."""
    (answer,) = table_to_answers(worker(entries_to_table(entries)))
    return answer


def _image(shape, color, size):
    pixels = render([Scene(shape, color, "blue")], size)[0]
    return Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
