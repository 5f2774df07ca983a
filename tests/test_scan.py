"""Scanning local files: rows, resuming, duplicates, what fails, what is done with what is flagged."""

import contextlib
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scanning import draw, rows_of
from typer.testing import CliRunner

from nsfw_guard import NsfwGuard, Policy
from nsfw_guard.cli import app
from nsfw_guard.demo.shapes import Scene, render
from nsfw_guard.errors import SettingError
from nsfw_guard.scan import parts, store
from nsfw_guard.scan.actions import Actions
from nsfw_guard.scan.evidence import Decider, Evidence
from nsfw_guard.scan.parts import FORMATS, part_files, read_part, read_rows, write_part
from nsfw_guard.scan.row import Row
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources
from nsfw_guard.scan.summary import Summary
from nsfw_guard.verdict import Scores

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    """Three safe pictures, two flagged ones of different content, and a copy of one of these."""
    folder = tmp_path / "pictures"
    for name, shape, color in (
        ("a.png", "circle", "red"),
        ("b.jpg", "square", "green"),
        ("sub/c.webp", "heart", "yellow"),
        ("sub/d.png", "triangle", "red"),
        ("sub/deep/e.jpg", "triangle", "yellow"),
    ):
        draw(folder / name, shape, color)
    (folder / "copy of d.png").write_bytes((folder / "sub/d.png").read_bytes())
    return folder


def scan(demo, out, *sources, form="parquet", actions=None, guard=None, rejudge=False, **settings):
    found = parse_sources([str(source) for source in sources])
    how = ScanSettings(workers=2, **settings)
    return run_scan(guard or demo, found, out, how, form=form, actions=actions, rejudge=rejudge)


def command(*arguments):
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, ["scan", *map(str, arguments), "--model", "demo", "--dtype", "float32"])


@pytest.mark.parametrize("form", [*FORMATS, "csv"])
def test_every_file_has_one_row_with_what_the_guard_says_of_it(demo, folder, tmp_path, form):
    summary = scan(demo, tmp_path / "out", folder, form=form)
    rows = rows_of(tmp_path / "out")
    assert set(rows) == {str(path) for path in folder.rglob("*") if path.is_file()}
    assert (summary.files, summary.scored, summary.duplicates, summary.flagged, summary.errors) == (6, 5, 1, 3, 0)
    for path, row in rows.items():
        verdict = demo.check(path)[0]
        assert (row.flagged, row.score, row.threshold, row.reason) == (
            verdict.flagged,
            pytest.approx(verdict.score, abs=1e-6),
            verdict.threshold,
            verdict.reason,
        )
        assert row.labels == pytest.approx(verdict.labels, abs=1e-6)
        assert row.level == verdict.level.name.lower()
        assert (row.kind, row.width, row.height, row.frames) == ("image", 96, 96, 1)
        assert row.size == os.stat(path).st_size
        assert row.mtime == os.stat(path).st_mtime
        assert row.model.startswith("demo@sha256:")
        assert row.error is None
    assert rows[str(folder / "sub/d.png")].sha256 == rows[str(folder / "copy of d.png")].sha256
    manifest = json.loads((tmp_path / "out/scan.json").read_text())
    assert manifest["schema_version"] == 1
    assert manifest["labels"] == list(demo.classifier.labels)
    assert manifest["summary"]["flagged"] == 3


def test_parquet_has_a_column_for_each_label(demo, folder, tmp_path):
    import pyarrow.parquet

    scan(demo, tmp_path / "out", folder)
    table = pyarrow.parquet.read_table(tmp_path / "out/parts")
    assert [name for name in table.column_names if name.startswith("p_")] == [
        "p_" + label for label in demo.classifier.labels
    ]
    assert table.num_rows == 6
    assert sum(table["flagged"].to_pylist()) == 3


def test_equal_contents_are_scored_once(demo, tmp_path, monkeypatch):
    original = draw(tmp_path / "in/0.png", "triangle")
    for number in range(1, 40):
        (tmp_path / f"in/{number}.png").write_bytes(original.read_bytes())
    seen = []
    classify = NsfwGuard.classify
    monkeypatch.setattr(
        NsfwGuard, "classify", lambda self, images, **options: seen.extend(images) or classify(self, images, **options)
    )
    summary = scan(demo, tmp_path / "out", tmp_path / "in")
    assert len(seen) == 1
    assert (summary.scored, summary.duplicates, summary.flagged) == (1, 39, 40)
    assert {row.score for row in rows_of(tmp_path / "out").values()} == {next(read_rows(tmp_path / "out")).score}


def test_only_what_is_new_or_changed_is_scored_again(demo, folder, tmp_path):
    scan(demo, tmp_path / "out", folder)
    again = scan(demo, tmp_path / "out", folder)
    assert (again.before, again.scored, again.flagged, again.done) == (6, 0, 3, 0)
    draw(folder / "new.png", "cross")
    draw(folder / "a.png", "triangle", "pink")
    third = scan(demo, tmp_path / "out", folder)
    assert (third.before, third.scored, third.flagged) == (5, 2, 4)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 7
    assert rows[str(folder / "a.png")].flagged


def test_a_touched_file_is_read_again_and_not_scored_again(demo, folder, tmp_path):
    scan(demo, tmp_path / "out", folder)
    os.utime(folder / "a.png", (1, 1))
    again = scan(demo, tmp_path / "out", folder)
    assert (again.before, again.scored, again.duplicates) == (5, 0, 1)
    assert rows_of(tmp_path / "out")[str(folder / "a.png")].mtime == 1


def test_another_model_or_preprocessing_scores_everything_again(demo, folder, tmp_path, tiny):
    scan(demo, tmp_path / "out", folder)
    assert scan(demo, tmp_path / "out", folder, exact=True, rejudge=True).scored == 5
    assert scan(demo, tmp_path / "out", folder, guard=tiny, exact=True, rejudge=True).scored == 5
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 6
    assert all(set(row.labels) == {"normal", "nsfw"} for row in rows.values())


def test_another_policy_decides_again_without_the_model(own_demo, folder, tmp_path, monkeypatch):
    scan(own_demo, tmp_path / "out", folder)
    own_demo.policy = Policy(threshold=1.0, per_label={"heart": 0.5})
    monkeypatch.setattr(NsfwGuard, "classify", lambda *_, **__: pytest.fail("the model was asked"))
    summary = scan(own_demo, tmp_path / "out", folder, rejudge=True)
    assert (summary.before, summary.flagged) == (6, 1)
    flagged = [row for row in rows_of(tmp_path / "out").values() if row.flagged]
    assert [(Path(row.path).name, row.reason) for row in flagged] == [("c.webp", "label")]
    assert json.loads(flagged[0].policy)["per_label"] == {"heart": 0.5}


