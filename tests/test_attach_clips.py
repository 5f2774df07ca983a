"""Clips: which frames are looked at, which are redacted. The demo classifier, on clips of drawn shapes."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nsfw_guard.integrations.diffusers_pipeline.clips import CHUNK, check_clip
from nsfw_guard.integrations.diffusers_pipeline.finished import check_any
from nsfw_guard.integrations.diffusers_pipeline.record import Record
from nsfw_guard.integrations.diffusers_pipeline.settings import Attachment, Settings
from PIL import Image

from nsfw_guard import ImageError, Level, NsfwGuard, Policy, Redaction, Verdict
from nsfw_guard.demo.shapes import draw
from nsfw_guard.redact import candidates, redact

SAFE = draw("circle", "red", "white", height=64, width=64)
TRIANGLE = draw("triangle", "red", "white", height=64, width=64)


def clip_of(text):
    """A clip ``[F, 3, 64, 64]`` in [-1, 1]: a triangle for each ``#``, another shape for each dot."""
    return torch.stack([TRIANGLE if sign == "#" else SAFE for sign in text]) * 2 - 1


def array_of(text):
    """The same as an array ``[F, 64, 64, 3]`` in [0, 1]."""
    return (clip_of(text) / 2 + 0.5).movedim(1, -1).numpy()


def pictures_of(text):
    return [Image.fromarray((frame * 255).astype(np.uint8)) for frame in array_of(text)]


def record(guard, **settings):
    return Record(Attachment(guard, Settings(**settings)), None)


def changes(result, clip):
    """The frames that were redacted, as text."""
    frames = zip(result, clip, strict=True)
    return "".join("." if np.array_equal(np.asarray(one), np.asarray(other)) else "#" for one, other in frames)


def checked(clip, guard, *, before=(), **settings):
    """What becomes of a clip, the redacted frames as text, and the entry."""
    result, passed = check_clip(clip, record(guard, **settings), value_range=(-1, 1), before=before)
    return result, changes(result, clip), passed


# What is verified is shown at 8-bit levels: half of one more or less, in [-1, 1].
IN_8_BITS = 1.1 / 255


def shared_cells(guard, run, shown):
    """How many cells a redacted run shows: the same number in all of its frames; 0 if it is filled."""
    for step in candidates(guard.redaction, *run.shape[-2:]):
        frames = zip(run, shown, strict=True)
        if all(torch.allclose(other, redact(one / 2 + 0.5, step) * 2 - 1, atol=IN_8_BITS) for one, other in frames):
            return step.cells if step.kind == "blur" else 0
    raise AssertionError("the frames of a run are not redacted alike")


@pytest.fixture
def looked_at(demo, monkeypatch):
    """How many frames the classifier was shown."""
    counts = []
    classify = NsfwGuard.classify

    def counting(self, images, **more):
        counts.append(len(images))
        return classify(self, images, **more)

    monkeypatch.setattr(NsfwGuard, "classify", counting)
    return counts


@pytest.mark.parametrize(
    ("frames", "settings", "redacted"),
    [
        ("....", {}, "...."),
        ("#", {}, "#"),  # a clip shorter than the shortest run
        ("..#..", {"min_run": 1}, "..#.."),
        ("......#.....", {"min_run": 4}, ".....####..."),  # grows on both sides
        ("#...........", {"min_run": 4}, "####........"),  # and stays inside the clip
        ("...........#", {"min_run": 4}, "........####"),
        ("..##########", {"min_run": 4}, "..##########"),  # long enough
        ("##...##.....", {"min_run": 4}, "########...."),  # short gaps are closed, and the run keeps all of both
        ("##....##....", {"min_run": 2}, "##....##...."),  # others are not
        ("#.#.#.#.", {"min_run": 1}, "#.#.#.#."),
        ("...#....", {"video": "clip"}, "########"),
        ("........", {"video": "clip"}, "........"),
        ("##########..", {"every": 3, "min_run": 1}, "##########.."),
        ("...#####....", {"every": 4, "min_run": 1}, "...#####...."),  # the edges are looked at one by one
        ("............#", {"every": 5, "min_run": 1}, "............#"),  # the last frame always is
        ("##.#####", {"every": 7, "min_run": 1}, "########"),  # between two flagged ones all goes
    ],
)
def test_the_frames_that_are_redacted(demo, frames, settings, redacted):
    clip = clip_of(frames)
    result, changed, passed = checked(clip, demo, **settings)
    assert changed == redacted
    assert passed.verdict.flagged == ("#" in frames)
    for run in re.finditer("#+", redacted):
        shared_cells(demo, clip[run.start() : run.end()], result[run.start() : run.end()])
    assert not any(verdict.flagged for verdict in demo.check(result, value_range=(-1, 1)))
    for verdict, sign in zip(passed.frames, frames, strict=True):
        assert verdict is None or verdict.flagged == (sign == "#")


