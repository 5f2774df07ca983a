"""Scanning with workers: what is sent to them, what they answer, and what the one process that writes makes of it.

The quick tests call a worker in this process. The slow ones start Ray, and kill it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from test_scan import command, draw, rows_of

from nsfw_guard import NsfwGuard, Policy
from nsfw_guard.demo.shapes import Scene, render
from nsfw_guard.errors import GuardError
from nsfw_guard.identity import model_identity
from nsfw_guard.scan import cluster, store, todo
from nsfw_guard.scan.entry import Entry
from nsfw_guard.scan.parts import part_files, read_part, read_rows
from nsfw_guard.scan.ray_session import RaySession, RaySettings
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources
from nsfw_guard.scan.worker import Answer, Desk, Orders, Worker, answer_to_table, table_to_answers

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("one_thread")

GUARD = {"model": "demo", "dtype": "float32", "batch_size": 4}
# Of a row, what two scans need not have in common.
TIMES = ("decode_ms", "scanned")


@pytest.fixture
def folder(tmp_path):
    """Pictures, an animation, a copy, and files that are none: 16 in all."""
    folder = tmp_path / "in"
    for number, shape in enumerate(["circle", "square", "heart", "triangle", "cross"] * 2):
        draw(folder / f"{number % 3}/{number}.{'jpg' if number % 2 else 'png'}", shape, "red", 64 + 8 * number)
    (folder / "copy.png").write_bytes((folder / "0/3.jpg").read_bytes())
    frames = [
        Image.fromarray((render([Scene(s, "red", "blue")], 64)[0] * 255).byte().permute(1, 2, 0).numpy())
        for s in ("circle", "triangle", "square")
    ]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:], duration=100)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    whole = (folder / "1/1.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return folder


@pytest.fixture
def orders(demo):
    """What workers of the demo model are told."""
    return orders_for(demo)


def orders_for(here, /, **changed):
    settings = ScanSettings(workers=2)
    known = {"model": model_identity(here), "preprocessing": settings.preprocessing(here)}
    return Orders(**{"guard": GUARD, "policy": here.policy, "settings": settings, **known, **changed})


def entries_of(folder):
    return list(parse_sources([str(folder)]).entries())


def ask(worker, entries):
    (answer,) = table_to_answers(worker(todo.entries_to_table(entries)))
    return answer


def comparable(row):
    record = {name: value for name, value in row.to_record().items() if name not in TIMES}
    numbers = {name: round(value, 5) for name, value in record.items() if isinstance(value, float) and name != "mtime"}
    return {**record, **numbers}


def assert_same_rows(out, other):
    mine, others = rows_of(out), rows_of(other)
    assert set(mine) == set(others)
    assert {path: comparable(row) for path, row in mine.items()} == {
        path: comparable(row) for path, row in others.items()
    }


# What is to be done, on disk.


def test_what_is_to_be_done_comes_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(todo, "ENTRIES_PER_BLOCK", 2)
    monkeypatch.setattr(todo, "BLOCKS_PER_FILE", 2)
    entries = [
        Entry("/a/ü\n🦊.png", 3, 1.1 + 2.2),
        Entry("bytes:/a/%FF.png", 2**40, -1.5),
        Entry("tar://x%23.jpg#2::/a.tar", 5, None, "3-4.5", offset=2**41),
        Entry("/gone.png", error="cannot be opened"),
        Entry("tar://y.jpg::/a.tgz", 4, None, "e", data=b"\x00\xff\n"),
    ]
    written = todo.Todo(tmp_path)
    written.write(iter(entries))
    assert written.entries == 5
    assert [path.name for path in written.files] == ["todo-000001.arrow", "todo-000002.arrow"]
    blocks = [table for path in written.files for table in todo.read_todo(path)]
    assert [table.num_rows for table in blocks] == [1, 1, 1]
    assert [todo.table_to_entries(table) for table in blocks] == [entries[:2], entries[2:4], entries[4:]]
    written.remove()
    assert list(tmp_path.iterdir()) == []


def test_contents_that_go_along_make_blocks_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(todo, "BYTES_PER_BLOCK", 10)
    written = todo.Todo(tmp_path)
    written.write(Entry(f"/{number}", data=b"12345") for number in range(5))
    assert [len(todo.table_to_entries(table)) for table in todo.read_todo(written.files[0])] == [2, 2, 1]


def test_what_an_earlier_scan_left_is_not_done(tmp_path):
    left = todo.Todo(tmp_path)
    left.write(iter([Entry("/old")]))
    again = todo.Todo(tmp_path)
    again.write(iter([]))
    assert again.files == []
    assert list(again.folder.iterdir()) == []


# A worker.


def test_a_worker_makes_the_rows_that_a_scan_of_this_machine_makes(demo, orders, folder, tmp_path):
    run_scan(demo, parse_sources([str(folder)]), tmp_path / "out", ScanSettings(workers=2))
    entries = entries_of(folder)
    answer = ask(Worker(orders), entries)
    assert [row.path for row in answer.rows] == [entry.path for entry in entries]
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 16
    assert [comparable(row) for row in answer.rows] == [comparable(rows[entry.path]) for entry in entries]
    assert sum(row.flagged is True for row in answer.rows) == 4
    assert sum(row.error is not None for row in answer.rows) == 4


def test_several_blocks_at_a_time_each_get_their_own_rows(orders, folder):
    worker, entries = Worker(orders), entries_of(folder)
    blocks = [entries[start::4] for start in range(4)] + [entries[:3]]  # the last one's are in others, too
    answers = [None] * len(blocks)

    def one(number):
        answers[number] = ask(worker, blocks[number])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(blocks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for block, answer in zip(blocks, answers, strict=True):
        assert [row.path for row in answer.rows] == [entry.path for entry in block]
    alone = ask(Worker(orders), entries[:3])
    assert [comparable(row) for row in answers[4].rows] == [comparable(row) for row in alone.rows]


def test_a_worker_looks_at_equal_contents_once(orders, tmp_path, monkeypatch):
    original = draw(tmp_path / "in/0.png", "triangle")
    for number in range(1, 12):
        (tmp_path / f"in/{number}.png").write_bytes(original.read_bytes())
    seen = []
    classify = NsfwGuard.classify
    monkeypatch.setattr(
        NsfwGuard, "classify", lambda self, images, **options: seen.extend(images) or classify(self, images, **options)
    )
    worker, entries = Worker(orders), entries_of(tmp_path / "in")
    rows = [*ask(worker, entries[:5]).rows, *ask(worker, entries[5:]).rows]
    assert len(seen) == 1
    assert [row.flagged for row in rows] == [True] * 12


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "demo@sha256:0000"}, "The model on this worker is demo@sha256:"),
        ({"preprocessing": "other"}, "expected other, as where the scan was started"),
        ({"guard": {"model": "./nowhere"}}, "nowhere"),
        ({"policy": "no policy"}, "Error: "),
    ],
)
def test_a_worker_that_cannot_work_says_why_and_makes_no_row(demo, folder, changed, words):
    answer = ask(Worker(orders_for(demo, **changed)), entries_of(folder))
    assert answer.rows == []
    assert words in answer.error
    assert "A worker on" in answer.error


def test_a_worker_whose_model_fails_says_so_now_and_later(orders, folder, monkeypatch):
    worker = Worker(orders)
    monkeypatch.setattr(
        NsfwGuard, "classify", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("CUDA error\n at x"))
    )
    for _ in range(2):
        answer = ask(worker, entries_of(folder))
        assert answer.rows == []
        assert answer.error.endswith("RuntimeError: CUDA error at x")


def test_answers_come_back_as_they_were(orders, folder):
    answer = ask(Worker(orders), entries_of(folder))
    assert list(table_to_answers(answer_to_table(answer))) == [answer]
    failed = Answer([], 0.0, "why")
    assert list(table_to_answers(answer_to_table(failed))) == [failed]
    assert answer.busy > 0


def test_a_desk_remembers_a_bounded_number_of_contents(monkeypatch):
    from nsfw_guard.scan import worker
    from nsfw_guard.scan.row import Row

    monkeypatch.setattr(worker, "_CONTENTS", 3)
    desk = Desk()
    for number in range(5):
        desk.add(Row(f"/{number}", sha256=str(number)))
    assert [desk.result(str(number)) is not None for number in range(5)] == [False, False, True, True, True]
    assert len(desk.flush()) == 5
    assert desk.flush() == []


# The process that writes, with a worker in this process in place of Ray.


@pytest.fixture
def session(monkeypatch):
    """Stand in for Ray: blocks go to one worker, one after the other. What is appended changes its answers."""
    changes = []

    class Session:
        def __init__(self, settings):
            self.workers = 1
            self.settings = settings

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def answers(self, orders, files, workers):
            worker = Worker(orders)
            for number, block in enumerate(table for file in files for table in todo.read_todo(file)):
                answer = ask(worker, todo.table_to_entries(block))
                for change in changes:
                    answer = change(number, answer)
                yield answer

    monkeypatch.setattr(cluster, "RaySession", Session)
    monkeypatch.setattr(todo, "ENTRIES_PER_BLOCK", 3)
    return changes


def scan(guard, folder, out, **options):
    settings = RaySettings(GUARD, workers=1, cpus=2)
    return run_scan(guard, parse_sources([str(folder)]), out, ScanSettings(), ray=settings, **options)


def test_the_rows_are_those_of_this_machine(demo, folder, tmp_path, session):
    mine = scan(demo, folder, tmp_path / "out")
    local = run_scan(demo, parse_sources([str(folder)]), tmp_path / "local", ScanSettings(workers=2))
    assert_same_rows(tmp_path / "out", tmp_path / "local")
    for name in ("files", "before", "done", "scored", "duplicates", "flagged", "errors", "frames", "bytes"):
        assert getattr(mine, name) == getattr(local, name), name
    manifests = [json.loads((tmp_path / out / "scan.json").read_text()) for out in ("out", "local")]
    assert [manifest["model"] for manifest in manifests] == [manifests[0]["model"]] * 2
    assert not (tmp_path / "out/.todo").exists()


def test_either_engine_goes_on_where_the_other_stopped(demo, folder, tmp_path, session):
    scan(demo, folder, tmp_path / "out")
    draw(folder / "new.png", "triangle", "pink")
    again = run_scan(demo, parse_sources([str(folder)]), tmp_path / "out", ScanSettings(workers=2))
    assert (again.before, again.scored, again.flagged) == (15, 1, 5)  # what could not be opened is tried again
    draw(folder / "newer.png", "triangle", "green")
    third = scan(demo, folder, tmp_path / "out")
    assert (third.before, third.scored, third.flagged) == (16, 1, 6)


def test_the_policy_of_the_scan_counts_and_not_the_workers(own_demo, folder, tmp_path, session):
    own_demo.policy = Policy(threshold=1.0, per_label={"heart": 0.5})
    summary = scan(own_demo, folder, tmp_path / "out")
    assert {Path(row.path).name for row in read_rows(tmp_path / "out") if row.flagged} == {"2.png", "7.jpg"}
    assert summary.flagged == 2


def test_actions_are_done_here_after_the_rows_are_written(demo, folder, tmp_path, session):
    from nsfw_guard import Redaction
    from nsfw_guard.scan.actions import Actions

    found = parse_sources([str(folder)])
    actions = Actions(
        "move", tmp_path / "to", sources=found, given=[str(folder)], out=tmp_path / "out", redaction=Redaction()
    )
    scan(demo, folder, tmp_path / "out", actions=actions)
    moved = {os.path.relpath(path, tmp_path / "to") for path in (tmp_path / "to").rglob("*.*")}
    flagged = {os.path.relpath(row.path, folder) for row in read_rows(tmp_path / "out") if row.flagged}
    assert moved == flagged
    assert len(moved) == 4


def test_rows_that_do_not_come_are_missed(demo, folder, tmp_path, session):
    session.append(lambda number, answer: Answer(answer.rows[1:], answer.busy) if number == 1 else answer)
    with pytest.raises(GuardError, match="1 of 16 files have no row"):
        scan(demo, folder, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 15
    session.clear()
    summary = scan(demo, folder, tmp_path / "out")
    assert summary.files == 16
    assert len(rows_of(tmp_path / "out")) == 16


def test_a_block_that_comes_twice_counts_once(demo, folder, tmp_path, session):
    session.append(lambda number, answer: Answer([*answer.rows, *answer.rows], answer.busy))
    scan(demo, folder, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 16


def test_a_worker_that_cannot_go_on_ends_the_scan_and_what_came_is_kept(demo, folder, tmp_path, session):
    session.append(lambda number, answer: Answer([], 0.0, "CUDA error") if number == 2 else answer)
    with pytest.raises(GuardError, match="CUDA error"):
        scan(demo, folder, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 6
    assert not (tmp_path / "out/.todo").exists()
    assert json.loads((tmp_path / "out/scan.json").read_text())["summary"] is None


def test_a_session_that_breaks_ends_the_scan_and_what_came_is_kept(demo, folder, tmp_path, session):
    def broken(number, answer):
        if number == 3:
            raise GuardError("Ray has ended the scan. The cluster is gone.")
        return answer

    session.append(broken)
    with pytest.raises(GuardError, match="The cluster is gone"):
        scan(demo, folder, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 9


def test_ctrl_c_keeps_what_came(demo, folder, tmp_path, session):
    def interrupt(summary):
        if summary.done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(demo, folder, tmp_path / "out", on_progress=interrupt)
    kept = len(rows_of(tmp_path / "out"))
    assert 6 <= kept <= 16


def test_rows_are_written_while_later_blocks_are_waited_for(demo, folder, tmp_path, session, monkeypatch):
    """Else a kill would cost all that came before a long film."""
    monkeypatch.setattr(store, "SECONDS_PER_PART", 0.0)
    written = threading.Event()
    session.append(lambda number, answer: answer if number < 3 or written.wait(60) else None)
    actions = type("", (), {"on_rows": lambda self, rows: written.set(), "on_flagged": None})()
    scan(demo, folder, tmp_path / "out", actions=actions)
    assert written.is_set()


# Settings.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "spark"], "--engine is 'spark'; expected local or ray"),
        (["--address", "auto"], "go with --engine ray"),
        (["--actors", "2"], "go with --engine ray"),
        (["--engine", "ray", "--actors", "0"], "--actors is 0"),
        (["--engine", "ray", "--cpus-per-actor", "-1"], "--cpus-per-actor is -1"),
        (["--engine", "ray", "--gpus-per-actor", "-0.5"], "--gpus-per-actor is -0.5"),
        (["--engine", "ray", "--gpus-per-actor", "nan"], "--gpus-per-actor is nan"),
        (["--engine", "ray", "--address", "ray://host:10001"], "ray job submit"),
        (["--engine", "ray", "--address", ""], "--address is ''"),
    ],
)
def test_bad_arguments(folder, tmp_path, arguments, words):
    result = command(folder, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_ray_it_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = command(folder, "--out", tmp_path / "out", "--engine", "ray")
    assert result.exit_code == 2
    assert "pip install 'nsfw-guard[ray]'" in result.stderr
    assert rows_of(tmp_path / "out") == {}


def test_how_many_workers_fit():
    def size(there, **settings):
        session = RaySession(RaySettings(GUARD, **settings))
        session._size(there)
        return session.workers, session.gpus

    assert size({"CPU": 9.0}) == (4, 0.0)
    assert size({"CPU": 9.0}, cpus=4) == (2, 0.0)
    assert size({"CPU": 1.0}) == (1, 0.0)
    assert size({"CPU": 64.0, "GPU": 4.0}) == (4, 1.0)
    assert size({"CPU": 64.0, "GPU": 4.0}, gpus=0.5) == (8, 0.5)
    assert size({"CPU": 64.0, "GPU": 4.0}, gpus=0) == (32, 0.0)
    assert size({"CPU": 4.0, "GPU": 8.0}) == (2, 1.0)
    assert size({"CPU": 4.0}, workers=7) == (7, 0.0)


# Ray itself, in a process of its own, so that it can be killed, and nothing of it is left in this one.

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_killed_scan_goes_on_with_what_is_left(demo, many, tmp_path):
    out, kept = tmp_path / "out", 0
    for seed in range(3):
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


@pytest.mark.slow
def test_ctrl_c_ends_ray_too(many, tmp_path):
    scanning = Scanning(many, tmp_path / "out")
    came = scanning.until(20)
    scanning.process.send_signal(signal.SIGINT)
    scanning.end(-signal.SIGINT)
    assert rows_on_disk(tmp_path / "out") >= came
    assert not (tmp_path / "out/.todo").exists()


@pytest.mark.slow
def test_a_file_that_kills_its_workers_ends_the_scan_with_its_name(folder, tmp_path):
    draw(folder / "poison.png")
    _, said = Scanning(folder, tmp_path / "out").end(1)
    assert "has ended its worker 2 times" in said
    assert "of 4 files" in said or "of 1 files" in said
    assert "poison.png" not in {Path(path).name for path in rows_of(tmp_path / "out")}


@pytest.mark.slow
def test_workers_with_other_weights_end_the_scan(folder, tmp_path, tiny_folder):
    _, said = Scanning(folder, tmp_path / "out", tiny_folder).end(1)
    assert "The model on this worker is" in said
    assert rows_of(tmp_path / "out") == {}
