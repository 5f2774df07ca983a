"""The guard in the ``safety_checker`` slot of real, tiny diffusers pipelines.

The weights are random, on both sides: what is tested is what becomes of an image, not whether it is flagged rightly.
"""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import accelerate
import numpy as np
import pipelines
import pytest
import torch
from accelerate.big_modeling import attach_align_device_hook_on_blocks
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from diffusers.hooks import apply_group_offloading
from outputs import EVERYBODY, NOBODY, UNVERIFIED, between, identical, pixels, scores_of
from PIL import Image

from nsfw_guard import NsfwGuard, Policy, Redaction
from nsfw_guard.placement import is_hooked
from nsfw_guard.redact import redact

PROMPTS = ["a cat", "two dogs", "zebras"]
CPU = torch.device("cpu")
SOURCE = (
    torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(7)).repeat_interleave(8, 2).repeat_interleave(8, 3)
)
MASK = torch.ones(3, 1, 64, 64).index_fill(3, torch.arange(32), 0.0)

# Pipeline → what its call takes beyond the prompts.
SLOTS = {
    "stable_diffusion": {},
    "stable_diffusion_img2img": {"image": SOURCE, "strength": 1.0},
    "stable_diffusion_inpaint": {"image": SOURCE, "mask_image": MASK},
    "stable_diffusion_controlnet": {"image": SOURCE},
    "latent_consistency_model": {},
    "stable_diffusion_adapter": {"image": SOURCE},  # hands arrays over
}


def generate(pipe, output_type="pil", *, prompts=PROMPTS, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    more = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": output_type, **more}
    return pipe(list(prompts), generator=generator, **more)


@contextmanager
def handed_over(guard):
    """Copies of what pipelines hand to the guard."""
    seen = []

    def note(module, args, kwargs):
        seen.append(copy.deepcopy(kwargs["images"]))

    handle = guard.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def contract(image):
    """One image that the guard was handed, as [3, H, W] in [0, 1]: denormalised and clamped as diffusers does."""
    if isinstance(image, np.ndarray):
        return torch.from_numpy(image).movedim(-1, 0)[:3]
    return (image[:3].float() / 2 + 0.5).clamp(0, 1)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def guard(tiny_folder):
    """A guard of one's own, whose settings may be changed."""
    return NsfwGuard(tiny_folder, dtype="float32")


@pytest.fixture(scope="module")
def bare_folder(tmp_path_factory):
    """A saved pipeline whose slot is empty."""
    folder = tmp_path_factory.mktemp("bare")
    pipelines.stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(tiny_folder):
    """What text2img gives with a guard at construction that flags some: its policy, images and flags."""
    guard = NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY)
    pipe = pipelines.stable_diffusion(guard)
    generate(pipe)
    guard.policy = between(guard.last_verdicts)
    out = generate(pipe)
    return SimpleNamespace(policy=guard.policy, images=out.images, flags=out.nsfw_content_detected)


# --- The value range -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SLOTS)
def slot(request, tiny_folder):
    """A guarded pipeline that flags some of its images, and the same pipeline without a guard."""
    build, more = getattr(pipelines, request.param), SLOTS[request.param]
    guard = NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY, redaction=UNVERIFIED)
    guarded = build(guard)
    with handed_over(guard) as seen:
        generate(guarded, **more)
    guard.policy = between(guard.last_verdicts)
    return SimpleNamespace(
        name=request.param, guarded=guarded, bare=build(None), guard=guard, decoded=seen[0], call=more
    )


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_flagged_images_are_the_blurred_picture_and_the_others_untouched(slot, output_type):
    """Pipelines denormalise what is not flagged and nothing else: a mistake there shows in the final pixels only."""
    if slot.name != "stable_diffusion_adapter":
        assert slot.decoded.abs().max() > 1.1  # not clamped: the blur must be that of the clamped picture
    out = generate(slot.guarded, output_type, **slot.call)
    without = generate(slot.bare, output_type, **slot.call).images
    flags = out.nsfw_content_detected
    assert [type(flag) for flag in flags] == [bool] * 3
    assert flags == [verdict.flagged for verdict in slot.guard.last_verdicts]
    assert any(flags) and not all(flags)
    for image, original, decoded, flagged in zip(out.images, without, slot.decoded, flags, strict=True):
        if not flagged:
            assert identical(image, original)
            continue
        blurred = redact(contract(decoded), slot.guard.redaction)
        assert (blurred - pixels(original)).abs().max() > 0.1  # there is a difference to be seen
        torch.testing.assert_close(pixels(image), blurred, rtol=0, atol=1 / 255 if output_type == "pil" else 1e-5)


