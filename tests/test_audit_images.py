"""`nsfw-guard audit verify` on the folder of a run: logs that are gone, and pictures that are not what the logs say."""

import errno
import io
import json
import re
import shutil

import pytest
from generations import CIRCLE, SHORT, TRIANGLE
from nsfw_guard.integrations.diffusers_pipeline import attach
from PIL import Image
from test_audit import command

from nsfw_guard.audit import AuditError, AuditLog
from nsfw_guard.audit_head import head_file
from nsfw_guard.demo.generate import load_pipeline
from nsfw_guard.generation import Generation

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [
    {"id": "circle", "prompt": CIRCLE, "seed": 1},
    {"id": "triangle", "prompt": TRIANGLE, "seed": 2},
    {"id": "other", "prompt": CIRCLE, "seed": 5},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, demo):
    """A run that redacts, and one with a quarantine; made once, and copied for each test."""
    folder = tmp_path_factory.mktemp("runs")
    pipe = attach(load_pipeline(), demo)
    settings = {"arguments": SHORT, "batch_size": 1, "name": "demo"}
    list(Generation(pipe, folder / "redacted", **settings).run(ROWS))
    list(Generation(pipe, folder / "kept", on_flag=f"quarantine={folder / 'quarantine'}", **settings).run(ROWS))
    return folder


@pytest.fixture
def out(runs, tmp_path):
    return shutil.copytree(runs / "redacted", tmp_path / "out")


@pytest.fixture
def original(runs):
    (path,) = (runs / "quarantine").iterdir()
    return path


def test_pictures_that_are_as_they_were_written(out, runs, original):
    result = command(out, "--images", out)
    assert result.exit_code == 0, result.stdout
    assert f"{out}: 3 of the 3 pictures in the logs are there as written" in result.stdout
    result = command(runs / "kept", "--images", runs / "kept")
    assert (result.exit_code, "2 of the 2" in result.stdout) == (0, True)
    result = command(runs / "kept", "--images", original.parent)
    assert (result.exit_code, "1 of the 1" in result.stdout) == (0, True)


def test_pictures_may_be_moved_into_folders_below(out):
    (out / "best").mkdir()
    (out / "circle.png").rename(out / "best" / "circle.png")
    assert command(out, "--images", out).exit_code == 0


def resave(out, original):
    with Image.open(out / "circle.png") as picture:
        picture.load()
        picture.save(out / "circle.png")


def swap(out, original):
    (out / "circle.png").rename(out / "x")
    (out / "other.png").rename(out / "circle.png")
    (out / "x").rename(out / "other.png")


def put_pixels_back(out, original):
    """The original in place of the redacted picture, written by somebody else's program."""
    with Image.open(original) as picture:
        picture.load()
        picture.info = {}
        picture.save(out / "triangle.png", compress_level=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out, _: (out / "circle.png").unlink(), ["circle.png is missing"]),
        (resave, ["circle.png was changed: its content is not the one in the log"]),
        (lambda out, _: (out / "circle.png").write_bytes(b""), ["circle.png was changed"]),
        (swap, ["circle.png was changed", "other.png was changed"]),
        (lambda out, _: Image.new("RGB", (9, 9)).save(out / "new.png"), ["new.png is not in the log"]),
        (lambda out, _: Image.new("RGB", (9, 9)).save(out / ".new", "PNG"), [".new is not in the log"]),
        (lambda out, _: shutil.copy(out / "circle.png", out / "z.png"), ["z.png is not in the log under this name"]),
        (lambda out, one: shutil.copy(one, out / one.name), ["shows the original of triangle, which is flagged"]),
        (lambda out, one: shutil.copy(one, out / "triangle.png"), ["shows the original of triangle, which is flagged"]),
        (put_pixels_back, ["triangle.png shows the original of triangle, which is flagged: it is not redacted"]),
    ],
)
def test_pictures_that_are_not_what_the_log_says(out, original, change, said):
    change(out, original)
    assert command(out).exit_code == 0, "the log has not changed"
    result = command(out, "--images", out)
    assert result.exit_code == 1
    problems = [
        line for line in result.stdout.splitlines() if line.startswith(f"{out}: ") and " are there " not in line
    ]
    assert len(problems) == len(said), problems
    for line, words in zip(problems, said, strict=True):
        assert words in line
    found = json.loads(command(out, "--images", out, "--json").stdout)["images"]
    assert len(found["differences"]) == len(said)
    assert found["folder"] == str(out)


def test_an_original_beside_the_kept_pictures_is_said(runs, original, tmp_path):
    out = shutil.copytree(runs / "kept", tmp_path / "out")
    shutil.copy(original, out / "triangle.png")
    result = command(out, "--images", out)
    assert result.exit_code == 1
    assert "triangle.png is the original of a flagged picture" in result.stdout


