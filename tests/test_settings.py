"""Settings: checked by the same code whenever they are given; names that nobody knows; what hosts set."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from nsfw_guard import CARDS, ImageError, Level, ModelCard, NsfwGuard, Policy, Preset, Redaction, SettingError
from nsfw_guard.hosts import SET_BY_HOSTS

GRADED = ModelCard(
    name="graded",
    levels={"normal": Level.NEUTRAL, "nsfw": Level.HIGH},
    preprocess=dataclasses.replace(CARDS.get("falconsai").preprocess, size=32),
    presets={"balanced": Preset(0.5), "strict": Preset(0.125, Level.LOW)},
)


@pytest.fixture
def guard(tiny_folder):
    """A guard with two presets, whose settings may be changed."""
    return NsfwGuard(tiny_folder, card=GRADED, dtype="float32")


def settings_of(guard):
    return {name: getattr(guard, name) for name in ("policy", "threshold", "redaction", "views", "batch_size")}


WRONG = {
    "policy": ["lenient", "", 0.5, {"threshold": 0.5}, Policy(per_label={"gore": 0.5}), Policy, torch.nn.Linear(1, 1)],
    "threshold": [1.5, -0.1, "0.5", True, float("nan"), 10**400],
    "redaction": ["mosaic", "", {"kind": "fill"}, Redaction, 3, torch.nn.Linear(1, 1)],
    "views": ["some", "", ["auto"], 1, torch.nn.Linear(1, 1)],
    "batch_size": [0, -1, 2.0, "4", True, torch.tensor(4), torch.nn.Linear(1, 1)],
}
WRONG_CASES = [pytest.param(name, value, id=f"{name}={value!r:.40}") for name in WRONG for value in WRONG[name]]


@pytest.mark.parametrize(("name", "value"), WRONG_CASES)
def test_what_is_assigned_is_refused_as_at_construction_and_changes_nothing(guard, tiny_folder, name, value):
    before = settings_of(guard)
    with pytest.raises(SettingError) as at_construction:
        NsfwGuard(tiny_folder, card=GRADED, **{name: value})
    with pytest.raises(SettingError) as assigned:
        setattr(guard, name, value)
    assert str(assigned.value) == str(at_construction.value)
    assert settings_of(guard) == before
    assert not {name for name, _ in guard.named_children()} - {"classifier"}


@pytest.mark.parametrize("name", ["threshold", "redaction", "views", "batch_size"])
def test_nothing_is_no_setting(guard, name):
    before = settings_of(guard)
    with pytest.raises(SettingError, match="None; expected"):
        setattr(guard, name, None)
    assert settings_of(guard) == before


RIGHT = {
    "policy": ["strict", "balanced", Policy("high", 0.75, {"nsfw": 0.25}, "any")],
    "threshold": [0, 1.0, 0.25],
    "redaction": ["pixelate", "none", Redaction("fill", color=(1, 0, 0))],
    "views": ["card", "auto"],
    "batch_size": [1, 1000, np.int64(4)],
}
RIGHT_CASES = [pytest.param(name, value, id=f"{name}={value!r}") for name in RIGHT for value in RIGHT[name]]


@pytest.mark.parametrize(("name", "value"), RIGHT_CASES)
def test_what_is_assigned_does_what_construction_does(guard, tiny_folder, name, value):
    setattr(guard, name, value)
    assert settings_of(guard) == settings_of(NsfwGuard(tiny_folder, card=GRADED, **{name: value}))


def test_a_threshold_that_is_assigned_decides(demo):
    from nsfw_guard.demo.shapes import draw

    guard = copy.copy(demo)
    circle = draw("circle", "red", "white", height=64, width=64)
    assert not guard.check(circle)[0].flagged
    guard.threshold = 0.0
    assert guard.check(circle)[0].flagged
    assert demo.threshold == 0.5
    guard.policy = Policy("high", 0.75, {"triangle": 0.25}, "any")
    guard.threshold = 0.9
    assert guard.policy == Policy("high", 0.9, {"triangle": 0.25}, "any")


def test_a_threshold_at_construction_takes_the_place_of_the_policys(tiny_folder):
    assert NsfwGuard(tiny_folder, card=GRADED, threshold=0.3).policy == Policy(threshold=0.3)
    assert NsfwGuard(tiny_folder, card=GRADED, policy="strict", threshold=0.3).policy == Policy("low", 0.3)
    mine = Policy("high", 0.75, {"nsfw": 0.25}, "any")
    given = NsfwGuard(tiny_folder, card=GRADED, policy=mine, threshold=0.3)
    assert given.policy == Policy("high", 0.3, {"nsfw": 0.25}, "any")
    assert mine.threshold == 0.75


@pytest.mark.parametrize("name", ["redaction", "views", "batch_size", "dtype", "runtime"])
def test_nothing_is_no_setting_at_construction_either(tiny_folder, name):
    with pytest.raises(SettingError, match=f"{name} is None; expected"):
        NsfwGuard(tiny_folder, **{name: None})


def test_no_policy_is_the_cards_balanced_one(guard):
    guard.policy = "strict"
    guard.policy = None
    assert guard.policy == Policy()


UNKNOWN = {
    "thresold": r"guard.thresold is not known, and would change nothing. Did you mean 'threshold'\? A guard's",
    "Policy": r"Did you mean 'policy'\?",
    "batchsize": r"Did you mean 'batch_size'\?",
    "redactions": r"Did you mean 'redaction'\?",
    "enabled": "settings are batch_size, policy, redaction, threshold, views",
    "level": r"its policy has: guard.policy = dataclasses.replace\(guard.policy, level=0.5\)",
    "per_label": "its policy has",
    "cells": r"its redaction has: guard.redaction = dataclasses.replace\(guard.redaction, cells=0.5\)",
    "color": "its redaction has",
    "card": "goes with the loaded model",
    "runtime": "goes with the loaded model",
    "revision": "goes with the loaded model",
    "last_verdicts": "cannot be assigned",
    "device": r"guard.to\(...\).*NsfwGuard\(device=...\)",
    "dtype": r"guard.to\(...\).*NsfwGuard\(dtype=...\)",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_nobody_knows_is_an_error(guard, name):
    before = dict(vars(guard))
    with pytest.raises(SettingError, match=UNKNOWN[name]):
        setattr(guard, name, 0.5)
    assert vars(guard) == before


# Host → what it sets on a model, read in its sources.
HOSTS = {
    "accelerate": [
        "_hf_hook", "_old_forward", "forward", "hf_device_map", "to", "cuda", "npu", "mlu", "sdaa", "musa", "xpu",
        "neuron", "hpu", "require_backward_grad_sync", "require_forward_param_sync", "is_loaded_in_4bit",
        "is_loaded_in_8bit",
    ],
    "diffusers": [
        "_diffusers_hook", "_diffusers_load_id", "_internal_dict", "_lora_loadable_modules", "hf_quantizer",
        "is_4bit_serializable", "is_8bit_serializable", "quantization_config", "gradient_checkpointing",
    ],
    "transformers": [
        "config", "generation_config", "name_or_path", "warnings_issued", "model_tags", "_hf_peft_config_loaded",
        "_keep_in_fp32_modules", "_is_hf_initialized", "is_quantized", "quantization_method", "hf_quantizer",
        "supports_gradient_checkpointing", "is_parallelizable", "model_parallel", "base_model_prefix", "loss_type",
        "_tied_weights_keys", "_no_split_modules", "gradient_checkpointing",
    ],
    "peft": ["peft_config", "peft_type", "active_adapter", "active_adapters", "disable_adapters", "merged_adapters"],
    "torch": [
        "training", "_compiled_call_impl", "_fsdp_wrapped_module", "_forward_hooks", "extra_repr", "half", "float",
        "bfloat16", "eval", "train", "state_dict", "load_state_dict", "named_parameters",
    ],
    "DeepSpeed": ["ds_inflight_param_registry", "_external_params"],
    "a test": ["apply", "check", "classify", "passes", "_place"],
}  # fmt: skip
SET = [(host, name) for host, names in HOSTS.items() for name in names]


@pytest.mark.parametrize(("host", "name"), SET)
def test_what_hosts_set_stays_assignable(tiny, host, name):
    guard = copy.copy(tiny)
    value = object()
    setattr(guard, name, value)
    assert getattr(guard, name) is value


def test_hosts_set_no_setting():
    assert not SET_BY_HOSTS & {"policy", "threshold", "redaction", "views", "batch_size", "card", "device", "dtype"}


def test_modules_parameters_and_buffers_are_registered(tiny):
    guard = copy.deepcopy(tiny)
    guard.adapter = torch.nn.Linear(2, 2)
    guard.scale = torch.nn.Parameter(torch.ones(1))
    guard.register_buffer("offset", torch.zeros(1))
    guard.offset = torch.ones(1)
    guard.classifier = copy.deepcopy(tiny.classifier)
    assert {"adapter.weight", "scale", "offset"} <= set(guard.state_dict())
    assert guard.check(Image.new("RGB", (8, 8)))[0].model == tiny.check(Image.new("RGB", (8, 8)))[0].model


def test_hooks_of_accelerate_come_and_go(tiny):
    accelerate = pytest.importorskip("accelerate")
    guard = copy.deepcopy(tiny)
    before = set(vars(guard))
    wanted = guard.check(Image.new("RGB", (8, 8)))
    accelerate.dispatch_model(guard, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert guard.hf_device_map == {"": "cpu"}
    assert guard.check(Image.new("RGB", (8, 8))) == wanted
    accelerate.hooks.remove_hook_from_module(guard, recurse=True)
    assert set(vars(guard)) - before <= {"forward", "hf_device_map"}


@pytest.mark.parametrize("method", [copy.copy, copy.deepcopy, lambda guard: pickle.loads(pickle.dumps(guard))])
def test_copies_have_settings_of_their_own_that_are_checked(guard, method):
    guard.policy, guard.redaction, guard.views, guard.batch_size = "strict", "fill", "card", 3
    twin = method(guard)
    assert settings_of(twin) == settings_of(guard)
    twin.policy, twin.batch_size = "balanced", 5
    assert (guard.policy.level, guard.batch_size) == (Level.LOW, 3)
    with pytest.raises(SettingError):
        twin.views = "x"
    with pytest.raises(SettingError):
        twin.thresold = 0.5


def test_a_wrong_setting_is_refused_before_anything_is_fetched(monkeypatch):
    def fetched(*_, **__):
        raise AssertionError("fetched")

    monkeypatch.setattr("nsfw_guard.guard.find_checkpoint", fetched)
    for wrong in ({"views": "x"}, {"redaction": "x"}, {"batch_size": 0}, {"device": "x"}, {"runtime": "x"}):
        with pytest.raises(SettingError):
            NsfwGuard("org/large", **wrong)


def test_a_replacement_that_cannot_be_read_changes_nothing(guard, tmp_path):
    before = guard.redaction
    with pytest.raises(ImageError):
        guard.redaction = Redaction("replace", image=tmp_path / "missing.png")
    assert guard.redaction is before
