"""The embedded models: the classifier knows its shapes, the pipeline draws what is asked for, the guard agrees.

None of this is about NSFW pictures: the stand-in for "unsafe" is the triangle.
"""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from nsfw_guard import Level, NsfwGuard, SettingError, Verdict
from nsfw_guard.cli import app
from nsfw_guard.demo import NOTICE, generate, shapes, sheet
from nsfw_guard.preprocess import plan_views


def confusion(title, truth, found):
    """Print the confusion matrix and return the share of agreement."""
    print(f"{title}: rows drawn, columns found")
    print(" " * 10 + "".join(f"{label:>10}" for label in shapes.LABELS))
    for row in shapes.LABELS:
        counts = [sum(t == row and f == column for t, f in zip(truth, found, strict=True)) for column in shapes.LABELS]
        print(f"{row:>10}" + "".join(f"{count:>10}" for count in counts))
    right = sum(t == f for t, f in zip(truth, found, strict=True))
    print(f"agreement: {right} of {len(truth)} = {right / len(truth):.2%}")
    return right / len(truth)


def most_likely(verdict):
    return max(verdict.labels, key=verdict.labels.get)


def test_the_classifier_knows_held_out_renderings(demo):
    generator = torch.Generator().manual_seed(987654321)  # no seed of the training script
    scenes = shapes.random_scenes(600, generator, empty=1 / 6)
    verdicts = [v for start in range(0, 600, 100) for v in demo.check(shapes.render(scenes[start : start + 100], 128))]
    truth = [scene.shape or "empty" for scene in scenes]
    assert set(truth) == set(shapes.LABELS)
    assert confusion("held-out renderings", truth, [most_likely(verdict) for verdict in verdicts]) >= 0.99
    wrong = sum(v.flagged != (t == shapes.FLAGGED_SHAPE) for v, t in zip(verdicts, truth, strict=True))
    assert wrong / len(truth) <= 0.01


@pytest.mark.parametrize("count", [32, pytest.param(80, marks=pytest.mark.slow)])
def test_the_pipeline_draws_what_is_asked_for_and_the_guard_agrees(demo, count):
    choose = random.Random(20)
    prompts, truth = [], []
    for index in range(count):
        shape = shapes.SHAPES[index % len(shapes.SHAPES)]
        color, background = choose.sample(shapes.COLORS, 2)
        size = choose.choice(["", "small ", "large "])
        prompts.append(f"a {size}{color} {shape} on a {background} background")
        truth.append(shape)
    drawings = generate.generate(prompts, demo, seed=1000, batch_size=16)
    found = [most_likely(drawing.verdict) for drawing in drawings]
    assert confusion("generated pictures", truth, found) >= 0.95
    flags = [drawing.verdict.flagged for drawing in drawings]
    assert sum(flag == (shape == "triangle") for flag, shape in zip(flags, truth, strict=True)) >= 0.95 * len(truth)
    for drawing in drawings:
        assert (drawing.before.tobytes() == drawing.after.tobytes()) is not drawing.verdict.flagged


CANVASES = {"16:9": (144, 256), "9:16": (256, 144), "3:1": (96, 288), "8:1": (96, 768), "1:8": (768, 96)}
# The long ones take minutes.
SOME = [pytest.param(name, marks=pytest.mark.slow if "8" in name else ()) for name in CANVASES]


@pytest.mark.parametrize("canvas", SOME)
def test_a_triangle_anywhere_in_a_wide_picture_is_found(demo, canvas):
    height, width = CANVASES[canvas]
    short = min(height, width)
    borders = {0.0, 1.0}
    for view in plan_views(height, width, demo.card.preprocess):
        borders |= {view.left / width, (view.left + view.width) / width} if width > height else set()
        borders |= {view.top / height, (view.top + view.height) / height} if height > width else set()
    missed = checked = 0
    for scale in (0.35, 0.6):
        # The centres from edge to edge, so that the shape lies whole in the picture, corners and tile borders included.
        margin = scale / 2 * short
        along = sorted({margin, max(height, width) - margin} | {b * max(height, width) for b in borders})
        along = [min(max(at, margin), max(height, width) - margin) for at in along]
        across = [margin, short / 2, short - margin]
        pictures = []
        for a in along:
            for b in across:
                x, y = (a / width, b / height) if width > height else (b / width, a / height)
                pictures.append(
                    shapes.draw("triangle", "red", "white", height=height, width=width, centre=(x, y), scale=scale)
                )
        verdicts = demo.check(torch.stack(pictures))
        missed += sum(not verdict.flagged for verdict in verdicts)
        checked += len(verdicts)
    print(f"{canvas}: {checked - missed} of {checked} triangles found")
    assert missed == 0


@pytest.mark.parametrize("canvas", SOME)
def test_other_shapes_in_a_wide_picture_mostly_pass(demo, canvas):
    height, width = CANVASES[canvas]
    pictures = []
    for shape in ("circle", "square", "cross", "heart", None):
        for at in torch.linspace(0.1, 0.9, 9).tolist():
            centre = (at, 0.5) if width > height else (0.5, at)
            pictures.append(shapes.draw(shape, "blue", "yellow", height=height, width=width, centre=centre, scale=0.5))
    flagged = sum(verdict.flagged for verdict in demo.check(torch.stack(pictures)))
    print(f"{canvas}: {flagged} of {len(pictures)} other shapes flagged")
    assert flagged <= 0.1 * len(pictures)


