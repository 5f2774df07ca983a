"""The command line, through its entry point."""

import json
import re

import numpy as np
import pytest
import torch
from checkpoints import save_tiny
from PIL import Image
from profiles import matrix_profile
from typer.testing import CliRunner

from nsfw_guard import __version__, console
from nsfw_guard.cli import app
from nsfw_guard.demo.shapes import draw
from nsfw_guard.images import to_picture


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def tiny_args(tiny_folder):
    return ["--model", tiny_folder, "--dtype", "float32"]


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for index, name in enumerate(("a.png", "b.jpg", "c.webp")):
        array = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        path = tmp_path / name
        Image.fromarray(array).resize((48, 40 + index)).save(path)
        paths.append(path)
    return paths


def test_version_and_help():
    assert run("--version").stdout.strip() == __version__
    for command in ("demo", "check", "models", "download"):
        assert command in run("--help").output
        assert run(command, "--help").exit_code == 0


def test_models_prints_every_card_with_licence_revision_and_sources():
    output = run("models").stdout
    for words in ("freepik", "falconsai", "marqo", "adamcodd", "demo", "apache-2.0", "argmax", "NO NSFW MODEL"):
        assert words in output
    assert "04367978d3474804ab1a00a9bd6548b741764069" in output
    cards = json.loads(run("models", "--json").stdout)
    assert [card["name"] for card in cards] == ["freepik", "falconsai", "marqo", "adamcodd", "demo"]
    assert cards[1]["presets"]["bfl"]["threshold"] == 0.85


@pytest.mark.parametrize(("threshold", "code", "word"), [(1.0, 0, "passed"), (0.0, 1, "flagged (score)")])
def test_check_exit_codes(tiny_args, pictures, threshold, code, word):
    result = run("check", *pictures, *tiny_args, "--threshold", threshold)
    assert result.exit_code == code
    assert result.stdout.count(word) == 3
    assert " high " not in result.stdout if code == 0 else result.stdout.count(" high ") == 3


def test_check_as_json(tiny_args, pictures):
    result = run("check", *pictures, *tiny_args, "--json", "--threshold", "0")
    rows = json.loads(result.stdout)
    assert [row["file"] for row in rows] == [str(path) for path in pictures]
    assert all(row["flagged"] and 0 <= row["score"] <= 1 and set(row["labels"]) == {"normal", "nsfw"} for row in rows)


