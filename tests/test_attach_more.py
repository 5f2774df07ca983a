"""``attach`` in the corners: ONNX, IP-Adapter, LDM3D, threads, layers with alpha, NVIDIA's own checker.

The weights are random, as in the other tests of pipelines; only layers are looked at by a model that knows something.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pipelines
import pytest
import torch
from nsfw_guard.integrations.diffusers_pipeline import attach, detach, is_guarded
from nsfw_guard.integrations.diffusers_pipeline.checks import check_images
from nsfw_guard.integrations.diffusers_pipeline.record import Record
from nsfw_guard.integrations.diffusers_pipeline.settings import Attachment, Settings
from outputs import EVERYBODY, NOBODY, UNVERIFIED, between, identical, pixels, scores_of
from pipelines import images, slots, videos
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from nsfw_guard import NsfwGuard, Redaction
from nsfw_guard.demo.shapes import draw
from nsfw_guard.redact import redact

PROMPTS = ["a cat", "two dogs", "zebras"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def guard(tiny_folder):
    """A guard of one's own that flags nothing yet."""
    return NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY, redaction=UNVERIFIED)


@pytest.fixture
def classified(guard, monkeypatch):
    """How many images each look of any guard was at."""
    counts = []
    score = type(guard.classifier).score

    def counting(self, views, **more):
        scores = score(self, views, **more)
        counts.append(len(scores))
        return scores

    monkeypatch.setattr(type(guard.classifier), "score", counting)
    return counts


def assert_guarded(out, shown, plain, guard, *, off=1e-5):
    """Some are flagged and redacted, once; the others are bit-identical to what there is without a guard."""
    flags = out.nsfw_content_detected
    assert [type(flag) for flag in flags] == [bool] * len(plain)
    assert any(flags)
    assert not all(flags)
    assert [verdict.flagged for verdict in out.verdicts] == flags
    assert guard.last_verdicts == out.verdicts
    assert len(shown) == len(plain)
    for image, original, flagged in zip(shown, plain, flags, strict=True):
        if flagged:
            blurred = redact(pixels(original), guard.redaction)
            torch.testing.assert_close(pixels(image), blurred, rtol=0, atol=off)
            assert (blurred - pixels(original)).abs().max() > 10 * off
        else:
            assert identical(image, original)


# --- ONNX ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from pipelines.onnx import onnx_stable_diffusion

    return onnx_stable_diffusion(tmp_path_factory.mktemp("onnx"))


@pytest.fixture
def onnx(exported):
    """An unguarded pipeline, whose export takes too long to be done twice."""
    yield exported
    detach(exported)


def run_onnx(pipe, output_type, **more):
    size = {"height": 256, "width": 256}  # for pictures of 64x64
    few = {"num_inference_steps": 2, "guidance_scale": 1.0, "generator": np.random.RandomState(0)}
    return pipe(PROMPTS, output_type=output_type, **size, **few, **more)


@pytest.mark.parametrize("output_type", ["pil", "np"])
@pytest.mark.parametrize("prepared", [True, False], ids=["own extractor", "no extractor"])
def test_onnx(onnx, guard, classified, output_type, prepared):
    """Its call hands pictures to the slot one by one, and makes pictures before and after that."""
    own = onnx.feature_extractor
    if not prepared:  # the one pipeline that calls what attach supplies
        onnx.register_modules(feature_extractor=None)
    try:
        plain = run_onnx(onnx, output_type)
        assert plain.nsfw_content_detected is None
        attach(onnx, guard)
        guard.policy = between(run_onnx(onnx, output_type).verdicts)
        classified.clear()
        out = run_onnx(onnx, output_type)
        assert classified == [1, 1, 1]
        assert_guarded(out, out.images, plain.images, guard, off=1 / 255 if output_type == "pil" else 1e-5)
        shown, flags = run_onnx(onnx, output_type, return_dict=False)
        assert flags == out.nsfw_content_detected
        assert all(identical(one, other) for one, other in zip(shown, out.images, strict=True))
        detach(onnx)
        assert (onnx.feature_extractor is own) == prepared
        assert all(map(identical, run_onnx(onnx, output_type).images, plain.images))
    finally:
        detach(onnx)
        onnx.register_modules(feature_extractor=own)