@pytest.mark.parametrize("kind", ["blur", "pixelate", "fill"])
def test_every_redaction_reaches_the_final_pixels(guard, kind):
    guard.policy, guard.redaction = EVERYBODY, Redaction(kind, cells=4, color=(0.8, 0.2, 0.4), verify=False)
    with handed_over(guard) as seen:
        out = generate(pipelines.stable_diffusion(guard))
    assert out.nsfw_content_detected == [True] * 3
    for image, decoded in zip(out.images, seen[0], strict=True):
        torch.testing.assert_close(pixels(image), redact(contract(decoded), guard.redaction), rtol=0, atol=1 / 255)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_adapter"])
def test_a_guard_that_only_reports_changes_no_pixel(guard, name, output_type):
    """What is flagged is not denormalised by the pipeline, even if the guard leaves the image as it is."""
    guard.policy, guard.redaction = EVERYBODY, Redaction("none")
    out = generate(getattr(pipelines, name)(guard), output_type, **SLOTS[name])
    without = generate(getattr(pipelines, name)(), output_type, **SLOTS[name])
    assert out.nsfw_content_detected == [True] * 3
    assert identical(out.images, without.images)


def test_the_pipelines_own_tensor_is_not_written_to(guard):
    """The stock checker blackens in place; a pipeline may still hold the tensor."""
    guard.policy = EVERYBODY
    held = []
    pipe = pipelines.stable_diffusion(guard)
    guard.register_forward_pre_hook(lambda module, args, kwargs: held.append(kwargs["images"]), with_kwargs=True)
    with handed_over(guard) as seen:
        generate(pipe)
    assert torch.equal(held[0], seen[0])


def test_a_bfloat16_pipeline(guard):
    pipe, bare = pipelines.stable_diffusion(guard).to(torch.bfloat16), pipelines.stable_diffusion().to(torch.bfloat16)
    with handed_over(guard) as seen:
        generate(pipe)
    guard.policy = between(guard.last_verdicts)
    out, without = generate(pipe, "pt"), generate(bare, "pt")
    assert seen[0].dtype == out.images.dtype == torch.bfloat16
    flags = out.nsfw_content_detected
    assert any(flags) and not all(flags)
    for image, original, decoded, flagged in zip(out.images, without.images, seen[0], flags, strict=True):
        if flagged:
            blurred = redact(contract(decoded), guard.redaction)
            torch.testing.assert_close(pixels(image), blurred, rtol=0, atol=1 / 255)
        else:
            assert torch.equal(image, original)


def _depth_as_16_bit(images):
    """diffusers 0.42's LDM3D asks Pillow for 16-bit pictures of 8-bit data, which Pillow refuses since version 12."""
    depth = images[..., 3:]
    if depth.shape[-1] == 3:
        depth = (depth * 255).round().astype(np.uint16)
        depth = depth[..., 1:2] * 256 + depth[..., 2:]
    else:
        depth = (depth * 65535).astype(np.uint16)
    return [Image.fromarray(one[..., 0]) for one in depth]