def test_a_file_that_cannot_be_checked_is_said_and_the_others_are_checked(tiny_args, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    result = run("check", broken, *pictures, tmp_path / "missing.png", *tiny_args, "--threshold", "0", "--json")
    assert result.exit_code == 2
    rows = json.loads(result.stdout)
    assert ["error" in row for row in rows] == [True, False, False, False, True]
    assert "broken.png: images (60 bytes) cannot be" in result.stderr


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of TIFF
@pytest.mark.parametrize("kind", ["gif", "tiff"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.6])
def test_a_truncated_animation_is_said_and_the_others_are_checked(tiny_args, pictures, tmp_path, kind, part):
    rng = np.random.default_rng(0)
    first, *rest = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
    path = tmp_path / f"broken.{kind}"
    first.save(path, save_all=True, append_images=rest)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    result = run("check", path, pictures[0], *tiny_args, "--json")
    assert result.exit_code == 2
    assert ["error" in row for row in json.loads(result.stdout)] == [True, False]


def test_redact_to_writes_what_may_be_shown(tiny_args, pictures, tmp_path):
    out = tmp_path / "out"
    before = [path.read_bytes() for path in pictures]
    assert run("check", *pictures, *tiny_args, "--threshold", "1", "--redact-to", out).exit_code == 0
    assert [(out / path.name).read_bytes() for path in pictures] == before
    redacted = tmp_path / "redacted"
    result = run("check", *pictures, *tiny_args, "--threshold", "0", "--redact-to", redacted, "--redaction", "fill")
    assert result.exit_code == 1
    for path in pictures:
        with Image.open(redacted / path.name) as picture, Image.open(path) as original:
            assert (picture.format, picture.size) == (original.format, original.size)
            assert np.asarray(picture.convert("RGB")).max() <= 2
    assert [path.read_bytes() for path in pictures] == before


def test_redact_to_overwrites_nothing(tiny_args, pictures):
    before = pictures[0].read_bytes()
    result = run("check", pictures[0], *tiny_args, "--threshold", "0", "--redact-to", pictures[0].parent)
    assert result.exit_code == 2
    assert "exists and is not overwritten" in result.stderr
    assert pictures[0].read_bytes() == before


def test_redact_to_keeps_an_animation_animated(tiny_args, tmp_path):
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    result = run("check", tmp_path / "a.gif", *tiny_args, "--threshold", "0", "--redact-to", tmp_path / "out")
    assert result.exit_code == 1
    with Image.open(tmp_path / "out" / "a.gif") as picture:
        assert picture.n_frames == 3


def shapes(folder, names, shape="triangle"):
    """Files of a drawn shape, one for each name."""
    folder.mkdir()
    for name in names:
        to_picture(draw(shape, "red", "white")).save(folder / name)
    return [folder / name for name in names]


NAMES = ["a.png", "a.jpg", "a.webp", "a.gif", "a.avif", "a.tif", "a.bmp", "a.ico", "a.jp2"]


@pytest.mark.parametrize("redaction", ["blur", "pixelate"])
def test_files_that_are_written_are_not_flagged_again(tmp_path, redaction):
    files = shapes(tmp_path / "in", NAMES)
    out = tmp_path / "out"
    demo = ("--model", "demo", "--dtype", "float32")
    assert run("check", *files, *demo, "--redact-to", out, "--redaction", redaction).exit_code == 1
    result = run("check", *(out / name for name in NAMES), *demo)
    assert result.exit_code == 0, result.stdout
    for name in NAMES:
        with Image.open(out / name) as picture:
            assert picture.convert("L").getextrema()[1] > 40, "filled, where cells would have passed"


def test_nothing_else_of_a_flagged_file_is_written(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "what was asked for"
    picture = to_picture(draw("triangle", "red", "white"))
    picture.save(tmp_path / "a.jpg", exif=exif, comment=b"what was asked for", icc_profile=matrix_profile())
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data + data)  # another picture behind it
    out = tmp_path / "out"
    assert run("check", tmp_path / "a.jpg", "--model", "demo", "--redact-to", out).exit_code == 1
    written = (out / "a.jpg").read_bytes()
    assert b"asked for" not in written
    assert b"ICC_PROFILE" not in written
    assert written.count(b"\xff\xd8\xff") == 1


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.avif"])
@pytest.mark.parametrize("redaction", ["blur", "fill"])
def test_a_redacted_animation_keeps_its_frames_and_times(tmp_path, name, redaction):
    frames = [to_picture(draw("triangle", color, "white")) for color in ("red", "green", "blue", "purple")]
    options = {} if name == "a.tif" else {"duration": [100, 200, 300, 400]}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as given:
        count = given.n_frames
    assert count == 4
    arguments = ("--model", "demo", "--redact-to", tmp_path / "out", "--redaction", redaction)
    assert run("check", tmp_path / name, *arguments).exit_code == 1
    with Image.open(tmp_path / "out" / name) as written, Image.open(tmp_path / name) as given:
        assert written.n_frames == count
        for index in range(count):
            written.seek(index)
            given.seek(index)
            written.load()
            given.load()
            assert written.info.get("duration") == given.info.get("duration")


@pytest.mark.parametrize("name", ["a.blp", "a.webp", "a.sgi", "a.pdf"])
def test_what_a_format_cannot_hold_is_written_as_a_png(tmp_path, name):
    picture = to_picture(draw("triangle", "red", "white", height=96, width=20000 if name == "a.webp" else 96))
    picture.save(tmp_path / name, "PNG")
    result = run("check", tmp_path / name, "--model", "demo", "--redact-to", tmp_path / "out")
    assert result.exit_code == 1, result.stderr
    with Image.open(tmp_path / "out" / name) as written:
        assert written.format in ("PNG", "SGI")
        assert written.size == picture.size


def test_names_with_brackets_are_shown_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x[b].png", "[bold]x.png"):
        to_picture(draw("circle", "red", "white")).save(name)
        result = run("check", name, "--model", "demo")
        assert result.exit_code == 0
        assert name in result.stdout


def test_cells_color_and_replacement(tmp_path):
    (file,) = shapes(tmp_path / "in", ["a.png"])
    demo = (file, "--model", "demo", "--dtype", "float32", "--redact-to")
    run("check", *demo, tmp_path / "fill", "--redaction", "fill", "--color", "#ff8000")
    with Image.open(tmp_path / "fill" / "a.png") as picture:
        assert picture.getpixel((5, 5)) == (255, 128, 0)
    run("check", *demo, tmp_path / "cells", "--redaction", "pixelate", "--cells", "3")
    with Image.open(tmp_path / "cells" / "a.png") as picture:
        assert len({picture.getpixel((x, 5)) for x in range(128)}) <= 3
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "blocked.png")
    run("check", *demo, tmp_path / "other", "--replacement", tmp_path / "blocked.png")
    with Image.open(tmp_path / "other" / "a.png") as picture:
        assert picture.getpixel((5, 5)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("name", "mode", "kind"),
    [("a.JPG", "RGB", "JPEG"), ("a.jpg", "RGBA", "JPEG"), ("a.picture", "RGB", "PNG"), ("a.psd", "RGB", "PNG")],
)
def test_a_redacted_picture_is_of_the_format_that_its_name_says(tiny_args, tmp_path, name, mode, kind):
    Image.new(mode, (40, 40), "red").save(tmp_path / name, "PNG")
    result = run("check", tmp_path / name, *tiny_args, "--threshold", "0", "--redact-to", tmp_path / "out")
    assert result.exit_code == 1, result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    with Image.open(tmp_path / "out" / name) as picture:
        assert picture.format == kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nobody"], "There is no model card 'nobody'"),
        (["--model", "freepik"], "Two ways on"),
        (["--policy", "lax"], "has the presets"),
        (["--threshold", "2"], "threshold is 2.0; expected a number"),
        (["--redaction", "mosaic"], "redaction is 'mosaic'"),
        (["--views", "some"], "views is 'some'"),
        (["--device", "tpu9"], "device is 'tpu9'"),
        (["--redaction", "none", "--redact-to", "out"], "would copy what is flagged"),
        (["--redaction", "replace"], "--redaction replace needs a picture: --replacement blocked.png"),
        (["--replacement", "nowhere.png"], "nowhere.png cannot be opened"),
        (["--replacement", "nowhere.png", "--redaction", "fill"], "A replacement picture goes with"),
        (["--color", "rgb(300,0,0)"], r"--color is 'rgb(300,0,0)'; expected a name such as gray, or #rrggbb"),
        (["--color", "redd"], "--color is 'redd'; expected a name such as gray, or #rrggbb"),
        (["--cells", "0"], "cells is 0; expected a whole number"),
        (["--dtype", "int8"], "dtype is 'int8'"),
    ],
)
def test_what_could_not_run_ends_with_2(tiny_folder, pictures, arguments, message):
    model = [] if "--model" in arguments else ["--model", tiny_folder]
    result = run("check", pictures[0], *model, *arguments)
    assert result.exit_code == 2
    assert message in re.sub(r"\s+", " ", result.stderr)
    assert result.stdout == ""


