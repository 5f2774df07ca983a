"""CSV is written for others, and runs nothing there; what earlier versions kept in it is converted."""

import csv
import json
import os

import pytest
from scanning import draw, rows_of, write_old
from typer.testing import CliRunner

from nsfw_guard.cli import app
from nsfw_guard.files import whole_file
from nsfw_guard.scan import export, store
from nsfw_guard.scan.export import neutral, write_csv
from nsfw_guard.scan.parts import labels_in, part_files, read_rows, write_part
from nsfw_guard.scan.report.latest import latest_rows
from nsfw_guard.scan.report.write import write_report
from nsfw_guard.scan.row import Row
from nsfw_guard.scan.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ["normal", "nsfw"]
ODD = [
    Row(
        '/a\nb,"c".jpg', "ab" * 32, 3, 1.25, 'W/"x"', True, 0.7, 0.5, "high", "score", {"normal": 0.3, "nsfw": 0.7},
        "image", 3, 4, 1, 0, 2, "m@1", "p", "{}", "[[0, [0.3, 0.7]]]", 1.5, "2026-01-01T00:00:00+00:00",
    ),
    Row("/日本\r\n🦊.png", error="bröken"),
    Row("/a\rb.png", error="\r"),
    Row("=cmd()", etag="=1+1", flagged=False, score=0.1 + 0.2, labels={"normal": 1 / 3, "nsfw": 2 / 3}),
    Row('/a,"b"\n', evidence=json.dumps([[0, [0.123456789] * 20_000]]), error='"' * 150_000),
]  # fmt: skip


def old_folder(out, *parts):
    for number, rows in enumerate(parts, start=1):
        write_old(out / f"parts/part-{number:06}.csv", rows, LABELS)
    (out / "scan.json").write_text(json.dumps({"schema_version": 1, "format": "csv", "model": "m@1"}))
    return out


def command(*arguments):
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, ["scan", *map(str, arguments), "--model", "demo", "--dtype", "float32"])


def cells(path):
    with path.open(encoding="utf-8", newline="") as file:
        limit = csv.field_size_limit(10**7)
        try:
            return list(csv.DictReader(file))
        finally:
            csv.field_size_limit(limit)


def opened(out, form):
    return Store(out, form, model="m@1", preprocessing="p", labels=tuple(LABELS))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_folder_of_an_earlier_version_is_converted(tmp_path, form):
    out = old_folder(tmp_path / "out", ODD[:2], ODD[2:])
    assert list(read_rows(out)) == ODD  # also by who only reads it
    kept = opened(out, form)
    kept.close()
    assert {part.suffix for part in (out / "parts").iterdir()} == {".parquet" if form == "parquet" else ".jsonl"}
    assert list(read_rows(out)) == ODD
    again = opened(out, form)
    again.close()
    assert list(read_rows(out)) == ODD


@pytest.mark.parametrize("step", range(4))
def test_the_conversion_can_be_cut_off_after_every_step(tmp_path, monkeypatch, step):
    out = old_folder(tmp_path / "out", ODD[:2], ODD[2:])
    left = [step]

    def dying(real):
        def call(*args, **options):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_part", dying(write_part))
        patch.setattr(type(out), "unlink", dying(type(out).unlink))
        with pytest.raises(KeyboardInterrupt):
            opened(out, "csv")
    assert list(read_rows(out)) == ODD
    assert list(latest_rows(out)) == ODD
    opened(out, "csv").close()
    assert list(read_rows(out)) == ODD
    assert [part.suffix for part in part_files(out)] == [".jsonl"] * 2
    assert not list(out.rglob("*.csv"))


def test_a_folder_of_an_earlier_version_is_gone_on_with(tmp_path):
    for shape in ("circle", "triangle"):
        draw(tmp_path / f"in/{shape}\r\n=1.png", shape)
    arguments = [tmp_path / "in", "--out", tmp_path / "out", "--format", "csv"]
    assert command(*arguments).exit_code == 1
    rows, (part,) = rows_of(tmp_path / "out"), part_files(tmp_path / "out")
    write_old(part.with_suffix(".csv"), rows.values(), labels_in(part))
    part.unlink()
    result = command(*arguments)
    assert result.exit_code == 1, result.output
    assert "0 scored, 0 duplicates, 2 done before" in result.stdout
    assert rows_of(tmp_path / "out") == rows
    assert f"Rows: {tmp_path / 'out/rows.csv'}" in result.stdout
    write_report(tmp_path / "out")