@pytest.mark.parametrize("output_type", ["pil", "np"])  # it knows no "pt"
@pytest.mark.parametrize("channels", [4, 6])
def test_ldm3d_the_depth_of_a_flagged_image_is_emptied(guard, channels, output_type):
    """Depth shows the shape of what was flagged. (Replaced is one conversion of diffusers, which is broken.)"""
    guarded = pipelines.stable_diffusion_ldm3d(guard, channels=channels)
    bare = pipelines.stable_diffusion_ldm3d(channels=channels)
    for pipe in (guarded, bare):
        pipe.image_processor.numpy_to_depth = _depth_as_16_bit
    with handed_over(guard) as seen:
        generate(guarded, "np")
    assert seen[0].shape == (3, channels, 64, 64)
    guard.policy = between(guard.last_verdicts)
    out, without = generate(guarded, output_type), generate(bare, output_type)
    flags = out.nsfw_content_detected
    assert any(flags) and not all(flags)
    for index, flagged in enumerate(flags):
        if flagged:
            blurred = redact(contract(seen[0][index]), guard.redaction)
            torch.testing.assert_close(pixels(out.rgb[index]), blurred, rtol=0, atol=1 / 255)
            assert np.asarray(without.depth[index]).any()
            assert not np.asarray(out.depth[index]).any()
        else:
            assert identical(out.rgb[index], without.rgb[index])
            assert identical(out.depth[index], without.depth[index])


# --- Into the slot ---------------------------------------------------------------------------------------------------


def _assigned(guard, folder):
    pipe = pipelines.stable_diffusion()
    pipe.safety_checker = guard
    return pipe


def _registered(guard, folder):
    pipe = pipelines.stable_diffusion()
    pipe.register_modules(safety_checker=guard)
    return pipe


def _from_another_pipe(guard, folder):
    other = StableDiffusionInpaintPipeline.from_pipe(pipelines.stable_diffusion_img2img(guard))
    assert other.safety_checker is guard
    return StableDiffusionPipeline.from_pipe(other)


WAYS_IN = {
    "constructor": lambda guard, folder: pipelines.stable_diffusion(guard),
    "assignment": _assigned,
    "register_modules": _registered,
    "from_pretrained": lambda guard, folder: StableDiffusionPipeline.from_pretrained(folder, safety_checker=guard),
    "components": lambda guard, folder: StableDiffusionPipeline(**pipelines.stable_diffusion(guard).components),
    "components of another class": lambda guard, folder: StableDiffusionPipeline(
        **StableDiffusionImg2ImgPipeline(**pipelines.stable_diffusion(guard).components).components
    ),
    "from_pipe": lambda guard, folder: StableDiffusionPipeline.from_pipe(pipelines.stable_diffusion(guard)),
    "from_pipe of another class": _from_another_pipe,
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_every_way_into_the_slot(way, guard, bare_folder, expected):
    guard.policy = expected.policy
    pipe = WAYS_IN[way](guard, bare_folder)
    assert pipe.safety_checker is guard
    assert pipe.components["safety_checker"] is guard
    out = generate(pipe)
    assert out.nsfw_content_detected == expected.flags
    assert identical(out.images, expected.images)


def test_a_slot_without_a_feature_extractor(guard):
    """Documents diffusers: it prepares input for the stock checker whoever is in the slot (see the README)."""
    with pytest.raises(ValueError, match="feature extractor"):
        pipelines.stable_diffusion(guard, feature_extractor=None)
    pipe = pipelines.stable_diffusion(feature_extractor=None)
    pipe.safety_checker = guard
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        generate(pipe)


# --- Placement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pinned", ["auto", "float32", "bfloat16"])
def test_casts_of_the_pipeline_are_followed_unless_a_dtype_is_pinned(tiny_folder, pinned, cast):
    guard = NsfwGuard(tiny_folder, dtype=pinned)
    pipe = pipelines.stable_diffusion(guard)
    pipe.to(cast)
    wanted = cast if pinned == "auto" else getattr(torch, pinned)
    assert guard.dtype == wanted
    assert pipe.unet.dtype == cast
    guard.check(SOURCE)
    assert {weights.dtype for weights in guard.parameters()} == {wanted}  # also after a call
    pipe.to("cpu")
    assert guard.dtype == wanted


@pytest.mark.parametrize("pinned", ["auto", "bfloat16"])
def test_the_casts_of_from_pretrained_and_from_pipe(tiny_folder, bare_folder, pinned):
    """``from_pipe`` casts every component, to float32 if it is not told otherwise."""
    guard = NsfwGuard(tiny_folder, dtype=pinned)
    pipe = StableDiffusionPipeline.from_pretrained(bare_folder, safety_checker=guard, torch_dtype=torch.bfloat16)
    StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert guard.dtype == (torch.float32 if pinned == "auto" else torch.bfloat16)


@pytest.mark.parametrize("method", ["half", "float", "bfloat16"])
def test_the_cast_methods_of_torch(tiny_folder, method):
    wanted = {"half": torch.float16, "float": torch.float32, "bfloat16": torch.bfloat16}[method]
    free, pinned = NsfwGuard(tiny_folder), NsfwGuard(tiny_folder, dtype="float32")
    assert getattr(free, method)() is free
    assert getattr(pinned, method)() is pinned
    assert (free.dtype, pinned.dtype) == (wanted, torch.float32)


def test_moves_of_the_pipeline_are_followed_unless_a_device_is_pinned(tiny_folder):
    """The meta device stands in for a second device, which not every machine has."""
    follows, pinned = NsfwGuard(tiny_folder), NsfwGuard(tiny_folder, device="cpu")
    for guard in (follows, pinned):
        pipe = pipelines.stable_diffusion(guard)
        pipe.to("meta")
        assert pipe.unet.device.type == "meta"
    assert follows.device.type == "meta"
    assert pinned.device.type == "cpu"
    pinned.check(SOURCE)


def _offload_sequentially(pipe, folder):
    # enable_sequential_cpu_offload(device="cpu") does this with the device "cpu:0", and accelerate 1.15 makes plain
    # tensors of parameters there: TypeError in the second layer, before the guard's turn.
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module) and name not in pipe._exclude_from_cpu_offload:
            accelerate.cpu_offload(component, CPU, offload_buffers=len(component._parameters) > 0)


