"""Stopping early: one scheduler object is heard, for one call, and nothing that is copied from it."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
import re
import threading
from abc import ABCMeta

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from nsfw_guard.integrations.diffusers_pipeline import EarlyExit, attach, table
from nsfw_guard.integrations.diffusers_pipeline.coverage import installed_pipelines
from nsfw_guard.integrations.diffusers_pipeline.preview import predicted_original
from nsfw_guard.integrations.diffusers_pipeline.record import Record, recording
from nsfw_guard.integrations.diffusers_pipeline.settings import Attachment, Settings
from nsfw_guard.integrations.diffusers_pipeline.steps import hearing
from outputs import NOBODY, identical
from pipelines import images, slots, videos

from nsfw_guard import NsfwGuard, Policy, SettingError

pytestmark = pytest.mark.usefixtures("one_thread")

ALWAYS = {"every": 1, "after": 0.0}


@pytest.fixture
def nobody(tiny_folder):
    """A guard that flags nothing."""
    return NsfwGuard(tiny_folder, dtype="float32", policy=NOBODY)


@pytest.fixture
def everybody(tiny_folder):
    """A guard that flags everything beyond doubt."""
    return NsfwGuard(tiny_folder, dtype="float32", policy=Policy(threshold=0.0))


def blank(pipe, latents):
    """A preview for latents in any form."""
    return torch.zeros(len(latents), 3, 8, 8)


def record(guard):
    return Record(Attachment(guard, Settings()), None)


# --- Nothing else is heard -------------------------------------------------------------------------------------------

COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda scheduler: pickle.loads(pickle.dumps(scheduler)),
    "old pickle": lambda scheduler: pickle.loads(pickle.dumps(scheduler, protocol=0)),
    "from_config": lambda scheduler: type(scheduler).from_config(scheduler.config),
    "attributes": lambda scheduler: with_attributes(DDIMScheduler(), copy.deepcopy(vars(scheduler))),
}


def with_attributes(scheduler, attributes):
    vars(scheduler).update(attributes)
    return scheduler


@pytest.mark.parametrize("method", COPIES)
def test_copies_are_ordinary_schedulers(method, nobody):
    scheduler, heard = DDIMScheduler(), []
    before = dict(vars(scheduler))
    with recording(record(nobody)) as _, hearing(scheduler, record(nobody), lambda *args: heard.append(args)):
        assert isinstance(scheduler, DDIMScheduler)
        assert type(scheduler).__qualname__ == "DDIMScheduler"
        assert inspect.signature(scheduler.step) == inspect.signature(DDIMScheduler().step)
        twin = COPIES[method](scheduler)
    assert type(twin) is type(scheduler) is DDIMScheduler
    assert vars(scheduler) == before
    twin.set_timesteps(2)
    twin.step(torch.zeros(1, 4, 2, 2), twin.timesteps[0], torch.zeros(1, 4, 2, 2))
    assert not heard


def test_a_scheduler_that_is_heard_is_of_its_class_to_those_who_compare(nobody):
    """Bria scales its latents unless ``type(self.scheduler)`` is flow matching's."""
    for cls in (DDIMScheduler, ABCMeta("Abstract", (DDIMScheduler,), {})):
        scheduler = cls()
        with hearing(scheduler, record(nobody), print):
            assert type(scheduler) == cls  # noqa: E721
            assert cls == type(scheduler)  # noqa: E721
            assert not type(scheduler) != cls  # noqa: E721, SIM202
            assert type(scheduler) in {cls: 1}
            assert type(scheduler) != SchedulerMixin  # noqa: E721
        assert type(scheduler) is cls


