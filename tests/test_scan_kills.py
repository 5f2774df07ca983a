"""A scan that is killed at any moment: nothing is lost, nothing is done twice."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from nsfw_guard.demo.shapes import random_scenes, render
from nsfw_guard.scan.parts import part_files, read_part, read_rows

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Loads the model once, and scans in forked children, which are killed at random moments.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from nsfw_guard import NsfwGuard, Redaction
from nsfw_guard.scan import store
from nsfw_guard.scan.actions import Actions
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources

source, out, form, action, to, kills, seed = sys.argv[1:]
store.ROWS_PER_PART = 7
store.ROWS_PER_MERGED_PART = 50
guard = NsfwGuard("demo", dtype="float32", batch_size=4)
guard.check(torch.rand(1, 3, 64, 64))
random.seed(int(seed))

def run():
    sources = parse_sources([source])
    actions = None
    if action != "none":
        actions = Actions(action, Path(to), sources=sources, given=[source], out=Path(out), redaction=Redaction())
    return run_scan(guard, sources, out, ScanSettings(workers=2), form=form, actions=actions)

def forked(seconds):
    child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)

killed = finished = 0
while killed < int(kills):
    # Mostly early, so that there is something left to do; now and then in the middle of tidying up.
    status = forked(random.uniform(0.0, 0.35))
    killed += status == signal.SIGKILL
    finished += status == 0
    assert status in (signal.SIGKILL, 0), status
    if status == 0:  # too fast: something new to do
        for path in list(Path(source).rglob("*.png"))[:40]:
            os.utime(path, (finished, finished))
assert forked(None) == 0
print(json.dumps({"killed": killed, "finished": finished}))
"""


def pictures(folder, count):
    """Pictures of different contents but for every tenth, and some files that are none."""
    scenes = random_scenes(count, torch.Generator().manual_seed(0))
    for number, pixels in enumerate(render(scenes, 64)):
        path = folder / f"{number % 5}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        array = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        if number % 10 == 9:
            path.write_bytes((folder / f"{(number - 1) % 5}" / f"{number - 1:04}.png").read_bytes())
        else:
            Image.fromarray(array).save(path)
    (folder / "broken.png").write_text("no picture")
    (folder / "empty.jpg").touch()


@pytest.mark.parametrize(
    ("form", "action", "kills"),
    [
        pytest.param("parquet", "none", 8, id="quick"),
        pytest.param("parquet", "none", 40, marks=pytest.mark.slow),
        pytest.param("jsonl", "move", 30, marks=pytest.mark.slow),
        pytest.param("csv", "redact", 30, marks=pytest.mark.slow),
    ],
)
def test_every_file_has_exactly_one_row_after_kills(tmp_path, form, action, kills):
    source, out, to = tmp_path / "in", tmp_path / "out", tmp_path / "to"
    pictures(source, 120 if kills < 20 else 400)
    content = {str(path): path.read_bytes() for path in source.rglob("*.*")}
    arguments = [source, out, form, action, to, kills, kills]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    assert counts["killed"] == kills
    rows = list(read_rows(out))
    assert sorted(row.path for row in rows) == sorted(content)
    assert sum(row.error is not None for row in rows) == 2
    flagged = {row.path for row in rows if row.flagged}
    assert 0 < len(flagged) < len(rows) - 2
    for row in rows:
        if row.error is None:
            assert row.flagged == (row.score >= row.threshold)
    assert not list(out.rglob(".*.tmp"))
    assert not (out / ".index.sqlite").exists()
    assert all(list(read_part(part)) for part in part_files(out))
    if action == "move":
        left = {str(path): path.read_bytes() for path in source.rglob("*.*")}
        assert left == {path: data for path, data in content.items() if path not in flagged}
        for path in flagged:
            assert (to / os.path.relpath(path, source)).read_bytes() == content[path]
        assert len([path for path in to.rglob("*") if path.is_file()]) == len(flagged)
    elif action == "redact":
        assert {str(path) for path in source.rglob("*.*")} == set(content)
        written = {str(source / path.relative_to(to)) for path in to.rglob("*.*")}
        assert written == flagged
