"""What comes out instead of a flagged image is looked at again: the most detailed candidate that passes is shown."""

import io
import itertools
import logging

import numpy as np
import pytest
import torch

from nsfw_guard import NsfwGuard, Policy, PreprocessSpec, Redaction, SettingError
from nsfw_guard.demo.shapes import COLORS, draw
from nsfw_guard.images import ImageBatch, read_images, to_picture
from nsfw_guard.policy import ROOM
from nsfw_guard.preprocess import ViewBatch
from nsfw_guard.redact import Candidates, Redacted, candidates, redact_flagged

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = list(itertools.permutations(COLORS, 2))
TRIANGLES = torch.stack([draw("triangle", *pair) for pair in PAIRS[::7]])
SAFE = draw("circle", "red", "white")


def as_shown(image, step):
    """What is drawn, at 8-bit levels."""
    return next(iter(Redacted(read_images(image), {0: step}).values()))[0]


def encode(frames, kind, **options):
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=len(frames) > 1, append_images=frames[1:], **options)
    return file.getvalue()


@pytest.fixture
def counted(own_demo, monkeypatch):
    """A demo guard that counts the calls of its network and the views in each."""
    calls = []
    forward = own_demo.classifier.probabilities
    monkeypatch.setattr(
        own_demo.classifier, "probabilities", lambda inputs: calls.append(len(inputs)) or forward(inputs)
    )
    return own_demo, calls


@pytest.mark.parametrize("redaction", ["blur", "pixelate", "fill"])
def test_nothing_that_comes_out_is_flagged(own_demo, redaction):
    own_demo.redaction = Redaction(redaction)
    result = own_demo.apply(TRIANGLES)
    assert all(result.flags)
    assert not any(verdict.flagged for verdict in own_demo.check(result.images))
    levels = (result.images * 255).round().byte()
    assert not any(verdict.flagged for verdict in own_demo.check(levels))
    if redaction != "fill":
        assert all(image.std() > 0.02 for image in result.images), "filled, where cells would have passed"


def test_without_verification_a_blur_shows_what_the_model_still_flags(own_demo):
    """So that the test above can fail."""
    own_demo.redaction = Redaction("blur", verify=False)
    result = own_demo.apply(TRIANGLES)
    assert all(verdict.flagged for verdict in own_demo.check(result.images))


@pytest.mark.parametrize("kind", ["blur", "pixelate"])
def test_the_most_detailed_candidate_that_passes_is_shown(own_demo, kind):
    own_demo.redaction = Redaction(kind)
    out = own_demo.apply(TRIANGLES).images
    for image, shown in zip(TRIANGLES, out, strict=True):
        for step in candidates(own_demo.redaction, 128, 128):
            drawn = as_shown(image, step)
            if own_demo.passes(read_images(drawn))[0]:
                break
        torch.testing.assert_close(shown, drawn, atol=1.1 / 255, rtol=0)  # a level where rounding decides


def test_candidates_are_halved_down_to_a_colour_and_black():
    steps = candidates(Redaction("blur", cells=12, color=(1, 1, 1)), 100, 40)
    assert [(step.kind, step.cells) for step in steps[:-2]] == [("blur", 10), ("blur", 5), ("blur", 2)]
    assert [(step.kind, step.color) for step in steps[-2:]] == [("fill", (1, 1, 1)), ("fill", (0, 0, 0))]
    assert [step.kind for step in candidates(Redaction("pixelate"), 7, 300)] == ["fill"]
    assert [step.kind for step in candidates(Redaction("replace", image=np.zeros((4, 4, 3), np.uint8)), 9, 9)] == [
        "replace",
        "fill",
    ]


def test_what_is_not_flagged_costs_nothing_and_all_candidates_go_together(counted):
    guard, calls = counted
    guard.apply(torch.stack([SAFE] * 3))
    assert calls == [3]
    calls.clear()
    guard.apply(torch.stack([SAFE, TRIANGLES[0], TRIANGLES[1]]))
    assert calls == [3, 8]  # 16, 8, 4 and 2 cells of two images; black needs no look


@pytest.mark.parametrize(
    ("images", "reason"),
    [(torch.full((1, 3, 64, 64), torch.nan), "non_finite"), (torch.rand(1, 3, 4, 900), "too_long")],
)
def test_what_has_no_score_is_filled_and_not_looked_at(counted, images, reason):
    guard, calls = counted
    before = len(calls)
    guard.redaction = Redaction("blur", color=(0, 0, 1))
    result = guard.apply(images)
    assert result.verdicts[0].reason == reason
    assert result.images[0, :, 2, 3].tolist() == [0, 0, 1]
    assert sum(calls[before:]) <= 1  # what was looked at first


def test_a_colour_that_is_flagged_itself_becomes_black(own_demo, monkeypatch):
    own_demo.redaction = Redaction("fill", color=(1, 1, 1))
    monkeypatch.setattr(own_demo, "passes", lambda batch: [False] * len(batch))
    assert own_demo.apply(TRIANGLES[:1]).images.max() == 0


