"""Stopping early: what schedulers predict, when a generation is stopped, and what comes out then."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.callbacks import PipelineCallback, SDCFGCutoffCallback
from nsfw_guard.integrations.diffusers_pipeline import EarlyExit, attach
from nsfw_guard.integrations.diffusers_pipeline.preview import _decode, _fit, _grid, predicted_original, preview_of
from outputs import NOBODY, identical
from pipelines import hand, images, slots, videos

from nsfw_guard import NsfwGuard, Policy, SettingError
from nsfw_guard.demo.generate import GUIDANCE, load_pipeline

UNSAFE, SAFE = "a red triangle on a blue background", "a large green circle on a white background"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def drawing():
    """The demo pipeline, which draws what the prompt says."""
    return load_pipeline()


@pytest.fixture
def guard(tiny_folder):
    """A guard that flags everything beyond doubt."""
    return NsfwGuard(tiny_folder, dtype="float32", policy=Policy(threshold=0.0))


def draw(pipe, prompts, **more):
    seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    taken = []

    def count(pipe, step, timestep, tensors):
        taken.append(step)
        return tensors

    more = {"callback_on_step_end": count, **more}
    out = pipe(prompts, num_inference_steps=20, guidance_scale=GUIDANCE, generator=seeds, output_type="np", **more)
    return out, len(taken)


# --- What a scheduler predicts ---------------------------------------------------------------------------------------

SCHEDULERS = {
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverMultistepScheduler, dpmsolver": {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    "DPMSolverSinglestepScheduler": {},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
    "FlowMapEulerDiscreteScheduler": {},
    "LTXEulerAncestralRFScheduler": {},
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_model_predicts_the_original_at_every_step(name, prediction):
    """The model's output is computed from the original; whatever the scheduler's family, it must come back."""
    if not hasattr(diffusers, name.split(",")[0]):
        pytest.skip("this diffusers does not have it")
    flow = name.startswith(("Flow", "LTX"))
    if flow and prediction != "epsilon":
        pytest.skip("flow matching predicts velocities only")
    if prediction == "sample" and name in ("PNDMScheduler", "EulerAncestralDiscreteScheduler"):
        pytest.skip("not a prediction of this scheduler")
    settings = SCHEDULERS[name] if flow else {**SCHEDULERS[name], "prediction_type": prediction}
    scheduler = getattr(diffusers, name.split(",")[0])(**settings)
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(2, 4, 8, 8, generator=generator) * 2 - 1
    noise = torch.randn(original.shape, generator=generator)
    for index, timestep in enumerate(scheduler.timesteps[:-1]):
        # In the scheduler's own scale: with sigmas, or with the square roots of alphas.
        if flow:
            sigma = scheduler.sigmas[index]
            sample, output = (1 - sigma) * original + sigma * noise, noise - original
        else:
            if hasattr(scheduler, "sigmas") and "Discrete" in name:
                sigma = scheduler.sigmas[index]
                sample, a = original + sigma * noise, 1 / (sigma**2 + 1)
            else:
                a = scheduler.alphas_cumprod[int(timestep)]
                if hasattr(scheduler, "sigmas"):
                    sigma = scheduler.sigmas[index]
                    a = 1 / (sigma**2 + 1)
                sample = a.sqrt() * original + (1 - a).sqrt() * noise
            scaled = a.sqrt() * original + (1 - a).sqrt() * noise
            output = {
                "epsilon": noise,
                "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * original,
                "sample": original,
            }[prediction]
            assert scaled.shape == sample.shape
        given = {"model_output": output, "timestep": timestep, "sample": sample}
        result = scheduler.step(**given, return_dict=False)
        predicted = predicted_original(scheduler, given, result)
        torch.testing.assert_close(predicted, original, rtol=0, atol=0.02)


def test_a_scheduler_of_no_known_family():
    class Odd:
        config: dict = {}

    given = {"model_output": torch.zeros(1), "timestep": 0, "sample": torch.zeros(1)}
    with pytest.raises(SettingError, match="What a Odd predicts is not known: it cannot be stopped early"):
        predicted_original(Odd(), given, (torch.zeros(1),))


# --- When it is stopped, and what comes out --------------------------------------------------------------------------


@pytest.mark.parametrize("preview", ["vae", "rgb"])
def test_an_unsafe_generation_is_stopped_and_filled(drawing, own_demo, preview):
    attach(drawing, own_demo, early=EarlyExit(every=2, after=0.4, preview=preview))
    try:
        out, steps = draw(drawing, [UNSAFE])
        assert steps < 14
        assert out.nsfw_content_detected == [True]
        assert out.verdicts[0].reason == "early"
        assert not out.images.any()  # filled with black: half-removed noise is nothing to blur
        again, steps = draw(drawing, [SAFE])
        assert steps == 20
        assert again.nsfw_content_detected == [False]
    finally:
        detach_all(drawing)
    plain, _ = draw(drawing, [SAFE])
    assert (again.images == plain.images).all()


def detach_all(pipe):
    from nsfw_guard.integrations.diffusers_pipeline import detach

    detach(pipe)
    assert "step" not in vars(pipe.scheduler)
    assert type(pipe.scheduler) is getattr(diffusers, type(pipe.scheduler).__name__)


def test_a_batch_is_stopped_only_if_every_item_is_flagged(drawing, own_demo):
    attach(drawing, own_demo, early=EarlyExit(every=2))
    try:
        out, steps = draw(drawing, [UNSAFE, SAFE])
        assert steps == 20
        assert out.nsfw_content_detected == [True, False]
        assert [verdict.reason for verdict in out.verdicts] == ["score", None]
        out, steps = draw(drawing, [UNSAFE, UNSAFE])
        assert steps < 20
        assert [verdict.reason for verdict in out.verdicts] == ["early"] * 2
    finally:
        detach_all(drawing)


@pytest.mark.parametrize(("after", "every", "steps"), [(0.5, 5, 10), (0.0, 3, 1), (0.65, 1, 13), (1.0, 1, 20)])
def test_the_steps_at_which_it_looks(drawing, guard, after, every, steps):
    attach(drawing, guard, early=EarlyExit(every=every, after=after))
    try:
        out, taken = draw(drawing, [SAFE])
        assert taken == steps
        assert out.verdicts[0].reason == ("early" if steps < 20 else "score")
    finally:
        detach_all(drawing)


@pytest.mark.parametrize(
    ("early", "policy", "prompts", "reasons"),
    [
        ({"threshold": 0.9}, Policy(threshold=0.0), [SAFE], ["score"]),
        ({}, Policy(threshold=0.0), [SAFE], ["score"]),  # halfway to 1 by default, and no circle is that
        ({}, Policy(threshold=0.5, per_label={"circle": 0.0}), [SAFE], ["label"]),
        ({}, Policy(threshold=0.5, batch="any"), [UNSAFE, SAFE], ["score", "batch"]),
    ],
)
def test_what_is_flagged_but_not_beyond_doubt_is_not_stopped(drawing, own_demo, early, policy, prompts, reasons):
    own_demo.policy = policy
    attach(drawing, own_demo, early=EarlyExit(every=2, **early))
    try:
        out, steps = draw(drawing, prompts)
        assert steps == 20
        assert [verdict.reason for verdict in out.verdicts] == reasons
    finally:
        detach_all(drawing)


def test_without_early_exit_nothing_is_stopped(drawing, own_demo):
    attach(drawing, own_demo)
    try:
        out, steps = draw(drawing, [UNSAFE])
        assert steps == 20
        assert out.verdicts[0].reason == "score"
    finally:
        detach_all(drawing)


def test_beside_callbacks_of_diffusers_own(drawing, own_demo):
    class Counting(PipelineCallback):
        tensor_inputs = ["latents"]
        seen: list = []

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.seen.append(tuple(callback_kwargs["latents"].shape))
            return callback_kwargs

    attach(drawing, own_demo, early=EarlyExit(every=2))
    try:
        callback = Counting(cutoff_step_ratio=1.0)
        out, _ = draw(drawing, [UNSAFE], callback_on_step_end=callback)
        assert out.verdicts[0].reason == "early"
        assert 0 < len(callback.seen) < 20
        out, _ = draw(drawing, [UNSAFE], callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=1.0))
        assert out.verdicts[0].reason == "early"
    finally:
        detach_all(drawing)


def test_a_callback_that_changes_the_latents_still_does(guard):
    case = images.CASES["sdxl"]
    guard.policy = NOBODY

    def zeroing(pipe, step, timestep, tensors):
        return {**tensors, "latents": torch.zeros_like(tensors["latents"])}

    without, watched = (
        case.run(attach(case.build(), guard, early=early), "np", callback_on_step_end=zeroing).images
        for early in (None, EarlyExit(every=1, after=0.0))
    )
    assert identical(watched, without)


def test_the_originals_of_a_stopped_generation_are_handed_over_too(drawing, own_demo):
    kept = []
    attach(drawing, own_demo, early=EarlyExit(), on_verdicts=lambda verdicts, originals: kept.append(originals))
    try:
        draw(drawing, [UNSAFE])
        assert kept[0][0].shape == (3, 128, 128)
    finally:
        detach_all(drawing)


# --- What it looks at ------------------------------------------------------------------------------------------------


class Vae(torch.nn.Module):
    """Its pictures are the latents that it is given."""

    def __init__(self, **config):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(1))
        self.config, self.seen = config, []

    @property
    def dtype(self):
        return self.weights.dtype

    def decode(self, latents, return_dict):
        self.seen.append((latents, self.dtype))
        return (latents,)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [3.0, 3.0, 3.0]),
        ({"scaling_factor": 0.5}, [6.0, 6.0, 6.0]),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, [6.25, 6.25, 6.25]),
        ({"latents_mean": [1.0, 2.0, 3.0], "latents_std": [2.0] * 3}, [7.0, 8.0, 9.0]),
        ({"latents_mean": [1.0, 2.0, 3.0], "latents_std": [2.0] * 3, "scaling_factor": 2.0}, [4.0, 5.0, 6.0]),
    ],
)
def test_the_scaling_of_the_vae_is_undone(config, expected):
    assert _decode(Vae(**config), torch.full((1, 3, 2, 2), 3.0))[0, :, 0, 0].tolist() == expected


@pytest.mark.parametrize("frames", [1, 2])
def test_the_scaling_of_a_vae_that_has_one_for_each_frame(frames):
    """Cosmos 1: a list of 16 channels times 64 frames."""
    vae = Vae(latents_mean=[1.0, 2.0, 10.0, 20.0], latents_std=[2.0, 3.0, 1.0, 1.0])
    vae.weights = torch.nn.Parameter(torch.zeros(1, 1, 1, 1, 1))  # one for clips
    _decode(vae, torch.full((1, 2, frames, 1, 1), 3.0))
    ((seen, _),) = vae.seen
    assert seen[0, :, :, 0, 0].tolist() == [[7.0, 11.0][:frames], [13.0, 23.0][:frames]]


@pytest.mark.parametrize(("upcast", "wanted"), [(True, torch.float32), (False, torch.float16)])
def test_a_vae_that_overflows_in_half_precision_decodes_in_float32(upcast, wanted):
    vae = Vae(force_upcast=upcast).half()
    _decode(vae, torch.zeros(1, 3, 2, 2, dtype=torch.float16))
    assert [(latents.dtype, dtype) for latents, dtype in vae.seen] == [(wanted, wanted)]
    assert vae.dtype == torch.float16  # as it was


@pytest.mark.parametrize("latents", [(1, 4, 96, 64), (1, 4, 32, 32), (1, 4, 3, 96, 64)])
def test_previews_are_small(latents):
    vae = Vae()
    vae.config = type("Config", (dict,), {"latent_channels": 4})()
    preview_of(SimpleNamespace(vae=vae), torch.zeros(latents), "vae", None, {})
    ((seen, _),) = vae.seen
    assert seen.shape[:2] == (1, 4)
    assert min(seen.shape[-2:]) == 32


def test_the_linear_preview_is_the_map_that_it_was_fitted_to():
    generator = torch.Generator().manual_seed(0)
    latents, weights = torch.rand(2, 4, 6, 5, generator=generator), torch.rand(4, 3, generator=generator)
    found = _fit(latents, torch.einsum("bchw,cd->bdhw", latents, weights) + 0.7)
    torch.testing.assert_close(found, torch.cat([weights, torch.full((1, 3), 0.7)]), rtol=0, atol=1e-4)


def test_the_linear_preview_asks_the_vae_once(guard, monkeypatch):
    case, decoded = images.CASES["sdxl"], []
    guard.policy = NOBODY
    pipe = attach(case.build(), guard, early=EarlyExit(every=1, after=0.0, preview="rgb"))
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda *args, **more: decoded.append(1) or decode(*args, **more))
    case.run(pipe, num_inference_steps=5)
    assert len(decoded) == 2  # the fit, and the images


@pytest.mark.parametrize(
    ("tokens", "height", "width", "grid"),
    [(8, 32, 64, (2, 4)), (8, 64, 32, (4, 2)), (16, None, None, (4, 4)), (12, 300, 400, (3, 4))],
)
def test_how_packed_latents_lie(tokens, height, width, grid):
    assert _grid(tokens, height, width) == grid


STOPPABLE = {
    **{name: slots.CASES[name] for name in ("stable_diffusion", "pag")},
    **{name: images.CASES[name] for name in ("sdxl", "sd3", "flux", "qwen_image", "pixart_sigma", "sana", "lumina2")},
    **{
        name: videos.CASES[name]
        for name in ("animatediff", "wan", "hunyuan_video", "cosmos_text_to_world", "cogvideox", "ltx")
    },
}


@pytest.mark.parametrize("name", STOPPABLE)
def test_previews_of_many_families(name, guard):
    case = STOPPABLE[name]
    pipe = case.build()
    try:
        attach(pipe, guard, early=EarlyExit(every=1, after=0.0, threshold=0.0))
    except SettingError as error:
        assert "cannot be stopped early" in str(error)
        assert name in ("lumina2", "pixart_sigma", "sana", "ltx"), error
        return
    out = case.run(pipe, "np")
    assert [verdict.reason for verdict in out.verdicts] == ["early"] * len(out.verdicts)
    values = getattr(out, case.field)
    assert not values.any()


def test_a_preview_of_the_users_own_and_a_tiny_vae(guard):
    case, seen = images.CASES["sdxl"], []

    def preview(pipe, latents):
        seen.append(tuple(latents.shape))
        return latents[:, :3]

    pipe = attach(case.build(), guard, early=EarlyExit(every=1, after=0.0, threshold=0.0, preview=preview))
    assert case.run(pipe).verdicts[0].reason == "early"
    assert seen[0][:2] == (3, 4)
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    tiny = AutoencoderTiny(**channels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    pipe = attach(case.build(), guard, early=EarlyExit(every=1, after=0.0, threshold=0.0, preview=tiny))
    assert case.run(pipe).verdicts[0].reason == "early"


@pytest.mark.parametrize(
    ("name", "channels", "unpacked"),
    [
        ("FluxPipeline", 16, (1, 4, 8, 12)),
        ("BriaPipeline", 16, (1, 4, 8, 12)),
        ("QwenImage21Pipeline", 4, (1, 4, 4, 6)),
    ],
)
def test_a_token_is_as_large_as_the_class_says(name, channels, unpacked):
    if not hasattr(diffusers, name):
        pytest.skip("this diffusers does not have it")
    pipe = object.__new__(getattr(diffusers, name))
    vae = Vae()
    vae.config = type("Config", (dict,), {"latent_channels": 4})()
    vars(pipe).update(vae=vae, vae_scale_factor=8)
    picture = preview_of(pipe, torch.zeros(1, 24, channels), "vae", None, {"height": 64, "width": 96})
    assert picture.shape == unpacked


def test_latents_whose_frames_come_first():
    latents = torch.arange(2 * 3 * 4.0).view(1, 2, 3, 2, 2)  # two frames of three channels
    for cls in ("CogVideoXPipeline", "AnyFlowPipeline"):
        pipe = type(cls, (), {"vae": Vae()})()
        pipe.vae.config = type("Config", (dict,), {"latent_channels": 3})()
        assert preview_of(pipe, latents, "vae", None, {}).shape == (1, 3, 2, 2)


def test_latents_of_an_unknown_form_are_an_error_that_says_what_to_pass(guard):
    case = videos.CASES["ltx"]  # packed, and not as most are
    with pytest.raises(SettingError, match="stopped early by preview='vae': how it packs its latents.*Pass preview="):
        attach(case.build(), guard, early=EarlyExit())
    with pytest.raises(SettingError, match="how it packs its latents is not known. Pass preview="):
        attach(videos.CASES["cosmos3_omni"].build(), guard, early=EarlyExit())


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"every": 0}, "every is 0; expected a whole number of steps"),
        ({"after": 1.5}, r"after is 1.5; expected a number in \[0, 1\]"),
        ({"after": float("nan")}, r"after is nan; expected a number in \[0, 1\]"),
        ({"threshold": -1}, r"threshold is -1; expected a number in \[0, 1\]"),
        ({"preview": "latents"}, 'preview is \'latents\'; expected "vae", "rgb"'),
        ({"preview": 3}, "preview is 3; expected"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(SettingError, match=text):
        EarlyExit(**settings)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (hand.CASES["ddpm"], "DDPMPipeline cannot be stopped early: it takes no callback_on_step_end"),
        (slots.CASES["latent_consistency_model"], "cannot be stopped early: it has no interrupt"),
    ],
)
def test_pipelines_that_cannot_be_stopped(case, text, guard):
    pipe = case.build()
    cls = type(pipe)
    with pytest.raises(SettingError, match=text):
        attach(pipe, guard, early=EarlyExit())
    assert type(pipe) is cls


def test_a_pipeline_whose_scheduler_is_of_no_known_family(guard):
    pipe = images.CASES["sdxl"].build()
    pipe.scheduler = type("Odd", (), {"config": {}})()
    with pytest.raises(SettingError, match="what its Odd predicts is not known. Attach without early="):
        attach(pipe, guard, early=EarlyExit())


# --- What went wrong once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "LCMScheduler", "DDIMScheduler"])
def test_seeds_still_count_while_it_watches(name, tiny_folder):
    """Pipelines ask the scheduler's step whether it takes a generator."""
    case = images.CASES["sdxl"]
    results = []
    for early in (None, EarlyExit(every=1, after=0.0, threshold=1.0)):
        pipe = case.build()
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        attach(pipe, NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY), early=early)
        results.append(case.run(pipe, "np", num_inference_steps=4, eta=1.0).images)
    assert (results[0] == results[1]).all()


