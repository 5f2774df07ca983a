"""What is done with flagged files by several processes at once, killed, or on file systems without hard links."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
from scanning import draw
from typer.testing import CliRunner

from nsfw_guard import Redaction
from nsfw_guard.cli import app
from nsfw_guard.scan.actions import Actions
from nsfw_guard.scan.row import Row
from nsfw_guard.scan.sources import parse_sources

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def act(source, to, out, kind, links):
    """Act on every file of a folder as if each were flagged; return how it ended."""
    if links == "refused":

        def refused(*_, **__):
            raise OSError(errno.EPERM, "Operation not permitted")

        os.link = refused
    Path(out).mkdir(exist_ok=True)
    sources = parse_sources([str(source)])
    actions = Actions(kind, Path(to), sources=sources, given=[str(source)], out=Path(out), redaction=Redaction())
    for entry in sources.entries():
        actions.on_flagged(entry)
    return 2 if actions.failed else 0


def forked(*arguments, die_at=0):
    """Act in a child, which is killed before the nth of its steps on the disk; return how that ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    steps = 0

    def dying(real):
        def step(*args, **options):
            nonlocal steps
            steps += 1
            if steps == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return step

    code = 3
    try:
        for name in ("link", "unlink", "fsync", "rename", "replace", "symlink"):
            setattr(os, name, dying(getattr(os, name)))
        code = act(*arguments)
    finally:
        os._exit(code)


def together(*calls):
    """Act in a child for each call, all of which begin at once; return how they ended."""
    gate, opened = os.pipe()
    children = []
    for arguments in calls:
        child = os.fork()
        if not child:
            code = 3
            try:
                os.close(opened)
                os.read(gate, 1)
                code = act(*arguments)
            finally:
                os._exit(code)
        children.append(child)
    os.close(gate)
    os.close(opened)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def contents(folder):
    return sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def fill(folder, who, count=200):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(f"{who} {number}".encode())


@pytest.mark.parametrize("kind", ["move", "copy"])
@pytest.mark.parametrize("links", ["there", "refused"])
def test_processes_that_act_into_one_folder_lose_nothing(tmp_path, kind, links):
    for who in range(3):
        fill(tmp_path / f"in{who}", who)
    calls = [(tmp_path / f"in{who}", tmp_path / "to", tmp_path / f"out{who}", kind, links) for who in range(3)]
    codes = together(*calls)
    assert codes == [0, 0, 0]
    assert contents(tmp_path / "to") == sorted(f"{who} {number}".encode() for who in range(3) for number in range(200))
    for who in range(3):
        assert len(contents(tmp_path / f"in{who}")) == (0 if kind == "move" else 200)


@pytest.mark.parametrize("links", ["there", "refused"])
def test_processes_that_move_the_same_files_lose_nothing(tmp_path, links):
    """Which of them moves a file is open, and the other says so; each content is there."""
    fill(tmp_path / "in", "x")
    together(*((tmp_path / "in", tmp_path / "to", tmp_path / f"out{who}", "move", links) for who in range(3)))
    assert {*contents(tmp_path / "in"), *contents(tmp_path / "to")} == {f"x {number}".encode() for number in range(200)}
    assert not list((tmp_path / "to").glob(".*"))


@pytest.mark.parametrize("kind", ["move", "copy", "link"])
@pytest.mark.parametrize("links", ["there", "refused"])
def test_killed_before_every_step_it_goes_on(tmp_path, kind, links):
    for die_at in range(1, 20):
        case = tmp_path / str(die_at)
        case.mkdir()
        fill(case / "in", "x", 2)
        code = forked(case / "in", case / "to", case / "out", kind, links, die_at=die_at)
        if code == 0:
            break
        assert code == -9
        expected = [b"x 0", b"x 1"]
        assert {*contents(case / "in"), *contents(case / "to")} >= set(expected)
        assert forked(case / "in", case / "to", case / "out", kind, links) == 0
        if links == "there":
            assert contents(case / "to") == ([] if kind == "link" else expected)
        else:  # a part may be left, beside the whole
            assert kind == "link" or set(contents(case / "to")) >= set(expected)
        assert contents(case / "in") == ([] if kind == "move" else expected)
        assert not list(case.rglob(".*.tmp"))
    assert die_at > 2


