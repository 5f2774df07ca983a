"""`nsfw-guard check`: folders, globs and standard input; where copies go; what a full disk leaves."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from nsfw_guard import files as files_module
from nsfw_guard.check_files import list_files, natural
from nsfw_guard.cli import app
from nsfw_guard.demo.shapes import draw
from nsfw_guard.images import to_picture

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments, given=None):
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
    return runner.invoke(app, ["check", *map(str, arguments), "--model", "demo", "--dtype", "float32"], input=given)


def checked(*arguments, **more):
    """Exit code, and file → flagged, or ``"error"``."""
    result = run(*arguments, "--json", **more)
    return result.exit_code, {row["file"]: row.get("flagged", "error") for row in json.loads(result.stdout)}


def shape(path, kind="circle"):
    path.parent.mkdir(parents=True, exist_ok=True)
    to_picture(draw(kind, "red", "white")).save(path, "PNG" if path.suffix not in (".jpg", ".gif") else None)
    return path


@pytest.fixture
def folder(tmp_path):
    """Pictures in three folders, two of them flagged, in an order that no file system keeps by chance."""
    root = tmp_path / "pics"
    for name in ("a10.png", "a2.jpg", "deep/er/b.gif", ".hidden/c.png"):
        shape(root / name)
    shape(root / "deep/t.png", "triangle")
    shape(root / ".t.png", "triangle")
    return root


def test_a_folder_is_every_picture_in_it_in_natural_order(folder):
    code, found = checked(folder)
    assert code == 1
    assert [str(Path(name).relative_to(folder)) for name in found] == [
        ".hidden/c.png", ".t.png", "a2.jpg", "a10.png", "deep/er/b.gif", "deep/t.png",
    ]  # fmt: skip
    assert [name for name, flagged in found.items() if flagged] == [f"{folder}/.t.png", f"{folder}/deep/t.png"]


def test_names_are_sorted_as_people_do_it():
    names = ["b", "a10", "A2", "a1", "a", "a2b", "10", "9"]
    assert sorted(names, key=lambda name: natural((name,))) == ["9", "10", "a", "a1", "A2", "a2b", "a10", "b"]
    assert natural(("a",)) != natural(("A",))


def test_what_is_no_picture_is_counted_and_said(folder):
    (folder / "notes.txt").write_text("notes")
    (folder / "empty").write_bytes(b"")
    (folder / "more.zip").write_bytes(b"PK\3\4")
    (folder / "._a2.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    os.mkfifo(folder / "pipe.png")
    result = run(folder)
    assert result.exit_code == 1
    assert "Passed over in folders: 1 archive, 3 other type, 1 special file." in result.stderr
    assert result.stdout.count("passed") == 4


def test_a_picture_is_looked_at_whatever_its_name(folder, tmp_path):
    for name in ("cute.txt", "x", "y.dat"):
        (folder / name).write_bytes((folder / ".t.png").read_bytes())
    _, found = checked(folder)
    assert all(found[f"{folder}/{name}"] is True for name in ("cute.txt", "x", "y.dat"))


def test_a_film_in_a_folder_is_said_and_not_taken_for_clean(tmp_path):
    shape(tmp_path / "a.png")
    (tmp_path / "b.mp4").write_bytes(b"\0\0\0\x14ftypisom\0\0\2\0isom" + bytes(100))
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "b.mp4: images (120 bytes) is a film; expected a picture" in result.stderr
    assert "nsfw-guard scan" in result.stderr


@pytest.mark.parametrize("content", [[], ["notes.txt"], ["a/"]])
def test_a_folder_without_pictures_is_an_error(tmp_path, content):
    for name in content:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("x")
    result = run(tmp_path, "--exit-zero")
    assert result.exit_code == 2
    passed = r" \(1 other type\)" if "notes.txt" in content else ""
    assert re.search(rf"error: {re.escape(str(tmp_path))}: holds no picture{passed}; expected one", result.stderr)


def test_links_are_followed_and_never_round_in_circles(folder):
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "linked.png").symlink_to(folder / ".t.png")
    code, found = checked(folder)
    assert code == 2
    assert len(found) == 9
    assert (found[f"{folder}/gone.png"], found[f"{folder}/self.png"]) == ("error", "error")
    assert found[f"{folder}/linked.png"] is True


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_an_error(folder):
    (folder / "deep").chmod(0)
    try:
        assert run(folder).exit_code == 2
    finally:
        (folder / "deep").chmod(0o700)


def test_a_broken_picture_in_a_folder_is_named_and_the_others_are_checked(folder):
    (folder / "broken.png").write_bytes((folder / "a10.png").read_bytes()[:80])
    code, found = checked(folder)
    assert (code, len(found)) == (2, 7)
    assert found.pop(f"{folder}/broken.png") == "error"
    assert "error" not in found.values()
    assert f"error: {folder}/broken.png: images (80 bytes) cannot be" in run(folder).stderr


def test_globs_that_no_shell_has_expanded(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert checked("pics/*.png") == (1, {"pics/.t.png": True, "pics/a10.png": False})
    assert list(checked("pics/**/*.gif")[1]) == ["pics/deep/er/b.gif"]
    assert list(checked("pics/{a2,a10}.{jpg,png}")[1])[:1] == ["pics/a2.jpg"]
    shape(folder / "[1].png", "triangle")
    assert checked("pics/[1].png") == (1, {"pics/[1].png": True})
    result = run("pics/*.webp")
    assert result.exit_code == 2
    assert "error: pics/*.webp: matches no picture" in result.stderr


def test_standard_input(folder):
    data = (folder / ".t.png").read_bytes()
    assert checked("-", given=data) == (1, {"-": True})
    assert checked("-", given=b"") == (2, {"-": "error"})
    result = run("-", "--redact-to", folder.parent / "out", given=data)
    assert result.exit_code == 2
    assert "standard input (-) has none" in result.stderr
    assert not (folder.parent / "out").exists()


def test_each_file_is_looked_at_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    listing = list_files(["a2.jpg", ".", "./a2.jpg", str(folder / "deep" / "t.png")])
    assert [file.name for file in listing.files] == [
        "a2.jpg", ".hidden/c.png", ".t.png", "a10.png", "deep/er/b.gif", "deep/t.png",
    ]  # fmt: skip


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_copies_keep_their_place_in_the_folder(folder, tmp_path):
    out = tmp_path / "out"
    assert run(folder, "--redact-to", out).exit_code == 1
    assert files_in(out) == files_in(folder)
    assert (out / "a2.jpg").read_bytes() == (folder / "a2.jpg").read_bytes()
    assert (out / "deep/t.png").read_bytes() != (folder / "deep/t.png").read_bytes()
    assert set(checked(out)[1].values()) == {False}


def test_two_folders_are_told_apart_and_the_same_place_twice_is_refused(folder, tmp_path):
    shape(tmp_path / "other" / "a2.jpg")
    out = tmp_path / "out"
    assert run(folder, tmp_path / "other", "--redact-to", out).exit_code == 1
    assert {"pics/a2.jpg", "other/a2.jpg"} <= set(files_in(out))
    twin = shape(tmp_path / "x" / "a2.jpg")
    result = run(folder / "a2.jpg", twin, "--redact-to", tmp_path / "none")
    assert result.exit_code == 2
    assert f"{folder}/a2.jpg and {twin} would both be written to {tmp_path}/none/a2.jpg" in result.stderr
    assert not (tmp_path / "none").exists()
    assert run(folder / "a2.jpg", folder / "a2.jpg", "--redact-to", tmp_path / "none").exit_code == 0


def test_copies_in_the_folder_itself_are_passed_over_the_next_time(folder):
    for _ in range(2):
        result = run(folder, "--redact-to", folder / "safe", "--json")
        assert len(json.loads(result.stdout)) == 6
    assert "exists and is not overwritten" in result.stderr
    assert "Passed over in folders: 1 folder for copies" in result.stderr


def test_exit_zero_is_for_what_is_flagged_only(folder, tmp_path):
    assert run(folder).exit_code == 1
    assert run(folder, "--exit-zero").exit_code == 0
    assert run(folder, tmp_path / "missing.png", "--exit-zero").exit_code == 2
    assert run(folder, "--policy", "lax", "--exit-zero").exit_code == 2


def test_a_full_disk_names_the_file_and_leaves_nothing_half_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        files_module.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    out = tmp_path / "out"
    result = run(folder / "a2.jpg", "--redact-to", out)
    assert result.exit_code == 2
    assert re.search(rf"error: .*a2.jpg: .*No space left on device: '{re.escape(str(out))}/", result.stderr)
    assert list(out.iterdir()) == []


def test_a_name_that_is_no_text_is_shown(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(name)).write_bytes(shape(tmp_path / "a.png", "triangle").read_bytes())
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.stdout.count("flagged") == 2


FULL = """
import resource, sys
from pathlib import Path
from nsfw_guard import files
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file may grow, as on a full disk
try:
    getattr(files, sys.argv[1])(Path(sys.argv[2]), b"content")
