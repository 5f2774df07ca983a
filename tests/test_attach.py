"""``attach``, ``detach`` and ``is_guarded``: one object changes, completely, and comes back as it was."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pipelines
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.image_processor import VaeImageProcessor
from nsfw_guard.integrations.diffusers_pipeline import attach, detach, is_guarded
from nsfw_guard.integrations.diffusers_pipeline.checks import check_images
from nsfw_guard.integrations.diffusers_pipeline.record import Record, recording
from nsfw_guard.integrations.diffusers_pipeline.settings import Attachment, Settings
from outputs import EVERYBODY, NOBODY, UNVERIFIED
from PIL import Image
from pipelines import hand, images, slots, videos
from transformers import CLIPImageProcessor

from nsfw_guard import GuardError, ImageError, NsfwGuard, Policy, Redaction, SettingError
from nsfw_guard.demo.shapes import draw
from nsfw_guard.redact import redact

CPU = torch.device("cpu")
PROMPTS = ["a cat", "two dogs", "zebras"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def guard(tiny_folder):
    """A guard of one's own that flags everything."""
    return NsfwGuard(tiny_folder, dtype="float32", policy=EVERYBODY, redaction=UNVERIFIED)


@pytest.fixture
def sd():
    return pipelines.stable_diffusion()


@pytest.fixture
def sdxl():
    return images.sdxl()


CALLS = {"sd": slots.CASES["stable_diffusion"], "sdxl": images.CASES["sdxl"], "ddpm": hand.CASES["ddpm"]}


def run(pipe, output_type="np", **more):
    case = next(case for name, case in CALLS.items() if type(case.build()).__name__ == type(pipe).__name__)
    return case.run(pipe, output_type, **more)


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(params=CALLS)
def pipe(request):
    """A pipeline with a slot, one without, and one that makes its pictures by hand."""
    return CALLS[request.param].build()


# --- What changes, and what does not ---------------------------------------------------------------------------------


def test_the_pipeline_stays_what_it_was_to_everybody_else(pipe, guard):
    cls, others = type(pipe), CALLS
    signature = inspect.signature(pipe.__call__)
    assert attach(pipe, guard) is pipe
    assert isinstance(pipe, cls)
    assert (type(pipe).__name__, type(pipe).__module__) == (cls.__name__, cls.__module__)
    assert inspect.signature(pipe.__call__) == signature
    assert is_guarded(pipe)
    another = next(case for case in others.values() if type(case.build()) is cls).build()
    assert type(another) is cls
    assert not is_guarded(another)
    assert run(another).get("nsfw_content_detected") is None


def test_detach_gives_everything_back(pipe, guard):
    unguarded = run(pipe)
    before = dict(vars(pipe))
    config, cls = dict(pipe.config), type(pipe)
    classes = {name: type(value) for name, value in before.items()}
    attach(pipe, guard)
    assert not same(run(pipe).images, unguarded.images)
    assert detach(pipe) is pipe
    assert type(pipe) is cls
    assert not is_guarded(pipe)
    after = vars(pipe)
    assert set(after) == set(before)
    assert all(after[name] is value for name, value in before.items() if not name.startswith("_"))
    assert {name: type(after[name]) for name in classes} == classes
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in pipe.config.items()} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
    }
    assert same(run(pipe).images, unguarded.images)


def test_detach_gives_back_what_the_slot_held(sd, guard, tiny_folder):
    old = NsfwGuard(tiny_folder)
    sd.register_modules(safety_checker=old, feature_extractor=None)
    attach(sd, guard)
    assert sd.safety_checker is guard
    assert isinstance(sd.feature_extractor, CLIPImageProcessor)  # constructors insist on one
    detach(sd)
    assert sd.safety_checker is old
    assert sd.feature_extractor is None
    assert tuple(sd.config["safety_checker"]) == ("nsfw_guard", "NsfwGuard")


def test_detach_twice_and_without_attach(pipe, guard):
    assert detach(pipe) is pipe
    attach(pipe, guard)
    detach(detach(pipe))
    assert not is_guarded(pipe)


def test_attach_is_idempotent(pipe, guard):
    attach(pipe, guard, min_run=3)
    cls, attachment = type(pipe), pipe._nsfw_guard
    attach(pipe, guard)
    attach(pipe)  # the guard that it has
    assert (type(pipe), pipe._nsfw_guard, pipe._nsfw_guard.guard) == (cls, attachment, guard)
    assert attachment.settings.min_run == 8  # the settings are the last ones
    assert run(pipe).nsfw_content_detected == [True] * 3
    detach(pipe)
    assert not is_guarded(pipe)