def test_only_every_nth_frame_is_looked_at(demo, looked_at):
    _, _, passed = checked(clip_of("." * 20), demo, every=5)
    assert sum(looked_at) == 5  # 0, 5, 10, 15 and the last
    assert [i for i, verdict in enumerate(passed.frames) if verdict is not None] == [0, 5, 10, 15, 19]


def test_a_long_clip_is_looked_at_in_parts(demo, looked_at):
    _, changed, _ = checked(clip_of("." * 150 + "#" * 10 + "." * 140), demo, min_run=1)
    assert changed == "." * 150 + "#" * 10 + "." * 140
    assert sum(looked_at) == 300
    assert max(looked_at) == CHUNK


PALE = 0.5 + 0.09 * (TRIANGLE - 0.5)


@pytest.fixture
def judged(demo, monkeypatch):
    """How many redacted frames the guard looked at, each time."""
    counts = []
    passes = NsfwGuard.passes

    def counting(self, batch):
        counts.append(len(batch))
        return passes(self, batch)

    monkeypatch.setattr(NsfwGuard, "passes", counting)
    return counts


def alone(guard, frame):
    """How many cells a frame shows that is redacted by itself."""
    frame = frame[None] * 2 - 1
    shown, _ = check_clip(frame, record(guard), value_range=(-1, 1))
    return shared_cells(guard, frame, shown)


@pytest.mark.parametrize("at", [0, 20, 39])
def test_one_frame_of_a_run_decides_for_all(demo, judged, at):
    """So nothing flickers; a run of any length is looked at a few frames at a time."""
    cells = alone(demo, TRIANGLE)
    assert 0 < cells < alone(demo, PALE)
    clip = torch.stack([PALE] * at + [TRIANGLE] + [PALE] * (39 - at)) * 2 - 1
    judged.clear()
    result, changed, _ = checked(clip, demo, min_run=1)
    assert changed == "#" * 40
    assert shared_cells(demo, clip, result) == cells
    failed = [step.cells for step in candidates(demo.redaction, 64, 64)].index(cells)
    chunks = [CHUNK, CHUNK, 8]
    assert judged == chunks[: at // CHUNK + 1] * failed + chunks  # each up to the first that does not pass


def test_two_runs_have_cells_of_their_own(demo):
    clip = torch.stack([PALE] * 3 + [SAFE] * 10 + [TRIANGLE] * 3) * 2 - 1
    result, changed, _ = checked(clip, demo, min_run=1)
    assert changed == "###" + "." * 10 + "###"
    assert shared_cells(demo, clip[:3], result[:3]) == alone(demo, PALE)
    assert shared_cells(demo, clip[13:], result[13:]) == alone(demo, TRIANGLE)


def test_frames_beside_those_that_are_flagged_are_looked_at_too(demo, judged):
    """A frame that is clean itself is redacted with its neighbour."""
    checked(clip_of("...#...."), demo, min_run=4)
    assert set(judged) == {4}


def test_clean_clips_and_what_is_filled_unseen_cost_no_second_look(demo, judged):
    checked(clip_of("...."), demo)
    clip = clip_of("....")
    clip[2, 0, 0, 0] = float("nan")
    checked(clip, demo, min_run=1)
    own = record(demo)
    own.aborted = True
    result, passed = check_clip(clip_of("...."), own, value_range=(-1, 1))
    assert passed.verdict.reason == "early"
    assert bool((result == -1).all())
    assert judged == []


def test_a_replacement_in_a_clip(own_demo):
    """Clean, it is shown, in place of frames without numbers too; flagged itself, it is not."""
    clip = clip_of("..#..#..")
    clip[5, 0, 0, 0] = float("nan")
    for picture, kept in ((SAFE, True), (TRIANGLE, False)):
        own_demo.redaction = Redaction("replace", image=picture, color=(0.0, 0.0, 1.0))
        result, changed, _ = checked(clip, own_demo, min_run=1)
        assert changed == "..#..#.."
        expected = picture if kept else torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 64, 64)
        for index in (2, 5):
            torch.testing.assert_close(result[index] / 2 + 0.5, expected, rtol=0, atol=1 / 255)


def test_a_guard_that_does_not_look_again(own_demo, judged):
    own_demo.redaction = Redaction(verify=False)
    clip = clip_of("..##..")
    result, _, _ = checked(clip, own_demo, min_run=1)
    assert shared_cells(own_demo, clip[2:4], result[2:4]) == 16
    assert judged == []


def test_the_callers_clip_is_not_written_to(demo):
    clip = clip_of("..##..")
    before = clip.clone()
    checked(clip, demo)
    assert torch.equal(clip, before)


