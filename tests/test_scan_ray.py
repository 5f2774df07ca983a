"""Scanning with workers: what is sent to them, and what they answer; a worker is called in this process."""

import sys
import threading

import pytest
from scanning import GUARD, ask, comparable, draw, entries_of, mixed_folder, orders_for, rows_of, same
from test_scan import command

from nsfw_guard import NsfwGuard
from nsfw_guard.scan import todo
from nsfw_guard.scan.entry import Entry
from nsfw_guard.scan.ray_session import RaySession, RaySettings
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources
from nsfw_guard.scan.worker import Answer, Desk, Worker, answer_to_table, table_to_answers

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("one_thread")


folder = mixed_folder


@pytest.fixture
def orders(demo):
    """What workers of the demo model are told."""
    return orders_for(demo)


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


def test_where_there_is_much_to_do_blocks_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(todo, "ENTRIES_PER_BLOCK", 1)
    monkeypatch.setattr(todo, "MOST_PER_BLOCK", 4)
    monkeypatch.setattr(todo, "BLOCKS_PER_FILE", 2)
    monkeypatch.setattr(todo, "GROWTH", 2)
    written = todo.Todo(tmp_path)
    written.write(Entry(f"/{number}") for number in range(50))
    blocks = [todo.table_to_entries(table) for path in written.files for table in todo.read_todo(path)]
    assert [len(block) for block in blocks] == [1] * 4 + [2] * 4 + [4] * 9 + [2]
    assert [entry.path for block in blocks for entry in block] == [f"/{number}" for number in range(50)]
    assert (written.blocks, written.entries) == (18, 50)


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
    for row in answer.rows:
        assert comparable(row) == same(comparable(rows[row.path]))
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
    for row, other in zip(answers[4].rows, alone.rows, strict=True):
        assert comparable(row) == same(comparable(other))


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


@pytest.mark.parametrize("files", [1, 16])  # of its threads some wait for files, or some wait for the model
def test_a_worker_whose_model_fails_says_so_now_and_later(orders, folder, monkeypatch, files):
    def fail(*_, **__):
        raise RuntimeError("CUDA error\n at x")

    worker, entries = Worker(orders), sorted(entries_of(folder), key=lambda entry: entry.path)
    monkeypatch.setattr(NsfwGuard, "classify", fail)
    for _ in range(2):
        answer = ask(worker, entries[:files])
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


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nohost", "host:port", ":6379", "127.0.0.1:70000"])
@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_cluster_that_is_not_there_is_said_to_be_so(folder, tmp_path, monkeypatch, address, by):
    pytest.importorskip("ray")
    if by == "environment":
        monkeypatch.setenv("RAY_ADDRESS", address)
    options = ["--address", address] if by == "option" else []
    result = command(folder, "--out", tmp_path / "out", "--engine", "ray", *options)
    assert result.exit_code == 2
    assert repr(address) in result.stderr
    assert rows_of(tmp_path / "out") == {}


def test_without_ray_it_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = command(folder, "--out", tmp_path / "out", "--engine", "ray")
    assert result.exit_code == 2
    assert "pip install 'nsfw-guard[ray]'" in result.stderr
    assert rows_of(tmp_path / "out") == {}


def test_how_many_workers_fit():
    pytest.importorskip("ray")

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
