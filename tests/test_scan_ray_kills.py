"""Scanning with Ray itself, in a process of its own: it can be killed, and nothing of it is left in this one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from scanning import assert_same_rows, draw, mixed_folder, rows_of

from nsfw_guard.scan.parts import part_files, read_part
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources

pytest.importorskip("pyarrow")
pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


folder = mixed_folder


# In a module, which workers import.
MORTAL = """
import os, signal
from nsfw_guard.scan import ray_session


ray_session._RETRIES = 1


class Mortal(ray_session._Actor):
    def _answer(self, entries):
        if any("poison" in entry.path for entry in entries):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._answer(entries)
"""
SCRIPT = """
import json, sys
import mortal
from nsfw_guard import NsfwGuard
from nsfw_guard.errors import GuardError
from nsfw_guard.scan import ray_session, store, todo
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources

source, out, model = sys.argv[1:]
todo.ENTRIES_PER_BLOCK, todo.BLOCKS_PER_FILE, store.ROWS_PER_PART = 4, 8, 8

ray_session._Actor = mortal.Mortal
guard = NsfwGuard("demo", dtype="float32", device="cpu")
ray = ray_session.RaySettings({"model": model, "dtype": "float32"}, workers=2, cpus=1, gpus=0)
last = -1

def say(summary):
    global last
    if summary.done != last:
        last = summary.done
        print(last, flush=True)

try:
    summary = run_scan(guard, parse_sources([source]), out, ScanSettings(), ray=ray, on_progress=say)
except GuardError as error:
    sys.exit(f"error: {error}")
print(json.dumps(summary.to_dict()), flush=True)
"""


@pytest.fixture
def many(tmp_path):
    """Pictures that take a while: 180 files of 3 megapixels, of different contents but for every tenth."""
    folder = tmp_path / "many"
    originals = [draw(tmp_path / f"{shape}.png", shape, size=1732) for shape in ("circle", "triangle", "heart")]
    for number in range(180):
        path = folder / f"{number % 7}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # What follows the end of a PNG is another content, and the same picture.
        path.write_bytes(originals[number % 3].read_bytes() + (number - (number % 10 == 9) * 3).to_bytes(4, "big"))
    return folder


class Scanning:
    """A scan with Ray in a process of its own."""

    def __init__(self, folder, out, model="demo"):
        out.parent.joinpath("mortal.py").write_text(MORTAL)
        path = os.pathsep.join([str(out.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), str(out), str(model)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        self.lines = []
        self.family = set()

    def until(self, rows):
        """Wait until so many rows have come; return how many have."""
        for line in self.process.stdout:
            self.lines.append(line)
            if line.strip().isdigit() and int(line) >= rows:
                self.family |= set(psutil.Process(self.process.pid).children(recursive=True))
                return int(line)
        raise AssertionError(f"it ended before it had {rows} rows: {self.process.stderr.read()[-3000:]}")

    def workers(self):
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "MapWorker" in " ".join(child.cmdline())]

    def end(self, status=0):
        """Wait for its end; nothing of it may be left. Return its last line and what it said."""
        out, said = self.process.communicate(timeout=300)
        deadline = time.monotonic() + 60
        while (left := [each for each in self.family if _runs(each) and not _notices_late(each)]) and (
            time.monotonic() < deadline
        ):
            psutil.wait_procs(left, timeout=0.2)
        names = [process.name() for process in left]
        for process in filter(_runs, self.family):
            process.kill()
        assert names == []
        assert self.process.returncode == status, said[-3000:]
        return [*self.lines, *out.splitlines()][-1], said


def _runs(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # which has ended, and nobody has asked
    except psutil.NoSuchProcess:
        return False


def _notices_late(process):
    """Whether it is one of Ray's two agents, which end by themselves a minute after a kill has ended all else."""
    return process.name() in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def rows_on_disk(out):
    return sum(1 for part in part_files(out) for _ in read_part(part))


def test_ray_makes_the_rows_of_this_machine(demo, folder, tmp_path):
    run_scan(demo, parse_sources([str(folder)]), tmp_path / "local", ScanSettings(workers=2))
    options = ("--engine", "ray", "--actors", "2", "--cpus-per-actor", "1", "--gpus-per-actor", "0", "--json")
    arguments = ["scan", str(folder), "--out", str(tmp_path / "out"), "--model", "demo", "--dtype", "float32", *options]
    code = "from nsfw_guard.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert_same_rows(tmp_path / "out", tmp_path / "local")
    summary = json.loads(done.stdout)
    assert (summary["files"], summary["flagged"], summary["errors"]) == (16, 4, 4)
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    (folder / "gone.png").unlink()  # what could not be opened would be tried again
    again = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert json.loads(again.stdout)["done"] == 0
    assert not (tmp_path / "out/.todo").exists()


def test_killed_workers_cost_nothing_but_time(demo, many, tmp_path):
    scanning = Scanning(many, tmp_path / "out")
    killed = 0
    for rows, count in ((8, 1), (60, 2)):
        scanning.until(rows)
        for worker in scanning.workers()[:count]:
            worker.kill()
            killed += 1
    last, _ = scanning.end()
    summary = json.loads(last)
    print(f"{killed} workers killed; {summary}")
    assert killed == 3
    rows = rows_of(tmp_path / "out")
    assert (summary["files"], summary["done"], len(rows)) == (180, 180, 180)
    run_scan(demo, parse_sources([str(many)]), tmp_path / "local", ScanSettings(workers=2))
    assert_same_rows(tmp_path / "out", tmp_path / "local")


def test_a_killed_scan_goes_on_with_what_is_left(demo, many, tmp_path):
    out, kept = tmp_path / "out", 0
    for seed in range(2):
        scanning = Scanning(many, out)
        came = scanning.until(random.Random(seed).randrange(5, 50))
        scanning.process.kill()
        scanning.end(-signal.SIGKILL)
        before, kept = kept, rows_on_disk(out)
        print(f"killed when {came} rows had come: {kept - before} kept")
        assert came - (kept - before) < 8 + 4  # less than a part and a block
    summary = json.loads(Scanning(many, out).end()[0])
    assert (summary["before"], summary["done"]) == (kept, 180 - kept)
    run_scan(demo, parse_sources([str(many)]), tmp_path / "local", ScanSettings(workers=2))
    assert_same_rows(out, tmp_path / "local")


def test_ctrl_c_ends_ray_too(many, tmp_path):
    scanning = Scanning(many, tmp_path / "out")
    came = scanning.until(20)
    scanning.process.send_signal(signal.SIGINT)
    scanning.end(-signal.SIGINT)
    assert rows_on_disk(tmp_path / "out") >= came
    assert not (tmp_path / "out/.todo").exists()


def test_a_file_that_kills_its_workers_ends_the_scan_with_its_name(folder, tmp_path):
    draw(folder / "poison.png")
    _, said = Scanning(folder, tmp_path / "out").end(1)
    assert "has ended its worker 2 times" in said
    assert "of 4 files" in said or "of 1 files" in said
    assert "poison.png" not in {Path(path).name for path in rows_of(tmp_path / "out")}


def test_workers_with_other_weights_end_the_scan(folder, tmp_path, tiny_folder):
    _, said = Scanning(folder, tmp_path / "out", tiny_folder).end(1)
    assert "The model on this worker is" in said
    assert rows_of(tmp_path / "out") == {}
