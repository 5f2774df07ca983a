"""Attaching again, with the same guard and with another; and what fails changes nothing."""

from __future__ import annotations

import copy
import sys
from abc import ABC
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from nsfw_guard.integrations.diffusers_pipeline import attach, detach, is_guarded, swap
from nsfw_guard.integrations.diffusers_pipeline.same import is_same
from outputs import EVERYBODY, NOBODY, UNVERIFIED
from pipelines import hand, images, modular, slots, videos

from nsfw_guard import NsfwGuard, Redaction, SettingError

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = {
    "sd": slots.CASES["stable_diffusion"],
    "sdxl": images.CASES["sdxl"],
    "ddpm": hand.CASES["ddpm"],
    "combined": hand.CASES["kandinsky22_combined"],
    "cosmos": videos.CASES["cosmos_text_to_world"],
    "modular": modular.CASES["modular_flux"],
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def pipe(case):
    return case.build()


def build(name):
    return CASES[name].build()


@pytest.fixture
def load(tiny_folder):
    """Load one and the same guard, as a cell of a notebook does each time that it is run."""

    def load(**changes):
        return NsfwGuard(tiny_folder, **{"dtype": "float32", "policy": EVERYBODY, "redaction": UNVERIFIED, **changes})

    return load


# --- Again -----------------------------------------------------------------------------------------------------------


def test_the_same_cell_run_twice(pipe, load):
    slot = getattr(pipe, "safety_checker", None)
    attach(pipe, load(), min_run=3)
    second = load()
    attach(pipe, second)
    assert pipe._nsfw_guard.guard is second  # whose settings the next cell may change
    assert pipe._nsfw_guard.settings.min_run == 8
    if slot is None and hasattr(pipe, "safety_checker"):
        assert pipe.safety_checker is second
    detach(pipe)
    assert not is_guarded(pipe)
    assert getattr(pipe, "safety_checker", None) is slot


def test_a_guard_that_was_cast_with_its_pipeline_is_the_same_one(load):
    pipe = attach(build("sd"), load(dtype="auto"))
    pipe.to(torch.bfloat16)
    assert pipe.safety_checker.classifier.dtype == torch.bfloat16
    attach(pipe, load(dtype="auto"))


def test_a_guard_whose_weights_are_offloaded_is_the_same_one(load):
    pipe = attach(build("sd"), load())
    pipe.safety_checker.to("meta")  # as sequential offloading leaves it
    attach(pipe, load())


def scaled(guard):
    with torch.no_grad():
        next(guard.parameters()).mul_(1.5)
    return guard


class OfAUsersOwn(NsfwGuard):
    pass


OTHERS = {
    "policy": lambda load, folder: load(policy=NOBODY),
    "redaction": lambda load, folder: load(redaction=Redaction("fill")),
    "views": lambda load, folder: load(views="card"),
    "batch_size": lambda load, folder: load(batch_size=3),
    "dtype": lambda load, folder: load(dtype="bfloat16"),
    "device": lambda load, folder: load(device="cpu"),
    "model": lambda load, folder: NsfwGuard("demo", dtype="float32", policy=EVERYBODY, redaction=UNVERIFIED),
    "card": lambda load, folder: load(card=replace(load().card, note="another")),
    "weights": lambda load, folder: scaled(load()),
    "class": lambda load, folder: OfAUsersOwn(folder, dtype="float32", policy=EVERYBODY, redaction=UNVERIFIED),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_guard_is_refused_and_replaces_the_first_if_asked_to(name, load, tiny_folder):
    pipe, first, other = build("sd"), load(), OTHERS[name](load, tiny_folder)
    attach(pipe, first, every=2)
    with pytest.raises(
        SettingError, match=r"has another guard already. To exchange it, attach\(pipe, guard, replace=T"
    ):
        attach(pipe, other)
    assert pipe._nsfw_guard.guard is pipe.safety_checker is first
    assert pipe._nsfw_guard.settings.every == 2
    attach(pipe, other, replace=True)
    assert pipe._nsfw_guard.guard is pipe.safety_checker is other
    assert pipe.image_processor._nsfw_guard is pipe._nsfw_guard


def test_the_same_object_is_the_same_guard_whatever_its_class(tiny_folder):
    guard = OfAUsersOwn(tiny_folder, dtype="float32")
    assert is_same(guard, guard)


def test_the_guard_that_replaces_is_the_one_that_looks(case, load):
    pipe = attach(case.build(), load(policy=NOBODY))
    assert not any(flags(case, pipe))
    attach(pipe, load(), replace=True)
    assert all(flags(case, pipe))


def flags(case, pipe):
    return case.run(pipe).nsfw_content_detected


def test_detach_gives_back_what_the_slot_held_before_the_first(load):
    pipe, own = build("sd"), load(policy=NOBODY)
    pipe.register_modules(safety_checker=own)
    attach(pipe)  # takes it
    attach(pipe, load(), replace=True)
    attach(pipe, load(views="card"), replace=True)
    detach(pipe)
    assert pipe.safety_checker is own
    assert tuple(pipe.config["safety_checker"]) == ("nsfw_guard", "NsfwGuard")


def test_replacing_where_nothing_is_attached(pipe, load):
    assert is_guarded(attach(pipe, load(), replace=True))


def test_a_slot_that_was_emptied_is_filled_again(load):
    guard = load()
    pipe = attach(build("sd"), guard)
    pipe.safety_checker = None
    attach(pipe, guard)
    assert pipe.safety_checker is guard
    detach(pipe)
    assert pipe.safety_checker is None


def test_copies_keep_the_first(load):
    first, second = load(), load(policy=NOBODY)
    pipe = attach(build("sdxl"), first)
    twin = copy.copy(pipe)
    attach(pipe, second, replace=True)
    assert twin._nsfw_guard.guard is first


# --- What fails changes nothing --------------------------------------------------------------------------------------


class ForText:
    """As a pipeline for text is: its ``postprocess`` finishes no images."""

    __slots__ = ("model",)

    def postprocess(self, outputs, top_k=3):
        return outputs


class ForImages(ABC, VaeImageProcessor):
    """Finishes images, and cannot be changed: Python lays out its objects in another way than those of a subclass."""


class OfAUsersOwnKind:
    """Finishes images in a way that nobody knows of."""

    def postprocess(self, image, output_type="pil", do_denormalize=None):
        return VaeImageProcessor().postprocess(image, output_type)


def state(pipe):
    """Everything that attach may change: classes and attributes, and what they hold."""
    found = {}
    for one in (pipe, *(part for part in vars(pipe).values() if hasattr(part, "__dict__"))):
        attributes = {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(one).items()
            if not isinstance(one, torch.nn.Module)
        }
        found[id(one)] = (one, type(one), attributes)
    return found


def test_something_for_text_is_left_alone(pipe, load):
    captioner = pipe.captioner = ForText()
    attach(pipe, load())
    assert is_guarded(pipe)
    assert pipe.captioner is captioner
    assert type(captioner) is ForText
    detach(pipe)


def test_a_pipeline_of_transformers_is_left_alone(load):
    transformers = pytest.importorskip("transformers")

    class Captioner(transformers.Pipeline):
        def _sanitize_parameters(self, **parameters):
            return {}, {}, {}

        def preprocess(self, inputs):
            return inputs

        def _forward(self, inputs):
            return inputs

        def postprocess(self, outputs, **parameters):
            return outputs

    pipe = build("sdxl")
    pipe.captioner = Captioner.__new__(Captioner)
    assert is_guarded(attach(pipe, load()))
    assert type(pipe.captioner) is Captioner


def test_a_processor_that_cannot_be_guarded_is_an_error_and_nothing_changes(load):
    for name in ("sd", "sdxl", "ddpm"):
        pipe = build(name)
        pipe.finisher = ForImages()
        before = state(pipe)
        with pytest.raises(SettingError, match="it has a ForImages .* does not allow for a change of its class"):
            attach(pipe, load())
        assert state(pipe) == before
        assert not is_guarded(pipe)


def test_what_a_processor_of_a_users_own_kind_makes_is_looked_at_at_the_end(load):
    case = CASES["sdxl"]
    pipe = case.build()
    pipe.image_processor = OfAUsersOwnKind()
    attach(pipe, load())
    assert type(pipe.image_processor) is OfAUsersOwnKind
    for kind in ("pil", "np", "pt"):
        assert case.run(pipe, kind).nsfw_content_detected == [True] * 3


def test_a_processor_of_diffusers_is_guarded_whatever_a_subclass_does_with_its_arguments(load):
    class Loose(VaeImageProcessor):
        def postprocess(self, image, *args, **kwargs):
            return super().postprocess(image, *args, **kwargs)

    pipe = build("sdxl")
    pipe.image_processor = Loose(vae_scale_factor=pipe.vae_scale_factor)
    attach(pipe, load())
    assert hasattr(pipe.image_processor, "_nsfw_guard")


class Broken(Exception):
    pass


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_failure_at_any_step_changes_nothing(pipe, load, monkeypatch, again):
    """Every change that attach makes fails once, before and after it is made."""
    if again:
        attach(pipe, load(policy=NOBODY), every=3)
        exchange_processor(pipe)  # so that there is more to do than to exchange the guard
    before, steps = state(pipe), 0
    other = load()
    for number in range(1, 50):
        for late in (False, True):
            with monkeypatch.context() as broken:
                counter = break_at(broken, number, late=late)
                try:
                    attach(pipe, other, replace=True, min_run=2)
                except Broken:
                    steps += 1
                    assert state(pipe) == before, (number, late)
                    assert is_guarded(pipe) is again
                    continue
            assert counter[0] < number
            assert steps >= 2 or again  # with no image processor, there is only the guard to exchange
            assert is_guarded(pipe)
            assert pipe._nsfw_guard.guard is other
            return
    pytest.fail("attach makes fifty changes")


def exchange_processor(pipe):
    if isinstance(pipe, diffusers.ModularPipeline):
        pipe.update_components(image_processor=VaeImageProcessor())
    elif hasattr(pipe, "image_processor"):
        pipe.image_processor = VaeImageProcessor()


def break_at(broken, number, *, late):
    """Make the change of this number fail; late: when it has been made."""
    counter = [0]

    def failing(change):
        def step(*args, **kwargs):
            counter[0] += 1
            mine = counter[0]
            if mine == number and not late:
                raise Broken
            result = change(*args, **kwargs)
            if mine == number:
                raise Broken
            return result

        return step

    broken.setattr(sys.modules[attach.__module__], "guard_object", failing(swap.guard_object))
    for cls in (diffusers.DiffusionPipeline, diffusers.ModularPipeline, diffusers.ConfigMixin):
        for name in ("register_modules", "register_to_config", "register_components", "update_components"):
            if name in vars(cls):
                broken.setattr(cls, name, failing(getattr(cls, name)))
    return counter
