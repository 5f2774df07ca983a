"""Only what lies in the sources is acted on, whatever tables, links and names in archives say."""

import io
import tarfile
import zipfile

import pytest
from scanning import draw, rows_of
from typer.testing import CliRunner

from nsfw_guard.cli import app
from nsfw_guard.scan.sources import parse_sources

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.usefixtures("one_thread")


def command(*arguments):
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, ["scan", *map(str, arguments), "--model", "demo", "--dtype", "float32"])


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def outside(tmp_path):
    """A flagged picture that nobody named, and a table that does."""
    path = draw(tmp_path / "private/x.png", "triangle")
    (tmp_path / "in").mkdir()
    return path


@pytest.mark.parametrize("kind", ["--move", "--copy", "--link", "--redact-to"])
@pytest.mark.parametrize("how", ["absolute", "relative", "file URL", "struct", "in a list of sources"])
def test_what_only_a_table_names_is_looked_at_and_left(tmp_path, outside, kind, how):
    name = {"relative": "../private/x.png", "file URL": f"file://{outside}"}.get(how, str(outside))
    values = [{"bytes": None, "path": name}] if how == "struct" else [name]
    kinds = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if how == "struct" else pa.string()
    pq.write_table(pa.table({"image": pa.array(values, kinds)}), tmp_path / "in/t.parquet")
    before = contents(tmp_path)
    sources = [tmp_path / "in", "--archives"]
    if how == "in a list of sources":
        (tmp_path / "list").write_text(str(tmp_path / "in/t.parquet"))
        sources = ["--list", tmp_path / "list"]
        before = contents(tmp_path)
    for _ in range(2):  # flagged in this run, and in one before
        result = command(*sources, "--column", "image", "--out", tmp_path / "out", kind, tmp_path / "to")
        assert result.exit_code == 2, result.output
        assert "lies outside of the sources: a table names it" in result.stderr
        assert [row.flagged for row in rows_of(tmp_path / "out").values()] == [True]
        assert {
            path: data for path, data in contents(tmp_path).items() if tmp_path / "out" not in path.parents
        } == before


@pytest.mark.parametrize("how", ["folder", "file", "glob", "list", "braces"])
def test_what_is_named_otherwise_too_is_moved(tmp_path, outside, how):
    pq.write_table(pa.table({"image": [str(outside)]}), tmp_path / "in/t.parquet")
    (tmp_path / "list").write_text(f"{outside}")
    also = {
        "folder": [outside.parent],
        "file": [outside],
        "glob": [outside.parent / "*.png"],
        "list": ["--list", tmp_path / "list"],
        "braces": [tmp_path / "{private,nowhere}".replace(",nowhere", ",in") / "x.png"],
    }[how]
    if how == "braces":
        draw(tmp_path / "in/x.png", "circle")
    table = [] if how == "list" else [tmp_path / "in/t.parquet", "--column", "image"]
    result = command(*also, *table, "--out", tmp_path / "out", "--move", tmp_path / "to")
    assert result.exit_code == 1, result.output
    assert not outside.exists()
    assert len(contents(tmp_path / "to")) == 1


def test_a_link_to_a_folder_elsewhere_does_not_make_its_files_ours_to_move(tmp_path, outside):
    (tmp_path / "in/linked").symlink_to("../private")
    draw(tmp_path / "in/real/y.png", "triangle", "yellow")
    (tmp_path / "in/inner").symlink_to("real")
    result = command(tmp_path / "in", "--out", tmp_path / "out", "--move", tmp_path / "to")
    assert result.exit_code == 2
    assert "in a folder that a link leads to. Name that folder, or use --copy." in result.stderr
    assert outside.exists()
    assert len(contents(tmp_path / "to")) == 1
    assert command(tmp_path / "in", "--out", tmp_path / "out", "--copy", tmp_path / "to").exit_code == 1
    assert len(contents(tmp_path / "to")) == 2
    command(tmp_path / "in", outside.parent, "--out", tmp_path / "out", "--move", tmp_path / "to")
    assert not outside.exists()


@pytest.mark.parametrize("name", ["/{}/x.png", "../../private/y.png", "a/../../y.png", "C:\\y.png", "..\\y.png"])
def test_members_are_copied_below_the_folder_whatever_their_names(tmp_path, outside, name):
    data = outside.read_bytes()
    name = name.format(outside.parent)
    with tarfile.open(tmp_path / "in/a.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(tmp_path / "in/a.zip", "w") as archive:
        archive.writestr(name, data)
    before = contents(tmp_path)
    arguments = [tmp_path / "in", "--archives", "--out", tmp_path / "out", "--copy", tmp_path / "to"]
    assert command(*arguments).exit_code == 1
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    new = [path for path in after if path not in before and tmp_path / "out" not in path.parents]
    assert len(new) == 2
    assert all(path.is_relative_to(tmp_path / "to") and path.resolve() == path for path in new)


def test_what_lies_in_sources(tmp_path):
    draw(tmp_path / "a/b/c.png")
    draw(tmp_path / "ab/c.png")
    for source, inside, outside in (
        ("a", ["a/b/c.png", "a/x"], ["ab/c.png", "a"]),
        ("a/b/c.png", ["a/b/c.png"], ["a/b/d.png", "a/b/c.png/x"]),
        ("a/*/*.png", ["a/b/c.png", "a/z/y.png"], ["a/c.png", "ab/c.png", "a/b/c.jpg"]),
        ("a/*", ["a/b/c.png", "a/z/y.png"], ["ab/c.png"]),
        ("a/**/*.png", ["a/b/c.png", "a/c.png", "a/b/b/c.png"], ["ab/c.png"]),
        ("{a,ab}", ["a/b/c.png", "ab/c.png"], ["c.png"]),
    ):
        sources = parse_sources([str(tmp_path / source)])
        for path in inside:
            assert sources.names(str(tmp_path / path)), (source, path)
            assert sources.names(f"zip://x::{tmp_path / path}"), (source, path)
        for path in outside:
            assert not sources.names(str(tmp_path / path)), (source, path)
            assert not sources.names(f"zip://x::{tmp_path / path}"), (source, path)