def test_broken_files_are_rows_with_their_errors(demo, folder, tmp_path):
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    whole = (folder / "b.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    summary = scan(demo, tmp_path / "out", folder)
    errors = {Path(path).name: row.error for path, row in rows_of(tmp_path / "out").items() if row.error}
    assert set(errors) == {"empty.png", "text.jpg", "half.jpg", "gone.png"}
    assert summary.errors == 4
    assert not summary.is_clean
    assert all(error and "\n" not in error and " at 0x" not in error for error in errors.values())
    assert all(row.flagged is None and row.score is None for row in read_rows(tmp_path / "out") if row.error)


def test_broken_files_are_tried_again_when_they_change_or_when_asked(demo, folder, tmp_path):
    (folder / "text.jpg").write_text("no picture")
    scan(demo, tmp_path / "out", folder)
    assert scan(demo, tmp_path / "out", folder).done == 0
    assert scan(demo, tmp_path / "out", folder, retry_errors=True).done == 1
    draw(folder / "text.jpg", "triangle", "pink")
    assert scan(demo, tmp_path / "out", folder).flagged == 4
    assert rows_of(tmp_path / "out")[str(folder / "text.jpg")].error is None


def test_what_could_not_be_read_is_always_tried_again(demo, folder, tmp_path):
    link = folder / "late.png"
    link.symlink_to(tmp_path / "late.png")
    assert scan(demo, tmp_path / "out", folder).errors == 1
    draw(tmp_path / "late.png", "triangle", "pink")
    again = scan(demo, tmp_path / "out", folder)
    assert (again.errors, again.flagged, again.done) == (0, 4, 1)


def test_a_file_that_is_too_large_is_a_row(demo, folder, tmp_path):
    scan(demo, tmp_path / "out", folder, max_bytes=1000, max_pixels=96 * 96)
    errors = [row.error for row in read_rows(tmp_path / "out") if row.error]
    assert errors
    assert all("larger than 1000 bytes" in error for error in errors)
    draw(folder / "wide.png", size=97)
    scan(demo, tmp_path / "out2", folder, max_pixels=96 * 96)
    (error,) = [row.error for row in read_rows(tmp_path / "out2") if row.error]
    assert "97x97" in error


def test_a_file_that_changes_while_it_is_read_is_an_error_and_scanned_the_next_time(
    demo, folder, tmp_path, monkeypatch
):
    from nsfw_guard.scan import engine

    real = engine.looks_like_video

    def meanwhile(start, name):
        if name.endswith("a.png"):
            os.utime(name, (5, 5))
        return real(start, name)

    monkeypatch.setattr(engine, "looks_like_video", meanwhile)
    assert scan(demo, tmp_path / "out", folder).errors == 1
    assert "changed while it was read" in rows_of(tmp_path / "out")[str(folder / "a.png")].error
    monkeypatch.undo()
    assert scan(demo, tmp_path / "out", folder).errors == 0


def test_a_flagged_frame_of_a_file_that_breaks_later_flags_it(demo):
    decider = Decider(demo.card, demo.classifier.labels, demo.policy, model="m", preprocessing="p")
    evidence = Evidence()
    evidence.add(demo.classify(render([Scene("triangle", "red", "blue")], 96)), 0, 0)
    row = decider.row("/x.gif", evidence, error="breaks off")
    assert (row.flagged, row.error) == (True, "breaks off")
    calm = Evidence()
    calm.add(demo.classify(render([Scene("circle", "red", "blue")], 96)), 0, 0)
    row = decider.row("/x.gif", calm, error="breaks off")
    assert (row.flagged, row.score, row.error) == (None, None, "breaks off")


def test_what_was_flagged_before_it_broke_off_counts_as_both_in_every_run(demo, folder, tmp_path, monkeypatch):
    from nsfw_guard import ImageError
    from nsfw_guard.scan import engine
    from nsfw_guard.scan.decode import Decoded

    whole = engine.decode

    def broken(*args, **options):
        found = whole(*args, **options)

        def frames():
            yield from found.frames()
            raise ImageError("breaks off")

        return Decoded(found.kind, found.width, found.height, frames())

    monkeypatch.setattr(engine, "decode", broken)
    runs = [scan(demo, tmp_path / "out", folder) for _ in range(2)]
    assert [run.before for run in runs] == [0, 6]
    assert [(run.flagged, run.errors) for run in runs] == [(3, 6)] * 2
    act(demo, "move", folder, tmp_path / "to", tmp_path / "out")
    assert len([name for name in files_in(tmp_path / "to") if name.endswith((".png", ".jpg"))]) == 3


def test_an_animation_goes_by_its_worst_frame(demo, tmp_path):
    shapes = ["circle", "square", "triangle", "heart"]
    frames = [
        Image.fromarray((render([Scene(s, "red", "blue")], 96)[0] * 255).byte().permute(1, 2, 0).numpy())
        for s in shapes
    ]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=100)
    scan(demo, tmp_path / "out", tmp_path / "x.gif")
    (row,) = read_rows(tmp_path / "out")
    assert (row.kind, row.frames, row.frame, row.flagged) == ("animation", 4, 2, True)
    scan(demo, tmp_path / "every", tmp_path / "x.gif", every=3)
    (row,) = read_rows(tmp_path / "every")
    assert (row.frames, row.flagged) == (2, False)


@pytest.mark.parametrize("seed", range(5))
def test_the_kept_views_decide_as_all_views_do(demo, seed):
    """The property that re-deciding rests on, for any policy."""
    generator = np.random.default_rng(seed)
    labels = demo.classifier.labels
    for _ in range(60):
        frames = [
            tuple(
                tuple(float(p) for p in np.float32(generator.dirichlet(np.ones(len(labels)))))
                for _ in range(generator.integers(1, 4))
            )
            for _ in range(generator.integers(1, 12))
        ]
        evidence = Evidence()
        for index, views in enumerate(frames):
            evidence.add(Scores(demo.card, labels, (views,), (None,)), 0, index)
        everything = Scores(demo.card, labels, (tuple(view for views in frames for view in views),), (None,))
        policy = Policy(
            level=generator.choice(["low", "medium", "high"]).item(),
            threshold=float(generator.uniform(0, 1)),
            per_label={
                str(label): float(generator.uniform(0.3, 1)) for label in generator.choice(labels, 2, replace=False)
            },
        )
        expected = policy.decide(everything)[0]
        first = Decider(demo.card, labels, Policy(), model="m", preprocessing="p").row("/x", evidence)
        again = Decider(demo.card, labels, policy, model="m", preprocessing="p").again(first)
        assert (again.flagged, again.score, again.reason, again.level) == (
            expected.flagged,
            expected.score,
            expected.reason,
            expected.level.name.lower(),
        )
        assert len(first.looked_at) <= len(labels) + 3


def test_non_finite_scores_stay_flagged_whatever_the_policy(demo):
    labels = demo.classifier.labels
    nan = (float("nan"),) * len(labels)
    calm = (1.0, *(0.0,) * (len(labels) - 1))
    evidence = Evidence()
    evidence.add(Scores(demo.card, labels, ((calm, nan, calm),), (None,)), 0, 0)
    row = Decider(demo.card, labels, Policy(), model="m", preprocessing="p").row("/x", evidence)
    assert (row.flagged, row.reason) == (True, "non_finite")
    again = Decider(demo.card, labels, Policy(threshold=1.0), model="m", preprocessing="p").again(row)
    assert (again.flagged, again.reason) == (True, "non_finite")