def test_attach_after_detach_with_another_guard(pipe, guard, tiny_folder):
    attach(pipe, guard)
    detach(pipe)
    attach(pipe, NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY))
    assert run(pipe).nsfw_content_detected == [False] * 3


def test_the_guard_in_the_slot_is_taken(sd, guard):
    sd.register_modules(safety_checker=guard)
    attach(sd)
    assert sd._nsfw_guard.guard is guard


def test_two_guards_in_two_pipelines_do_not_meet(guard, tiny_folder):
    strict = attach(images.sdxl(), guard)
    lenient = attach(images.sdxl(), NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY))

    def look_aside(pipe, step, timestep, tensors):
        assert run(lenient).nsfw_content_detected == [False] * 3
        return tensors

    assert run(strict, callback_on_step_end=look_aside).nsfw_content_detected == [True] * 3


def test_a_call_from_within_a_call_of_the_same_pipeline(sdxl, guard):
    inner = []

    def again(pipe, step, timestep, tensors):
        if not inner:
            inner.append(None)
            inner[0] = run(pipe)
        return tensors

    out = run(attach(sdxl, guard), callback_on_step_end=again)
    assert out.nsfw_content_detected == inner[0].nsfw_content_detected == [True] * 3


def test_a_processor_that_was_exchanged_is_caught_behind_it(sdxl, guard):
    attach(sdxl, guard)
    sdxl.image_processor = images.sdxl().image_processor
    assert run(sdxl, "pil").nsfw_content_detected == [True] * 3
    attach(sdxl)  # guards it again
    assert run(sdxl, "pil").nsfw_content_detected == [True] * 3


# --- Bad input -------------------------------------------------------------------------------------------------------


def test_a_class_that_makes_other_pipelines_is_refused(guard):
    cls = type("VersatileDiffusionPipeline", (DiffusionPipeline,), {"__call__": lambda self: None})
    with pytest.raises(SettingError, match="VersatileDiffusionPipeline cannot be guarded: its methods make other"):
        attach(cls(), guard)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "pipe is a NoneType; expected a diffusers pipeline"),
        ("stable-diffusion", "pipe is a str; expected a diffusers pipeline"),
        (StableDiffusionPipeline, "pipe is the class StableDiffusionPipeline; expected a diffusers pipeline"),
        (torch.nn.Identity(), "pipe is a Identity; expected a diffusers pipeline"),
    ],
)
def test_something_that_is_no_pipeline(value, text, guard):
    with pytest.raises(SettingError, match=text):
        attach(value, guard)
    assert detach(value) is value
    assert not is_guarded(value)


def test_a_pipeline_without_images_is_refused_and_left_alone(guard):
    pipe = images.marigold()
    cls = type(pipe)
    with pytest.raises(SettingError, match="MarigoldDepthPipeline makes no images; there is nothing for a guard"):
        attach(pipe, guard)
    assert type(pipe) is cls
    assert pipe(images.source(), generator=torch.Generator().manual_seed(0), output_type="np").prediction.ndim == 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"guard": "marqo"}, r"guard is 'marqo'; expected an NsfwGuard: attach\(pipe, NsfwGuard\('marqo'\)\)"),
        ({"guard": torch.nn.Identity()}, "guard is a Identity; expected an NsfwGuard"),
        ({"latents": "ignore"}, 'latents is \'ignore\'; expected "raise" or "allow"'),
        ({"video": "frames"}, 'video is \'frames\'; expected "frame" or "clip"'),
        ({"every": 0}, "every is 0; expected a whole number of frames"),
        ({"every": 2.0}, "every is 2.0; expected a whole number"),
        ({"min_run": True}, "min_run is True; expected a whole number"),
        ({"on_verdicts": "print"}, "on_verdicts is 'print'; expected a function"),
        ({"early": 5}, "early is 5; expected an EarlyExit"),
    ],
)
def test_settings_out_of_range_change_nothing(pipe, guard, settings, text):
    cls = type(pipe)
    with pytest.raises(SettingError, match=text):
        attach(pipe, **{"guard": guard, **settings})
    assert type(pipe) is cls