# All but the sequential one accept the CPU as the device to compute on.
PIPELINE_OFFLOADS = {
    "model": lambda pipe, folder: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential": _offload_sequentially,
    "group, leaves": lambda pipe, folder: pipe.enable_group_offload(CPU, CPU, offload_type="leaf_level"),
    "group, blocks": lambda pipe, folder: pipe.enable_group_offload(CPU, CPU, num_blocks_per_group=1),
    "group, leaves on disk": lambda pipe, folder: pipe.enable_group_offload(
        CPU, CPU, offload_type="leaf_level", offload_to_disk_path=str(folder)
    ),
    "group, without the guard": lambda pipe, folder: pipe.enable_group_offload(
        CPU, CPU, offload_type="leaf_level", exclude_modules=["safety_checker"]
    ),
}


@pytest.mark.parametrize("offload", PIPELINE_OFFLOADS)
@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_adapter"])
def test_offloaded_pipelines(guard, tmp_path, name, offload):
    """Stable Diffusion excludes its checker from the first two; T2I-Adapter does not, and the guard is hooked."""
    build, more = getattr(pipelines, name), SLOTS[name]
    pipe = build(guard)
    generate(pipe, **more)
    guard.policy = between(guard.last_verdicts)
    wanted, verdicts = generate(pipe, **more), guard.check(SOURCE)

    PIPELINE_OFFLOADS[offload](pipe, tmp_path)
    excluded = (name == "stable_diffusion" and offload in ("model", "sequential")) or "without" in offload
    assert is_hooked(guard) is not excluded
    for _ in range(2):  # the hooks of model offload are taken off and put on again after every call
        out = generate(pipe, **more)
        assert out.nsfw_content_detected == wanted.nsfw_content_detected
        assert identical(out.images, wanted.images)
        assert scores_of(guard.check(SOURCE)) == pytest.approx(scores_of(verdicts), abs=1e-5)


def _blockwise(guard, folder):
    weights = {name: tensor.clone() for name, tensor in guard.state_dict().items()}
    blocks = dict.fromkeys(("classifier.network.vit", "classifier.network.classifier"), CPU)
    attach_align_device_hook_on_blocks(
        guard, execution_device=blocks, offload=dict.fromkeys(blocks, True), weights_map=weights
    )