def test_steps_of_image_to_image_are_counted_from_where_it_starts(guard):
    case = slots.CASES["stable_diffusion_img2img"]
    taken = []

    def count(pipe, step, timestep, tensors):
        taken.append(step)
        return tensors

    pipe = attach(case.build(), guard, early=EarlyExit(every=1, after=0.4, threshold=0.0))
    out = case.run(pipe, num_inference_steps=20, strength=0.5, callback_on_step_end=count)
    assert out.verdicts[0].reason == "early"
    assert len(taken) == 4  # of ten


def test_a_preview_that_overflows_stops_nothing(tiny_folder):
    case = images.CASES["sdxl"]
    guard = NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY)
    overflow = EarlyExit(every=1, after=0.0, preview=lambda pipe, latents: latents[:, :3] * float("nan"))
    pipe = attach(case.build(), guard, early=overflow)
    assert case.run(pipe, num_inference_steps=3).nsfw_content_detected == [False] * 3


def test_latents_of_nan_with_a_linear_preview(guard):
    def overflow(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] * float("nan")}

    case = images.CASES["sdxl"]
    pipe = attach(case.build(), guard, early=EarlyExit(every=1, after=0.0, preview="rgb"))
    out = case.run(pipe, num_inference_steps=4, callback_on_step_end=overflow)
    assert [verdict.reason for verdict in out.verdicts] == ["non_finite"] * 3