@pytest.mark.parametrize("name", CALLS)
def test_no_image_comes_out_when_the_guard_fails_and_the_next_call_works(name, guard, monkeypatch):
    pipe = attach(CALLS[name].build(), guard)
    expected = run(pipe)
    released = []
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: released.append(self), raising=False)
    with monkeypatch.context() as broken:
        broken.setattr(guard.classifier.network, "forward", fail)
        with pytest.raises(RuntimeError, match="broken half-way"):
            run(pipe)
    assert released[-1] is pipe
    again = run(pipe)
    assert same(again.images, expected.images)
    assert again.nsfw_content_detected == [True] * 3


def fail(*args, **kwargs):
    raise RuntimeError("broken half-way")


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_callbacks_of_the_users_own(name, guard):
    pipe = attach(CALLS[name].build(), guard)

    def raising(pipe, step, timestep, tensors):
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        run(pipe, callback_on_step_end=raising)

    def zeroing(pipe, step, timestep, tensors):
        return {**tensors, "latents": torch.zeros_like(tensors["latents"])}

    out = run(pipe, callback_on_step_end=zeroing)
    assert out.nsfw_content_detected == [True] * 3
    assert not same(out.images, run(pipe).images)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_latents_of_nan_come_out_filled(name, tiny_folder):
    """As an overflow in float16 leaves them; diffusers itself would show black and say nothing."""
    pipe = attach(CALLS[name].build(), NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY))

    def overflow(pipe, step, timestep, tensors):
        latents = tensors["latents"].clone()
        latents[1] = float("nan")
        return {"latents": latents}

    without = run(pipe)
    out = run(pipe, callback_on_step_end=overflow)
    assert out.nsfw_content_detected == [False, True, False]
    assert out.verdicts[1].reason == "non_finite"
    assert not out.images[1].any()
    assert same(out.images[[0, 2]], without.images[[0, 2]])


def test_guidance_off_and_a_single_step(pipe, guard):
    more = {} if type(pipe).__name__ == "DDPMPipeline" else {"guidance_scale": 0.0}
    assert run(attach(pipe, guard), num_inference_steps=1, **more).nsfw_content_detected == [True] * 3


def test_wrong_arguments_are_the_pipelines_own_error(guard):
    with pytest.raises(TypeError, match="unexpected keyword argument 'promt'"):
        attach(hand.CASES["ddpm"].build(), guard)(promt="a cat")


# --- Latents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_latents_are_refused_before_anything_is_generated(name, guard):
    pipe = attach(CALLS[name].build(), guard)
    steps = []
    with pytest.raises(SettingError, match='output_type="latent" of .* returns latents') as error:
        run(pipe, "latent", callback_on_step_end=lambda *args: steps.append(1))
    assert 'output_type="pil"' in str(error.value)
    assert 'latents="allow"' in str(error.value)
    assert not steps


def test_a_base_whose_latents_a_guarded_refiner_decodes(guard):
    base, refiner = images.sdxl_base_to_refiner()
    plain = chain(base, refiner)
    attach(base, guard, latents="allow")
    attach(refiner, guard)
    out = chain(base, refiner)
    assert out.nsfw_content_detected == [True] * 3
    for image, original in zip(out.images, plain.images, strict=True):
        blurred = redact(torch.from_numpy(original).movedim(-1, 0), guard.redaction)
        torch.testing.assert_close(torch.from_numpy(image).movedim(-1, 0), blurred, rtol=0, atol=1e-3)


def chain(base, refiner):
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    latents = base(PROMPTS, num_inference_steps=2, guidance_scale=1.0, generator=seeds[0], output_type="latent").images
    more = {"num_inference_steps": 2, "guidance_scale": 1.0, "strength": 0.5, "output_type": "np"}
    return refiner(PROMPTS, image=latents, generator=seeds[1], **more)


def test_allowed_latents_are_no_images(sdxl, guard):
    attach(sdxl, guard, latents="allow")
    out = run(sdxl, "latent")
    assert same(out.images, run(images.sdxl(), "latent").images)
    assert out.get("nsfw_content_detected") is None


def test_allowed_latents_may_be_a_few_numbers(sdxl, guard):
    attach(sdxl, guard, latents="allow")
    out = sdxl("a", height=8, width=8, num_inference_steps=1, output_type="latent")
    assert out.images.numel() <= 64


def test_latents_that_are_pixels_are_looked_at(guard):
    case = images.CASES["prx_pixel"]
    plain, pipe = case.build(), attach(case.build(), guard)
    for kind in ("latent", "pt"):
        out, before = case.run(pipe, kind), case.run(plain, kind).images
        assert out.nsfw_content_detected == [True] * 3
        expected = redact((before[0] / 2 + 0.5).clamp(0, 1), guard.redaction) * 2 - 1
        torch.testing.assert_close(out.images[0], expected, rtol=0, atol=1e-4)