class _Fetch(accelerate.hooks.ModelHook):
    """Stands for a second device: the weights are there only after ``pre_forward``, as with accelerate's CpuOffload."""

    def init_hook(self, module):
        self.weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        return self.post_forward(module, module)

    @torch.no_grad()
    def pre_forward(self, module, *args, **kwargs):
        module.load_state_dict(self.weights)
        return args, kwargs

    @torch.no_grad()
    def post_forward(self, module, output):
        for weights in module.parameters():
            weights.fill_(torch.nan)
        return output


# The same hooks, put on the guard directly: what they leave of the weights between calls is on the right.
HOOKS = {
    "cpu_offload": (lambda guard, folder: accelerate.cpu_offload(guard, CPU), "meta"),
    "cpu_offload with buffers": (
        lambda guard, folder: accelerate.cpu_offload(guard, CPU, offload_buffers=True),
        "meta",
    ),
    "cpu_offload_with_hook": (lambda guard, folder: accelerate.cpu_offload_with_hook(guard, CPU), "cpu"),
    "a hook on the guard itself": (lambda guard, folder: accelerate.hooks.add_hook_to_module(guard, _Fetch()), "cpu"),
    "disk_offload": (lambda guard, folder: accelerate.disk_offload(guard, str(folder), CPU), "meta"),
    "blockwise": (_blockwise, "meta"),
    "group, leaves": (
        lambda guard, folder: apply_group_offloading(guard, CPU, CPU, offload_type="leaf_level"),
        "cpu",
    ),
    "group, blocks": (
        lambda guard, folder: apply_group_offloading(guard, CPU, CPU, num_blocks_per_group=1),
        "cpu",
    ),
    "group, blocks on disk": (
        lambda guard, folder: apply_group_offloading(
            guard, CPU, CPU, num_blocks_per_group=1, offload_to_disk_path=str(folder)
        ),
        "cpu",
    ),
}
CALLS = {
    "check": lambda guard, images: guard.check(images),
    "check arrays": lambda guard, images: guard.check(images.movedim(1, -1).numpy()),
    "apply": lambda guard, images: guard.apply(images).verdicts,
    "forward": lambda guard, images: guard(images=images * 2 - 1) and guard.last_verdicts,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("hook", HOOKS)
def test_every_call_works_under_offload_hooks(guard, tmp_path, hook, call):
    """Hooks sit on ``forward``; ``check`` and ``apply`` do not go through it, and each may be the first call."""
    wanted = scores_of(guard.check(SOURCE))
    attach, left_on = HOOKS[hook]
    attach(guard, tmp_path)
    assert is_hooked(guard)
    for _ in range(2):
        assert {weights.device.type for weights in guard.parameters()} == {left_on}
        assert scores_of(CALLS[call](guard, SOURCE)) == pytest.approx(wanted, abs=1e-5)


# --- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request):
    """``eager`` traces and generates no code: what can go wrong in the guard. The real one takes half a minute."""
    torch._dynamo.reset()
    yield request.param
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["torch.compile(guard)", "guard.compile()"])
def test_a_compiled_guard(guard, expected, backend, how):
    guard.policy = expected.policy
    checker = guard
    if how == "guard.compile()":
        guard.compile(backend=backend)
    else:
        checker = torch.compile(guard, backend=backend)
    pipe = pipelines.stable_diffusion()
    pipe.safety_checker = checker
    out = generate(pipe)
    assert out.nsfw_content_detected == expected.flags
    assert [type(flag) for flag in out.nsfw_content_detected] == [bool] * 3
    for image, wanted in zip(out.images, expected.images, strict=True):
        torch.testing.assert_close(pixels(image), pixels(wanted), rtol=0, atol=1 / 255)
    assert scores_of(guard.last_verdicts) == pytest.approx(scores_of(checker.last_verdicts))
    assert len(guard.check(SOURCE[:2])) == 2  # another batch size