def test_check_without_files_is_a_usage_error():
    assert run("check").exit_code == 2


def test_download_without_a_hub_ends_with_2(tmp_path):
    result = run("download", "falconsai", "--to", tmp_path / "x")
    assert result.exit_code == 2
    assert "could not be fetched" in result.stderr


def test_download_hands_everything_on(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("nsfw_guard.checkpoint.download", lambda *args, **more: calls.append((args, more)) or tmp_path)
    assert run("download", "org/tiny", "--to", tmp_path, "--revision", "abc").exit_code == 0
    assert calls == [(("org/tiny",), {"to": tmp_path, "revision": "abc"})]


def test_a_folder_that_a_download_names_can_be_given_as_a_model(monkeypatch, tmp_path, pictures):
    monkeypatch.chdir(tmp_path)
    folder = save_tiny(tmp_path / "weights" / "tiny").relative_to(tmp_path)
    monkeypatch.setattr("nsfw_guard.checkpoint.download", lambda *args, **more: folder)
    named = run("download", "org/tiny", "--to", folder).stdout.split()[-1]
    assert run("check", pictures[0], "--model", named).exit_code in (0, 1)
    result = run("check", pictures[0], "--model", folder)
    assert result.exit_code == 2
    assert f"write '{named}'; for the repository" in re.sub(r"\s+", " ", result.stderr)


@pytest.mark.parametrize("command", ["check", "scan"])
def test_a_model_that_the_preset_cannot_flag_by_ends_with_2(tmp_path, pictures, command):
    folder = save_tiny(tmp_path / "sexy", id2label={"0": "safe", "1": "sexy"})
    result = run(command, pictures[0], "--model", folder, *(["--out", tmp_path / "out"] if command == "scan" else []))
    assert result.exit_code == 2
    assert "could flag nothing: no label of the model is that severe" in re.sub(r"\s+", " ", result.stderr)


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, None)])
def test_a_gpu_is_taken_if_there_is_one(monkeypatch, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert console.default_device() == expected


def test_a_model_with_an_unknown_label_says_how_to_map_it(tmp_path, pictures):
    folder = save_tiny(tmp_path / "mine", id2label={"0": "ok", "1": "spicy"})
    result = run("check", pictures[0], "--model", folder)
    assert result.exit_code == 2
    assert "nsfw_guard.toml" in result.stderr
