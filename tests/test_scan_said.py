"""What a scan says: names, numbers, and what it leaves out."""

import json
import os

import pytest
from scanning import draw
from typer.testing import CliRunner

from nsfw_guard.cli import app
from nsfw_guard.scan import said
from nsfw_guard.scan.listing import Listing
from nsfw_guard.scan.sources import parse_sources
from nsfw_guard.scan.summary import NAMED, Summary

pytestmark = pytest.mark.usefixtures("one_thread")


def command(*arguments):
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, ["scan", *map(str, arguments), "--model", "demo", "--dtype", "float32"])


def flagged(folder, count):
    """Files of one flagged content, which is scored once."""
    data = draw(folder / "000.png", "triangle").read_bytes()
    for number in range(1, count):
        (folder / f"{number:03}.png").write_bytes(data)


def test_a_dry_run_says_how_many_it_does_not_name(tmp_path):
    flagged(tmp_path / "in", 23)
    arguments = [tmp_path / "in", "--out", tmp_path / "out", "--dry-run", "--move", tmp_path / "to"]
    result = command(*arguments)
    assert "Dry run. To move: 23 files." in result.stdout
    assert result.stdout.count(" → ") == NAMED
    assert "… and 13 more; --json names them all." in result.stdout
    assert len(json.loads(command(*arguments, "--json").stdout)["planned"]) == 23
    few = command(tmp_path / "in/000.png", "--out", tmp_path / "few", "--dry-run", "--move", tmp_path / "to")
    assert "more;" not in few.stdout


def test_files_that_could_not_be_dealt_with_beyond_ten_are_counted(tmp_path):
    flagged(tmp_path / "in", 14)
    to = tmp_path / "to"
    to.mkdir()
    (to / "sub").write_text("no folder")
    (tmp_path / "in").rename(tmp_path / "sub")
    (tmp_path / "in").mkdir()
    (tmp_path / "sub").rename(tmp_path / "in/sub")
    result = command(tmp_path / "in", "--out", tmp_path / "out", "--move", to)
    assert result.exit_code == 2
    assert result.stderr.count("error: /") == NAMED
    assert "… and 4 more; --json names them all." in result.stderr


def test_files_that_could_not_be_looked_at_are_named(tmp_path):
    draw(tmp_path / "in/good.png")
    for number in range(NAMED + 3):
        (tmp_path / f"in/bad{number}.jpg").write_text(f"no picture {number}")
    for why in ("is neither a picture nor a video", "could not be looked at before either, and has not changed"):
        result = command(tmp_path / "in", "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert "13 could not be looked at." in result.stdout
        assert result.stderr.count(f"error: {tmp_path / 'in/bad'}") == NAMED
        assert result.stderr.count(why) == NAMED
        assert (
            f"… and 3 more that could not be looked at; all are in: nsfw-guard report {tmp_path / 'out'}"
            in result.stderr
        )
    summary = json.loads(command(tmp_path / "in", "--out", tmp_path / "out", "--json").stdout)
    assert (len(summary["failures"]), summary["errors"]) == (NAMED, 13)


def test_the_bar_knows_its_total_as_soon_as_everything_is_listed(tmp_path, monkeypatch):
    """Of files, lists and archives, too, of which no count runs ahead."""
    for shape in ("circle", "square", "heart"):
        draw(tmp_path / f"in/{shape}.png", shape)
    (tmp_path / "list").write_text("\n".join(map(str, (tmp_path / "in").iterdir())))
    totals = []
    bar = said.bar

    def watched():
        progress = bar()
        update = progress.update

        def noted(task, **values):
            update(task, **values)
            totals.append((progress.tasks[0].completed, progress.tasks[0].total))

        progress.update = noted
        return progress

    monkeypatch.setattr(said, "bar", watched)
    assert command("--list", tmp_path / "list", "--out", tmp_path / "out").exit_code == 0
    assert totals[-1] == (3, 3)
    column = said._Count()
    progress = bar()
    task = progress.add_task("scanning", total=None, note="")
    assert str(column.render(progress.tasks[0])) == "0"
    progress.update(task, total=1234)
    assert str(column.render(progress.tasks[0])) == "0/1,234"


def test_a_listing_says_when_it_is_through(tmp_path):
    draw(tmp_path / "x.png")
    summary = Summary()

    class Nothing:
        def status(self, entry):
            return "new"

        def claim(self, entry):
            pass

    listing = Listing(parse_sources([str(tmp_path / "x.png")]), Nothing(), summary)
    assert listing.next() is not None
    assert not summary.listed
    assert listing.next() is None
    assert summary.listed


@pytest.mark.parametrize(
    ("files", "code", "with_option"),
    [(["circle"], 0, 0), (["circle", "triangle"], 1, 0), (["circle", "broken"], 1, 2), (["triangle", "broken"], 1, 2)],
)
def test_exit_zero(tmp_path, files, code, with_option):
    for name in files:
        if name == "broken":
            (tmp_path / "in/broken.png").write_text("no picture")
        else:
            draw(tmp_path / f"in/{name}.png", name)
    for _ in range(2):
        assert command(tmp_path / "in", "--out", tmp_path / "out").exit_code == code
        assert command(tmp_path / "in", "--out", tmp_path / "out", "--exit-zero").exit_code == with_option


def test_exit_zero_does_not_hide_what_was_not_done(tmp_path):
    draw(tmp_path / "in/triangle.png", "triangle")
    result = command(tmp_path / "in/*.png", "--out", tmp_path / "out", "--move", tmp_path / "in", "--exit-zero")
    assert result.exit_code == 2
    assert command(tmp_path / "nowhere", "--out", tmp_path / "out", "--exit-zero").exit_code == 2


@pytest.mark.parametrize("what", ["part", "copy", "log"])
def test_a_full_disk_is_said_with_its_folder(tmp_path, monkeypatch, what):
    draw(tmp_path / "in/triangle.png", "triangle")
    fsync = os.fsync
    where = {"part": "parts/", "copy": "to/", "log": "actions.jsonl"}[what]

    def full(descriptor):
        if where in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", full)
    result = command(tmp_path / "in", "--out", tmp_path / "out", "--copy", tmp_path / "to")
    assert result.exit_code == 2
    (said_of_it,) = [line for line in result.stderr.splitlines() if "No space left on device" in line]
    assert str(tmp_path / ("to" if what == "copy" else "out")) in said_of_it
    assert "Free some space and run the same command again: it goes on from here." in said_of_it