def test_a_compiled_guard_keeps_its_pinned_dtype(guard):
    """``torch.compile(guard)`` is a module around the guard: casts reach it by another way than ``guard.to``."""
    pipe = pipelines.stable_diffusion()
    pipe.safety_checker = torch.compile(guard, backend="eager")
    pipe.to(torch.bfloat16)
    assert guard.dtype == torch.float32


# --- Copies and threads ----------------------------------------------------------------------------------------------

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda guard: pickle.loads(pickle.dumps(guard))}


@pytest.mark.parametrize("method", COPIES)
def test_a_copy_is_a_guard_of_its_own(tiny_folder, method):
    picture = Image.new("RGB", (8, 8), (10, 200, 30))
    guard = NsfwGuard(
        tiny_folder,
        policy=Policy(level="high", threshold=0.25, per_label={"nsfw": 0.75}, batch="any"),
        redaction=Redaction("replace", image=picture, fit="stretch"),
        dtype="float32",
        views="card",
    )
    wanted = guard.apply(SOURCE)
    twin = COPIES[method](guard)
    assert twin.last_verdicts is None
    assert (twin.policy, twin.redaction, twin.views, twin.card) == (guard.policy, guard.redaction, "card", guard.card)
    result = twin.apply(SOURCE)
    assert result.verdicts == wanted.verdicts
    assert torch.equal(result.images, wanted.images)

    with torch.no_grad():
        next(twin.parameters()).fill_(3.0)
    twin.policy = NOBODY
    assert guard.apply(SOURCE).verdicts == wanted.verdicts


def test_a_deep_copy_of_a_pipeline(guard, expected):
    guard.policy = expected.policy
    pipe = pipelines.stable_diffusion(guard)
    twin = copy.deepcopy(pipe)
    assert twin.safety_checker is not guard
    out = generate(twin)
    assert out.nsfw_content_detected == expected.flags
    assert identical(out.images, expected.images)
    assert guard.last_verdicts is None


def test_two_pipelines_share_a_guard_from_two_threads(guard):
    """Each thread has the images that it would have alone, and reads its own verdicts."""
    pipes = pipelines.stable_diffusion(guard), pipelines.stable_diffusion_adapter(guard)
    jobs = [{"prompts": PROMPTS}, {"prompts": PROMPTS[:2], "image": SOURCE[:2]}]
    generate(pipes[0], **jobs[0])
    guard.policy = between(guard.last_verdicts)
    alone = []
    for pipe, job in zip(pipes, jobs, strict=True):
        alone.append((generate(pipe, **job), guard.last_verdicts))
    both_have_run, found, rounds = threading.Barrier(2, timeout=120), {}, 3

    def work(index):
        runs = [generate(pipes[index], **jobs[index]) for _ in range(rounds)]
        both_have_run.wait()
        found[index] = runs, guard.last_verdicts

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, (wanted, verdicts) in enumerate(alone):
        runs, read = found[index]
        assert len(read) == len(jobs[index]["prompts"])
        assert scores_of(read) == pytest.approx(scores_of(verdicts), abs=1e-5)
        for run in runs:
            assert run.nsfw_content_detected == wanted.nsfw_content_detected
            for image, other in zip(run.images, wanted.images, strict=True):
                torch.testing.assert_close(pixels(image), pixels(other), rtol=0, atol=1 / 255)


# --- Saving ----------------------------------------------------------------------------------------------------------

SETTINGS = {
    "policy": Policy(level="high", threshold=0.875, per_label={"nsfw": 0.9375}, batch="any"),
    "redaction": Redaction("pixelate", cells=5, color=(0.25, 0.5, 0.75), fit="contain"),
    "views": "card",
    "batch_size": 3,
    "dtype": "float32",
}


def settings_of(guard):
    """What must survive: all that decides what comes out."""
    names = ("policy", "redaction", "views", "batch_size", "card")
    return {name: repr(getattr(guard, name)) for name in names} | {"dtype": str(guard.dtype)}


def _over_a_guard(guard):
    pipe = pipelines.stable_diffusion(copy.deepcopy(guard))
    pipe.safety_checker.policy = NOBODY
    pipe.safety_checker = guard
    return pipe