def test_what_cannot_be_looked_at_is_2(out, tmp_path):
    (out / "circle.png").unlink()
    (out / "circle.png").symlink_to("nowhere.png")
    assert command(out, "--images", out).exit_code == 2
    result = command(out, "--images", tmp_path / "missing")
    assert result.exit_code == 2
    assert re.search("--images is .*missing, and there is no such folder", result.stderr)
    (tmp_path / "empty").mkdir()
    result = command(out, "--images", tmp_path / "empty")
    assert (result.exit_code, result.stdout.count("is missing")) == (1, 3)


def test_an_emptied_log_is_not_intact_whatever_is_beside_it(out):
    log = out / "audit-00000.jsonl"
    log.write_bytes(b"")
    assert command(out).exit_code == 1
    head_file(log).unlink()
    assert command(out).exit_code == 1
    assert command(log).exit_code == 1
    log.unlink()
    result = command(out)
    assert result.exit_code == 1
    assert (
        "audit-00000.jsonl: broken at line 1: is not there, and the run that wrote it has its generation.json here"
        in (result.stdout)
    )


def test_a_head_file_that_a_run_had_is_missed(out):
    log = out / "audit-00000.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    head_file(log).unlink()
    result = command(out)
    assert result.exit_code == 1
    assert "the head file beside the log is not there, which every log of this run had" in result.stdout
    manifest = json.loads((out / "generation.json").read_text())
    assert manifest.pop("heads") is True
    (out / "generation.json").write_text(json.dumps(manifest))  # of an older version
    assert command(out).exit_code == 0


def test_a_run_does_not_go_on_without_a_head_file_that_it_had(out, demo):
    pipe = attach(load_pipeline(), demo)
    head_file(out / "audit-00000.jsonl").unlink()
    with pytest.raises(AuditError, match=r"The head file of .*audit-00000.jsonl is gone; put it back"):
        list(Generation(pipe, out, arguments=SHORT, name="demo").run(ROWS))
    assert not head_file(out / "audit-00000.jsonl").exists()


def test_the_log_of_one_process_that_is_gone_is_seen_by_the_others(tmp_path):
    for index in range(3):
        with AuditLog(tmp_path / f"audit-{index:05d}.jsonl") as log:
            log.append({"event": "start", "run": "x", "process": [index, 3]})
    assert command(tmp_path).exit_code == 0
    (tmp_path / "audit-00001.jsonl").unlink()
    result = command(tmp_path)
    assert (result.exit_code, "is gone, which had 1 lines" in result.stdout) == (1, True)
    head_file(tmp_path / "audit-00001.jsonl").unlink()
    result = command(tmp_path)
    assert result.exit_code == 1
    assert "audit-00001.jsonl: broken at line 1: is not there; 3 processes shared a run" in result.stdout
    assert command(tmp_path / "audit-00000.jsonl").exit_code == 0


def test_a_run_does_not_go_on_without_a_log_that_it_had(out, demo):
    pipe = attach(load_pipeline(), demo)
    with AuditLog(out / "audit-00001.jsonl") as log:
        log.append({"event": "start", "process": [1, 2]})
    (out / "audit-00001.jsonl").unlink()
    with pytest.raises(AuditError, match=r"audit-00001.jsonl is gone, with what it said of images; put it back"):
        list(Generation(pipe, out, arguments=SHORT, name="demo").run(ROWS))


@pytest.mark.parametrize("name", ["run", "id", "file", "sha256", "pixels", "action"])
def test_a_line_that_is_none_of_ours_vouches_for_nothing(out, name):
    """Whoever can write the folder can link anything into a new chain."""
    log = out / "audit-00000.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.unlink()
    head_file(log).unlink()
    with AuditLog(log) as forged:
        for line in lines:
            record = {
                key: value for key, value in line.items() if key not in ("schema", "sequence", "previous", "time")
            }
            del record["hash"]
            forged.append({**record, name: [record.get(name)]})
    result = command(out, "--images", out)
    assert result.exit_code == 1, result.output
    assert len(re.findall("is not in the log", result.stdout)) == 3


def test_a_disk_that_cannot_be_read_is_named(out, monkeypatch):
    log = out / "audit-00000.jsonl"

    class Broken(io.BytesIO):
        def readline(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    real = type(log).open
    monkeypatch.setattr(type(log), "open", lambda path, *how: Broken() if path == log else real(path, *how))
    result = command(log)
    assert result.exit_code == 2
    assert f"Input/output error: '{log}'" in result.stderr