@pytest.mark.parametrize("kind", ["move", "copy", "redact", "link"])
@pytest.mark.parametrize("links", ["there", "refused"])
def test_a_file_that_comes_between_the_look_and_the_move_stays(tmp_path, monkeypatch, kind, links):
    path = draw(tmp_path / "in/x.png", "triangle")
    if links == "refused":

        def refused(*_, **__):
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(os, "link", refused)
    say = Actions._say

    def meanwhile(self, entry, target):
        say(self, entry, target)
        if target.name == "x.png":
            target.write_bytes(b"theirs")

    monkeypatch.setattr(Actions, "_say", meanwhile)
    sources = parse_sources([str(tmp_path / "in")])
    (tmp_path / "out").mkdir()
    actions = Actions(
        kind, tmp_path / "to", sources=sources, given=[], out=tmp_path / "out", redaction=Redaction("fill")
    )
    for entry in sources.entries():
        actions.on_flagged(entry)
    assert (actions.failed, actions.done) == ({}, 1)
    assert (tmp_path / "to/x.png").read_bytes() == b"theirs"
    (other,) = (tmp_path / "to").glob("x.*.png")
    assert path.exists() == (kind != "move")
    assert other.is_symlink() == (kind == "link")
    log = [json.loads(line) for line in (tmp_path / "out/actions.jsonl").read_text().splitlines()]
    assert log[-1]["to"] == str(other)


def test_a_picture_that_comes_while_another_is_checked_stays(tmp_path, monkeypatch):
    from nsfw_guard import NsfwGuard

    paths = [draw(tmp_path / f"in/{shape}.png", shape) for shape in ("circle", "triangle")]
    check = NsfwGuard.check

    def meanwhile(self, images, **options):
        for path in paths:
            (tmp_path / "to" / path.name).write_bytes(b"theirs")
        return check(self, images, **options)

    monkeypatch.setattr(NsfwGuard, "check", meanwhile)
    (tmp_path / "to").mkdir()
    for path in paths:
        result = CliRunner(env={"COLUMNS": "200"}).invoke(
            app, ["check", str(path), "--model", "demo", "--redact-to", str(tmp_path / "to")]
        )
        assert result.exit_code == 2
        assert "exists and is not overwritten" in result.stderr
        (tmp_path / "to" / path.name).unlink()
    assert not list((tmp_path / "to").iterdir())


def test_a_link_to_nothing_is_not_written_through(tmp_path):
    draw(tmp_path / "in/x.png", "circle")
    (tmp_path / "to").mkdir()
    (tmp_path / "to/x.png").symlink_to("nowhere.png")
    arguments = ["check", str(tmp_path / "in/x.png"), "--model", "demo", "--redact-to", str(tmp_path / "to")]
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["x.png"]


def test_a_report_does_not_replace_what_came_to_its_name_while_it_was_made(tmp_path, monkeypatch):
    from nsfw_guard.errors import SettingError
    from nsfw_guard.scan.parts import write_part
    from nsfw_guard.scan.report import write as module

    (tmp_path / "parts").mkdir()
    (tmp_path / "scan.json").write_text('{"schema_version": 1}')
    write_part(tmp_path / "parts/part-000001.jsonl", [Row("/x.png", flagged=False, score=0.1)], [])
    build = module.build_page

    def meanwhile(*args):
        (tmp_path / "report.html").write_text("theirs")
        return build(*args)

    monkeypatch.setattr(module, "build_page", meanwhile)
    with pytest.raises(SettingError, match="exists and is no report"):
        module.write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "theirs"
    monkeypatch.undo()
    (tmp_path / "report.html").unlink()
    module.write_report(tmp_path)
    module.write_report(tmp_path)  # a report is replaced
    assert not list(tmp_path.glob(".*.tmp"))
