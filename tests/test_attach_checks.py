"""What becomes of images outside of any real pipeline: checked, found again, finished."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from diffusers.utils import BaseOutput
from nsfw_guard.integrations.diffusers_pipeline.checks import check_images
from nsfw_guard.integrations.diffusers_pipeline.finished import check_any, look
from nsfw_guard.integrations.diffusers_pipeline.pipeline import finish
from nsfw_guard.integrations.diffusers_pipeline.record import Passed, Record, merged, worst
from nsfw_guard.integrations.diffusers_pipeline.settings import Attachment, Settings
from outputs import EVERYBODY, NOBODY
from PIL import Image

from nsfw_guard import ImageError, Level, NsfwGuard, Redaction, Verdict
from nsfw_guard.demo.shapes import draw

pytestmark = pytest.mark.usefixtures("one_thread")

FLAGGED = Verdict(True, 0.9, 0.5, Level.HIGH, reason="score")
CLEAN = Verdict(False, 0.1, 0.5, Level.NEUTRAL)


@pytest.fixture
def guard(tiny_folder):
    """A guard of one's own that flags everything."""
    return NsfwGuard(tiny_folder, dtype="float32", policy=EVERYBODY)


def record(guard, *, exact=False, **settings):
    return Record(Attachment(guard, Settings(**settings)), None, exact=exact)


def pipeline_named(name):
    """Stands in for a pipeline where only the name of its class counts."""
    return type(name, (), {})()


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def picture_of(array):
    return Image.fromarray((array * 255).astype(np.uint8))


# --- Checking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "flags"),
    [(2, [True, False]), (1, [True]), (3, [True] * 3)],  # of another number nobody knows which was made of which
)
def test_what_was_flagged_before_stays_flagged(guard, count, flags):
    guard.policy = NOBODY
    batch = noise(count, 3, 16, 16)
    done, passed = check_images(batch, record(guard), value_range=(0, 1), before=[FLAGGED, CLEAN])
    assert [entry.verdict.flagged for entry in passed] == flags
    assert [not torch.equal(a, b) for a, b in zip(done, batch, strict=True)] == flags


def test_images_go_where_the_pipeline_computes(guard):
    """Stands in for a GPU, which is not here."""
    elsewhere = Record(Attachment(guard, Settings()), torch.device("meta"))
    with pytest.raises(ImageError, match="is on the meta device"):
        check_images(noise(1, 3, 16, 16), elsewhere, value_range=(0, 1))