@pytest.mark.parametrize("form", FORMATS)
def test_parts_give_back_the_rows_they_were_given(tmp_path, form):
    rows = [
        Row(
            '/a\nb,"c".jpg', "ab" * 32, 3, 1.25, 'W/"x"', True, 0.7, 0.5, "high", "score", {"normal": 0.3, "nsfw": 0.7},
            "image", 3, 4, 1, 0, 2, "m@1", "p", "{}", "[[0, [0.3, 0.7]]]", 1.5, "2026-01-01T00:00:00+00:00",
        ),
        Row("/日本\r\n🦊.png", error="bröken"),
        Row("/a\rb.png", error="\r"),
        Row("=cmd()", flagged=False, score=0.1 + 0.2, labels={"normal": 1 / 3, "nsfw": 2 / 3}),
    ]  # fmt: skip
    part = tmp_path / f"part-000001.{form}"
    assert write_part(part, rows, ["normal", "nsfw"]) == 4
    assert list(read_part(part)) == rows
    assert [path.name for path in tmp_path.iterdir()] == [part.name]


@pytest.mark.parametrize("form", FORMATS)
def test_evidence_may_be_long(tmp_path, form):
    rows = [Row('/a,"b"\n', evidence=json.dumps([[0, [0.123456789] * 20_000]]), error='"' * 150_000), Row("/c")]
    limit = csv.field_size_limit()
    write_part(tmp_path / f"part-000001.{form}", rows, [])
    assert list(read_part(tmp_path / f"part-000001.{form}")) == rows
    assert csv.field_size_limit() == limit  # of the process


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('path,error\n"/a,\n', "it ends within a quoted cell"),
        ("path,error\n/a\n", "a row has 1 cells; expected 2"),
        ('path,error\n"/a"b,\n', "expected after"),
        (f'path,error\n"{"a" * 150_000}"b,\n', "a cell goes on after its quotes"),
    ],
    ids=["no end", "short", "after quotes", "after long quotes"],
)
def test_a_part_that_is_no_csv_says_why(tmp_path, text, why):
    part = tmp_path / "part-000001.csv"
    part.write_text(text)
    with pytest.raises(SettingError, match=why):
        list(read_part(part))


def test_a_part_that_cannot_be_written_leaves_what_was_there(tmp_path):
    part = tmp_path / "part-000001.jsonl"
    write_part(part, [Row("/a")], [])

    def rows():
        yield Row("/b")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_part(part, rows(), [])
    assert [row.path for row in read_part(part)] == ["/a"]
    assert [path.name for path in tmp_path.iterdir()] == [part.name]


def test_small_parts_are_put_together_and_old_rows_removed(demo, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_PART", 1)
    scan(demo, tmp_path / "out", folder)
    (part,) = part_files(tmp_path / "out")
    assert len(list(read_part(part))) == 6
    for number in range(3):
        draw(folder / "a.png", "circle", ["green", "white", "pink"][number])
        scan(demo, tmp_path / "out", folder)
    assert len(part_files(tmp_path / "out")) == 1
    assert len(rows_of(tmp_path / "out")) == 6


def test_parts_are_put_together_up_to_their_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_MERGED_PART", 4)
    rows = store.Store(tmp_path / "out", "jsonl", model="m", preprocessing="p", labels=())
    for number in range(6):
        rows.add(Row(f"/{number}", model="m", preprocessing="p"))
        assert [row.path for row in rows.flush()] == [f"/{number}"]
    rows.add(Row("/2", model="m", preprocessing="p", size=7))
    rows.flush()
    rows.tidy()
    parts_left = [[row.path for row in read_part(part)] for part in part_files(tmp_path / "out")]
    assert parts_left == [["/0", "/1", "/3", "/4"], ["/5", "/2"]]
    assert [row.size for row in rows.rows()] == [None] * 5 + [7]
    rows.close()


@pytest.mark.parametrize("step", range(1, 9))
def test_tidying_up_can_be_cut_off_after_every_step(tmp_path, monkeypatch, step):
    """Whatever was replaced or removed by then: the next run finds every file once, and its last row."""

    def opened():
        return store.Store(tmp_path / "out", "jsonl", model="m", preprocessing="p", labels=())

    rows = opened()
    rows.write_manifest({})
    for number in range(4):
        for path in ("/same", f"/{number}"):
            rows.add(Row(path, model="m", preprocessing="p", size=number))
        rows.flush()
    done = []

    def cut_off(real):
        def call(self, *arguments, **options):
            if self.name.startswith("part-"):
                done.append(self.name)
            if len(done) > step:
                raise KeyboardInterrupt
            return real(self, *arguments, **options)

        return call

    unlink, replace = Path.unlink, Path.replace
    monkeypatch.setattr(Path, "unlink", cut_off(unlink))
    monkeypatch.setattr(Path, "replace", lambda self, target: cut_off(lambda to, name: replace(name, to))(target, self))
    with contextlib.suppress(KeyboardInterrupt):
        rows.tidy()
    monkeypatch.undo()
    rows._lock.release()
    rows = opened()
    rows.tidy()
    rows.close()
    assert {path: row.size for path, row in rows_of(tmp_path / "out").items()} == {
        "/same": 3, "/0": 0, "/1": 1, "/2": 2, "/3": 3
    }  # fmt: skip


def test_what_is_on_the_disk_is_not_kept_in_memory_too(demo, folder, tmp_path, monkeypatch):
    from nsfw_guard.scan.engine import Scan

    held = []
    flush = Scan._flush
    monkeypatch.setattr(Scan, "_flush", lambda self: (flush(self), held.append(len(self._recent)))[0])
    scan(demo, tmp_path / "out", folder)
    assert held[-1] == 0


@pytest.mark.parametrize("form", FORMATS)
def test_of_a_file_that_is_twice_in_one_part_the_later_row_counts(tmp_path, form):
    """As when it changes while a scan comes across it in two sources."""
    rows = store.Store(tmp_path / "out", form, model="m", preprocessing="p", labels=())
    rows.write_manifest({})
    for size in (1, 2, 3):
        rows.add(Row("/x", model="m", preprocessing="p", size=size))
    rows.add(Row("/y", model="m", preprocessing="p", size=4))
    rows.flush()
    rows.tidy()
    rows.close()
    assert {path: row.size for path, row in rows_of(tmp_path / "out").items()} == {"/x": 3, "/y": 4}


def test_a_second_scan_into_a_folder_is_refused_while_the_first_runs(demo, folder, tmp_path, monkeypatch):
    entered, leave = threading.Event(), threading.Event()
    classify = NsfwGuard.classify

    def slow(self, images, **options):
        entered.set()
        assert leave.wait(60)
        return classify(self, images, **options)

    monkeypatch.setattr(NsfwGuard, "classify", slow)
    first = threading.Thread(target=scan, args=(demo, tmp_path / "out", folder))
    first.start()
    assert entered.wait(60)
    try:
        with pytest.raises(SettingError, match="in use by another scan"):
            scan(demo, tmp_path / "out", folder)
    finally:
        leave.set()
        first.join()
    assert len(rows_of(tmp_path / "out")) == 6


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ('{"schema_version": 2}', "newer nsfw_guard: schema 2, and this one knows 1"),
        ('{"schema_version": 0}', "older nsfw_guard: schema 0"),
        ("{", "damaged"),
        ('["schema_version"]', "damaged"),
    ],
)
def test_a_manifest_of_another_schema_is_refused_and_nothing_touched(demo, folder, tmp_path, manifest, words):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scan.json").write_text(manifest)
    with pytest.raises(SettingError, match=words):
        scan(demo, tmp_path / "out", folder)
    assert (tmp_path / "out/scan.json").read_text() == manifest
    (tmp_path / "out/scan.json").unlink()
    assert scan(demo, tmp_path / "out", folder).scored == 5  # the lock was let go of


