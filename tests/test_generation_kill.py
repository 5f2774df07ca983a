"""Killed at any moment, a run goes on: nothing done twice, nothing lost, no half-written file, the log intact."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from generations import CIRCLE, HEART, SHORT, TRIANGLE, logged, pictures, pixels

from nsfw_guard.audit import audit_files, read

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

# Loads everything once; each run is a fork of it, so that a start costs nothing and a kill is a kill.
HOST = textwrap.dedent(
    """
    import json, os, sys
    import torch
    torch.set_num_threads(1)
    from nsfw_guard import NsfwGuard
    from nsfw_guard.demo.generate import load_pipeline
    from nsfw_guard.generation import Generation
    pipe, guard = load_pipeline(), NsfwGuard("demo", dtype="float32")

    def die_at(count):
        '''Die before the count-th of the steps that change something on the disk, and at it.'''
        import pathlib
        steps = [0]
        def dying(real):
            def step(*args, **more):
                steps[0] += 1
                if steps[0] == count:
                    os._exit(9)
                return real(*args, **more)
            return step
        os.fsync, os.link = dying(os.fsync), dying(os.link)
        for name in ("replace", "unlink", "touch"):
            setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))

    for line in sys.stdin:
        given = json.loads(line)
        child = os.fork()
        if child == 0:
            if given["die_at"]:
                die_at(given["die_at"])
            run = Generation(pipe, given["out"], guard=guard, name="demo", **given["settings"])
            for made in run.run(given["rows"]):
                pass
            os._exit(run.summary.exit_code)
        print(child, flush=True)
        sys.stdin.readline()  # until then its number is not given to another
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
)
PROMPTS = (CIRCLE, TRIANGLE, HEART)


class Host:
    """A process that has everything loaded, and runs one child at a time."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, out, rows, settings, *, die_at=0):
        given = {"out": str(out), "rows": rows, "settings": settings, "die_at": die_at}
        self.process.stdin.write(json.dumps(given) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self):
        self.process.stdin.write("end\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def run(self, *args, **more):
        self.start(*args, **more)
        return self.end()


@pytest.fixture(scope="module")
def host():
    host = Host()
    yield host
    host.process.stdin.close()
    assert host.process.wait(timeout=60) == 0
    host.process.stdout.close()


def rows_of(count):
    return [{"id": f"row{i:03d}", "prompt": PROMPTS[i % 3], "seed": i + 1} for i in range(count)]


def settings_of(on_flag, folder, batch_size=1):
    where = f"quarantine={folder / 'quarantine'}" if on_flag == "quarantine" else on_flag
    return {"on_flag": where, "batch_size": batch_size, "arguments": SHORT}


def look(folder):
    """Return name → pixels of everything written; every line stands for one whole file, and every file for a line."""
    out, quarantine = folder / "out", folder / "quarantine"
    found = {}
    for line in logged(out):
        if line["file"] is not None:
            path = (quarantine if line["action"] == "quarantine" else out) / line["file"]
            if path.exists():
                assert line["id"] not in found
                found[line["id"]] = pixels(path)
    names = pictures(out) + (pictures(quarantine) if quarantine.exists() else [])
    assert len([name for name in names if name.endswith(".png")]) == len(found), "a file that the log does not know"
    return found


def finished(folder, rows, reference, *, levels=1):
    """Every row is there exactly once, whole, and as without a kill; and nothing else is.

    Rounding depends on how many are drawn at once, by one level of 255; one alone is bit-identical.
    """
    found = look(folder)
    lines = logged(folder / "out")
    ids = [line["id"] for line in lines if line["action"] != "retry"]
    assert sorted(ids) == [row["id"] for row in rows]
    attempts = [(line["id"], line["attempt"]) for line in lines]
    assert len(set(attempts)) == len(attempts), "an attempt was made twice"
    assert list(folder.rglob(".*")) == []
    assert found.keys() == reference.keys()
    for name, image in found.items():
        assert np.abs(image.astype(int) - reference[name].astype(int)).max() <= levels, name


@pytest.mark.parametrize(
    "on_flag", ["quarantine", *(pytest.param(name, marks=pytest.mark.slow) for name in ("redact", "retry=1"))]
)
def test_killed_before_each_step_to_the_disk(host, tmp_path, on_flag):
    rows = rows_of(2)
    host.run(tmp_path / "calm" / "out", rows, settings_of(on_flag, tmp_path / "calm", 3))
    reference = look(tmp_path / "calm")
    expected = {"redact": ["keep", "redact"], "quarantine": ["keep", "quarantine"]}
    expected["retry=1"] = ["keep", "retry", "redact"]
    assert [line["action"] for line in logged(tmp_path / "calm" / "out")] == expected[on_flag]
    for count in range(1, 80):
        folder = tmp_path / str(count)
        code = host.run(folder / "out", rows, settings_of(on_flag, folder, 3), die_at=count)
        if code != 9:
            break
        assert host.run(folder / "out", rows, settings_of(on_flag, folder, 3)) in (0, 1)
        finished(folder, rows, reference)
    assert code in (0, 1)
    assert count > 12, "there are more steps than that"


def test_killed_again_and_again_it_still_comes_to_its_end(host, tmp_path):
    rows = rows_of(6)
    settings = settings_of("redact", tmp_path / "b", 2)
    host.run(tmp_path / "a" / "out", rows, settings)
    for die_at in (3, 9, 6, 11, 2, 8, 14):
        host.run(tmp_path / "b" / "out", rows, settings, die_at=die_at)
    assert host.run(tmp_path / "b" / "out", rows, settings) in (0, 1)
    finished(tmp_path / "b", rows, look(tmp_path / "a"))


@pytest.mark.slow
@pytest.mark.parametrize("on_flag", ["redact", "quarantine", "retry=2"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_sigkill_at_random_moments(host, tmp_path, on_flag, batch_size):
    rows = rows_of(60)
    begin = time.monotonic()
    host.run(tmp_path / "calm" / "out", rows, settings_of(on_flag, tmp_path / "calm", batch_size))
    whole = time.monotonic() - begin
    reference = look(tmp_path / "calm")
    rng = random.Random(0)
    folder, kills = tmp_path / "killed", 0
    while True:
        child = host.start(folder / "out", rows, settings_of(on_flag, folder, batch_size))
        if kills < 25:
            time.sleep(rng.uniform(0, whole / 20))
            os.kill(child, signal.SIGKILL)
        code = host.end()
        if code != -signal.SIGKILL:
            break
        kills += 1
        if (folder / "out").exists() and audit_files(folder / "out"):
            whole_lines = [line for path in audit_files(folder / "out") for line in read(path)]
            done = [line["id"] for line in whole_lines if line.get("action") in ("keep", "redact", "quarantine")]
            assert len(done) == len(set(done))
            known = {f"{name}.png" for name in done}
            assert {path.name for path in Path(folder / "out").glob("*.png")} <= known
    print(f"{on_flag}, batches of {batch_size}: {kills} kills")
    assert kills >= 20, "too quick for so many kills"
    finished(folder, rows, reference, levels=0 if batch_size == 1 else 1)
