"""The report as a file: what it contains, what it never contains, how it is written, and the decisions read back."""

import base64
import hashlib
import json
import os
import re

import pytest
from PIL import Image
from scan_report_samples import MODEL, failed, row, row_of, shapes, write_scan
from typer.testing import CliRunner

from nsfw_guard import SettingError
from nsfw_guard.cli import app
from nsfw_guard.scan.report import Decision, read_decisions, write_report
from nsfw_guard.scan.report import write as module
from nsfw_guard.scan.report.decisions import COLUMNS
from nsfw_guard.scan.report.page import to_json

HOSTILE = [
    "</script><script>alert(1)</script>.png",
    "<img src=x onerror=alert(1)>.png",
    "quote\"'`${alert(1)}.png",
    "line\nbreak\r\tand tab.png",
    "\u202egnp.exe\u2066.png",
    "😀 日本語 é.png",
    "=cmd|' /C calc'!A0.png",
    "{{script}} {{pictures}}.png",
    "&lt;b&gt; &amp;.png",
    "long " + "x" * 4000 + ".png",
    "\ud800 lone.png",
    "\u2028\u2029 separators.png",
]


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(argument) for argument in arguments])


def blobs(page):
    """What a page embeds: its data and its pictures."""
    text = page.read_text(encoding="utf-8")
    return [
        json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL).group(1))
        for name in ("data", "pictures")
    ]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of drawn shapes, and the rows about them. Do not write to it."""
    folder = tmp_path_factory.mktemp("drawn")
    return shapes(folder, 24, side=96)


@pytest.fixture
def scan(drawn, tmp_path):
    return write_scan(tmp_path / "scan", [*drawn, failed("/data/x.png", "it is none")])


def test_the_page_holds_what_was_found(scan, drawn):
    flagged = sorted((one.score, one.path) for one in drawn if one.flagged)
    written = write_report(scan)
    data, pictures = blobs(written.path)
    assert written.path == scan / "report.html"
    assert (written.files, written.flagged, written.failed) == (25, len(flagged), 1)
    shown = [item for item in data["items"] if item["group"] == "flagged"]
    assert [(item["score"], item["path"]) for item in shown] == flagged[::-1]
    misses = [item["score"] for item in data["items"] if item["group"] == "miss"]
    assert misses == sorted((one.score for one in drawn if not one.flagged), reverse=True)
    assert [item["path"] for item in data["items"] if item["group"] == "error"] == ["/data/x.png"]
    assert written.pictures == len(pictures) == 24
    assert all(picture.startswith("data:image/") for picture in pictures)
    assert data["counts"]["files"] == 25
    assert sum(data["bins"]["passed"]) + sum(data["bins"]["flagged"]) == 24
    assert data["pictures"] == {"kind": "plain", "count": 24}
    assert written.headline in written.path.read_text(encoding="utf-8")
    assert written.size == written.path.stat().st_size


def test_limits_are_kept_and_say_of_how_many(scan):
    data, pictures = blobs(write_report(scan, limit=2, misses=3).path)
    assert [item["group"] for item in data["items"]] == ["flagged"] * 2 + ["miss"] * 3 + ["error"]
    assert len(pictures) == 5
    assert data["counts"]["flagged"] > 2


def test_without_pictures_there_is_none_and_no_file_is_opened(scan, monkeypatch):
    monkeypatch.setattr(module, "thumbnails", None)
    written = write_report(scan, pictures=False)
    data, pictures = blobs(written.path)
    assert pictures == [None] * 24
    assert (written.pictures, data["pictures"]["kind"]) == (0, "none")
    assert "data:image" not in written.path.read_text(encoding="utf-8").replace("img-src data:", "")


def test_redacted_no_original_pixel_is_in_the_page(tmp_path):
    picture = Image.effect_noise((64, 64), 120).convert("RGB").resize((640, 640), Image.Resampling.NEAREST)
    picture.save(tmp_path / "a.png")
    out = write_scan(tmp_path / "scan", [row_of(tmp_path / "a.png", 0.9), row_of(tmp_path / "a.png", 0.2, sha256=None)])
    plain, redacted = write_report(out, output=tmp_path / "plain.html"), write_report(out, redacted=True)
    (_, [sharp]), (data, [hidden]) = blobs(plain.path), blobs(redacted.path)
    assert len(hidden) < len(sharp) / 3  # what is not there takes no bytes
    assert data["pictures"]["kind"] == "redacted"
    assert redacted.redacted


@pytest.mark.parametrize("name", HOSTILE)
def test_what_files_are_called_is_never_markup(tmp_path, name):
    path = f"/data/{name}"
    rows = [row(path, 0.9, level=name, kind=name, reason=name, model=name), failed(path + "2", f"{path}2 {name}")]
    about = {
        "sources": [path],
        "model": name,
        "policy": {"level": name},
        "labels": [name],
        "summary": {"skipped": {name: 3}},
    }
    written = write_report(write_scan(tmp_path / "scan", rows, **about), title=name)
    text = written.path.read_bytes().decode("utf-8")
    data, _ = blobs(written.path)
    assert [item["path"] for item in data["items"]] == [path, path + "2"]
    assert data["scan"]["sources"] == [path]
    assert text.count("</script>") == 3
    assert text.count("<script") == 3
    assert "<img src=x" not in text
    assert text.count("{{") == text.count("{{pictures}}") + text.count("{{script}}")


def test_the_policy_lets_this_style_and_this_script_run_and_nothing_else(scan):
    text = write_report(scan).path.read_bytes().decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text).group(1)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind, tag in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        digest = hashlib.sha256(re.search(tag, text, re.DOTALL).group(1).encode()).digest()
        assert rules[kind] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text)
    assert "eval(" not in text


def test_numbers_that_json_does_not_have_do_not_break_the_page(tmp_path):
    nan = float("nan")
    rows = [row("/a.jpg", 0.9, size=nan, width=nan, decode_ms=nan, labels={"x": nan}), row("/b.jpg", nan, flagged=True)]
    about = {"policy": {"threshold": nan, "per_label": {"x": nan}}, "summary": {"seconds": nan, "skipped": {"x": nan}}}
    data, _ = blobs(write_report(write_scan(tmp_path / "scan", rows, **about)).path)
    assert data["scan"]["threshold"] == 0.5  # the rows' own
    assert data["scan"]["seconds"] is None


def test_what_json_cannot_hold_is_no_page():
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"score": float("nan")})


def test_so_many_workers_as_one_asks_for(scan, monkeypatch):
    asked = []
    real = module.thumbnails
    monkeypatch.setattr(
        module, "thumbnails", lambda *items, **how: (asked.append(how["workers"]), real(*items, **how))[1]
    )
    write_report(scan, workers=3)
    write_report(scan)
    assert asked == [3, min(8, os.cpu_count())]


def test_a_scan_that_says_nothing_and_an_empty_one_make_a_page(tmp_path):
    out = write_scan(tmp_path / "scan", [], summary=None)
    (out / "scan.json").write_text('{"schema_version": 1}')
    written = write_report(out)
    data, pictures = blobs(written.path)
    assert written.headline == "0 files · 0 flagged · 0 could not be read"
    assert (data["items"], pictures, data["scan"]["finished"]) == ([], [], False)


def test_a_page_that_is_written_again_is_about_the_same_scan(scan):
    ids = {blobs(write_report(scan, limit=limit).path)[0]["id"] for limit in (1, 2)}
    assert len(ids) == 1
    about = json.loads((scan / "scan.json").read_text())
    (scan / "scan.json").write_text(json.dumps({**about, "created": "2031-01-01T00:00:00+00:00"}))
    assert blobs(write_report(scan).path)[0]["id"] not in ids


def test_only_reports_are_overwritten(scan, tmp_path):
    other = tmp_path / "other.html"
    other.write_text("<!doctype html><p>mine")
    for target, said in [
        (other, "exists and is no report; it is not overwritten"),
        (scan / "scan.json", "exists and is no report"),
        (tmp_path, "which is a folder; name a file in it"),
        (tmp_path / "no" / "a.html", "and there is no folder"),
    ]:
        with pytest.raises(SettingError, match=said):
            write_report(scan, output=target)
    assert other.read_text() == "<!doctype html><p>mine"
    (tmp_path / "own.html").write_bytes(write_report(scan).path.read_bytes())
    write_report(scan, output=tmp_path / "own.html", title="Again")
    assert "<h1>Again</h1>" in (tmp_path / "own.html").read_text(encoding="utf-8")


def test_a_page_is_there_as_a_whole_or_as_it_was(scan, monkeypatch):
    before = write_report(scan).path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(scan, title="New")
    assert (scan / "report.html").read_bytes() == before
    assert sorted(path.name for path in scan.iterdir()) == ["parts", "report.html", "scan.json"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"limit": -1}, "limit is -1; expected a whole number of at least 0"),
        ({"misses": True}, "misses is True"),
        ({"workers": 0}, "workers is 0; expected a whole number of at least 1"),
        ({"redacted": True, "pictures": False}, "choose --redacted or --no-thumbnails"),
    ],
)
def test_settings_that_make_no_sense_are_refused(scan, settings, said):
    with pytest.raises(SettingError, match=said):
        write_report(scan, **settings)
    assert not (scan / "report.html").exists()


def test_the_command_says_where_the_page_is_and_what_it_contains(scan, tmp_path):
    page = tmp_path / "page.html"
    result = run("report", scan, "--output", page, "--limit", 3, "--misses", 2, "--title", "Ours", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("25 files · ")
    assert f"{page} (" in result.stdout
    assert "It contains 5 small copies of pictures as they were scanned" in result.stdout
    assert "It contains no pictures." in run("report", scan, "--no-thumbnails").stdout
    assert "small pictures, blurred for good." in run("report", scan, "--redacted").stdout


def test_the_command_fails_as_2_with_what_to_type(tmp_path):
    result = run("report", tmp_path)
    assert result.exit_code == 2
    assert "holds no scan: it has no scan.json. Make one: nsfw-guard scan SOURCE --out" in result.stderr
    assert result.stdout == ""


HEAD = ",".join(COLUMNS)


def test_decisions_are_read(tmp_path):
    file = tmp_path / "decisions.csv"
    lines = [HEAD, f"/a.jpg,ab,0.9,true,safe,{MODEL},0.5,2030-01-01T00:00:00Z", '"\'=a,""b"".jpg",,,FALSE,unsafe,,,']
    file.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    assert read_decisions(file) == [
        Decision("/a.jpg", "ab", 0.9, True, False, MODEL, 0.5, "2030-01-01T00:00:00Z"),
        Decision('=a,"b".jpg', "", None, False, True, "", None, ""),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no column 'path'"),
        ("path,score\n/a,0.5\n", "has no column 'sha256'"),
        (f"{HEAD}\n/a,,0.5,true,maybe,,,\n", "line 2: the decision is 'maybe'; expected unsafe or safe"),
        (f"{HEAD}\n/a,,0.5,true,,,,\n", "line 2: the decision is ''"),
        (f"{HEAD}\n/a,,1.5,true,safe,,,\n", r"line 2: the score is '1.5'; expected a number in \[0, 1\]"),
        (f"{HEAD}\n/a,,nan,true,safe,,,\n", "the score is 'nan'"),
        (f"{HEAD}\n/a,,0.5,perhaps,safe,,,\n", "flagged is 'perhaps'"),
        (f"{HEAD}\n/a,,0.5,true,safe\n", "line 2 has another number of cells"),
        (f"{HEAD}\n/a,,0.5,true,safe,,,,more\n", "line 2 has another number of cells"),
        (f'{HEAD}\n"/a,,0.5,true,safe,,,\n', "is no CSV file"),
    ],
)
def test_decisions_that_make_no_sense_are_errors(tmp_path, text, said):
    file = tmp_path / "decisions.csv"
    file.write_text(text)
    with pytest.raises(SettingError, match=said):
        read_decisions(file)