def test_a_pipeline_copied_in_a_callback_has_an_ordinary_scheduler(nobody):
    case, copies = images.CASES["sdxl"], []

    def copying(pipe, step, timestep, tensors):
        copies.append(copy.deepcopy(pipe))
        copies.append(copy.copy(pipe))
        copies[-1].scheduler = pickle.loads(pickle.dumps(pipe.scheduler))
        return tensors

    pipe = attach(case.build(), nobody, early=EarlyExit(**ALWAYS))
    case.run(pipe, num_inference_steps=1, callback_on_step_end=copying)
    assert all(type(twin.scheduler) is type(case.build().scheduler) for twin in copies)
    assert case.run(copies[0], "np").nsfw_content_detected == [False] * 3


WATCHED = {
    **{name: videos.CASES[name] for name in ("ltx", "ltx_long", "ltx2_hdr", "cosmos3_omni", "wan", "animatediff")},
    **{name: slots.CASES[name] for name in ("stable_diffusion", "panorama", "hunyuan_dit")},
    **{name: images.CASES[name] for name in ("sdxl", "flux", "sd3")},
}


@pytest.mark.parametrize("name", WATCHED)
def test_looking_changes_nothing(name, nobody):
    """LTX-2 steps a copy for its sound; the long LTX hands other latents to callbacks than it goes on with."""
    case = WATCHED[name]
    plain = case.run(case.build(), case.output_types[-1])
    pipe = case.build()
    cls = type(pipe.scheduler)
    seen = []
    early = EarlyExit(**ALWAYS, preview=lambda pipe, latents: seen.append(1) or blank(pipe, latents))
    out = case.run(attach(pipe, nobody, early=early), case.output_types[-1])
    assert identical(getattr(out, case.field), getattr(plain, case.field))
    assert seen
    assert type(pipe.scheduler) is cls


@pytest.mark.parametrize("name", ["ltx_long", "ltx2_hdr"])
def test_pipelines_that_copy_or_window_are_stopped_too(name, everybody):
    case = videos.CASES[name]
    pipe = attach(case.build(), everybody, early=EarlyExit(**ALWAYS, threshold=0.0, preview=blank))
    out = case.run(pipe, "np", num_inference_steps=4)
    assert {verdict.reason for verdict in out.verdicts} == {"early"}


def test_tokens_with_times_of_their_own():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    original, noise = torch.rand(2, 1, 6, 8, generator=generator)  # [batch, tokens, features]
    times = torch.tensor([[0.0, 250.0, 500.0, 750.0, 1000.0, 1000.0]])
    sigma = times[..., None] / 1000
    given = {
        "model_output": original - noise,  # LTX hands over the direction to the original there
        "timestep": scheduler.timesteps[0],
        "sample": (1 - sigma) * original + sigma * noise,
        "per_token_timesteps": times,
    }
    result = scheduler.step(**given, return_dict=False)
    torch.testing.assert_close(predicted_original(scheduler, given, result), original)


# --- Calls within calls, threads, errors -----------------------------------------------------------------------------


def test_each_call_hears_its_own_steps_of_a_scheduler_that_they_share(nobody):
    scheduler, outer, inner = DDIMScheduler(), record(nobody), record(nobody)
    cls, heard = type(scheduler), []
    scheduler.set_timesteps(4)

    def step():
        scheduler.step(torch.zeros(1, 4, 2, 2), scheduler.timesteps[0], torch.zeros(1, 4, 2, 2))

    def hear(name):
        return lambda *args: heard.append(name)

    with recording(outer), hearing(scheduler, outer, hear("outer")):
        step()
        with recording(inner), hearing(scheduler, inner, hear("inner")):
            step()
            with recording(record(nobody)):
                step()  # of a call that listens to nothing
        step()
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    assert heard == ["outer", "inner", "outer", "outer"]
    assert type(scheduler) is cls