SAVED = {
    "at construction": pipelines.stable_diffusion,
    "registered": lambda guard: _registered(guard, None),
    "assigned over another guard": _over_a_guard,
    "an array caller": pipelines.stable_diffusion_adapter,
}


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory, tiny_folder):
    """Save pipelines that were given a guard in different ways, and load them all in one fresh process."""
    root = tmp_path_factory.mktemp("saved")
    guard = NsfwGuard(tiny_folder, **SETTINGS)
    np.save(root / "images.npy", SOURCE.numpy())
    for name, build in SAVED.items():
        build(guard).save_pretrained(root / name)
    script = """
        import json, sys
        import nsfw_guard
        from diffusers import DiffusionPipeline

        import numpy, torch
        images = torch.from_numpy(numpy.load("images.npy"))
        found = {}
        for name in sys.argv[1:]:
            guard = DiffusionPipeline.from_pretrained(name).safety_checker
            found[name] = {
                "class": type(guard) is nsfw_guard.NsfwGuard,
                "settings": {
                    **{key: repr(getattr(guard, key)) for key in ("policy", "redaction", "views", "batch_size",
                    "card")}, "dtype": str(guard.dtype),
                },
                "scores": [verdict.score for verdict in guard.check(images)],
            }
        print(json.dumps(found))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *SAVED]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(found=json.loads(done.stdout.splitlines()[-1]), guard=guard, root=root)


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_pipeline_has_its_guard_in_a_fresh_process(reloaded, name):
    """diffusers finds the class only if its module is imported: ``import nsfw_guard`` must be enough."""
    found = reloaded.found[name]
    assert found["class"]
    wanted = settings_of(reloaded.guard)
    # The card says which file it was read from.
    card, saved_card = wanted.pop("card"), found["settings"].pop("card")
    assert saved_card.split("source=")[0] == card.split("source=")[0]
    assert found["settings"] == wanted
    assert found["scores"] == pytest.approx(scores_of(reloaded.guard.check(SOURCE)), abs=1e-6)


def test_a_reloaded_pipeline_redacts_as_before(reloaded):
    before = generate(pipelines.stable_diffusion(reloaded.guard))
    after = StableDiffusionPipeline.from_pretrained(reloaded.root / "at construction")
    assert after.safety_checker is not reloaded.guard
    out = generate(after)
    assert out.nsfw_content_detected == before.nsfw_content_detected
    assert identical(out.images, before.images)


def test_a_reloaded_pipeline_can_leave_its_guard_out_or_take_another(reloaded, guard):
    folder = reloaded.root / "at construction"
    assert StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).safety_checker is None
    assert StableDiffusionPipeline.from_pretrained(folder, safety_checker=guard).safety_checker is guard


@pytest.mark.parametrize("pinned", ["auto", "float32"])
def test_a_reload_with_a_dtype_casts_the_guard_unless_it_is_pinned(tiny_folder, tmp_path, pinned):
    pipelines.stable_diffusion(NsfwGuard(tiny_folder, dtype=pinned)).save_pretrained(tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert pipe.safety_checker.dtype == (torch.float16 if pinned == "auto" else torch.float32)


def test_diffusers_does_not_record_an_assignment_to_an_empty_slot(guard, bare_folder, tmp_path):
    """Documents diffusers, and what to do instead: ``register_modules``, or saving the guard beside the pipeline."""
    pipe = StableDiffusionPipeline.from_pretrained(bare_folder, safety_checker=None)
    pipe.safety_checker = guard
    pipe.save_pretrained(tmp_path / "assigned")
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "assigned").safety_checker is None
    pipe.register_modules(safety_checker=guard)
    pipe.save_pretrained(tmp_path / "registered")
    assert isinstance(
        StableDiffusionPipeline.from_pretrained(tmp_path / "registered").safety_checker,
        NsfwGuard,
    )


REDACTIONS = {
    "blur": Redaction("blur", cells=7),
    "pixelate": Redaction("pixelate", cells=3, color=(0.1, 0.2, 0.3)),
    "fill": Redaction("fill", color=(1.0, 0.5, 0.0)),
    "none": Redaction("none"),
    "a picture": Redaction("replace", image=Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 40).convert("RGB")),
    "a tensor": Redaction("replace", image=torch.rand(3, 20, 30), color=(0.5, 0.5, 0.5), fit="contain"),
    "a picture with alpha": Redaction("replace", image=Image.new("RGBA", (8, 8), (250, 0, 0, 128)), fit="stretch"),
    "a CMYK picture": Redaction("replace", image=Image.new("CMYK", (8, 8), (10, 20, 30, 40))),
}


@pytest.mark.parametrize("redaction", REDACTIONS)
def test_the_guards_own_save_and_load(tiny_folder, tmp_path, redaction):
    guard = NsfwGuard(tiny_folder, **{**SETTINGS, "redaction": REDACTIONS[redaction], "policy": EVERYBODY})
    guard.policy = Policy(level="low", threshold=0.0, per_label={"nsfw": 0.5, "normal": 1.0}, batch="any")
    guard.save_pretrained(tmp_path / "guard")
    twin = NsfwGuard.from_pretrained(tmp_path / "guard")
    assert (twin.policy, twin.views, twin.dtype) == (guard.policy, "card", guard.dtype)
    for name in ("kind", "cells", "color", "fit"):  # the picture may come back in another mode: the pixels count
        assert getattr(twin.redaction, name) == getattr(guard.redaction, name)
    assert twin.policy.per_label == {"nsfw": 0.5, "normal": 1.0}
    wanted, result = guard.apply(SOURCE), twin.apply(SOURCE)
    assert scores_of(result.verdicts) == pytest.approx(scores_of(wanted.verdicts), abs=1e-6)
    assert torch.equal(result.images, wanted.images)


# --- Fail closed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_adapter"])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # diffusers makes a picture of the NaN first
def test_an_image_of_nan_is_filled_and_the_others_are_untouched(guard, name, output_type):
    """A half-precision VAE that overflows gives NaN, which no classifier may call safe."""
    guard.policy, guard.redaction = NOBODY, Redaction(color=(0.2, 0.4, 0.6))
    latents = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    latents[1] = torch.nan
    more = {"latents": latents, **SLOTS[name]}
    out = generate(getattr(pipelines, name)(guard), output_type, **more)
    without = generate(getattr(pipelines, name)(), output_type, **more).images
    assert out.nsfw_content_detected == [False, True, False]
    assert [verdict.reason for verdict in guard.last_verdicts] == [None, "non_finite", None]
    filled = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1).expand(3, 64, 64)
    torch.testing.assert_close(pixels(out.images[1]), filled, rtol=0, atol=1e-6)
    assert identical(out.images[0], without[0])
    assert identical(out.images[2], without[2])


def test_no_image_comes_out_when_the_classifier_fails(guard):
    """It fails in the second of three forward passes, after one image has been scored already."""
    guard.policy, guard.batch_size = NOBODY, 1
    pipe = pipelines.stable_diffusion(guard)
    generate(pipe)
    assert len(guard.last_verdicts) == 3
    passes = []

    def fail_second(module, args, kwargs):
        passes.append(module)
        if len(passes) == 2:
            raise RuntimeError("the classifier failed")

    handle = guard.classifier.network.register_forward_pre_hook(fail_second, with_kwargs=True)
    out = None
    with pytest.raises(RuntimeError, match="the classifier failed"):
        out = generate(pipe)
    assert out is None
    assert len(passes) == 2
    assert guard.last_verdicts is None
    handle.remove()
    assert generate(pipe).nsfw_content_detected == [False] * 3  # and the next call works


def test_no_image_comes_out_when_the_weights_give_nan(guard):
    """Scores that are no numbers flag everything."""
    guard.policy = NOBODY
    with torch.no_grad():
        next(guard.parameters()).fill_(torch.nan)
    out = generate(pipelines.stable_diffusion(guard), "pt")
    assert out.nsfw_content_detected == [True] * 3
    assert not out.images.any()  # filled with black
