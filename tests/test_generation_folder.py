"""For a loop of one's own: what GuardedFolder saves, and what it refuses."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from generations import CIRCLE, SHORT, TRIANGLE, actions, chunks, logged, pictures, pixels, verdict_in
from nsfw_guard.integrations.diffusers_pipeline import attach
from PIL import Image, ImageOps

from nsfw_guard import ImageError, NsfwGuard, Redaction, SettingError
from nsfw_guard.audit import AuditError
from nsfw_guard.demo.generate import load_pipeline
from nsfw_guard.demo.shapes import draw
from nsfw_guard.generation import GuardedFolder
from nsfw_guard.images.looks import looks_at

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(shape):
    array = (draw(shape, "red", "white") * 255).round().to(torch.uint8).movedim(0, -1)
    return Image.fromarray(array.contiguous().numpy())


@pytest.fixture
def checked(demo):
    """A circle and a redacted triangle."""
    return demo.apply([picture("circle"), picture("triangle")])


def test_what_the_guard_has_checked_is_saved_with_its_verdict(demo, checked, tmp_path):
    with GuardedFolder(tmp_path, demo, name="mine") as folder:
        made = folder.save(checked, ids=["a", "b"], prompts=[CIRCLE, TRIANGLE], seeds=[1, 2])
        assert folder.done == {"a", "b"}
    assert [(one.action, one.file.name, one.seed) for one in made] == [("keep", "a.png", 1), ("redact", "b.png", 2)]
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(picture("circle")))
    assert np.array_equal(pixels(tmp_path / "b.png"), np.asarray(checked.images[1]))
    assert not np.array_equal(pixels(tmp_path / "b.png"), np.asarray(picture("triangle")))
    assert chunks(tmp_path / "a.png")["prompt"] == CIRCLE
    assert "prompt" not in chunks(tmp_path / "b.png")
    assert verdict_in(tmp_path / "b.png")["verdict"]["flagged"]
    assert actions(tmp_path) == {"a": "keep", "b": "redact"}
    assert [line["pixels"] is None for line in logged(tmp_path)] == [False, True]


def test_what_an_attached_pipeline_has_returned_is_saved(own_demo, tmp_path):
    pipe = attach(load_pipeline(), own_demo)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    output = pipe([CIRCLE, TRIANGLE], generator=generators, **SHORT)
    with GuardedFolder(tmp_path, own_demo, on_flag="skip") as folder:
        made = folder.save(output, ids=["a", "b"])
    assert [(one.action, one.file is None, one.seed) for one in made] == [("keep", False, None), ("skip", True, None)]
    assert pictures(tmp_path) == ["a.png"]


def test_what_could_not_be_saved_is_said_also_to_whoever_does_not_look(demo, checked, tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(b"mine")
    with GuardedFolder(tmp_path, demo) as folder:
        made = folder.save(checked, ids=["a", "b"])
    assert [one.error is None for one in made] == [False, True]
    assert "a is not saved: " in caplog.text


def test_a_later_process_knows_what_is_done(demo, checked, tmp_path):
    with GuardedFolder(tmp_path, demo) as folder:
        folder.save(checked, ids=["a", "b"])
        with pytest.raises(AuditError, match="another process"):
            GuardedFolder(tmp_path, demo)
    with GuardedFolder(tmp_path, demo) as folder:
        assert folder.done == {"a", "b"}
        with pytest.raises(SettingError, match=r"\['b'\] are saved already"):
            folder.save(checked, ids=["c", "b"])
        folder.save(demo.apply(picture("heart")), ids=["c"])
    assert actions(tmp_path) == {"a": "keep", "b": "redact", "c": "keep"}
    with pytest.raises(AuditError, match="closed|not open"):
        folder.save(demo.apply(picture("heart")), ids=["d"])
    assert pictures(tmp_path) == ["a.png", "b.png", "c.png"]
    with pytest.raises(SettingError, match="other settings: pipeline was '' and is 'x'"):
        GuardedFolder(tmp_path, demo, name="x")


@pytest.mark.parametrize(
    ("change", "ids", "more", "error", "message"),
    [
        (lambda checked: checked.images, ["a", "b"], {}, ImageError, "a list without verdicts"),
        (lambda checked: checked, ["a"], {}, ImageError, "2 images, 2 verdicts and 1 ids"),
        (lambda checked: checked, ["a", "A"], {}, SettingError, r"ids\[1\]: the id 'A' is that of line 1"),
        (lambda checked: checked, ["a", "../b"], {}, SettingError, r"ids\[1\]: id is '../b'"),
        (lambda checked: checked, ["a", "b"], {"prompts": ["x"]}, SettingError, "one for each of the 2 ids"),
        (lambda checked: checked, ["a", "b"], {"prompts": "xy"}, SettingError, "one for each of the 2 ids"),
        (lambda checked: checked, ["a", "b"], {"seeds": [1, -1]}, SettingError, r"ids\[1\]: seed is -1"),
    ],
)
def test_what_cannot_be_saved_changes_nothing(demo, checked, tmp_path, change, ids, more, error, message):
    with GuardedFolder(tmp_path, demo) as folder:
        with pytest.raises(error, match=message):
            folder.save(change(checked), ids=ids, **more)
        assert folder.done == frozenset()
    assert pictures(tmp_path) == []
    assert logged(tmp_path) == []


def test_tensors_other_guards_and_guards_that_do_not_redact_are_refused(demo, tiny, checked, own_demo, tmp_path):
    with GuardedFolder(tmp_path / "a", demo) as folder:
        with pytest.raises(ImageError, match='The images are Tensor; expected pictures: output_type="pil"'):
            folder.save(demo.apply(torch.rand(1, 3, 64, 64)), ids=["a"])
        with pytest.raises(ImageError, match="The verdicts are of"):
            folder.save(tiny.apply([picture("heart")]), ids=["a"])
    own_demo.redaction = Redaction("none")
    with pytest.raises(SettingError, match='redaction is "none"'):
        GuardedFolder(tmp_path / "b", own_demo)
    with pytest.raises(SettingError, match="For the others there is Generation"):
        GuardedFolder(tmp_path / "b", demo, on_flag="retry")
    assert not (tmp_path / "b").exists()


def test_verdicts_of_a_laxer_threshold_are_refused(demo, own_demo, tmp_path):
    own_demo.policy = replace(own_demo.policy, threshold=1.0)
    let_through = own_demo.apply([picture("triangle")])
    assert not let_through.flagged
    with GuardedFolder(tmp_path, demo) as folder, pytest.raises(ImageError, match="the threshold 1.0, .* has 0.5"):
        folder.save(let_through, ids=["a"])
    assert pictures(tmp_path) == []


def test_threads_that_save_the_same_ids_save_each_once(demo, tmp_path):
    checked = demo.apply([picture("circle")])
    with GuardedFolder(tmp_path, demo) as folder:

        def save(number):
            try:
                folder.save(checked, ids=[f"x{number % 8}"])
            except SettingError as error:
                assert "are saved already" in str(error)  # noqa: PT017 - one of two outcomes
                return 0
            return 1

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(save, range(64))) == 8
        assert len(folder.done) == 8
    assert len(actions(tmp_path)) == 8
    assert pictures(tmp_path) == [f"x{number}.png" for number in range(8)]


def test_a_guard_that_no_longer_redacts_saves_nothing(own_demo, tmp_path):
    with GuardedFolder(tmp_path, own_demo) as folder:
        own_demo.redaction = Redaction("none")
        with pytest.raises(SettingError, match='redaction is "none"'):
            folder.save(own_demo.apply([picture("triangle")]), ids=["a"])
    assert pictures(tmp_path) == []


def test_a_folder_of_another_kind_of_run_is_refused(demo, tmp_path):
    from nsfw_guard.generation import Generation

    run = Generation(load_pipeline(), tmp_path, guard=NsfwGuard("demo"), arguments=SHORT, name="demo")
    list(run.run([{"id": "a", "prompt": CIRCLE}]))
    with pytest.raises(SettingError, match="other settings"):
        GuardedFolder(tmp_path, demo, name="demo")
    assert json.loads((tmp_path / "generation.json").read_text())["settings"]["class"] == "StableDiffusionPipeline"


def ramp(mode):
    """A picture in a mode that PNG holds in more than one way, or not at all."""
    gray = np.linspace(0, 255, 128 * 128).reshape(128, 128)
    if mode == "I;16":
        return Image.fromarray((gray * 257).astype(np.uint16))
    if mode in ("I", "F"):
        return Image.fromarray((gray * 257).astype(np.int32))
    rgb = Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if mode in ("RGBa", "La"):
        return rgb.convert(mode.upper()).convert(mode)
    if mode == "P with tRNS":
        small = rgb.quantize(8)
        small.info["transparency"] = bytes([0, 128, *[255] * 6])
        return small
    return rgb.convert("RGBA").quantize(8).convert("PA") if mode == "PA" else rgb.convert(mode)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "P with tRNS", "PA", "RGB", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "I;16", "I"]
)
def test_what_is_written_is_what_was_looked_at(demo, tmp_path, mode):
    given = ramp(mode)
    checked = demo.apply([given])
    assert not checked.flagged
    with GuardedFolder(tmp_path, demo) as folder:
        folder.save(checked, ids=["a"])
    with Image.open(tmp_path / "a.png") as written:
        looks, seen = (looks_at(picture, "it") for picture in (written, given))
    assert len(looks) == len(seen)
    for one, other in zip(looks, seen, strict=True):
        assert (one.float() - other.float()).abs().max() <= 1


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_picture_that_is_to_be_turned_is_written_as_it_was_looked_at(demo, tmp_path, orientation):
    given = picture("circle")
    given.getexif()[0x0112] = orientation
    with GuardedFolder(tmp_path, demo) as folder:
        folder.save(demo.apply([given]), ids=["a"])
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(ImageOps.exif_transpose(given)))