# --- Output ----------------------------------------------------------------------------------------------------------


def test_tuples_keep_their_length(pipe, guard):
    plain = run(pipe, return_dict=False)
    out = run(attach(pipe, guard), return_dict=False)
    assert type(out) is tuple
    assert len(out) == len(plain)
    assert not same(out[0], plain[0])
    assert len(out) == 1 or out[1] == [True] * 3
    assert [verdict.flagged for verdict in guard.last_verdicts] == [True] * 3


def test_families_that_return_their_images_bare(guard):
    case = hand.CASES["stable_cascade"]
    plain = case.run(case.build(), "np", return_dict=False)
    out = case.run(attach(case.build(), guard), "np", return_dict=False)
    assert type(out) is type(plain)
    assert out.shape == plain.shape
    assert not same(out, plain)


def test_on_verdicts_gets_the_originals_before_anything_is_returned(pipe, tiny_folder):
    guard = NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY)
    plain = run(pipe)
    calls = []
    attach(pipe, guard, on_verdicts=lambda verdicts, originals: calls.append((verdicts, originals)))
    scores = [verdict.score for verdict in run(pipe).verdicts]
    guard.policy = Policy(threshold=max(scores))
    out = run(pipe)
    (first, none), (verdicts, originals) = calls
    assert none == {}
    assert verdicts == out.verdicts
    assert list(originals) == [scores.index(max(scores))]
    for index, original in originals.items():
        torch.testing.assert_close(original, torch.from_numpy(plain.images[index]).movedim(-1, 0), rtol=0, atol=1e-6)


def test_what_on_verdicts_raises_is_raised(pipe, guard):
    def quarantine(verdicts, originals):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(attach(pipe, guard, on_verdicts=quarantine))


def test_a_guard_that_only_reports(pipe, guard):
    guard.redaction = Redaction("none")
    plain = {kind: run(pipe, kind).images for kind in ("pil", "np")}
    attach(pipe, guard)
    for kind, expected in plain.items():
        out = run(pipe, kind)
        assert all(same(image, other) for image, other in zip(out.images, expected, strict=True))
        assert out.nsfw_content_detected == [True] * 3


def test_one_image_made_by_hand(guard):
    """An array without a batch: of a list of one, what comes out is known as one."""
    array = np.random.default_rng(0).random((16, 16, 3))
    (plain,) = hand.CASES["ddpm"].build().numpy_to_pil(array)
    pipe = attach(hand.CASES["ddpm"].build(), guard)
    own = Record(pipe._nsfw_guard, None, pipe=pipe)
    with recording(own):
        shown = pipe.numpy_to_pil(array)
    assert len(shown) == len(own.passed) == 1
    assert not same(shown[0], plain)
    assert own.find(shown) == own.passed


def test_images_in_two_ranges_are_refused(sdxl, guard):
    attach(sdxl, guard)
    with pytest.raises(ImageError, match="hand them over in one range"):
        sdxl.image_processor.postprocess(torch.rand(2, 3, 16, 16), "pt", do_denormalize=[True, False])


@pytest.mark.parametrize(
    ("normalize", "denormalize", "signed"),
    [(True, None, True), (True, [False], False), (False, None, False), (False, [True], True)],
)
def test_the_range_of_what_is_handed_to_a_processor(sdxl, own_demo, normalize, denormalize, signed):
    sdxl.image_processor = VaeImageProcessor(do_normalize=normalize)
    own_demo.redaction = Redaction("fill", color=(0.0, 0.5, 1.0))
    attach(sdxl, own_demo)

    def shown(picture):
        given = (picture * 2 - 1 if signed else picture)[None]
        return sdxl.image_processor.postprocess(given, "pt", do_denormalize=denormalize)[0]

    assert shown(draw("triangle", "red", "white"))[:, 3, 3].tolist() == [0.0, 0.5, 1.0]
    circle = draw("circle", "red", "white")
    torch.testing.assert_close(shown(circle), circle, rtol=0, atol=1e-6)


# --- The backstop ----------------------------------------------------------------------------------------------------