def test_an_unflagged_clip_is_the_same_object(demo):
    clip = clip_of("....")
    assert checked(clip, demo)[0] is clip


def test_clips_of_arrays_and_pictures(demo):
    array = array_of("..#...")
    result, passed = check_clip(array, record(demo, min_run=1), value_range=(0, 1))
    assert isinstance(result, np.ndarray)
    assert changes(result, array) == "..#..."
    pictures = pictures_of("..#...")
    result, passed = check_clip(pictures, record(demo, min_run=1), value_range=(0, 1))
    assert [a is b for a, b in zip(result, pictures, strict=True)] == [True, True, False, True, True, True]
    assert passed.verdict.flagged


def test_a_flat_list_of_pictures_is_a_clip_where_clips_are_made(demo):
    pictures = pictures_of("...#....")
    done, (passed,) = check_any(pictures, record(demo, min_run=4), clips=True, value_range=(0, 1))
    assert [a is b for a, b in zip(done, pictures, strict=True)] == [True, True, False, False, False, False, True, True]
    assert len(passed.frames) == 8


def test_originals_are_the_flagged_frames(demo):
    clip = clip_of("..##..")
    _, _, passed = checked(clip, demo, on_verdicts=lambda verdicts, originals: None)
    torch.testing.assert_close(passed.original, clip[2:4] / 2 + 0.5)
    _, _, passed = checked(clip, demo)
    assert passed.original is None  # nobody asked


def test_a_policy_on_the_batch_flags_the_whole_clip(own_demo):
    own_demo.policy = Policy(batch="any")
    _, changed, passed = checked(clip_of("." * 20 + "#"), own_demo)
    assert changed == "#" * 21
    assert passed.frames[0].reason == "batch"


def test_a_guard_that_only_reports_changes_nothing(own_demo):
    own_demo.redaction = Redaction("none")
    clip = clip_of("..##..")
    result, _, passed = checked(clip, own_demo)
    assert result is clip
    assert passed.verdict.flagged


def test_frames_of_nan_are_filled_and_the_others_are_not(demo):
    clip = clip_of("....")
    clip[2, 0, 0, 0] = float("nan")
    result, passed = check_clip(clip, record(demo, min_run=1), value_range=(-1, 1))
    assert [verdict.flagged for verdict in passed.frames] == [False, False, True, False]
    assert torch.equal(result[2], torch.full_like(result[2], -1))
    assert torch.equal(result[[0, 1, 3]], clip[[0, 1, 3]])


def test_frames_beside_one_of_nan_are_filled_too(demo):
    clip = clip_of("........")
    clip[4, 0, 0, 0] = float("nan")
    result, _, passed = checked(clip, demo, min_run=3)
    assert [bool((frame == -1).all()) for frame in result] == [i in (3, 4, 5) for i in range(8)]
    assert [verdict.flagged for verdict in passed.frames] == [i == 4 for i in range(8)]


@pytest.mark.parametrize(("flagged", "redacted"), [(True, "######"), (False, "......")])
def test_a_clip_of_what_was_flagged_before_is_redacted_as_a_whole(demo, flagged, redacted):
    before = [Verdict(flagged, 0.9, 0.5, Level.HIGH), Verdict(False, 0.1, 0.5, Level.NEUTRAL)]
    _, changed, passed = checked(clip_of("......"), demo, before=before, min_run=1)
    assert (passed.verdict.flagged, changed) == (flagged, redacted)


def test_a_clip_of_no_frames(demo):
    with pytest.raises(ImageError, match="a clip of no frames; expected at least 1"):
        checked(clip_of("....")[:0], demo)


@pytest.mark.parametrize(
    ("settings", "redacted"),
    [
        ({"min_run": 1}, "...#...."),
        ({"min_run": 4}, "..####.."),
        ({"video": "clip", "min_run": 1}, "########"),
        ({"every": 7, "min_run": 1}, "........"),
    ],
)
@pytest.mark.parametrize("batched", [True, False])
def test_a_modular_block_with_clips(demo, settings, redacted, batched):
    state = pytest.importorskip("diffusers.modular_pipelines").PipelineState()
    from nsfw_guard.integrations.diffusers_pipeline import NsfwGuardBlock

    block, clip = NsfwGuardBlock(**settings), array_of("...#....")
    state.set("videos", clip[None] if batched else clip)
    block(SimpleNamespace(safety_checker=demo, device=torch.device("cpu")), state)
    (shown,) = state.get("videos") if batched else [state.get("videos")]
    assert changes(shown, clip) == redacted
    assert state.get("nsfw_content_detected") == ["#" in redacted]
    assert [verdict.flagged for verdict in state.get("verdicts")] == ["#" in redacted]
