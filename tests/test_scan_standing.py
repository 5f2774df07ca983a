"""A folder that was reviewed is gone on with by the verdicts that were reviewed, unless somebody says otherwise."""

import json
from pathlib import Path

import pytest
from scanning import draw, rows_of, write_old
from typer.testing import CliRunner

from nsfw_guard import Policy, SettingError
from nsfw_guard.cli import app
from nsfw_guard.scan.run import run_scan
from nsfw_guard.scan.settings import ScanSettings
from nsfw_guard.scan.sources import parse_sources
from nsfw_guard.scan.standing import standing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    for shape in ("circle", "triangle"):
        draw(tmp_path / f"in/{shape}.png", shape)
    return tmp_path / "in"


def command(*arguments):
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, ["scan", *map(str, arguments), "--dtype", "float32"])


def names(folder):
    return sorted(path.name for path in folder.rglob("*.png")) if folder.exists() else []


def test_the_folders_model_policy_and_views_are_the_default(folder, tmp_path, tiny):
    """As the README's own block does it: scanned with a model, moved without naming it."""
    out, model = tmp_path / "out", str(tiny.classifier.folder)
    first = command(
        folder, "--out", out, "--model", model, "--threshold", "0", "--views", "card", "--exact", "--every", "3"
    )
    assert first.exit_code == 1, first.output
    before = rows_of(out)
    assert len({row.model for row in before.values()}) == 1
    second = command(folder, "--out", out, "--move", tmp_path / "to")
    assert second.exit_code == 1, second.output
    assert "0 scored, 0 duplicates, 2 done before" in second.stdout
    assert rows_of(out) == before
    assert names(tmp_path / "to") == ["circle.png", "triangle.png"]
    found = standing(out)
    assert (found.model, found.views, found.exact, found.every) == (model, "card", True, 3)
    assert found.policy.threshold == 0


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (["--model", "{tiny}"], "another model demo@sha256:"),
        (["--threshold", "0"], "another policy {'level': 'medium', 'threshold': 0.5"),
        (["--policy", "strict", "--threshold", "0.1"], "another policy"),
        (["--views", "card"], "another preprocessing squash64-auto-dct2-every1-"),
        (["--exact"], "another preprocessing"),
        (["--every", "5"], "another preprocessing"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_another_one_asks_for_a_word(folder, tmp_path, tiny, other, words, dry):
    out = tmp_path / "out"
    assert command(folder, "--out", out, "--model", "demo").exit_code == 1
    before, manifest = rows_of(out), (out / "scan.json").read_text()
    other = [argument.format(tiny=tiny.classifier.folder) for argument in other]
    result = command(folder, "--out", out, *other, "--move", tmp_path / "to", *dry)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "add --rejudge" in result.stderr
    assert (rows_of(out), (out / "scan.json").read_text()) == (before, manifest)
    assert names(tmp_path / "to") == []
    assert names(folder) == ["circle.png", "triangle.png"]
    said = command(folder, "--out", out, *other, "--rejudge")
    assert said.exit_code in (0, 1), said.output
    # Which is the folder's own from then on.
    before = rows_of(out)
    assert "0 scored" in command(folder, "--out", out).stdout
    assert rows_of(out) == before


def test_the_same_named_again_is_no_other_one(folder, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        result = command(
            folder, "--out", out, "--model", "demo", "--policy", "balanced", "--views", "auto", "--every", 1
        )
        assert result.exit_code == 1, result.output


def test_the_library_asks_for_the_word_too(own_demo, folder, tmp_path):
    out, sources = tmp_path / "out", parse_sources([str(folder)])
    run_scan(own_demo, sources, out, ScanSettings(workers=2))
    own_demo.policy = Policy(threshold=1.0)
    before = rows_of(out)
    with pytest.raises(SettingError, match=r"another policy .* add --rejudge \(rejudge=True\)"):
        run_scan(own_demo, sources, out, ScanSettings(workers=2))
    assert rows_of(out) == before
    assert run_scan(own_demo, sources, out, ScanSettings(workers=2), rejudge=True).flagged == 0


def test_a_folder_without_rows_asks_for_nothing(folder, tmp_path, tiny):
    out = tmp_path / "out"
    assert command(folder, "--out", out, "--model", "demo").exit_code == 1
    for part in (out / "parts").iterdir():
        part.unlink()
    assert standing(out) is None
    result = command(folder, "--out", out, "--model", tiny.classifier.folder)
    assert result.exit_code in (0, 1), result.output


@pytest.mark.parametrize("model", ["demo@sha256:c2a353fec3777fd9", "somebody/else@0123456789"])
def test_a_folder_of_an_earlier_version_says_what_it_can(folder, tmp_path, model):
    out = tmp_path / "out"
    assert command(folder, "--out", out, "--model", "demo").exit_code == 1
    manifest = json.loads((out / "scan.json").read_text())
    del manifest["loads"]
    manifest["model"] = manifest["model"] if model.startswith("demo") else model
    (out / "scan.json").write_text(json.dumps(manifest))
    result = command(folder, "--out", out)
    if model.startswith("demo"):
        assert result.exit_code == 1, result.output
        assert "2 done before" in result.stdout
    else:
        assert result.exit_code == 2
        assert f"{out} was scanned with {model}, and does not say where that is: name it, --model." in result.stderr


def test_a_manifest_that_is_nested_too_deeply_is_damaged(folder, tmp_path):
    out = tmp_path / "out"
    assert command(folder, "--out", out, "--model", "demo").exit_code == 1
    (out / "scan.json").write_text("[" * 100_000)
    result = command(folder, "--out", out)
    assert result.exit_code == 2
    assert f"{out / 'scan.json'} is damaged: maximum recursion depth" in result.stderr


def test_verdicts_of_another_version_of_the_package_say_so(folder, tmp_path):
    """Nobody has given an option that could be left out."""
    out = tmp_path / "out"
    assert command(folder, "--out", out, "--model", "demo").exit_code == 1
    manifest = json.loads((out / "scan.json").read_text())
    manifest["preprocessing"] = manifest["preprocessing"][:-8] + "0" * 8
    (out / "scan.json").write_text(json.dumps(manifest))
    result = command(folder, "--out", out, "--move", tmp_path / "to")
    assert (result.exit_code, names(tmp_path / "to")) == (2, [])
    assert "another version of nsfw_guard made them, or another card of the model. Add --rejudge" in result.stderr
    assert "Leave out" not in result.stderr
    assert command(folder, "--out", out, "--rejudge").exit_code == 1
    assert command(folder, "--out", out, "--move", tmp_path / "to").exit_code == 1
    assert names(tmp_path / "to") == ["triangle.png"]


@pytest.mark.parametrize("lost", ["model", "preprocessing", "policy"])
def test_a_folder_that_does_not_say_what_its_verdicts_are_by(folder, tmp_path, lost):
    """What nobody can compare is not the same."""
    out = tmp_path / "out"
    assert command(folder, "--out", out, "--model", "demo").exit_code == 1
    manifest = json.loads((out / "scan.json").read_text())
    del manifest[lost]
    del manifest["loads"]
    (out / "scan.json").write_text(json.dumps(manifest))
    result = command(folder, "--out", out, "--model", "demo", "--move", tmp_path / "to")
    assert (result.exit_code, names(tmp_path / "to")) == (2, [])
    assert f"{out} holds verdicts by another {lost} None (now " in result.stderr
    if lost == "model":
        result = command(folder, "--out", out)
        assert result.exit_code == 2
        assert f"{out} was scanned with a model, and does not say where that is: name it, --model." in result.stderr
    assert command(folder, "--out", out, "--model", "demo", "--rejudge").exit_code == 1


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_the_folders_format_is_the_default(folder, tmp_path, form):
    out = tmp_path / "out"
    assert command(folder, "--out", out, "--model", "demo", "--format", form).exit_code == 1
    (out / "rows.csv").unlink(missing_ok=True)
    result = command(folder, "--out", out, "--move", tmp_path / "to")
    assert result.exit_code == 1, result.output
    assert names(tmp_path / "to") == ["triangle.png"]
    assert (out / "rows.csv").exists() == (form == "csv")
    assert standing(out).form == form


def test_what_is_refused_is_not_converted(folder, tmp_path):
    """The version that wrote it could not go on otherwise."""
    out = tmp_path / "out"
    assert command(folder, "--out", out, "--model", "demo", "--format", "jsonl").exit_code == 1
    (part,) = (out / "parts").iterdir()
    rows = list(rows_of(out).values())
    part.unlink()
    old = out / "parts" / "part-000001.csv"
    write_old(old, rows, list(rows[0].labels))
    before = old.read_bytes()
    result = command(folder, "--out", out, "--threshold", "0.1", "--format", "csv")
    assert result.exit_code == 2
    assert [(path.name, path.read_bytes()) for path in (out / "parts").iterdir()] == [(old.name, before)]
    assert command(folder, "--out", out, "--format", "csv").exit_code == 1
    assert [path.name for path in (out / "parts").iterdir()] == ["part-000001.jsonl"]


def test_a_checkpoint_that_has_changed_is_another_one(folder, tmp_path, tiny):
    import shutil

    from safetensors.torch import load_file, save_file

    mine = Path(shutil.copytree(tiny.classifier.folder, tmp_path / "mine"))
    out = tmp_path / "out"
    command(folder, "--out", out, "--model", mine)
    (weights,) = mine.glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    result = command(folder, "--out", out, "--move", tmp_path / "to")
    assert result.exit_code == 2
    assert "another model" in result.stderr


def test_rejudged_by_another_model_its_own_numbers_count(folder, tmp_path, tiny):
    out = tmp_path / "out"
    command(folder, "--out", out, "--model", tiny.classifier.folder, "--threshold", "0.123")
    assert command(folder, "--out", out, "--model", "demo", "--rejudge").exit_code == 1
    assert standing(out).policy == Policy(**json.loads(next(iter(rows_of(out).values())).policy))
    assert standing(out).policy.threshold == 0.5