except OSError as error:
    print(error.filename)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of processes")
@pytest.mark.parametrize("how", ["write_whole", "write_synced", "write_new"])
def test_an_error_that_comes_when_a_file_is_closed_names_it_too(tmp_path, how):
    command = [sys.executable, "-c", FULL, how, tmp_path / "page.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"{tmp_path}/"), done.stderr
    assert list(tmp_path.iterdir()) == []


def in_a_process(code, stdout):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, timeout=120)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("as_json", [True, False])
def test_output_that_cannot_be_written_is_no_verdict(folder, as_json):
    arguments = ["check", str(folder / "a2.jpg"), "--model", "demo", *(["--json"] if as_json else [])]
    with open("/dev/full", "w") as full:
        done = in_a_process(f"from nsfw_guard.cli import main\nmain({arguments!r})", full)
    assert done.returncode == 2, done.stderr
    assert "error: [Errno 28] No space left on device: standard output" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_that_nobody_has_thought_of_is_no_verdict():
    code = "from nsfw_guard import cli\ncli.app = lambda *_, **__: {}['x']\ncli.main([])"
    done = in_a_process(code, subprocess.DEVNULL)
    assert done.returncode == 2
    assert "KeyError: 'x'" in done.stderr


def test_a_named_folder_link_is_a_folder(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert len(checked(tmp_path / "link")[1]) == 6
    with Image.open(folder / "a10.png") as picture:
        assert picture.format == "PNG"
