"""The process that lists the files and writes the rows, with a worker in this process in place of Ray."""

import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from scanning import GUARD, ask, assert_same_rows, draw, mixed_folder, rows_of

from nsfw_guard import Policy
from nsfw_guard.errors import GuardError
from nsfw_guard.scan import cluster, store, todo
from nsfw_guard.scan.parts import read_rows
from nsfw_guard.scan.ray_session import RaySettings
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources
from nsfw_guard.scan.worker import Answer, Worker

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("one_thread")


folder = mixed_folder


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


def test_rows_are_written_while_a_later_block_is_waited_for(demo, folder, tmp_path, session, monkeypatch):
    """Else a kill would cost all that came before a long film."""
    monkeypatch.setattr(store, "SECONDS_PER_PART", 0.7)
    on_disk, enough = [], threading.Event()

    def on_rows(rows):
        on_disk.extend(rows)
        if len(on_disk) >= 9:
            enough.set()

    def late(number, answer):
        return answer if number < 3 or enough.wait(60) else Answer([], 0.0, "nothing is written")

    session.append(late)
    actions = SimpleNamespace(on_rows=on_rows, on_flagged=None)
    scan(demo, folder, tmp_path / "out", actions=actions)
    assert len(on_disk) == 16


def test_members_of_archives_are_looked_at_by_workers(demo, folder, tmp_path, session):
    """Those of a zip and a tar are opened there; those of a compressed tar are sent along."""
    for form in ("zip", "tar", "gztar"):
        shutil.make_archive(str(tmp_path / f"all-{form}"), form, folder)
    archives = sorted(tmp_path.glob("all-*"))
    assert len(archives) == 3
    found = parse_sources([str(archive) for archive in archives])
    mine = run_scan(demo, found, tmp_path / "out", ScanSettings(), ray=RaySettings(GUARD, workers=1))
    again = parse_sources([str(archive) for archive in archives])
    run_scan(demo, again, tmp_path / "local", ScanSettings(workers=2))
    assert_same_rows(tmp_path / "out", tmp_path / "local")
    assert mine.flagged == 3 * 4


def test_a_file_in_two_sources_is_one_file(demo, folder, tmp_path, session):
    found = parse_sources([str(folder), str(folder / "0"), str(folder / "0/0.png")])
    summary = run_scan(demo, found, tmp_path / "out", ScanSettings(), ray=RaySettings(GUARD, workers=1))
    assert (summary.files, summary.done) == (16, 16)


def test_actions_take_up_what_an_earlier_scan_has_flagged(demo, folder, tmp_path, session):
    scan(demo, folder, tmp_path / "out")
    taken = []
    actions = SimpleNamespace(on_rows=lambda rows: None, on_flagged=lambda entry: taken.append(entry.path))
    scan(demo, folder, tmp_path / "out", actions=actions)
    assert set(taken) == {path for path, row in rows_of(tmp_path / "out").items() if row.flagged}
    assert len(taken) == 4