TENSOR = noise(2, 3, 24, 24)
ARRAY = TENSOR.movedim(1, -1).numpy()
PICTURES = [picture_of(image) for image in ARRAY]
# How finished output comes, and how many items it is.
KINDS = {
    "tensor": (TENSOR, 2), "array": (ARRAY, 2), "list": (PICTURES, 2), "tuple": (tuple(PICTURES), 2),
    "picture": (PICTURES[0], 1), "clips": (TENSOR[None], 1), "one tensor": (TENSOR[0], 1), "one array": (ARRAY[0], 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flagged", [True, False])
def test_finished_output_of_every_kind(guard, flagged, kind):
    guard.policy = EVERYBODY if flagged else NOBODY
    given, count = KINDS[kind]
    done, passed = check_any(given, record(guard), clips=False, value_range=(0, 1))
    assert type(done) is type(given)
    assert [entry.verdict.flagged for entry in passed] == [flagged] * count
    before, after = (value if isinstance(value, (list, tuple)) else [value] for value in (given, done))
    for one, other in zip(before, after, strict=True):
        assert (one is other) != flagged
        assert np.asarray(one).shape == np.asarray(other).shape
        assert np.array_equal(np.asarray(one), np.asarray(other)) != flagged


# --- Finding again ---------------------------------------------------------------------------------------------------


def test_the_worst_verdict():
    flagged = Verdict(True, 0.3, 0.5, Level.LOW, reason="label")
    high = Verdict(False, 0.45, 0.5, Level.LOW)
    assert worst([CLEAN, high, flagged]) is worst([flagged, CLEAN, high]) is flagged
    assert worst([CLEAN, high]) is worst([high, CLEAN]) is high


def test_of_two_looks_at_a_clip_every_frame_that_was_flagged_stays_flagged():
    again, also = Verdict(True, 0.8, 0.5, Level.HIGH), Verdict(False, 0.2, 0.5, Level.NEUTRAL)
    before = Passed(FLAGGED, frames=(FLAGGED, CLEAN, None, FLAGGED), original=torch.zeros(2, 3, 4, 4))
    after = Passed(again, frames=(also, again, also, again), original=torch.ones(2, 3, 4, 4))
    entry = merged(before, after)
    wanted = (FLAGGED, again, also, FLAGGED)
    assert [one is other for one, other in zip(entry.frames, wanted, strict=True)] == [True] * 4
    assert entry.verdict is merged(after, before).verdict is FLAGGED
    assert entry.original.flatten(1).unique(dim=1).flatten().tolist() == [0, 0, 1, 1]
    assert merged(Passed(CLEAN, frames=(CLEAN,)), Passed(CLEAN, frames=(CLEAN,))).original is None


def test_equal_arrays_have_the_entry_of_their_own(guard):
    own, entries = record(guard), [Passed(FLAGGED), Passed(CLEAN)]
    filled = np.zeros((2, 8, 8, 3))
    own.add(filled, entries)
    found = own.find(np.stack(list(filled)))
    assert [one is other for one, other in zip(found, entries, strict=True)] == [True, True]


def clips(kind):
    """Two clips of four frames, and a function that exchanges a frame of the first one for one of another call."""
    frames, other = noise(2, 4, 8, 8, 3).numpy(), noise(8, 8, 3, seed=1).numpy()
    if kind == "pictures":
        shown = [[picture_of(frame) for frame in clip] for clip in frames]
        return shown, lambda at: [[*shown[0][:at], picture_of(other), *shown[0][at + 1 :]], shown[1]]
    if kind == "tensor":
        frames, other = torch.from_numpy(frames).movedim(-1, 2), torch.from_numpy(other).movedim(-1, 0)

    def exchanged(at):
        copy = frames.clone() if kind == "tensor" else frames.copy()
        copy[0, at] = other
        return copy

    return frames, exchanged


@pytest.mark.parametrize("kind", ["pictures", "array", "tensor"])
def test_clips_in_which_a_frame_was_exchanged_are_not_found(guard, kind):
    given, exchanged = clips(kind)
    own = record(guard)
    entries = [Passed(CLEAN, frames=(CLEAN,) * 4) for _ in given]
    own.add(given, entries)
    copy = [list(clip) for clip in given] if kind == "pictures" else exchanged(slice(0))  # an empty slice: nothing
    assert [one is other for one, other in zip(own.find(copy), entries, strict=True)] == [True, True]
    for at in range(4):
        assert own.find(exchanged(at)) is None
        assert own.find(exchanged(at)[0], clips=True) is None


def test_a_list_in_which_a_picture_was_exchanged_is_not_found(guard):
    own = record(guard)
    own.add(PICTURES, [Passed(FLAGGED), Passed(CLEAN)])
    assert [entry.verdict for entry in own.find(list(PICTURES))] == [FLAGGED, CLEAN]
    (layers,) = own.find([PICTURES])  # of one picture
    assert layers.verdict is FLAGGED
    for at in range(2):
        exchanged = [picture.copy() if index == at else picture for index, picture in enumerate(PICTURES)]
        assert own.find(exchanged) is None
        assert own.find([exchanged]) is None


def test_what_was_rounded_to_8_bits_is_not_found(guard):
    """As Cosmos does with its clips, between the check and the end of its call: they are looked at again."""
    clip = noise(4, 8, 8, 3).numpy()
    own, entry = record(guard), Passed(CLEAN, frames=(CLEAN,) * 4)
    own.add(clip[None], [entry])
    assert own.find(clip, clips=True) == [entry]
    assert own.find((clip * 255).round() / np.float32(255), clips=True) is None


# --- The backstop ----------------------------------------------------------------------------------------------------


def test_a_composite_goes_with_what_it_was_made_of(guard):
    """In-painting pastes the original back over the crop that was checked: alone, it may not be flagged."""
    guard.policy = NOBODY
    own, composite = record(guard), noise(1, 3, 16, 16)
    own.add([], [Passed(FLAGGED)])
    shown, (passed,) = look(composite, own, clips=False)
    assert passed.verdict.flagged
    assert not torch.equal(shown, composite)


@pytest.mark.parametrize("kind", ["fields", "tuple"])
@pytest.mark.parametrize(
    ("policy", "latents", "kept"),
    [(EVERYBODY, "raise", False), (EVERYBODY, "allow", True), (NOBODY, "raise", False), (NOBODY, "allow", True)],
)
def test_latents_beside_pictures(guard, kind, policy, latents, kept):
    """SANA-WM returns latents beside its frames: whoever has the VAE would see what was redacted."""
    module = pytest.importorskip("diffusers.pipelines.sana_wm.pipeline_output")
    guard.policy = policy
    values = {"frames": noise(1, 2, 3, 32, 32), "c2w": torch.zeros(1), "latent": torch.zeros(1, 4)}
    output = module.SanaWMPipelineOutput(**values) if kind == "fields" else tuple(values.values())
    out = finish(pipeline_named("SanaWMPipeline"), output, record(guard, latents=latents))
    _, camera, latent = (out.frames, out.c2w, out.latent) if kind == "fields" else out
    assert (latent is not None) is kept
    assert camera is not None
    assert kind == "tuple" or out.nsfw_content_detected == [policy is EVERYBODY]


@pytest.mark.parametrize("kind", ["fields", "tuple"])
@pytest.mark.parametrize("name", ["Odd", "StableDiffusionXLPipeline"])
def test_arrays_in_unexpected_places(guard, kind, name):
    """Of a class that is known, too: what the table does not declare is looked at."""
    main, extra = noise(2, 1, 16, 16, 3).numpy()
    output = OrderedDict(images=main, previews=extra) if kind == "fields" else (main, extra)
    done = finish(pipeline_named(name), output, record(guard))
    assert not np.array_equal(done["previews"] if kind == "fields" else done[1], extra)


def test_ifs_own_field_has_the_flags_too(guard):
    from diffusers.pipelines.deepfloyd_if import IFPipelineOutput

    own = {"nsfw_detected": [False, False], "watermark_detected": [False, False]}
    out = finish(pipeline_named("IFPipeline"), IFPipelineOutput(images=noise(2, 3, 16, 16), **own), record(guard))
    assert out.nsfw_detected == out.nsfw_content_detected == [True, True]


@pytest.mark.parametrize("flags", [None, [False, False]])
def test_flags_in_a_tuple_are_those_of_what_comes_out(guard, flags):
    out = finish(pipeline_named("StableDiffusionPipeline"), (noise(2, 3, 16, 16), flags), record(guard))
    assert out[1] == [True, True]
    without_a_slot = pipeline_named("StableDiffusionXLPipeline")
    assert finish(without_a_slot, (noise(2, 3, 16, 16), flags), record(guard))[1] == flags


@pytest.mark.parametrize(
    ("name", "signed"),
    [
        ("IFPipeline", True),
        ("IFSuperResolutionPipeline", True),
        ("Kandinsky3Pipeline", True),
        ("KandinskyV22Pipeline", True),
        ("PRXPipeline", True),
        ("FluxPipeline", False),
    ],
)
def test_tensors_of_families_that_return_them_signed(guard, name, signed):
    """A picture in [-1, 1] whose values happen to be positive cannot be told from one in [0, 1]."""
    guard.redaction = Redaction("fill", color=(0.0, 0.5, 1.0), verify=False)
    output = BaseOutput(images=(draw("triangle", "red", "white", height=64, width=64) / 2 + 0.5)[None])
    out = finish(pipeline_named(name), output, record(guard))
    assert out.images[0, :, 3, 3].tolist() == ([-1.0, 0.0, 1.0] if signed else [0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("bases", "changed", "spans"),
    [
        (("KandinskyV22Pipeline",), lambda image: image * 2 - 1, [(-1, 1)]),  # as it is known
        (("KandinskyV22Pipeline",), lambda image: image, [(-1, 1), (0, 1)]),
        (("Mine", "KandinskyV22Pipeline"), lambda image: image * 2 - 1, [(-1, 1), (0, 1)]),  # what it makes of them
        (("FluxPipeline",), lambda image: image, [(0, 1)]),
        (("FluxPipeline",), lambda image: image - 0.3, [(-1, 1), (0, 1)]),
    ],
)
def test_the_ranges_in_which_a_class_is_read(guard, monkeypatch, bases, changed, spans):
    """The likeliest first: what is redacted is written in that one."""
    guard.policy = NOBODY
    cls = object
    for name in reversed(bases):
        cls = type(name, (cls,), {})
    looks = []
    classify = NsfwGuard.classify

    def noting(self, batch, **more):
        looks.extend(batch.looks(0, 1))
        return classify(self, batch, **more)

    monkeypatch.setattr(NsfwGuard, "classify", noting)
    image = torch.linspace(0.2, 0.7, 16).expand(1, 3, 16, 16)
    finish(cls(), BaseOutput(images=changed(image)), record(guard))
    assert [(-1, 1) if frames.shift else (0, 1) for frames in looks[0]] == spans


def test_a_clip_of_one_frame_of_a_pipeline_for_images_is_an_image(guard):
    output = OrderedDict(images=[[Image.new("RGB", (16, 16), "red")]])
    out = finish(pipeline_named("Cosmos2TextToImagePipeline"), output, record(guard))
    assert out["nsfw_content_detected"] == [True]
    assert "frame_verdicts" not in vars(out)