def test_another_format_in_the_same_folder_is_refused(demo, folder, tmp_path):
    scan(demo, tmp_path / "out", folder, form="parquet")
    with pytest.raises(SettingError, match="in the format parquet; expected jsonl"):
        scan(demo, tmp_path / "out", folder, form="jsonl")
    with pytest.raises(SettingError, match="--format is 'xml'"):
        scan(demo, tmp_path / "out", folder, form="xml")


def test_rows_without_a_manifest_are_not_taken_for_a_scan(demo, folder, tmp_path):
    scan(demo, tmp_path / "out", folder)
    (tmp_path / "out/scan.json").unlink()
    with pytest.raises(SettingError, match="no scan.json"):
        scan(demo, tmp_path / "out", folder)
    with pytest.raises(SettingError, match="no scan.json"):
        list(read_rows(tmp_path / "out"))


def test_without_pyarrow_parquet_says_what_to_install(demo, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SettingError, match=r"pip install 'nsfw-guard\[scan\]'.*--format jsonl"):
        scan(demo, tmp_path / "out", folder)
    assert not (tmp_path / "out").exists()


def test_a_failing_model_stops_the_scan_and_keeps_what_is_done(demo, folder, tmp_path, monkeypatch):
    calls = []
    classify = NsfwGuard.classify

    def failing(self, images, **options):
        calls.append(len(images))
        if len(calls) > 3:
            raise RuntimeError("device lost")
        return classify(self, images[:1], **options) if False else classify(self, images, **options)

    monkeypatch.setattr(NsfwGuard, "classify", failing)
    monkeypatch.setattr(demo, "batch_size", 1)
    with pytest.raises(RuntimeError, match="device lost"):
        scan(demo, tmp_path / "out", folder)
    kept = len(rows_of(tmp_path / "out"))
    assert 1 <= kept < 6  # of two threads, one had ended its file before it put in the next
    monkeypatch.undo()
    assert scan(demo, tmp_path / "out", folder).before == kept
    assert len(rows_of(tmp_path / "out")) == 6


def test_one_frame_that_is_refused_does_not_take_its_batch_along(demo, folder, tmp_path, monkeypatch):
    from nsfw_guard.errors import ImageError

    classify = NsfwGuard.classify
    means = sorted(float(np.asarray(Image.open(path)).mean()) for path in folder.rglob("*.*"))

    def picky(self, images, **options):
        if any(float(image.float().mean()) > means[3] - 0.01 for image in images):
            raise ImageError("too bright")
        return classify(self, images, **options)

    monkeypatch.setattr(NsfwGuard, "classify", picky)
    scan(demo, tmp_path / "out", folder)
    rows = rows_of(tmp_path / "out").values()
    refused = [row for row in rows if row.error]
    assert 0 < len(refused) < 6
    assert all(row.error == "too bright" for row in refused)


def test_a_listing_that_fails_is_no_complete_scan(demo, folder, tmp_path, monkeypatch):
    found = parse_sources([str(folder)])
    real = found.entries

    def failing(wanted=None):
        yield next(iter(real(wanted)))
        raise OSError("the network is gone")

    monkeypatch.setattr(found, "entries", failing)
    with pytest.raises(OSError, match="the network is gone"):
        run_scan(demo, found, tmp_path / "out", ScanSettings(workers=2))


def test_a_second_ctrl_c_costs_no_row(demo, folder, tmp_path, monkeypatch):
    """The first one comes from the model, the second one while the scan waits for its threads."""
    calls = []
    classify, join = NsfwGuard.classify, threading.Thread.join

    def interrupted(self, images, **options):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return classify(self, images, **options)

    def impatient(self, timeout=None):
        if self.name.startswith("nsfw_guard-decode"):
            raise KeyboardInterrupt
        join(self, timeout)

    monkeypatch.setattr(NsfwGuard, "classify", interrupted)
    monkeypatch.setattr(threading.Thread, "join", impatient)
    monkeypatch.setattr(demo, "batch_size", 1)
    latest = []
    with pytest.raises(KeyboardInterrupt):
        found = parse_sources([str(folder)])
        run_scan(demo, found, tmp_path / "out", ScanSettings(workers=2), on_progress=latest.append)
    assert 1 <= len(rows_of(tmp_path / "out")) == latest[-1].kept


def test_the_index_is_not_closed_while_a_thread_is_in_it(tmp_path):
    """SQLite would crash."""
    from nsfw_guard.scan.index import Index

    index = Index(tmp_path / ".index.sqlite")
    closing = threading.Thread(target=index.close)
    with index._turn:
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        assert index._file.exists()
    closing.join(60)
    assert not index._file.exists()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits on file sizes")
def test_a_full_disk_stops_with_a_clear_error_and_intact_parts(folder, tmp_path):
    """A limit on file sizes stands in for the full disk: the write itself fails, in the system."""
    for number in range(40):
        draw(folder / f"{number}.png", "circle", size=40 + number)
    script = (
        "import resource, sys; from nsfw_guard.scan import store; store.ROWS_PER_PART = 10\n"
        "import nsfw_guard.scan.index as index; index.Index.__init__.__globals__['sqlite3']\n"
        "from nsfw_guard.cli import main\n"
        "import nsfw_guard.scan.store as s\n"
        "real = s.write_part\n"
        "def limited(part, rows, labels):\n"
        "    if len(s.part_files(part.parent.parent)) == 2: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    return real(part, rows, labels)\n"
        "s.write_part = limited\n"
        "main()"
    )
    arguments = ["scan", folder, "--out", tmp_path / "out", "--model", "demo", "--format", "jsonl"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    rows = list(read_rows(tmp_path / "out"))
    assert len(part_files(tmp_path / "out")) == 2
    assert len(rows) >= 20
    assert not list((tmp_path / "out/parts").glob(".*"))


@pytest.mark.parametrize("form", [*FORMATS, "csv"])
@pytest.mark.parametrize("cut", ["all of it", "half of it", "the middle of the last row", "one byte"])
def test_a_damaged_part_is_said_to_be_one(folder, tmp_path, form, cut):
    arguments = [folder, "--out", tmp_path / "out", "--format", form]
    assert command(*arguments).exit_code == 1
    (part,) = part_files(tmp_path / "out")
    data = part.read_bytes()
    half, last = len(data) // 2, data.rstrip().rfind(b"\n") + 1
    if data[half - 1 : half] == b"\n":  # by chance; what is left is a part, of fewer rows
        half -= 1
    kept = {"all of it": 0, "half of it": half, "the middle of the last row": (last + len(data)) // 2, "one byte": -1}
    part.write_bytes(data[: kept[cut]])
    result = command(*arguments)
    assert result.exit_code == 2
    assert f"{part} cannot be read (" in result.stderr
    assert "Delete it and run the same scan again" in result.stderr
    part.unlink()
    assert command(*arguments).exit_code == 1
    assert len(rows_of(tmp_path / "out")) == 6


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_rows_that_are_cut_off_a_part_are_scanned_again(folder, tmp_path, form):
    # Rows stand in the order in which threads finish: a picture whose copy is cut off or not is scored again or not.
    (folder / "copy of d.png").unlink()
    arguments = [folder, "--out", tmp_path / "out", "--format", form]
    assert command(*arguments).exit_code == 1
    (part,) = part_files(tmp_path / "out")
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:-2]))
    result = command(*arguments)
    assert result.exit_code == 1
    assert "2 scored, 0 duplicates, 3 done before" in result.output
    assert len(rows_of(tmp_path / "out")) == 5