def test_a_step_of_the_users_own_is_given_back(drawing, own_demo):
    step = drawing.scheduler.step
    drawing.scheduler.step = mine = lambda *args, **kwargs: step(*args, **kwargs)
    attach(drawing, own_demo, early=EarlyExit())
    try:
        draw(drawing, [SAFE])
        assert drawing.scheduler.step is mine
    finally:
        del drawing.scheduler.step
        detach_all(drawing)


def test_packed_latents_of_any_aspect_ratio(guard):
    """Kontext changes the size by itself: the packed latents say how many there are, not how they lie."""
    case = images.CASES["flux"]
    pipe = attach(case.build(), guard, early=EarlyExit(every=1, after=0.0, threshold=0.0))
    out = case.run(pipe, num_inference_steps=3, height=32, width=64)
    assert [verdict.reason for verdict in out.verdicts] == ["early"] * 3


def test_a_scheduler_of_the_users_own_that_hands_its_step_on(guard):
    case = images.CASES["sdxl"]
    pipe = case.build()

    class Forwarding(type(pipe.scheduler)):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    class Renamed(type(pipe.scheduler)):
        def step(self, noise, t, x, **kwargs):
            return super().step(noise, t, x, **kwargs)

    for cls in (Forwarding, Renamed):
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
        attach(pipe, guard, early=EarlyExit(every=1, after=0.0, threshold=0.0))
        assert {verdict.reason for verdict in case.run(pipe).verdicts} == {"early"}