def test_a_replacement_that_is_flagged_itself_is_not_shown_and_that_is_said_once(own_demo, caplog):
    own_demo.redaction = Redaction("replace", image=TRIANGLES[3], color=(0.5, 0.5, 0.5))
    with caplog.at_level(logging.WARNING, logger="nsfw_guard"):
        out = own_demo.apply(TRIANGLES[:2]).images
        own_demo.apply(TRIANGLES[:2])
    assert out.unique().tolist() == [0.5]
    assert [record.message for record in caplog.records].count(
        "The replacement picture is flagged itself, and is not shown: what is flagged is filled instead."
    ) == 1
    own_demo.redaction = Redaction("replace", image=SAFE)
    torch.testing.assert_close(own_demo.apply(TRIANGLES[:1]).images[0], SAFE, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_property_holds_in_what_is_written(own_demo, dtype, channels):
    images = TRIANGLES[:4]
    images = {1: images.mean(1, keepdim=True), 3: images, 4: torch.cat([images, images[:, :1] * 0 + 1], 1)}[channels]
    images = (images * 255).round().to(dtype) if dtype == torch.uint8 else images.to(dtype)
    result = own_demo.apply(images)
    assert result.flagged
    assert not any(verdict.flagged for verdict in own_demo.check(result.images))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "1"])
def test_the_property_holds_for_pictures_of_every_mode(own_demo, mode):
    pictures = [to_picture(image).convert(mode) for image in TRIANGLES]
    result = own_demo.apply(pictures)
    assert result.flagged
    assert not any(verdict.flagged for verdict in own_demo.check(result.images))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_all_frames_of_an_animation_share_their_cells_and_pass(own_demo, kind):
    frames = [to_picture(image) for image in (TRIANGLES[0], SAFE, TRIANGLES[2])]
    result = own_demo.apply(encode(frames, kind))
    assert result.flagged
    assert (result.images.format, result.images.n_frames) == (kind, 3)
    assert not own_demo.check(result.images)[0].flagged
    batch = read_images(result.images)
    details = [float(frame.diff(dim=-1).abs().mean()) for frame in batch.frames(0)]
    assert max(details) < 3 * min(details) + 0.01


def test_a_stricter_policy_judges_what_comes_out():
    policy = Policy(threshold=0.5, per_label={"nsfw": 0.9}, batch="any")
    strict = policy.with_room()
    assert (strict.level, strict.batch) == (policy.level, "each")
    logit = torch.logit(torch.tensor([0.5, 0.9])) - ROOM
    torch.testing.assert_close(torch.tensor([strict.threshold, strict.per_label["nsfw"]]), logit.sigmoid())
    assert [Policy(threshold=edge).with_room().threshold for edge in (0.0, 1.0)] == [0.0, 1.0]


def test_a_threshold_that_nothing_passes_ends_in_black(own_demo):
    own_demo.policy = Policy(threshold=0.0)
    assert own_demo.apply(TRIANGLES[:1]).images.max() == 0


def test_one_flags_all_and_each_is_verified_by_itself(own_demo):
    own_demo.policy = Policy(batch="any")
    result = own_demo.apply(torch.stack([SAFE, TRIANGLES[0]]))
    assert result.flags == [True, True]
    expected = as_shown(SAFE, Redaction("blur"))  # a circle at 16 cells passes
    torch.testing.assert_close(result.images[0], expected, atol=1.1 / 255, rtol=0)


def test_verify_is_a_setting_that_is_saved(tmp_path, own_demo):
    with pytest.raises(SettingError, match="verify is 1; expected True or False"):
        Redaction(verify=1)
    own_demo.redaction = Redaction("pixelate", verify=False)
    own_demo.save_pretrained(tmp_path)
    assert NsfwGuard.from_pretrained(tmp_path).redaction == own_demo.redaction


def test_without_a_judge_nothing_is_looked_at(own_demo):
    images = read_images(TRIANGLES[:1])
    redacted = redact_flagged(images, own_demo.check(images), Redaction("blur"))
    assert torch.equal(redacted[0][0], as_shown(TRIANGLES[0], Redaction("blur")))


@pytest.mark.parametrize("kind", ["blur", "pixelate"])
def test_rounded_or_cut_to_8_bits_it_is_what_was_looked_at(own_demo, kind):
    own_demo.redaction = Redaction(kind)
    out = own_demo.apply(TRIANGLES).images
    rounded, cut = (out * 255).round(), (out * 255).floor()
    assert torch.equal(rounded, cut)


@pytest.mark.parametrize("size", [(1040, 2081), (1025, 2051), (700, 1500), (600, 4700)])
def test_what_is_looked_at_has_the_views_of_what_is_shown(size):
    """On a smaller canvas, whose aspect ratio is another by a pixel."""
    batch = read_images(torch.rand(3, *size))
    one = Candidates(batch, 0, Redaction("blur"))
    (look,) = one.looks(0, 1)
    assert min(look.data.shape[-2:]) == 512
    for spec in (PreprocessSpec(64, "squash"), PreprocessSpec(64, "crop")):
        counts = [ViewBatch(of, spec).load(0, 1)[2] for of in (ImageBatch(None, [one]), batch)]
        assert counts[0] == counts[1]


def test_the_frames_of_a_clip_in_the_slot_share_their_cells(own_demo):
    frames = torch.stack([TRIANGLES[0], SAFE, TRIANGLES[5], TRIANGLES[2]])
    frames = (frames * 255).round().byte().movedim(1, -1).numpy()
    shown = own_demo.check_video_safety(frames)
    assert np.array_equal(shown[1], frames[1])
    assert not any(verdict.flagged for verdict in own_demo.check(shown))
    alike = 0
    for step in candidates(Redaction("blur"), 128, 128):
        drawn = read_images(frames).replace(Redacted(read_images(frames), dict.fromkeys((0, 2, 3), step)))
        alike += np.array_equal(drawn, shown)
    assert alike == 1


def test_arrays_in_the_slot_are_judged_as_they_are_handed_on(own_demo):
    array = TRIANGLES[:1].movedim(1, -1).numpy()
    for given in (array * 1000, array * 50 + 1, array * 0.001):
        assert own_demo(images=given, clip_input=None)[1] == [True]