def test_errors_are_about_the_content_not_about_another_file_of_it(demo, tmp_path):
    deep = tmp_path.joinpath("in", *["x" * 90] * 3)
    deep.mkdir(parents=True)
    for name in ("in/a.png", "in/b.mp4", str(deep / "c.png")):
        (tmp_path / name).write_text("no picture")
    (deep / "d.png").touch()
    scan(demo, tmp_path / "out", tmp_path / "in")
    errors = {Path(path).name: row.error for path, row in rows_of(tmp_path / "out").items()}
    said = "is neither a picture nor a video of a known kind, or broken at its start."
    assert errors == {"a.png": said, "b.mp4": said, "c.png": said, "d.png": "is empty."}


def test_a_file_under_a_videos_name_that_changes_while_it_is_decoded_is_scanned_the_next_time(
    demo, tmp_path, monkeypatch
):
    """What was hashed would not be what was looked at, and every file of the old content would get its result."""
    from nsfw_guard.scan import engine

    draw(tmp_path / "x.pcx", "triangle").rename(tmp_path / "x.mp4")  # which is not read into memory
    calm = draw(tmp_path / "y.pcx").read_bytes()
    real = engine.decode

    def meanwhile(content, settings, *, name):
        (tmp_path / "x.mp4").write_bytes(calm)
        os.utime(tmp_path / "x.mp4", (5, 5))
        return real(content, settings, name=name)

    monkeypatch.setattr(engine, "decode", meanwhile)
    scan(demo, tmp_path / "out", tmp_path / "x.mp4")
    (row,) = read_rows(tmp_path / "out")
    assert "changed while it was read" in row.error
    assert row.sha256 is None
    monkeypatch.undo()
    assert scan(demo, tmp_path / "out", tmp_path / "x.mp4").errors == 0


def test_a_lack_of_memory_is_nothing_that_is_known_of_a_file(demo, folder, tmp_path, monkeypatch):
    from nsfw_guard.scan import engine

    def lacking(*_, **__):
        raise MemoryError

    monkeypatch.setattr(engine, "decode", lacking)
    assert scan(demo, tmp_path / "out", folder).errors == 6
    monkeypatch.undo()
    assert scan(demo, tmp_path / "out", folder).errors == 0


@pytest.mark.parametrize("workers", [1, 4])
def test_duplicates_of_what_fails_fail_too(demo, folder, tmp_path, monkeypatch, workers):
    from nsfw_guard.errors import ImageError

    for number in range(20):
        (folder / f"{number}.jpg").write_text("no picture")
        (folder / f"{number}.png").write_bytes((folder / "a.png").read_bytes())
    refused = np.asarray(Image.open(folder / "a.png"))[0, 0].astype(float)
    classify = NsfwGuard.classify

    def picky(self, images, **options):
        if any(np.allclose(image[:, 0, 0].numpy(), refused, atol=2) for image in images):
            raise ImageError("refused")
        return classify(self, images, **options)

    monkeypatch.setattr(NsfwGuard, "classify", picky)
    found = parse_sources([str(folder)])
    summary = run_scan(demo, found, tmp_path / "out", ScanSettings(workers=workers))
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 46
    assert all(rows[str(folder / f"{number}.jpg")].flagged is None for number in range(20))
    assert {rows[str(folder / f"{number}.png")].error for number in range(20)} == {"refused"}
    assert summary.errors == sum(row.error is not None for row in rows.values())


def test_an_entry_without_anything_that_tells_a_change_is_read_again(tmp_path):
    from nsfw_guard.scan.entry import Entry

    rows = store.Store(tmp_path / "out", "jsonl", model="m", preprocessing="p", labels=())
    for entry, known in ((Entry("https://x/a.png", 7), "new"), (Entry("https://x/b.png", 7, etag="1"), "clean")):
        rows.add(Row(entry.path, size=7, etag=entry.etag, model="m", preprocessing="p", flagged=False))
        rows.flush()
        rows.write_manifest({})
        assert rows.status(entry) == "claimed"  # in this run it was seen
        rows.close()
        rows = store.Store(tmp_path / "out", "jsonl", model="m", preprocessing="p", labels=())
        assert rows.status(entry) == known
    rows.close()


def test_what_labels_mean_is_part_of_the_preprocessing(own_demo, monkeypatch):
    from dataclasses import replace

    from nsfw_guard.verdict import Level

    before = ScanSettings().preprocessing(own_demo)
    levels = {**own_demo.card.levels, "circle": Level.HIGH}
    own_demo.classifier.card = replace(own_demo.card, levels=levels)
    assert ScanSettings().preprocessing(own_demo) != before


def test_the_index_says_what_is_wrong_with_its_disk(tmp_path):
    from nsfw_guard.scan.index import Index

    index = Index(tmp_path / ".index.sqlite")
    index._run("DROP TABLE paths")
    with pytest.raises(OSError, match=r"\.index\.sqlite cannot be written or read: no such table"):
        index.status("/x", b"")
    index.close()


def test_an_out_whose_own_files_would_be_scanned_is_refused(folder, tmp_path):
    result = command(folder, "--out", folder / "out", "--every-name")
    assert result.exit_code == 2
    assert "its own rows would be looked at; choose a folder outside" in result.stderr
    assert not (folder / "out").exists()
    assert command(folder, "--out", folder / "out").exit_code == 1
    assert len(rows_of(folder / "out")) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_names_that_a_terminal_cannot_show_are_shown(folder, tmp_path):
    os.rename(folder / "sub/d.png", os.fsencode(folder) + b"/\xff\x1b[31m.png")
    (folder / "sub/deep/e.jpg").rename(folder / "\x1b[31m\u202e.jpg")
    result = command(folder, "--out", tmp_path / "out", "--move", tmp_path / "to", "--dry-run")
    assert result.exit_code == 1, result.output
    assert "%FF%1B%5B31m.png → bytes:" in result.stdout
    assert r"\x1b[31m\u202e.jpg → " in result.stdout
    assert "\x1b" not in result.output


def test_the_queue_is_bounded_in_items_and_bytes_and_lets_nobody_wait_for_ever():
    from nsfw_guard.scan.entry import Entry
    from nsfw_guard.scan.work import Item, Job, Queue, Stopped

    for limit, most in ((1, 100), (10**6, 1)):
        queue = Queue(limit, most, producers=1)
        job = Job(Entry("/x"))
        queue.put(Item(job, 0, torch.zeros(3, 8, 8)))  # one frame always may wait
        ended = []

        def put(queue=queue, job=job, ended=ended):
            with pytest.raises(Stopped):
                queue.put(Item(job, 1, torch.zeros(3, 8, 8)))
            ended.append(True)

        thread = threading.Thread(target=put)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive(), (limit, most)
        queue.stop()
        thread.join(60)
        assert ended == [True]
        assert len(queue.take(8, 0.01) or []) == 1


def test_the_limit_is_the_model_if_it_hardly_waits():
    assert [Summary(seconds=1.0, starved=starved).limit for starved in (0.0, 0.19, 0.21)] == ["model"] * 2 + ["decoder"]