@pytest.mark.parametrize("count", [0, 1])
def test_a_preview_of_another_number_of_images_is_refused(guard, count):
    early = EarlyExit(every=1, after=0.0, threshold=0.0, preview=lambda pipe, latents: torch.zeros(count, 3, 8, 8))
    pipe = attach(images.CASES["sdxl"].build(), guard, early=early)
    with pytest.raises(SettingError, match=f"preview gave {count} images for 3 latents; expected one for each"):
        images.CASES["sdxl"].run(pipe)


def test_the_class_is_no_setting(guard):
    with pytest.raises(SettingError, match="expected an EarlyExit, such as"):
        attach(images.CASES["sdxl"].build(), guard, early=EarlyExit)


def test_a_policy_of_labels_alone_could_stop_nothing_early(drawing, own_demo):
    """Stopping goes by the score, and a score that is 0 whatever is drawn would never stop anything, in silence."""
    card = replace(own_demo.card, levels={**own_demo.card.levels, "triangle": "low"}, presets={})
    policy = Policy(level="high", per_label={"triangle": 0.5})
    attach(drawing, NsfwGuard("demo", card=card, policy=policy, dtype="float32"), early=EarlyExit())
    try:
        with pytest.raises(SettingError, match="could flag nothing"):
            draw(drawing, [SAFE])
    finally:
        detach_all(drawing)