class Custom(StableDiffusionXLPipeline):
    """A pipeline of a user's own, that does something with its images before it returns them."""

    def __call__(self, *args, change, **kwargs):
        out = super().__call__(*args, **kwargs)
        out.images = change(out.images)
        return out


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("pil", lambda images: [image.copy() for image in images]),
        ("pil", lambda images: images[0].rotate(90)),
        ("np", lambda images: images[:, ::-1]),
        ("np", lambda images: list(images * 0.5)),
        ("pt", lambda images: images.flip(3)),
        ("pt", lambda images: images.mul_(0.5)),  # in place
        ("np", lambda images: np.multiply(images, 0.5, out=images)),
        ("pil", lambda images: [images[0].paste(Image.new("RGB", (60, 60), "red")), *images][1:]),
    ],
)
def test_what_was_changed_after_the_check_is_checked_again(guard, kind, change):
    plain = Custom(**images.sdxl().components, add_watermarker=False)
    plain.set_progress_bar_config(disable=True)
    pipe = attach(copy.copy(plain), guard)
    before = images.CASES["sdxl"].run(plain, kind, change=change).images
    out = images.CASES["sdxl"].run(pipe, kind, change=change)
    assert all(out.nsfw_content_detected)
    assert not same(out.images, before) if not isinstance(before, list) else not same(out.images[0], before[0])


def test_what_was_not_changed_is_not_checked_again(sdxl, guard, monkeypatch):
    counts = []
    score = type(guard.classifier).score
    monkeypatch.setattr(
        type(guard.classifier), "score", lambda self, views, **more: counts.append(1) or score(self, views, **more)
    )
    attach(sdxl, guard)
    for kind in ("pil", "np", "pt"):
        run(sdxl, kind)
    assert len(counts) == 3


def test_what_cannot_be_checked_does_not_come_out(guard):
    pipe = attach(Custom(**images.sdxl().components, add_watermarker=False), guard)
    pipe.set_progress_bar_config(disable=True)
    for value, text in ((["a.png"], "a str"), (torch.rand(1, 5, 8, 8), "5 channels"), (torch.rand(8), "of shape")):
        with pytest.raises(ImageError, match=text):
            images.CASES["sdxl"].run(pipe, change=lambda _, value=value: value)


def test_in_painting_with_a_crop_is_checked_as_it_comes_out(tiny_folder):
    """The original picture comes back over what was checked."""
    case = slots.CASES["sd_inpaint_crop"]
    guard = NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY, redaction=UNVERIFIED)
    plain, pipe = case.build(), attach(case.build(), guard)
    unguarded = case.run(plain).images[0]
    composite = case.run(pipe)
    assert same(composite.images[0], unguarded)
    (checked,) = guard.check([unguarded])
    assert composite.verdicts[0].score == pytest.approx(checked.score, abs=1e-5)
    guard.policy = EVERYBODY
    out = case.run(pipe)
    assert out.nsfw_content_detected == [True]
    expected = redact(torch.from_numpy(np.asarray(unguarded)).movedim(-1, 0) / 255, guard.redaction)
    shown = torch.from_numpy(np.asarray(out.images[0])).movedim(-1, 0) / 255
    assert (shown - expected).abs().mean() < 0.1  # blurred as a whole, no original pixels left
    assert not (np.asarray(out.images[0]) == np.asarray(unguarded)).all(-1).mean() > 0.2


def test_a_watermark_made_on_the_cpu(sdxl, guard):
    """With invisible-watermark installed, SDXL hands a tensor to its processor that has been through NumPy."""
    seen = []

    class Watermark:
        def apply_watermark(self, images):
            seen.append(len(images))
            return torch.from_numpy(images.cpu().numpy())

    sdxl.watermark = Watermark()
    assert run(attach(sdxl, guard)).nsfw_content_detected == [True] * 3
    assert seen == [3]


def test_images_decoded_by_hand_are_checked_too(sdxl, guard):
    attach(sdxl, guard, latents="allow")
    latents = run(sdxl, "latent").images
    with torch.no_grad():
        decoded = sdxl.vae.decode(latents / sdxl.vae.config.scaling_factor).sample
    (image, *_) = sdxl.image_processor.postprocess(decoded, output_type="np")
    blurred = redact((decoded[0] / 2 + 0.5).clamp(0, 1), guard.redaction)
    torch.testing.assert_close(torch.from_numpy(image).movedim(-1, 0), blurred, rtol=0, atol=1e-5)


# --- The rest of diffusers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [copy.copy, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_are_guarded(pipe, guard, method):
    twin = method(attach(pipe, guard))
    assert is_guarded(twin)
    expected = run(pipe)
    out = run(twin)
    assert out.nsfw_content_detected == [True] * 3
    assert same(out.images, expected.images)
    if method is not copy.copy:
        assert twin._nsfw_guard.guard is not guard
        detach(twin)
        assert is_guarded(pipe)