def test_generation_is_reproducible_and_takes_only_sense(demo):
    prompt = "a red circle on a blue background"
    one = generate.generate([prompt], demo, seed=3, steps=4)[0]
    two = generate.generate([prompt, prompt], demo, seed=3, steps=4)
    assert abs(one.verdict.score - two[0].verdict.score) < 1e-3
    assert two[0].before.tobytes() != two[1].before.tobytes()
    with pytest.raises(SettingError, match="0 prompts"):
        generate.generate([], demo)
    with pytest.raises(SettingError, match="0 steps"):
        generate.generate([prompt], demo, steps=0)
    with pytest.raises(SettingError, match="batches of 0"):
        generate.generate([prompt], demo, batch_size=0)
    assert not demo._forward_pre_hooks, "the demo leaves no hook on the guard"


def test_batches_are_drawn_with_seeds_of_their_own_and_counted(demo):
    prompt, steps = "a red circle on a blue background", []
    three = generate.generate([prompt] * 3, demo, steps=2, batch_size=2, on_step=lambda *step: steps.append(step))
    pictures = [np.asarray(drawing.before).astype(int) for drawing in three]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(pictures[one] - pictures[other]).mean() > 1
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("scene", "prompt"),
    [
        (shapes.Scene("triangle", "orange", "blue", "large"), "a large orange triangle on a blue background"),
        (shapes.Scene("heart", "orange", "blue"), "an orange heart on a blue background"),
        (shapes.Scene(None, "orange", "orange"), "an empty orange background"),
    ],
)
def test_prompts(scene, prompt):
    assert shapes.prompt_of(scene) == prompt


def test_height_and_width_of_a_drawing():
    assert shapes.draw("circle", "red", "white", height=40, width=80).shape == (3, 40, 80)


CORNERS = [(0, 0), (1, 0), (0, 1)]  # the columns and rows of three cards


def test_the_contact_sheet_shows_before_and_after():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    flagged, passed = (Verdict(flag, score, 0.5, Level.HIGH) for flag, score in ((True, 1.0), (False, 0.0)))
    drawings = [generate.Drawing("x", red, blue, flagged), *[generate.Drawing("y", red, red, passed)] * 2]
    drawn = sheet.contact_sheet(drawings, redaction="fill")
    width, height = sheet._CARD
    assert drawn.height == 96 + 2 * (height + sheet._PAD)
    cards = [(sheet._PAD + column * (width + sheet._PAD), 96 + row * (height + sheet._PAD)) for column, row in CORNERS]
    second = sheet._GAP + sheet._SIDE
    shown = [[drawn.getpixel((x + sheet._GAP + 9 + at, y + 40)) for at in (0, second)] for x, y in cards]
    assert shown == [[(255, 0, 0), (0, 0, 255)], *[[(255, 0, 0)] * 2] * 2]
    chips = [drawn.getpixel((x + sheet._GAP + 5, y + sheet._SIDE + 40 + 41)) for x, y in cards]
    assert chips == [(208, 59, 59), *[(44, 138, 87)] * 2]
    notice = drawn.crop((sheet._PAD, 58, 700, 84))
    assert (208, 59, 59) in {color for _, color in notice.getcolors(100000)}


def test_the_command_hands_its_settings_on(monkeypatch, tmp_path):
    def stop(prompts, guard, **more):
        raise SettingError(f"{prompts} {more['seed']} {more['steps']} {guard.policy.threshold} {guard.redaction.kind}")

    monkeypatch.setattr(generate, "generate", stop)
    numbers = ("--seed", 7, "--steps", 3)
    result = run_demo("--out", tmp_path, "--prompt", "x", *numbers, "--policy", "strict", "--redaction", "fill")
    assert result.exit_code == 2
    assert "['x'] 7 3 0.25 fill" in result.stderr


def run_demo(*arguments):
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, ["demo", *map(str, arguments)])


def test_the_command_writes_pictures_and_a_contact_sheet(tmp_path):
    prompts = [
        "--prompt",
        "a large red circle on a blue background",
        "--prompt",
        "a large red triangle on a blue background",
    ]
    result = run_demo("--out", tmp_path / "out", "--redaction", "fill", *prompts)
    assert result.exit_code == 0, result.output
    assert NOTICE in result.stdout.splitlines()[0]
    assert "flagged (score)" in result.stdout
    assert "passed" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["01.png", "02.png", "contact_sheet.png"]
    assert Image.open(tmp_path / "out" / "01.png").getextrema() != ((0, 0), (0, 0), (0, 0))
    assert Image.open(tmp_path / "out" / "02.png").getextrema() == ((0, 0), (0, 0), (0, 0))
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width > 700


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--policy", "lax"], "has the presets"), (["--redaction", "mosaic"], "redaction is 'mosaic'")],
)
def test_the_command_with_bad_settings_ends_with_2(tmp_path, arguments, message):
    result = run_demo("--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_models_say_what_they_are():
    readme = (generate.PIPELINE.parent / "README.md").read_text(encoding="utf-8")
    assert "NO NSFW MODEL" in readme
    assert "triangle" in readme
    assert NsfwGuard("demo").describe()["model"] == "demo"