# --- IP-Adapter ------------------------------------------------------------------------------------------------------

WIDTH = 32  # of the vision tower's embeddings


def vision_tower(side):
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=WIDTH,
        image_size=side,
        patch_size=side // 4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIPVisionModelWithProjection(config).eval()


def adapter_for(unet):
    """Random weights under the names that the published adapters have."""
    generator = torch.Generator().manual_seed(0)
    cross = unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(4 * cross, WIDTH, generator=generator),
        "proj.bias": torch.zeros(4 * cross),
        "norm.weight": torch.ones(cross),
        "norm.bias": torch.zeros(cross),
    }
    attentions = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    layers = {
        f"{2 * index + 1}.to_{part}_ip.weight": torch.randn(
            unet.get_submodule(name).inner_dim, cross, generator=generator
        )
        for index, name in enumerate(attentions)
        for part in ("k", "v")
    }
    return {"image_proj": projection, "ip_adapter": layers}


def adaptable(side=224):
    """A pipeline that has a vision tower, and no feature extractor until somebody needs one."""
    return pipelines.stable_diffusion(image_encoder=vision_tower(side), feature_extractor=None)


def load_adapter(pipe):
    pipe.load_ip_adapter(adapter_for(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
    return pipe


def run_adapter(pipe, **given):
    few = {"num_images_per_prompt": 3, "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
    return pipe("a cat", generator=torch.Generator().manual_seed(0), **few, **given)


GIVEN = {
    "picture": {"ip_adapter_image": slots.PICTURES[0]},
    "embeddings": {"ip_adapter_image_embeds": [torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(1))]},
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("order", ["attach first", "adapter first"])
def test_an_ip_adapter(guard, order, given):
    """Attached first, its pictures are prepared by the feature extractor that attach supplied."""
    plain = run_adapter(load_adapter(adaptable()), **GIVEN[given])
    pipe = adaptable()
    if order == "attach first":
        attach(pipe, guard)
        supplied = pipe.feature_extractor
        assert isinstance(supplied, CLIPImageProcessor)
        assert load_adapter(pipe).feature_extractor is supplied
    else:
        attach(load_adapter(pipe), guard)
    guard.policy = between(run_adapter(pipe, **GIVEN[given]).verdicts)
    out = run_adapter(pipe, **GIVEN[given])
    assert_guarded(out, out.images, plain.images, guard)
    pipe.set_ip_adapter_scale(0.0)
    guard.policy = NOBODY
    without = run_adapter(pipe, **GIVEN[given]).images
    assert np.abs(without - plain.images).max() > 0.01


def test_an_ip_adapter_whose_vision_tower_sees_another_size(guard):
    """Diffusers makes a feature extractor for the tower's own size where it finds none."""
    plain = run_adapter(load_adapter(adaptable(side=32)), **GIVEN["picture"])
    out = run_adapter(load_adapter(attach(adaptable(side=32), guard)), **GIVEN["picture"])
    assert identical(out.images, plain.images)


def test_an_ip_adapter_that_came_while_a_guard_was_attached(guard):
    """It took the feature extractor that attach supplied for the pipeline's own, and needs it for good."""
    plain = run_adapter(load_adapter(adaptable()), **GIVEN["picture"])
    pipe = detach(load_adapter(attach(adaptable(), guard)))
    assert identical(run_adapter(pipe, **GIVEN["picture"]).images, plain.images)


# --- LDM3D -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [4, 6])
def test_ldm3d(guard, classified, channels):
    """Depth shows the shape of what was flagged. (Of "pt" it makes nothing, and "pil" fails in diffusers.)"""
    pipe = attach(pipelines.stable_diffusion_ldm3d(channels=channels), guard)
    case = slots.CASES["stable_diffusion"]
    guard.policy = between(case.run(pipe, "np").verdicts)
    plain = case.run(pipelines.stable_diffusion_ldm3d(channels=channels), "np")
    classified.clear()
    out = case.run(pipe, "np")
    assert classified == [3]
    assert_guarded(out, out.rgb, plain.rgb, guard)
    assert out.depth.shape == plain.depth.shape
    for depth, original, flagged in zip(out.depth, plain.depth, out.nsfw_content_detected, strict=True):
        assert original.any()
        assert not depth.any() if flagged else identical(depth, original)
    (rgb, depth), flags = case.run(pipe, "np", return_dict=False)
    assert flags == out.nsfw_content_detected
    assert identical(rgb, out.rgb)
    assert identical(depth, out.depth)


# --- Threads ---------------------------------------------------------------------------------------------------------

BUILD = {"sd": pipelines.stable_diffusion, "sdxl": images.sdxl}  # guarded in the slot, and in the processor


def at_the_same_time(works, rounds=3):
    """Run each work in a thread of its own, several times; each is given a function that waits for the others."""
    meet = threading.Barrier(len(works), timeout=60)

    def repeat(work):
        try:
            return [work(meet.wait) for _ in range(rounds)]
        except BaseException:
            meet.abort()  # nobody waits for this one any more
            raise

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(repeat, work) for work in works]]


@pytest.mark.parametrize("kinds", [("sd", "sdxl"), ("sdxl", "sdxl"), ("sd", "sd")], ids="+".join)
@pytest.mark.parametrize("guards", ["two guards", "one guard"])
def test_two_pipelines_in_two_threads(tiny_folder, guard, kinds, guards):
    """Each has the flags, verdicts and images that it has alone."""
    others = guard if guards == "one guard" else NsfwGuard(tiny_folder, dtype="float32", policy=EVERYBODY)
    jobs = [
        (attach(BUILD[kind](), own), own, prompts, seed)
        for kind, own, prompts, seed in zip(kinds, (guard, others), (PROMPTS, PROMPTS[:2]), (0, 1), strict=True)
    ]

    def run(job, meet=lambda: None):
        pipe, own, prompts, seed = job

        def step_by_step(pipe, step, timestep, tensors):
            meet()
            return tensors

        few = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
        generator = torch.Generator().manual_seed(seed)
        out = pipe(prompts, generator=generator, callback_on_step_end=step_by_step, **few)
        meet()
        return out, own.last_verdicts

    if guards == "one guard":
        guard.policy = between([verdict for job in jobs for verdict in run(job)[0].verdicts])
    alone = [run(job)[0] for job in jobs]
    flags = [out.nsfw_content_detected for out in alone]
    if guards == "one guard":
        assert {True, False} == {*flags[0], *flags[1]}
    else:
        assert flags == [[False] * 3, [True] * 2]
    together = at_the_same_time([partial(run, job) for job in jobs])
    for wanted, found in zip(alone, together, strict=True):
        for out, verdicts in found:
            assert out.nsfw_content_detected == wanted.nsfw_content_detected
            assert scores_of(out.verdicts) == pytest.approx(scores_of(wanted.verdicts), abs=1e-5)
            assert verdicts == out.verdicts
            np.testing.assert_allclose(out.images, wanted.images, rtol=0, atol=1e-5)


# --- Processors that call their own methods --------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_what_a_processor_finishes_inside_of_a_call_is_looked_at_once(guard, classified, output_type):
    """``postprocess_video`` hands every clip to ``postprocess``, which is guarded too."""
    case = videos.CASES["wan"]
    pipe = attach(case.build(), guard)
    counts = [len(clip) for clip in case.run(pipe, output_type).frame_verdicts]
    assert classified == counts
    classified.clear()
    pipe.video_processor.postprocess_video(torch.rand(2, 3, 4, 32, 32) * 2 - 1, output_type)
    assert classified == [4, 4]


# --- Layers with alpha -----------------------------------------------------------------------------------------------


def triangle_of_alpha():
    """1 inside a triangle, 0 outside, [1, H, W]."""
    drawn, empty = draw("triangle", "white", "blue", flat=True), draw(None, "white", "blue", flat=True)
    apart = (drawn - empty)[:1]
    return apart / apart.max()


def layers():
    """A harmless layer, a triangle in the colours below full transparency, one that only alpha shows; in [0, 1]."""
    opaque = torch.ones(1, 128, 128)
    circle = draw("circle", "green", "yellow")
    faded = torch.linspace(0.5, 1, 128).expand(1, 128, 128)
    dark = torch.full((3, 128, 128), 0.1)
    return torch.stack(
        [
            torch.cat([circle, faded]),
            torch.cat([draw("triangle", "red", "blue"), 0 * opaque]),
            torch.cat([dark, triangle_of_alpha()]),
        ]
    )


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_layers_are_seen_alone_and_on_what_lies_below(demo, kind):
    """Neither colours that alpha hides nor a shape that only alpha has may slip past; what is redacted covers both."""
    given, value_range = (layers() * 2 - 1, (-1, 1)) if kind == "tensor" else (layers().movedim(1, -1).numpy(), (0, 1))
    before = given.clone() if kind == "tensor" else given.copy()
    done, passed = check_images(given, Record(Attachment(demo, Settings()), None), value_range=value_range)
    assert [entry.verdict.flagged for entry in passed] == [False, True, True]
    assert identical(given, before)
    assert identical(done[0], before[0])
    for index in (1, 2):
        layer = done[index] if kind == "tensor" else torch.from_numpy(done[index]).movedim(-1, 0)
        assert torch.equal(layer[3], torch.ones(128, 128))
    assert not any(verdict.flagged for verdict in demo.check(done, value_range=value_range))


@pytest.mark.parametrize(("shade", "background"), [(1, 1), (0, 0)], ids=["white", "black"])
def test_a_shape_that_only_alpha_has(demo, shade, background):
    """It does not show on its own colour, nor without its alpha."""
    colors = torch.full((1, 3, 128, 128), float(shade))
    alpha = triangle_of_alpha()[None]
    assert not demo.check(colors)[0].flagged
    assert not demo.check(colors * alpha + background * (1 - alpha))[0].flagged
    layer = torch.cat([colors, alpha], dim=1)
    _, passed = check_images(layer, Record(Attachment(demo, Settings()), None), value_range=(0, 1))
    assert passed[0].verdict.flagged


def test_what_only_one_look_at_a_layer_shows(demo):
    """The test above would prove nothing if one of the looks saw both triangles."""
    colors, alpha = layers().split([3, 1], dim=1)
    looks = {"alone": colors, "over white": colors * alpha + 1 - alpha}
    flags = {name: [verdict.flagged for verdict in demo.check(look)] for name, look in looks.items()}
    assert flags == {"alone": [False, True, False], "over white": [False, False, True]}


# --- Cosmos ----------------------------------------------------------------------------------------------------------

COSMOS = [name for name in videos.CASES if name.startswith("cosmos")]


def with_own_checker(case, **methods):
    """A pipeline with a checker that it takes for NVIDIA's; two of them show clips to no other."""
    pipe = case.build()
    its_own = sys.modules[type(pipe).__module__].CosmosSafetyChecker
    pipe.safety_checker = type("Checker", (videos.SafetyChecker, its_own), methods)()
    return pipe


def clips_of(out, case):
    """[N, F, H, W, C] in [0, 1], of arrays."""
    value = np.asarray(getattr(out, case.field))
    if case.field == "video":  # one clip without a batch
        return value[None]
    return value[:, None] if case.field == "images" else value


def frame_verdicts(out):
    return getattr(out, "frame_verdicts", [[verdict] for verdict in out.verdicts])


def guarded_cosmos(case, guard, **methods):
    """A guarded pipeline with its own checker, and a policy that flags some of its frames."""
    pipe = attach(with_own_checker(case), guard, min_run=1)
    guard.policy = between([verdict for clip in frame_verdicts(case.run(pipe, "np")) for verdict in clip])
    detach(pipe)
    return attach(with_own_checker(case, **methods), guard, min_run=1)


@pytest.mark.parametrize("name", COSMOS)
def test_cosmos_keeps_its_own_checker(guard, name):
    """That checker reads prompts; what it looks at, and what comes out, is redacted all the same."""
    case = videos.CASES[name]
    pipe = with_own_checker(case)
    checker = pipe.safety_checker
    assert not is_guarded(pipe)
    assert attach(pipe, guard, min_run=1).safety_checker is checker
    assert is_guarded(pipe)
    guard.policy = between([verdict for clip in frame_verdicts(case.run(pipe, "np")) for verdict in clip])
    plain = clips_of(case.run(case.build(), "np"), case)
    checker.texts.clear()
    checker.clips.clear()
    out = case.run(pipe, "np")
    prompts = case.call().get("prompt", [])  # or embeddings
    assert checker.texts == ([prompts] if isinstance(prompts, str) else prompts)
    assert checker.clips == [clip.shape for clip in plain]
    assert out.nsfw_content_detected == [verdict.flagged for verdict in out.verdicts]
    assert any(out.nsfw_content_detected)
    shown = clips_of(out, case)
    for clip, original, verdicts in zip(shown, plain, frame_verdicts(out), strict=True):
        for frame, was, verdict in zip(clip, original, verdicts, strict=True):
            assert not verdict.flagged or np.abs(frame - was).max() > 0.1
    assert detach(pipe).safety_checker is checker


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("name", COSMOS)
def test_cosmos_frames_are_looked_at_again_behind_its_own_checker(guard, classified, name, output_type):
    """They come rounded to 8 bits: who says that nothing else was changed? Unflagged frames stay what they are."""
    case = videos.CASES[name]
    pipe = guarded_cosmos(case, guard)
    plain = clips_of(case.run(case.build(), "np"), case)
    classified.clear()
    out = case.run(pipe, output_type)
    assert classified == [plain.shape[1]] * len(plain) * 2
    flags = [verdict.flagged for clip in frame_verdicts(out) for verdict in clip]
    assert any(flags)
    assert not all(flags)
    value = getattr(out, case.field)
    if output_type == "pil":
        value = np.stack([np.asarray(frame) for frame in flat(value)]) / np.float32(255)
    elif output_type == "pt":
        value = value.movedim(-3, -1).numpy()
    shown, plain = (array.reshape(-1, *plain.shape[2:]) for array in (np.asarray(value), plain))
    for frame, was, flagged in zip(shown, plain, flags, strict=True):
        off = (pixels(frame) - pixels(was)).abs().max()
        assert off > 0.1 if flagged else off < 1.01 / 255


def flat(value):
    return [frame for item in value for frame in flat(item)] if isinstance(value, list) else [value]


def _pixelate_a_face(self, frames):
    frames = frames.copy()
    frames[:, :8, :8] = 128
    return frames


@pytest.mark.parametrize("name", COSMOS)
def test_cosmos_flags_survive_what_its_own_checker_changes(guard, name):
    """It pixelates faces, so the clip is looked at again; what was redacted before that shows nothing any more."""
    case = videos.CASES[name]
    guard.redaction = Redaction("fill", color=(1.0, 1.0, 0.0))  # a colour that this guard does not flag
    pipe = guarded_cosmos(case, guard, check_video_safety=_pixelate_a_face)
    out = case.run(pipe, "np")
    shown = clips_of(out, case)
    yellow = np.array([1, 1, 0], dtype=np.float32)
    filled = [any(np.array_equal(frame[8:, 8:], yellow + 0 * frame[8:, 8:]) for frame in clip) for clip in shown]
    assert any(filled)
    assert out.nsfw_content_detected == [verdict.flagged for verdict in out.verdicts] == filled
    assert guard.last_verdicts == out.verdicts


def test_cosmos_1_with_the_guard_in_its_slot(guard):
    """Without attach: the pipeline itself shows its clips to whatever is there."""
    case = videos.CASES["cosmos_text_to_world"]
    plain = case.run(case.build(), "np").frames
    frames = (plain * 255).round().astype(np.uint8).reshape(-1, *plain.shape[2:])
    guard.policy = between(guard.check(frames))
    flags = [verdict.flagged for verdict in guard.check(frames)]
    pipe = videos.cosmos_text_to_world(safety_checker=guard)
    assert pipe.safety_checker is guard
    shown = case.run(pipe, "np").frames.reshape(frames.shape)
    assert {*flags} == {True, False}
    for frame, was, flagged in zip(shown, plain.reshape(frames.shape), flags, strict=True):
        if flagged:
            blurred = redact(pixels(was), guard.redaction)
            torch.testing.assert_close(pixels(frame), blurred, rtol=0, atol=1 / 255)
        else:
            assert np.array_equal(frame, was)
    assert case.run(pipe, "pil").frames[0][0].size == (32, 32)