def test_a_damaged_part_of_an_earlier_version_says_what_to_do(tmp_path):
    out = old_folder(tmp_path / "out", ODD[:2])
    part = out / "parts/part-000001.csv"
    part.write_bytes(part.read_bytes()[:-3])
    draw(tmp_path / "in/circle.png")
    result = command(tmp_path / "in", "--out", out, "--format", "csv", "--rejudge")
    assert result.exit_code == 2
    assert f"{part} cannot be read (" in result.stderr
    assert "Delete it and run the same scan again" in result.stderr
    assert part.exists()


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\x00", "\x1b", "＝", "＋", "－", "＠", "'", "\u200b="]
)
def test_no_text_is_run(tmp_path, start):
    text = f"{start}HYPERLINK(0)"
    row = Row(
        text, text, 1, 1.0, text, True, 0.5, 0.5, text, text, {text: 0.5}, text, 1, 1, 1, 0, 1, text, text, text, text,
        1.0, text, text, text,
    )  # fmt: skip
    (tmp_path / "parts").mkdir()
    write_part(tmp_path / "parts/part-000001.jsonl", [row], [text])
    write_csv(tmp_path, iter([row]))
    (record,) = cells(tmp_path / "rows.csv")
    texts = {name: value for name, value in row.to_record().items() if isinstance(value, str)}
    assert len(texts) == 13
    for name, value in texts.items():
        assert record[name] == f"'{value}" == neutral(value), name
    assert all(name[:1].isalpha() for name in record)
    assert record["mtime"] == "1.0"


def test_numbers_and_ordinary_texts_stay(tmp_path):
    rows = [Row("/a;=b.png", "ab" * 32, mtime=-1.5, flagged=False, score=0.25, labels={"x": 1e-07}, error="ä")]
    (tmp_path / "parts").mkdir()
    write_part(tmp_path / "parts/part-000001.jsonl", rows, ["x"])
    write_csv(tmp_path, iter(rows))
    (record,) = cells(tmp_path / "rows.csv")
    assert (record["path"], record["mtime"], record["flagged"], record["p_x"]) == (
        "/a;=b.png",
        "-1.5",
        "False",
        "1e-07",
    )
    assert record["size"] == ""
    assert '"/a;=b.png"' in (tmp_path / "rows.csv").read_text("utf-8")  # for who separates by semicolons


def test_a_name_that_no_text_can_hold_does_not_end_the_export(tmp_path):
    (tmp_path / "parts").mkdir()
    write_csv(tmp_path, iter([Row("/a", etag="\udcff")]))
    assert "\\udcff" in (tmp_path / "rows.csv").read_text("utf-8")


def test_the_export_has_all_rows_of_all_runs_once(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_PART", 1)
    for shape in ("circle", "triangle", "square"):
        draw(tmp_path / f"in/{shape}.png", shape)
    arguments = [tmp_path / "in", "--out", tmp_path / "out", "--format", "csv"]
    command(*arguments)
    draw(tmp_path / "in/heart.png", "heart")
    os.utime(tmp_path / "in/circle.png", (1, 1))
    command(*arguments)
    records = cells(tmp_path / "out/rows.csv")
    rows = rows_of(tmp_path / "out")
    assert sorted(record["path"] for record in records) == sorted(rows)
    for record in records:
        assert float(record["score"]) == rows[record["path"]].score
        assert float(record["p_triangle"]) == rows[record["path"]].labels["triangle"]


def test_a_parquet_folder_is_exported_without_being_converted(tmp_path):
    draw(tmp_path / "in/circle.png")
    command(tmp_path / "in", "--out", tmp_path / "out")
    result = command(tmp_path / "in", "--out", tmp_path / "out", "--format", "csv")
    assert result.exit_code == 0, result.output
    assert [part.suffix for part in part_files(tmp_path / "out")] == [".parquet"]
    assert len(cells(tmp_path / "out/rows.csv")) == 1


def test_an_export_that_cannot_be_written_leaves_the_rows(tmp_path, monkeypatch):
    draw(tmp_path / "in/circle.png")

    def full(path):
        if path.name == "rows.csv":
            raise OSError(28, "No space left on device", str(path))
        return whole_file(path)

    monkeypatch.setattr(export, "whole_file", full)
    result = command(tmp_path / "in", "--out", tmp_path / "out", "--format", "csv")
    assert result.exit_code == 2
    assert f"{tmp_path / 'out/rows.csv'}" in result.stderr
    assert len(rows_of(tmp_path / "out")) == 1