@pytest.mark.parametrize("cores", [1, 100])
@pytest.mark.parametrize("slow", ["decoder", "model"])
def test_the_model_waits_for_the_decoder_and_not_for_itself(demo, folder, tmp_path, monkeypatch, slow, cores):
    from nsfw_guard.scan import engine

    def slowly(call):
        def called(*args, **options):
            time.sleep(0.3)
            return call(*args, **options)

        return called

    monkeypatch.setattr(engine, "cores", lambda: cores)
    if slow == "decoder":
        monkeypatch.setattr(engine, "decode", slowly(engine.decode))
    else:
        monkeypatch.setattr(demo, "classify", slowly(demo.classify))
    summary = scan(demo, tmp_path / "out", folder)
    # Bounds that a busy machine does not break: five contents by two threads are 0.9 s of waiting.
    waited = summary.starved if slow == "decoder" else summary.seconds - summary.starved
    assert waited > 0.25, summary
    assert summary.done == 6


def test_in_int8_by_onnx_runtime_the_same_is_flagged(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    for name, more in (("plain", []), ("int8", ["--runtime", "onnx", "--dtype", "int8"])):
        assert command(folder, "--out", tmp_path / name, *more).exit_code == 1
    plain, small = ({path: row.flagged for path, row in rows_of(tmp_path / name).items()} for name in ("plain", "int8"))
    assert plain == small
    assert len(plain) == 6


def frame_items(count):
    from nsfw_guard.scan.entry import Entry
    from nsfw_guard.scan.work import Item, Job

    return [Item(Job(Entry("/x")), index, torch.zeros(3, 2, 2)) for index in range(count)]


def in_thread(call):
    """Start a call; return a function that waits for it, and its thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()

    def result():
        thread.join(60)
        assert not thread.is_alive()
        return found[0]

    return result, thread


def test_in_turn_producers_wait_while_the_model_works():
    from nsfw_guard.scan.work import Queue

    queue = Queue(10**6, 100, producers=1, in_turn=True)
    first, second, third, fourth = frame_items(4)
    queue.put(first)
    taking, thread = in_thread(lambda: queue.take(2, 1e6))
    thread.join(0.2)
    assert thread.is_alive()  # one of two
    queue.put(second)
    assert taking() == [first, second]
    putting, thread = in_thread(lambda: queue.put(third))
    thread.join(0.2)
    assert thread.is_alive()  # it is the model's turn
    assert queue.take(1, 1e6) == [third]
    putting()
    assert queue.take(1, 0) == []  # nor for ever, if there is nothing
    queue.put(fourth)
    queue.done()
    assert queue.take(2, 1e6) == [fourth]
    assert queue.take(2, 1e6) is None


def test_in_turn_does_not_wait_for_a_batch_that_has_no_room():
    from nsfw_guard.scan.work import Queue

    one, other = frame_items(2)
    queue = Queue(one.nbytes, 100, producers=1, in_turn=True)
    queue.put(one)
    putting, _ = in_thread(lambda: queue.put(other))
    taking, _ = in_thread(lambda: queue.take(2, 1e6))
    assert taking() == [one]
    assert queue.take(1, 1e6) == [other]
    putting()


def test_producers_that_are_slower_than_the_model_need_not_wait_for_it(monkeypatch):
    from nsfw_guard.scan import work

    clock = itertools.chain([0.0] * 3, itertools.repeat(1.0))  # the model took no time, and then waits for a second
    monkeypatch.setattr(work, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    queue = work.Queue(10**6, 100, producers=1, in_turn=True)
    first, second, *more = frame_items(5)
    queue.put(first)
    assert queue.take(1, 1e6) == [first]
    taking, _ = in_thread(lambda: queue.take(1, 1e6))
    queue.put(second)
    assert taking() == [second]
    putting, _ = in_thread(lambda: [queue.put(item) for item in more])
    putting()  # would wait
    assert queue.take(8, 1e6) == more


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize(("limit", "most"), [(10**6, 64), (30, 64), (10**6, 3)])
def test_whatever_is_put_in_comes_out_once_and_in_order(in_turn, limit, most):
    from nsfw_guard.scan.work import Item, Queue

    queue = Queue(limit, most, producers=3, in_turn=in_turn)
    given = [frame_items(40) for _ in range(3)]
    for items in given:
        items[::5] = [Item(item.job) for item in items[::5]]  # ends of files

    def produce(items):
        for item in items:
            queue.put(item)
        queue.done()

    producing = [in_thread(lambda items=items: produce(items))[0] for items in given]
    found = []
    while (taken := queue.take(4, 0.05)) is not None:
        assert sum(item.pixels is not None for item in taken) <= 4
        found += taken
    for wait in producing:
        wait()
    assert len(found) == 120
    for items in given:
        mine = {id(item): at for at, item in enumerate(items)}
        assert [mine[id(item)] for item in found if id(item) in mine] == list(range(40))


@pytest.mark.parametrize(("cores", "in_turn"), [(1, True), (100, False)])
def test_on_a_cpu_whose_cores_do_not_suffice_for_both_it_goes_in_turn(
    demo, folder, tmp_path, monkeypatch, cores, in_turn
):
    from nsfw_guard.scan import engine

    made = []

    class Watched(engine.Queue):
        def __init__(self, *args, **options):
            made.append(options)
            super().__init__(*args, **options)

    monkeypatch.setattr(engine, "Queue", Watched)
    monkeypatch.setattr(engine, "cores", lambda: cores)
    scan(demo, tmp_path / "out", folder)
    assert made == [{"in_turn": in_turn}]
    assert len(rows_of(tmp_path / "out")) == 6


# What is done with flagged files.


def act(demo, kind, folder, to, out, guard=None, dry_run=False, redaction="blur"):
    from nsfw_guard import Redaction

    found = parse_sources([str(folder)])
    actions = Actions(
        kind, to, sources=found, given=[str(folder)], out=out, redaction=Redaction.parse(redaction), dry_run=dry_run
    )
    run_scan(guard or demo, found, out, ScanSettings(workers=2), actions=actions)
    return actions


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


FLAGGED = ["copy of d.png", "sub/d.png", "sub/deep/e.jpg"]


def test_move(demo, folder, tmp_path):
    content = (folder / "sub/d.png").read_bytes()
    actions = act(demo, "move", folder, tmp_path / "to", tmp_path / "out")
    assert files_in(tmp_path / "to") == FLAGGED
    assert files_in(folder) == ["a.png", "b.jpg", "sub/c.webp"]
    assert (tmp_path / "to/sub/d.png").read_bytes() == content
    assert (actions.done, actions.failed) == (3, {})
    log = [json.loads(line) for line in (tmp_path / "out/actions.jsonl").read_text().splitlines()]
    assert {entry["path"] for entry in log} == {str(folder / name) for name in FLAGGED}
    assert {entry["to"] for entry in log} == {str(tmp_path / "to" / name) for name in FLAGGED}
    assert len(rows_of(tmp_path / "out")) == 6  # what was found is still known


@pytest.mark.parametrize("kind", ["copy", "link"])
def test_copy_and_link_leave_the_originals_and_do_nothing_twice(demo, folder, tmp_path, kind):
    before = files_in(folder)
    act(demo, kind, folder, tmp_path / "to", tmp_path / "out")
    again = act(demo, kind, folder, tmp_path / "to", tmp_path / "out")
    assert files_in(folder) == before
    assert files_in(tmp_path / "to") == FLAGGED
    assert again.done == 3
    for name in FLAGGED:
        assert (tmp_path / "to" / name).is_symlink() == (kind == "link")
        assert (tmp_path / "to" / name).read_bytes() == (folder / name).read_bytes()
    assert len((tmp_path / "out/actions.jsonl").read_text().splitlines()) == 3


def test_redact_to_writes_redacted_copies_only(demo, folder, tmp_path):
    act(demo, "redact", folder, tmp_path / "to", tmp_path / "out")
    act(demo, "redact", folder, tmp_path / "to", tmp_path / "out")
    assert files_in(tmp_path / "to") == FLAGGED
    for name in FLAGGED:
        with Image.open(tmp_path / "to" / name) as redacted, Image.open(folder / name) as original:
            assert redacted.format == original.format
            difference = np.abs(np.asarray(redacted, dtype=float) - np.asarray(original, dtype=float))
        assert difference.mean() > 2


def test_actions_take_up_what_an_earlier_scan_has_flagged(demo, folder, tmp_path):
    scan(demo, tmp_path / "out", folder)
    actions = act(demo, "copy", folder, tmp_path / "to", tmp_path / "out")
    assert actions.done == 3
    assert files_in(tmp_path / "to") == FLAGGED


def test_nothing_is_overwritten(demo, folder, tmp_path):
    (tmp_path / "to/sub").mkdir(parents=True)
    (tmp_path / "to/sub/d.png").write_text("somebody else's")
    act(demo, "move", folder, tmp_path / "to", tmp_path / "out")
    assert (tmp_path / "to/sub/d.png").read_text() == "somebody else's"
    (other,) = (tmp_path / "to/sub").glob("d.*.png")
    assert Image.open(other).size == (96, 96)
    assert not (folder / "sub/d.png").exists()


def test_dry_run_names_them_and_touches_nothing(demo, folder, tmp_path):
    before = files_in(folder)
    actions = act(demo, "move", folder, tmp_path / "to", tmp_path / "out", dry_run=True)
    assert actions.planned == {str(folder / name): str(tmp_path / "to" / name) for name in FLAGGED}
    assert files_in(folder) == before
    assert not (tmp_path / "to").exists()
    assert not (tmp_path / "out/actions.jsonl").exists()
    assert actions.done == 0


def test_a_file_that_changed_after_its_scan_is_not_moved(demo, folder, tmp_path):
    found = parse_sources([str(folder)])
    from nsfw_guard import Redaction

    actions = Actions("move", tmp_path / "to", sources=found, given=[], out=tmp_path, redaction=Redaction())
    path = str(folder / "sub/d.png")
    actions.on_rows([Row(path, size=1, mtime=2.0, flagged=True)])
    assert "changed since it was scanned" in actions.failed[path]
    assert (folder / "sub/d.png").exists()
    assert files_in(tmp_path / "to") == []


def test_a_folder_to_move_to_inside_the_source_is_refused(demo, folder, tmp_path):
    with pytest.raises(SettingError, match="which is scanned"):
        act(demo, "move", folder, folder / "flagged", tmp_path / "out")


@pytest.mark.parametrize("pattern", ["sub/d.png", "sub/*.png", "list"])
def test_a_file_that_lies_where_it_would_go_is_never_removed(folder, tmp_path, pattern):
    """Its own copy would be compared with itself."""
    arguments = [folder / pattern]
    if pattern == "list":
        (tmp_path / "list.txt").write_text(str(folder / "sub/d.png"))
        arguments = ["--list", tmp_path / "list.txt"]
    to = Path("/") if pattern == "list" else folder / "sub"
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    for kind in ("--move", "--copy", "--link", "--redact-to"):
        if pattern == "list":
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                result = command(*arguments, "--out", tmp_path / "out", kind, folder)
        else:
            result = command(*arguments, "--out", tmp_path / "out", kind, to)
        assert result.exit_code == 2, kind
        assert "where it would go; choose a folder outside of the sources" in result.stderr
        assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_a_target_reached_through_a_linked_folder_is_still_the_file_itself(demo, folder, tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "to/sub").symlink_to(folder / "sub")
    actions = act(demo, "move", folder, tmp_path / "to", tmp_path / "out")
    assert set(actions.failed) == {str(folder / "sub/d.png"), str(folder / "sub/deep/e.jpg")}
    assert files_in(folder) == ["a.png", "b.jpg", "sub/c.webp", "sub/d.png", "sub/deep/e.jpg"]


def test_a_link_to_the_original_is_no_copy_of_it(demo, folder, tmp_path):
    content = (folder / "sub/d.png").read_bytes()
    act(demo, "link", folder, tmp_path / "to", tmp_path / "out")
    act(demo, "move", folder, tmp_path / "to", tmp_path / "out")
    (moved,) = [path for path in (tmp_path / "to/sub").glob("d*.png") if not path.is_symlink()]
    assert moved.read_bytes() == content
    assert not (folder / "sub/d.png").exists()


def test_a_move_to_another_file_system_is_a_copy_first(demo, folder, tmp_path, monkeypatch):
    link = os.link

    def refused(source, target):
        if str(source).startswith(str(folder)):
            raise OSError(18, "Invalid cross-device link")
        link(source, target)

    content = {name: (folder / name).read_bytes() for name in FLAGGED}
    monkeypatch.setattr(os, "link", refused)
    actions = act(demo, "move", folder, tmp_path / "to", tmp_path / "out")
    assert (actions.done, actions.failed) == (3, {})
    assert {name: (tmp_path / "to" / name).read_bytes() for name in files_in(tmp_path / "to")} == content
    assert files_in(folder) == ["a.png", "b.jpg", "sub/c.webp"]


def test_a_link_is_moved_as_what_it_shows_and_what_it_leads_to_stays(demo, tmp_path):
    original = draw(tmp_path / "blobs/1.png", "triangle")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.png").symlink_to("../blobs/1.png")
    actions = act(demo, "move", tmp_path / "in", tmp_path / "far/away", tmp_path / "out")
    assert actions.failed == {}
    assert files_in(tmp_path / "in") == []
    assert not (tmp_path / "far/away/x.png").is_symlink()
    assert (tmp_path / "far/away/x.png").read_bytes() == original.read_bytes()


def test_another_name_of_a_moved_file_is_moved_too(demo, tmp_path):
    draw(tmp_path / "in/a.png", "triangle")
    os.link(tmp_path / "in/a.png", tmp_path / "in/b.png")
    act(demo, "copy", tmp_path / "in", tmp_path / "to", tmp_path / "out")
    (tmp_path / "to/a.png").unlink()
    os.link(tmp_path / "in/a.png", tmp_path / "to/a.png")  # as a tool that saves space does
    actions = act(demo, "move", tmp_path / "in", tmp_path / "to", tmp_path / "out")
    assert actions.failed == {}
    assert (files_in(tmp_path / "in"), files_in(tmp_path / "to")) == ([], ["a.png", "b.png"])


def test_a_link_whose_file_was_moved_before_is_said_to_lead_nowhere(tmp_path):
    from nsfw_guard import Redaction

    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.png").symlink_to("y.png")
    found = parse_sources([str(tmp_path / "in")])
    actions = Actions("move", tmp_path / "to", sources=found, given=[], out=tmp_path, redaction=Redaction())
    actions.on_rows([Row(str(tmp_path / "in/x.png"), size=1, mtime=2.0, flagged=True)])
    assert "a link to a file that is not there any more" in actions.failed[str(tmp_path / "in/x.png")]


def test_what_an_encoder_cannot_do_does_not_end_the_scan(demo, folder, tmp_path, monkeypatch):
    from nsfw_guard.scan import actions as module

    redact = module.redact_file

    def failing(data, kind, *args, **options):
        if kind == "JPEG":
            raise KeyError("no such encoder")
        return redact(data, kind, *args, **options)

    monkeypatch.setattr(module, "redact_file", failing)
    actions = act(demo, "redact", folder, tmp_path / "to", tmp_path / "out")
    assert actions.failed == {str(folder / "sub/deep/e.jpg"): "KeyError: 'no such encoder'"}
    assert files_in(tmp_path / "to") == FLAGGED[:2]


def test_a_full_disk_ends_what_is_done_with_flagged_files(demo, folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nsfw_guard.scan.actions.place_new", full)
    with pytest.raises(OSError, match="No space left"):
        act(demo, "copy", folder, tmp_path / "to", tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 6


def test_an_animation_under_the_name_of_a_picture_is_redacted(demo, tmp_path):
    draw(tmp_path / "x.png", "triangle")
    with Image.open(tmp_path / "x.png") as picture:
        (tmp_path / "in").mkdir()
        picture.save(tmp_path / "in/x.jpg", "GIF", save_all=True, append_images=[picture.rotate(90)], duration=50)
    actions = act(demo, "redact", tmp_path / "in", tmp_path / "to", tmp_path / "out")
    assert (actions.done, actions.failed) == (1, {})
    with Image.open(tmp_path / "to/x.jpg") as redacted:
        assert redacted.format == "JPEG"


def test_a_redacted_copy_has_none_of_the_metadata(demo, tmp_path):
    draw(tmp_path / "x.png", "triangle")
    exif = Image.Exif()
    exif[0x010E] = "SECRET"
    (tmp_path / "in").mkdir()
    with Image.open(tmp_path / "x.png") as picture:
        picture.save(tmp_path / "in/x.jpg", exif=exif, comment=b"SECRET", icc_profile=b"SECRET")
        picture.save(tmp_path / "in/x.webp", exif=exif, xmp=b"SECRET")
        picture.save(tmp_path / "in/x.gif", comment=b"SECRET", save_all=True, append_images=[picture.rotate(90)])
    act(demo, "redact", tmp_path / "in", tmp_path / "to", tmp_path / "out")
    assert files_in(tmp_path / "to") == ["x.gif", "x.jpg", "x.webp"]
    assert not [name for name in files_in(tmp_path / "to") if b"SECRET" in (tmp_path / "to" / name).read_bytes()]


def test_members_of_archives_are_copied_once_also_where_their_name_is_taken(demo, folder, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder / "sub/d.png", "d.png")
    (tmp_path / "to/a.tar").mkdir(parents=True)
    (tmp_path / "to/a.tar/d.png").write_text("somebody else's")
    for _ in range(3):  # first made of its row, then of its entry in the listing
        actions = act(demo, "copy", tmp_path / "a.tar", tmp_path / "to", tmp_path / "out")
        assert (actions.done, actions.failed) == (1, {})
    assert len(files_in(tmp_path / "to")) == 2


def test_members_of_archives_are_not_moved_and_that_is_said(folder, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(folder / "sub/d.png", "../d.png")
    result = command(tmp_path / "a.zip", "--out", tmp_path / "out", "--move", tmp_path / "to")
    assert result.exit_code == 2
    assert "is no local file of its own; use --copy" in result.stderr
    assert "1 flagged files could not be dealt with" in result.stderr


def test_a_folder_that_a_pattern_reaches_is_refused_to_move_to(demo, folder, tmp_path):
    for source in (f"{folder}/**/*.png", f"file://{folder}"):
        result = command(source, "--out", tmp_path / "out", "--move", folder / "flagged")
        assert result.exit_code == 2, source
        assert "which is scanned" in result.stderr


def test_rows_of_flagged_files_stay_when_a_list_still_names_them(folder, tmp_path):
    """Moved by the first run, they are not there in the second one; and each is named twice."""
    names = sorted(str(path) for path in folder.rglob("*.*"))
    (tmp_path / "list.txt").write_text("\n".join(names * 2))
    arguments = ["--list", tmp_path / "list.txt", "--out", tmp_path / "out", "--move", tmp_path / "to", "--json"]
    for run in range(3):
        counts = json.loads(command(*arguments).stdout)
        assert (counts["files"], counts["flagged"], counts["errors"]) == (6, 3, 3 if run else 0)
        assert sum(row.flagged is True for row in rows_of(tmp_path / "out").values()) == 3


def test_overlapping_sources_are_counted_once_also_when_resumed(demo, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_PART", 1)
    for _ in range(2):
        summary = scan(demo, tmp_path / "out", folder, folder, folder / "sub", folder / "sub/d.png")
        assert (summary.files, summary.flagged) == (6, 3)


# The command.


def test_the_command_says_what_it_found(folder, tmp_path):
    (folder / "notes.txt").write_text("no picture")
    result = command(folder, "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert "6 files: 3 flagged (50.00%), 0 could not be looked at." in result.stdout
    assert "5 scored, 1 duplicates, 0 done before" in result.stdout
    assert "Passed over: 1 other type." in result.stdout
    assert f"nsfw-guard report {tmp_path / 'out'}" in result.stdout


def test_exit_code_0_is_for_what_is_all_looked_at_and_clean(folder, tmp_path):
    assert command(folder / "a.png", folder / "b.jpg", "--out", tmp_path / "out").exit_code == 0
    (folder / "x.jpg").write_text("no picture")
    assert command(folder / "a.png", folder / "x.jpg", "--out", tmp_path / "out").exit_code == 1


def test_the_summary_as_json(folder, tmp_path):
    result = command(folder, "--out", tmp_path / "out", "--json", "--copy", tmp_path / "to")
    summary = json.loads(result.stdout)
    assert (summary["files"], summary["flagged"], summary["acted"]) == (6, 3, 3)
    assert summary["limit"] in ("model", "decoder")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "There is nothing to scan"),
        (["nowhere.png"], "There is no file or folder nowhere.png"),
        (["{folder}", "--move", "x", "--copy", "y"], "Choose one of"),
        (["{folder}", "--dry-run"], "--dry-run goes with"),
        (["{folder}", "--format", "xml"], "--format is 'xml'"),
        (["{folder}", "--every", "0"], "every is 0"),
        (["{folder}", "--workers", "0"], "workers is 0"),
        (["{folder}", "--threshold", "2"], "threshold is 2.0"),
        (["{folder}", "--redact-to", "x", "--redaction", "none"], "choose another redaction"),
        (["{folder}", "--list", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_arguments(folder, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = command(*(argument.format(folder=folder) for argument in arguments), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out/parts").exists()


def test_an_empty_folder_is_said_to_be_empty(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").touch()
    result = command(tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "no picture or video" in result.stderr
    assert "1 other type" in result.stderr


def test_reading_rows_needs_neither_torch_nor_a_model():
    code = "import sys, nsfw_guard.scan.parts; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    assert parts.FORMATS == FORMATS