def test_calls_in_two_threads_that_end_in_any_order(nobody):
    scheduler, started, ended, heard = DDIMScheduler(), threading.Event(), threading.Event(), []
    scheduler.set_timesteps(4)

    def other():
        mine = record(nobody)
        with recording(mine), hearing(scheduler, mine, lambda *args: heard.append("other")):
            started.set()
            ended.wait(30)
            scheduler.step(torch.zeros(1, 4, 2, 2), scheduler.timesteps[0], torch.zeros(1, 4, 2, 2))

    mine = record(nobody)
    thread = threading.Thread(target=other)
    with recording(mine), hearing(scheduler, mine, lambda *args: heard.append("mine")):
        thread.start()
        started.wait(30)
    ended.set()
    thread.join()
    assert heard == ["other"]
    assert type(scheduler) is DDIMScheduler


def test_a_call_of_the_pipeline_within_a_callback(nobody):
    case, inner = images.CASES["sdxl"], []

    def again(pipe, step, timestep, tensors):
        if not inner:
            inner.append(None)
            state = copy.deepcopy(vars(pipe.scheduler))
            inner[0] = case.run(pipe)
            vars(pipe.scheduler).update(state)  # what a scheduler knows of a generation is not kept apart
        return {}

    pipe = attach(case.build(), nobody, early=EarlyExit(**ALWAYS))
    cls = type(case.build().scheduler)
    case.run(pipe, callback_on_step_end=again)
    assert inner[0].nsfw_content_detected == [False] * 3
    assert type(pipe.scheduler) is cls


@pytest.mark.parametrize("where", ["callback", "transformer", "preview"])
def test_an_error_leaves_the_scheduler_as_it_was(where, nobody, monkeypatch):
    case = images.CASES["sdxl"]

    def fail(*args, **kwargs):
        raise KeyError("half-way")

    preview = fail if where == "preview" else "vae"
    pipe = attach(case.build(), nobody, early=EarlyExit(**ALWAYS, preview=preview))
    cls, before = type(case.build().scheduler), set(vars(pipe.scheduler))
    if where == "transformer":
        monkeypatch.setattr(pipe.unet, "forward", fail)
    with pytest.raises(KeyError, match="half-way"):
        case.run(pipe, num_inference_steps=4, **({"callback_on_step_end": fail} if where == "callback" else {}))
    assert type(pipe.scheduler) is cls
    assert set(vars(pipe.scheduler)) == before


def test_a_scheduler_that_is_exchanged_under_way_is_heard_from_then_on(everybody):
    case = images.CASES["sdxl"]
    schedulers = []

    def exchange(pipe, step, timestep, tensors):
        if step == 0:
            schedulers.append(pipe.scheduler)
            pipe.scheduler = copy.deepcopy(pipe.scheduler)
            schedulers.append(pipe.scheduler)
        return tensors

    taken = []

    def count(pipe, step, timestep, tensors):
        taken.append(step)
        return exchange(pipe, step, timestep, tensors)

    # Of ten steps, it looks after the second.
    pipe = attach(case.build(), everybody, early=EarlyExit(every=3, after=0.2, threshold=0.0))
    out = case.run(pipe, num_inference_steps=10, callback_on_step_end=count)
    assert {verdict.reason for verdict in out.verdicts} == {"early"}
    assert len(taken) == 2
    assert all(type(scheduler) is type(case.build().scheduler) for scheduler in schedulers)


def test_a_step_that_the_user_puts_on_the_scheduler_under_way_stays(nobody):
    case, calls = images.CASES["sdxl"], []

    def wrap(pipe, step, timestep, tensors):
        if step == 0:
            taken = pipe.scheduler.step
            pipe.scheduler.step = lambda *args, **kwargs: calls.append(1) or taken(*args, **kwargs)
        return tensors

    pipe = attach(case.build(), nobody, early=EarlyExit(**ALWAYS))
    case.run(pipe, num_inference_steps=3, callback_on_step_end=wrap)
    assert len(calls) == 2
    assert "step" in vars(pipe.scheduler)
    del pipe.scheduler.step
    case.run(pipe, num_inference_steps=3)
    assert len(calls) == 2


# --- What cannot be stopped ------------------------------------------------------------------------------------------