def test_a_saved_pipeline_comes_back_with_the_guard_in_its_slot(sd, guard, tmp_path):
    attach(sd, guard)
    sd.save_pretrained(tmp_path)
    script = textwrap.dedent(
        """
        import sys, nsfw_guard
        from diffusers import DiffusionPipeline
        from nsfw_guard.integrations.diffusers_pipeline import attach, is_guarded
        pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
        assert type(pipe).__name__ == "StableDiffusionPipeline", type(pipe)
        assert isinstance(pipe.safety_checker, nsfw_guard.NsfwGuard)
        assert not is_guarded(pipe)
        attach(pipe)
        pipe.set_progress_bar_config(disable=True)
        print(pipe("a cat", num_inference_steps=1, guidance_scale=1.0).nsfw_content_detected)
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[True]")


def test_a_saved_pipeline_without_a_slot_is_not_guarded_after_a_reload(sdxl, guard, tmp_path):
    attach(sdxl, guard)
    sdxl.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is StableDiffusionXLPipeline
    assert not is_guarded(again)


def test_from_pipe_takes_the_guard_along_in_a_slot(sd, guard):
    attach(sd, guard)
    other = StableDiffusionImg2ImgPipeline.from_pipe(sd)
    assert other.safety_checker is guard
    assert not is_guarded(other)
    attach(other)
    assert other._nsfw_guard.guard is guard
    assert type(AutoPipelineForImage2Image.from_pipe(sd)).__name__ == "StableDiffusionImg2ImgPipeline"


def test_from_pipe_without_a_slot_says_that_it_is_not_guarded(sdxl, guard):
    attach(sdxl, guard)
    other = StableDiffusionXLImg2ImgPipeline.from_pipe(sdxl)
    assert not is_guarded(other)
    assert is_guarded(attach(other, guard))
    assert is_guarded(sdxl)


@pytest.mark.parametrize("twin", ["slot", "components", "from_pipe"])
def test_a_guard_in_the_slot_alone_sees_no_latents_and_is_guarded_says_so(sd, guard, twin):
    if twin == "slot":
        sd.register_modules(safety_checker=guard, feature_extractor=CLIPImageProcessor())
        other = sd
    else:
        attach(sd, guard)
        other = (
            StableDiffusionPipeline(**sd.components) if twin == "components" else StableDiffusionPipeline.from_pipe(sd)
        )
    assert run(other).nsfw_content_detected == [True] * 3  # it works
    assert run(other, "latent").images.shape[1] == 4  # and has not seen these
    assert not is_guarded(other)
    with pytest.raises(SettingError, match="returns latents"):
        run(attach(other), "latent")
    assert is_guarded(other)


def test_a_guard_in_a_slot_that_is_never_called_is_no_guard(sdxl, guard):
    sdxl.safety_checker = guard
    assert not is_guarded(sdxl)


def test_moves_and_casts_of_the_pipeline(pipe, guard):
    attach(pipe, guard)
    assert pipe.to(torch.float64) is pipe
    pipe.to(torch.float32).to("cpu")
    assert is_guarded(pipe)
    assert run(pipe).nsfw_content_detected == [True] * 3


def test_a_pipeline_in_bfloat16(sdxl, guard):
    plain = run(sdxl.to(torch.bfloat16), "pt").images
    guard.policy = NOBODY
    attach(sdxl, guard)
    scores = [verdict.score for verdict in run(sdxl).verdicts]
    guard.policy = Policy(threshold=max(scores))
    out = run(sdxl, "pt")
    assert out.images.dtype == plain.dtype
    for image, original, flagged in zip(out.images, plain, out.nsfw_content_detected, strict=True):
        assert torch.equal(image, original) != flagged


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_offloaded_pipelines(name, guard, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    pipe = attach(CALLS[name].build(), guard)
    expected = run(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        out = run(pipe)
        assert out.nsfw_content_detected == [True] * 3
        assert same(out.images, expected.images)
    pipe.remove_all_hooks()


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_group_offloading(name, guard):
    pipe = attach(CALLS[name].build(), guard)
    expected = run(pipe)
    pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    assert same(run(pipe).images, expected.images)


def test_compiled_parts_of_a_pipeline(sdxl, guard):
    expected = run(attach(sdxl, guard))
    sdxl.unet = torch.compile(sdxl.unet, backend="eager")
    sdxl.vae.decode = torch.compile(sdxl.vae.decode, backend="eager")
    out = run(sdxl)
    assert out.nsfw_content_detected == [True] * 3
    np.testing.assert_allclose(out.images, expected.images, atol=1e-4)


def test_lora_adapters_come_and_go(sdxl, guard, tmp_path):
    peft = pytest.importorskip("peft")
    attach(sdxl, guard)
    before = run(sdxl)
    sdxl.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    changed = run(sdxl)
    assert changed.nsfw_content_detected == [True] * 3
    assert not same(changed.images, before.images)
    sdxl.unload_lora_weights()
    assert same(run(sdxl).images, before.images)


def test_schedulers_can_be_exchanged(pipe, guard):
    attach(pipe, guard)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert run(pipe).nsfw_content_detected == [True] * 3


def test_the_guard_follows_the_pipelines_device_with_arrays(monkeypatch, guard):
    """Stands in for a GPU, which is not here: that the guard is asked to go where the pipeline computes."""
    asked = []
    monkeypatch.setattr(guard, "_place", lambda device: asked.append(device) or CPU)
    record = Record(Attachment(guard, Settings()), SimpleNamespace(type="cuda"))
    check_images(np.random.default_rng(0).random((2, 32, 32, 3)), record, value_range=(0, 1))
    assert asked[0].type == "cuda"
    guard.redaction = Redaction()
    check_images(np.random.default_rng(0).random((2, 32, 32, 3)), record, value_range=(0, 1))
    assert asked[-1].type == "cuda"  # what is redacted is judged there, too


def test_every_error_is_one_of_ours(guard):
    with pytest.raises(GuardError):
        attach(3, guard)


@pytest.mark.parametrize("frames", [1, 300])
def test_short_and_long_clips(frames, own_demo):
    pipe = attach(videos.CASES["wan"].build(), own_demo, every=10)
    clip = torch.rand(1, 3, frames, 32, 32) * 2 - 1
    assert pipe.video_processor.postprocess_video(clip, "np").shape == (1, frames, 32, 32, 3)


def test_pictures_of_an_animated_kind_are_clips(guard):
    pipe = attach(videos.CASES["animatediff"].build(), guard)
    out = videos.CASES["animatediff"].run(pipe, "pil")
    assert all(isinstance(frame, Image.Image) for clip in out.frames for frame in clip)
    assert len(out.verdicts) == len(out.frames) == len(out.frame_verdicts)
    assert [len(verdicts) for verdicts in out.frame_verdicts] == [len(clip) for clip in out.frames]


# --- What got past once ----------------------------------------------------------------------------------------------


def test_asking_a_pipeline_on_pixels_for_latents(guard):
    """DDPM takes no notice of the output type, and returns its images."""
    case = hand.CASES["ddpm"]
    out = case.run(attach(case.build(), guard, latents="allow"), "latent")
    assert out.nsfw_content_detected == [True] * 3
    assert not same(out.images, case.run(case.build(), "latent").images)


class Wrapped(StableDiffusionPipeline):
    """A class of a user's own that hands its arguments on, and may return more than it should."""

    extra: object = None

    def __call__(self, *args, **kwargs):
        out = super().__call__(*args, **kwargs)
        if self.extra is None:
            return out
        pictures = [Image.fromarray((image * 255).astype(np.uint8)) for image in raw(self)]
        if self.extra == "tuple":
            return out.images, pictures
        out["previews"] = pictures
        return out


def raw(pipe):
    return CALLS["sd"].run(pipelines.stable_diffusion(), "np").images


def test_latents_of_a_class_of_a_users_own(sd, guard):
    pipe = attach(Wrapped(**sd.components, requires_safety_checker=False), guard)
    for kind in ("latent", "latents"):
        with pytest.raises(SettingError, match="returns latents"):
            CALLS["sd"].run(pipe, kind)


@pytest.mark.parametrize("extra", ["tuple", "field"])
def test_pictures_in_unexpected_places(sd, guard, extra):
    pipe = attach(Wrapped(**sd.components, requires_safety_checker=False), guard)
    pipe.set_progress_bar_config(disable=True)
    pipe.extra = extra
    out = CALLS["sd"].run(pipe, "np")
    pictures = out[1] if extra == "tuple" else out["previews"]
    for picture, original in zip(pictures, raw(pipe), strict=True):
        assert not np.allclose(np.asarray(picture) / 255, original, atol=0.02)


def test_values_of_an_undeclared_range(sdxl, own_demo):
    """A backstop that clamped them would look at another picture than the one that comes out."""
    triangle = draw("triangle", "red", "white", height=64, width=64)[None]
    pipe = attach(Custom(**sdxl.components, add_watermarker=False), own_demo)
    pipe.set_progress_bar_config(disable=True)
    out = images.CASES["sdxl"].run(pipe, "pt", change=lambda _: triangle * 2 - 1)
    assert out.nsfw_content_detected == [True]
    assert out.images.min() < -0.05
    with pytest.raises(ImageError, match=r"returned values from .* expected \[0, 1\]"):
        images.CASES["sdxl"].run(pipe, "pt", change=lambda _: triangle * 255)


def test_a_processor_of_a_users_own_that_adds_something_afterwards(sdxl, guard):
    originals = images.CASES["sdxl"].run(images.sdxl(), "np").images

    class Replacing(VaeImageProcessor):
        def postprocess(self, image, output_type="pil", do_denormalize=None):
            super().postprocess(image, output_type, do_denormalize)
            return originals.copy()

    sdxl.image_processor = Replacing(vae_scale_factor=sdxl.vae_scale_factor)
    out = run(attach(sdxl, guard))
    assert out.nsfw_content_detected == [True] * 3
    assert not same(out.images, originals)


def test_what_the_guarded_class_makes_is_not_guarded(pipe, guard, tmp_path):
    cls = type(pipe)
    attach(pipe, guard)
    twin = type(pipe)(
        **{name: part for name, part in pipe.components.items() if name != "safety_checker"}, **slotless(pipe)
    )
    assert type(twin) is cls
    assert not is_guarded(twin)
    assert is_guarded(attach(twin, guard))


def slotless(pipe):
    return {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in pipe.components else {}


def test_detach_leaves_alone_what_others_guard(guard, tiny_folder):
    pipe = hand.CASES["kandinsky22_combined"].build()
    attach(pipe.decoder_pipe, NsfwGuard(tiny_folder))
    attach(pipe, guard)
    detach(pipe)
    assert is_guarded(pipe.decoder_pipe)


def test_detach_releases_inner_pipelines(guard):
    pipe = hand.CASES["kandinsky22_combined"].build()
    cls = type(pipe.decoder_pipe)
    attach(pipe, guard)
    assert is_guarded(pipe.decoder_pipe)
    assert not is_guarded(pipe.prior_pipe)  # makes no images
    detach(pipe)
    assert type(pipe.decoder_pipe) is cls


def test_settings_of_a_copy_are_its_own(sdxl, guard):
    attach(sdxl, guard, min_run=3)
    attach(copy.copy(sdxl), min_run=5)
    assert sdxl._nsfw_guard.settings.min_run == 3


def test_detaching_a_copy(sdxl, guard, monkeypatch):
    attach(sdxl, guard)
    detach(copy.copy(sdxl))
    assert is_guarded(sdxl)
    assert type(sdxl.image_processor).postprocess.__qualname__.startswith("Guarded")


def test_writes_in_place_under_inference_mode(guard):
    plain = Custom(**images.sdxl().components, add_watermarker=False)
    plain.set_progress_bar_config(disable=True)
    pipe = attach(plain, guard)
    generator = torch.Generator().manual_seed(3)

    def scribble(batch):
        return batch.copy_(torch.rand(batch.shape, generator=generator))

    with torch.inference_mode():
        out = images.CASES["sdxl"].run(pipe, "pt", change=scribble)
    assert out.images.std() < 0.1  # noise, blurred


def test_equal_images_have_a_verdict_each(sdxl, guard):
    pipe = attach(Custom(**sdxl.components, add_watermarker=False), guard)
    pipe.set_progress_bar_config(disable=True)
    guard.redaction = Redaction("fill")
    out = images.CASES["sdxl"].run(pipe, "np", change=lambda batch: np.stack(list(batch)))
    assert out.nsfw_content_detected == [True] * 3
    out = images.CASES["sdxl"].run(pipe, "pil", change=lambda batch: [batch[0], batch[0]])
    assert out.nsfw_content_detected == [True] * 2


def test_a_copy_has_processors_of_its_own_where_the_original_shares_them(guard, tiny_folder):
    other = NsfwGuard(tiny_folder, dtype="float32")
    first, second = attach(pipelines.stable_diffusion(), other), pipelines.stable_diffusion()
    second.image_processor = first.image_processor
    attach(second, guard)
    twin = copy.copy(second)
    assert twin.image_processor._nsfw_guard is twin._nsfw_guard
    detach(twin)
    assert "_nsfw_guard" not in vars(twin.image_processor)
    assert is_guarded(first)
    assert first.image_processor._nsfw_guard.guard is other