def forcing():
    parts = {**videos.wan().components, "transformer": None}
    parts = {name: part for name, part in parts.items() if name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, ffn_dim=32, num_layers=1, rope_max_seq_len=32
    )
    parts["scheduler"] = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    return diffusers.SkyReelsV2DiffusionForcingPipeline(transformer=transformer, **parts)


@pytest.mark.skipif(not hasattr(diffusers, "SkyReelsV2DiffusionForcingPipeline"), reason="not in this diffusers")
@pytest.mark.parametrize("preview", ["vae", blank])
def test_copies_of_a_scheduler_for_each_frame_cannot_be_stopped(preview, nobody):
    pipe = forcing()
    cls = type(pipe)
    with pytest.raises(SettingError, match="with copies of its scheduler, one for each frame. Attach without early="):
        attach(pipe, nobody, early=EarlyExit(preview=preview))
    assert type(pipe) is cls


def test_a_vae_that_decodes_one_size_needs_a_preview_of_the_users_own():
    pipe = object.__new__(diffusers.AllegroPipeline)
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(SettingError, match="Pass preview="):
        EarlyExit().validate_for(pipe)
    EarlyExit(preview=blank).validate_for(pipe)


def test_a_class_of_a_users_own_that_steps_a_copy_says_so_and_draws_on(everybody, caplog):
    case = images.CASES["sdxl"]
    pipe = case.build()
    cls = type(pipe.scheduler)
    apart = cls.from_config(pipe.scheduler.config)

    class HandsOn(cls):
        """Steps another object, as a pipeline does that denoises with a copy: nobody hears of it."""

        def __getattribute__(self, name):
            theirs = name in ("step", "set_timesteps", "timesteps", "sigmas", "scale_model_input")
            return getattr(apart, name) if theirs else super().__getattribute__(name)

    pipe.scheduler = HandsOn.from_config(pipe.scheduler.config)
    attach(pipe, everybody, early=EarlyExit(**ALWAYS, threshold=0.0))
    with caplog.at_level(logging.WARNING):
        out = case.run(pipe, num_inference_steps=4)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("nsfw_guard")] == [
        "StableDiffusionXLPipeline does not step its own scheduler: it is not stopped early. What it returns is looked "
        "at as ever."
    ]
    assert {verdict.reason for verdict in out.verdicts} == {"score"}


def test_another_scheduler_since_attach_is_refused_before_anything_is_drawn(nobody):
    case, drawn = images.CASES["sdxl"], []
    pipe = attach(case.build(), nobody, early=EarlyExit())
    pipe.scheduler = diffusers.CMStochasticIterativeScheduler()
    with pytest.raises(SettingError, match="what its CMStochasticIterativeScheduler predicts is not known"):
        case.run(pipe, callback_on_step_end=lambda *args: drawn.append(1))
    assert not drawn


def stoppable():
    """Class by class, those that take a callback and have an interrupt; with the source of their module."""
    for name in installed_pipelines():
        cls = getattr(diffusers, name, None)
        if cls is None or not issubclass(cls, diffusers.DiffusionPipeline) or table.mechanism(name) == "no image":
            continue  # modular, not installed, or nothing to look at
        if hasattr(cls, "interrupt") and "callback_on_step_end" in inspect.signature(cls.__call__).parameters:
            yield cls, inspect.getsource(inspect.getmodule(cls.__call__))


def test_every_class_that_can_be_stopped_asks_whether_it_was():
    asks = {cls: re.search(r"if self\.interrupt\b", source) is not None for cls, source in stoppable()}
    assert len(asks) > 50
    assert [cls.__name__ for cls in asks if asks[cls] is table.never_interrupted(cls)] == []


def test_every_class_that_can_be_stopped_steps_its_own_scheduler():
    steps = {cls: "self.scheduler.step(" in source for cls, source in stoppable()}
    assert [cls.__name__ for cls in steps if steps[cls] is table.steps_copies(cls)] == []
