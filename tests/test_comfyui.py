"""The node pack without ComfyUI, against a stand-in; ``test_comfyui_server.py`` runs it in a real one.

The demo's classifier stands in as the installed checkpoint: what it flags are triangles.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from enum import EnumMeta
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from comfyui_standin import (
    DynamicCombo,
    ExecutionBlocker,
    Hidden,
    InterruptProcessingException,
    Later,
    VideoComponents,
    VideoFromComponents,
    comfyui,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from nsfw_guard import NsfwGuard, Policy, Redaction
from nsfw_guard.classifier import Classifier
from nsfw_guard.demo.shapes import draw
from nsfw_guard.errors import CheckpointError, GuardError, ImageError, SettingError
from nsfw_guard.images import read_images
from nsfw_guard.redact import redact
from nsfw_guard.verdict import Scores

pytestmark = pytest.mark.usefixtures("one_thread")

DEMO = Path(__file__).parents[1] / "nsfw_guard" / "demo" / "models" / "classifier"
DEMO_CARD = 'card = "demo"\n'

SAFE, UNSAFE = ("circle", "red", "white"), ("triangle", "red", "white")
BATCH = [SAFE, UNSAFE, ("square", "blue", "yellow"), SAFE, ("heart", "red", "white"), UNSAFE, SAFE, SAFE]
FLAGGED = [1, 5]
BALANCED = {"sensitivity": "balanced"}
BLUR = {"action": "blur", "action.cells": 16}
BLACK = {"action": "fill", "action.color": "#000000"}
REPLACE = {"action": "replace", "action.fit": "stretch"}
ANY = "one flags all"


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A host whose models folder is empty."""
    for name in ("ENFORCE", "MODEL", "POLICY", "ACTION", "ALLOW", "AUDIT"):
        monkeypatch.delenv(f"NSFW_GUARD_{name}", raising=False)
    with comfyui(tmp_path / "comfyui") as host:
        yield host


@pytest.fixture
def comfy(bare):
    """A host with one checkpoint."""
    install(bare.models / "shapes")
    return bare


@pytest.fixture
def scored(monkeypatch):
    """The numbers of images that a classifier was shown, call by call."""
    counts, score = [], Classifier.score

    def counted(self, views, **options):
        counts.append(len(views.images))
        return score(self, views, **options)

    monkeypatch.setattr(Classifier, "score", counted)
    return counts


def install(folder):
    shutil.copytree(DEMO, folder)
    (folder / "nsfw_guard.toml").write_text(DEMO_CARD, encoding="utf-8")
    return folder


def pictures(*scenes, size=128):
    """[B, H, W, 3]."""
    return torch.stack([draw(*scene, height=size, width=size).movedim(0, -1) for scene in scenes])


def guard(host, images, inputs=BLUR, **hidden):
    return host.run("NSFWG_Guard", {"image": images, **BALANCED, **inputs}, **hidden)


def classify(host, images):
    return host.run("NSFWG_Classify", {"image": images})[0]


def censor(host, images, scores, inputs=BLUR):
    return host.run("NSFWG_Censor", {"image": images, "scores": scores, **BALANCED, **inputs})


def verdicts(output):
    return json.loads(output.ui["nsfw_guard"][0])["verdicts"]


def flags(output):
    return [verdict["flagged"] for verdict in verdicts(output)]


def redacted(image, redaction, how=redact):
    """What the core makes of one [H, W, 3]."""
    return how(image.float().clamp(0, 1).movedim(-1, 0), redaction).movedim(0, -1)


@lru_cache
def core(redaction):
    return NsfwGuard("demo", redaction=redaction)


def guarded_by_the_core(images, redaction=None):
    """What the core hands on instead of [B, H, W, C]."""
    batch = read_images(images.movedim(-1, 1), clamp=True, stretch=True)
    return core(redaction or Redaction("blur")).apply(batch).images.movedim(1, -1)


def flagged_again(images):
    """Whether the guard would flag each of [B, H, W, C]."""
    return [verdict.flagged for verdict in core("none").check(images.float().movedim(-1, 1))]


def same(one, other):
    """Whether two tensors are the same bit by bit, NaN included."""
    bits = [tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (one, other)]
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(*bits)


# --- Schemas ---------------------------------------------------------------------------------------------------------

SHOWN = ["LoadClassifier", "Policy", "Guard", "Classify", "Censor", "Split", "Gate", "Video", "SaveImage"]
SHOWN += ["PreviewImage"]
CATEGORIES = {"image/safety", "video"}


def test_the_pack_has_these_nodes(bare):
    put_in = {f"NSFWG_{name}" for name in ("Enforced", "EnforcedSource", "EnforcedUncut", "Refused")}
    assert set(bare.nodes) == {f"NSFWG_{name}" for name in SHOWN} | put_in
    assert {name for name, node in bare.nodes.items() if node.define_schema().is_dev_only} == put_in


@pytest.mark.parametrize("name", SHOWN)
def test_a_nodes_schema_tells_people_what_it_does(bare, name):
    schema = bare.nodes[f"NSFWG_{name}"].define_schema()
    assert schema.display_name
    assert schema.description.endswith(".")
    assert schema.category in CATEGORIES
    assert schema.search_aliases
    assert all(alias == alias.lower() for alias in schema.search_aliases)
    nested = [
        sub
        for one in schema.inputs
        if isinstance(one, DynamicCombo.Input)
        for option in one.options
        for sub in option.inputs
    ]
    lacking = [socket.id for socket in [*schema.inputs, *nested, *schema.outputs] if not socket.tooltip]
    assert lacking == []


@pytest.mark.parametrize("name", [*SHOWN, "Enforced", "Refused"])
def test_a_nodes_schema_fits_its_functions(bare, name):
    node = bare.nodes[f"NSFWG_{name}"]
    schema = node.define_schema()
    ids = [socket.id for socket in [*schema.inputs, *schema.outputs]]
    assert len(set(ids)) == len(ids)
    arguments = inspect.signature(node.execute).parameters
    assert set(arguments) == {one.id for one in schema.inputs}
    # Optional inputs are left out if they are not linked, dynamic ones if their key is unknown.
    may_be_absent = {one.id for one in schema.inputs if one.optional or isinstance(one, DynamicCombo.Input)}
    needed = {argument.name for argument in arguments.values() if argument.default is argument.empty}
    assert not needed & may_be_absent
    for one in schema.inputs:
        if getattr(one, "options", None) and one.default is not None:
            assert one.default in one.options
            assert arguments[one.id].default in (one.default, inspect.Parameter.empty)
    if "hidden.unique_id" in inspect.getsource(node):
        assert Hidden.unique_id in schema.hidden


def test_a_class_is_locked_while_it_runs(comfy):
    node = comfy.prepared("NSFWG_Guard")
    with pytest.raises(AttributeError, match="locked"):
        node.cached = 1


def test_the_stand_in_leaves_nothing_behind(tmp_path):
    before = set(sys.modules)
    with comfyui(tmp_path / "comfyui") as host:
        assert sys.modules["folder_paths"] is host.modules["folder_paths"]
    left = {name for name in set(sys.modules) - before if not name.startswith(("nsfw_guard.", "PIL."))}
    assert left == set()


# --- Guard -----------------------------------------------------------------------------------------------------------


def test_the_guard_blurs_what_it_flags_and_nothing_else(comfy):
    images = pictures(*BATCH)
    given = images.clone()
    output = guard(comfy, images, unique_id="12")
    shown, flagged, mask, report, scores = output.args
    assert torch.allclose(shown[FLAGGED], guarded_by_the_core(images)[FLAGGED], atol=1e-6)
    assert flagged_again(shown) == [False] * 8
    for index, (one, other) in enumerate(zip(images, shown, strict=True)):
        assert same(one, other) is (index not in FLAGGED)
    assert same(images, given)
    assert flagged is True
    assert mask.shape == images.shape[:3]
    assert mask.flatten(1).unique(dim=1).flatten().tolist() == [float(i in FLAGGED) for i in range(8)]
    assert json.loads(report)["flagged_indices"] == FLAGGED
    assert json.loads(report)["policy"]["threshold"] == 0.5
    assert isinstance(scores, Scores)
    assert {verdict["verified"] for verdict in verdicts(output)} == {None, True}
    assert list(output.ui) == ["text", "nsfw_guard"]
    assert output.ui["nsfw_guard"] == (report,)
    assert output.ui["text"][0].startswith("8 images: 2 FLAGGED, blur\n0: ok")


def test_nothing_flagged_gives_back_the_very_same_tensor(comfy):
    images = pictures(SAFE, SAFE)
    output = guard(comfy, images)
    assert output[0] is images
    assert output[1] is False
    assert not output[2].any()
    assert "none flagged" in output.ui["text"][0]


def with_channels(images, channels):
    if channels == 1:
        return images.mean(-1, keepdim=True)
    alpha = torch.linspace(0.7, 1, images.shape[2]).expand(*images.shape[:3])[..., None]
    return torch.cat([images, alpha], -1) if channels == 4 else images


LAYOUTS = {
    "contiguous": lambda images: images.contiguous(),
    "channels first in memory": lambda images: (
        images.movedim(-1, 1).clone(memory_format=torch.contiguous_format).movedim(1, -1)
    ),
    "every other pixel": lambda images: images.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, ::2, ::2],
    "one image, expanded": lambda images: images[1:].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_batch_that_comfyui_hands_over(comfy, layout, dtype, channels):
    images = LAYOUTS[layout](with_channels(pictures(SAFE, UNSAFE), channels).to(dtype))
    given = images.clone()
    output = guard(comfy, images)
    shown = output[0]
    assert (shown.shape, shown.dtype, shown.device) == (images.shape, dtype, images.device)
    assert same(images, given)
    for verdict, one, other in zip(verdicts(output), images, shown, strict=True):
        assert verdict["flagged"] is not same(one[..., :3], other[..., :3])
        if channels == 4:
            assert same(one[..., 3], other[..., 3]) is not verdict["flagged"]
            assert other[..., 3].eq(1).all() or not verdict["flagged"]
    assert flags(output) == ([True] * 3 if layout == "one image, expanded" else [False, True])


def test_inference_tensors_are_taken_and_not_written_to(comfy):
    with torch.inference_mode():
        images = pictures(SAFE, UNSAFE)
    given = images.clone()
    shown = guard(comfy, images)[0]
    assert images.is_inference()
    assert same(images, given)
    assert same(shown[0], images[0])
    assert not same(shown[1], images[1])


def test_values_outside_of_the_range_are_handed_on_unless_they_are_flagged(comfy):
    images = pictures(SAFE, UNSAFE) * 1.5 - 0.35
    assert images.min() < 0 < 1 < images.max()
    output = guard(comfy, images)
    assert flags(output) == [False, True]
    assert same(output[0][0], images[0])
    assert torch.allclose(output[0], guarded_by_the_core(images), atol=1e-6)
    assert 0 <= output[0][1].min() <= output[0][1].max() <= 1


def test_transparency_hides_nothing(comfy):
    alpha = torch.zeros(2, 128, 128, 1)
    output = guard(comfy, torch.cat([pictures(SAFE, UNSAFE), alpha], -1))
    assert flags(output) == [False, True]
    on_white = torch.ones(1, 128, 128, 4)
    on_white[..., 3] = 1 - (pictures(UNSAFE)[..., 1] < 0.5).float() * 0.9  # a triangle of transparency alone
    assert guard(comfy, on_white)[1] is True


ACTIONS = {
    "blur": (BLUR, Redaction("blur", cells=16)),
    "blur, coarse": ({"action": "blur", "action.cells": 2}, Redaction("blur", cells=2)),
    "pixelate": ({"action": "pixelate", "action.cells": 4}, Redaction("pixelate", cells=4)),
    "fill": ({"action": "fill", "action.color": "#ff8000"}, Redaction("fill", color=(1, 128 / 255, 0))),
    "fill, without #": ({"action": "fill", "action.color": "FF8000 "}, Redaction("fill", color=(1, 128 / 255, 0))),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_is_the_cores(comfy, name):
    inputs, redaction = ACTIONS[name]
    images = pictures(SAFE, UNSAFE)
    output = guard(comfy, images, inputs)
    assert same(output[0][0], images[0])
    assert torch.allclose(output[0], guarded_by_the_core(images, redaction), atol=1e-6)
    assert json.loads(output[3])["action"] == redaction.kind


@pytest.mark.parametrize("size", [9, 64, 128, 300])
@pytest.mark.parametrize(
    "action", [BLUR, {"action": "pixelate", "action.cells": 256}, BLACK], ids=lambda a: a["action"]
)
def test_what_goes_on_is_not_flagged_again(comfy, action, size):
    images = pictures(*BATCH, UNSAFE, ("triangle", "yellow", "blue"), size=size)
    shown = guard(comfy, images, action)[0]
    assert flagged_again(shown) == [False] * len(images)
    assert flags(guard(comfy, shown, action)) == [False] * len(images)


REPORTED = {
    "blur": (BLUR, "blur, 8 cells", True),
    "a coarse blur": ({**BLUR, "action.cells": 3}, "blur, 3 cells", True),
    "pixelate": ({"action": "pixelate", "action.cells": 16}, "pixelate, 8 cells", True),
    "fill": (BLACK, "fill", True),
    "block": ({"action": "block", "action.message": ""}, None, None),
    "detect": ({"action": "detect only"}, None, None),
}


@pytest.mark.parametrize("name", REPORTED)
def test_the_report_tells_what_became_of_an_image(comfy, name):
    action, became, verified = REPORTED[name]
    output = guard(comfy, pictures(SAFE, UNSAFE), action)
    told = [(verdict["redacted"], verdict["verified"]) for verdict in verdicts(output)]
    assert told == [(None, None), (became, verified)]
    assert became is None or f">= 0.50  {became}\n" in output.ui["text"][0]


def test_a_replacement_that_is_flagged_itself_is_not_shown(comfy, caplog):
    images = pictures(SAFE, UNSAFE)
    output = guard(comfy, images, {**REPLACE, "replacement": Later(lambda: pictures(("triangle", "blue", "white")))})
    assert same(output[0][0], images[0])
    assert not output[0][1].any()
    assert (verdicts(output)[1]["redacted"], verdicts(output)[1]["verified"]) == ("fill", True)


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
@pytest.mark.parametrize("shape", [(1, 64, 96, 3), (2, 300, 20, 3), (1, 8, 8, 1), (1, 128, 128, 4)], ids=str)
def test_a_replacement_of_another_size(comfy, shape, fit):
    images, other = pictures(SAFE, UNSAFE), torch.rand(shape, generator=torch.Generator().manual_seed(0))
    inputs = {"action": "replace", "action.fit": fit, "replacement": Later(lambda: other)}
    shown = guard(comfy, images, inputs)[0]
    assert same(shown[0], images[0])
    wanted = redacted(images[1], Redaction("replace", image=other[0].movedim(-1, 0), fit=fit))
    assert torch.allclose(shown[1], wanted, atol=1e-6)


NO_REPLACEMENT = {
    "a mask": (torch.zeros(1, 8, 8), ImageError, "The replacement is no IMAGE; expected one picture"),
    "no images": (torch.zeros(0, 8, 8, 3), ImageError, "The replacement is no IMAGE; expected one picture"),
    "a list": ([torch.zeros(1, 8, 8, 3)], ImageError, "The replacement is no IMAGE; expected one picture"),
    "two channels": (torch.zeros(1, 8, 8, 2), ImageError, "has 2 channels"),
    "NaN": (torch.full((1, 8, 8, 3), torch.nan), SettingError, "The replacement has non-finite pixels"),
}


@pytest.mark.parametrize("name", NO_REPLACEMENT)
def test_a_replacement_that_is_none(comfy, name):
    value, error, said = NO_REPLACEMENT[name]
    with pytest.raises(error, match=said):
        guard(comfy, pictures(UNSAFE), {**REPLACE, "replacement": Later(lambda: value)})


def test_replace_with_nothing_linked_is_an_error_when_something_is_flagged(comfy):
    images = pictures(SAFE)
    assert guard(comfy, images, REPLACE)[0] is images
    with pytest.raises(SettingError, match='The action is "replace", and no picture is linked'):
        guard(comfy, pictures(UNSAFE), REPLACE)


@pytest.mark.parametrize("message", ["", " ", "not here"])
def test_block_holds_the_images_back_and_nothing_else(comfy, message):
    block = {"action": "block", "action.message": message}
    images = pictures(SAFE, UNSAFE)
    held, flagged, mask, report, _ = guard(comfy, images, block).args
    assert isinstance(held, ExecutionBlocker)
    assert held.message == (message.strip() or None)
    assert flagged is True
    assert mask.amax((1, 2)).tolist() == [0, 1]
    assert json.loads(report)["action"] == "block"
    assert guard(comfy, images[:1], block)[0].shape == (1, 128, 128, 3)


def test_detect_only_changes_nothing(comfy):
    images = pictures(SAFE, UNSAFE)
    output = guard(comfy, images, {"action": "detect only"})
    assert output[0] is images
    assert output[1] is True
    assert flags(output) == [False, True]


def test_one_flags_all(comfy):
    images = pictures(SAFE, UNSAFE)
    output = guard(comfy, images, {**BLACK, "batch": ANY})
    assert flags(output) == [True, True]
    assert verdicts(output)[0]["reason"] == "batch"
    assert not output[0].any()
    assert flags(guard(comfy, images[:1], {**BLACK, "batch": ANY})) == [False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_number_that_is_none_flags_its_image_alone_and_fills_it(comfy, value, channels):
    images = with_channels(pictures(SAFE, SAFE, SAFE), channels).clone()
    images[1, 5, 7, 0] = value
    output = guard(comfy, images)
    assert flags(output) == [False, True, False]
    assert verdicts(output)[1]["reason"] == "non_finite"
    assert same(output[0][[0, 2]], images[[0, 2]])
    assert not output[0][1, ..., :3].any()
    assert (verdicts(output)[1]["redacted"], verdicts(output)[1]["verified"]) == ("fill", False)
    if channels == 4:
        assert output[0][1, ..., 3].eq(1).all()


SENSITIVITIES = {
    "balanced": ({"sensitivity": "balanced"}, 0.5),
    "strict": ({"sensitivity": "strict"}, 0.25),
    "permissive": ({"sensitivity": "permissive"}, 0.75),
    "threshold": ({"sensitivity": "threshold", "sensitivity.threshold": 0.9}, 0.9),
    "policy": ({"sensitivity": "strict", "policy": Policy(threshold=0.6)}, 0.6),
}


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_every_sensitivity(comfy, name):
    inputs, threshold = SENSITIVITIES[name]
    output = guard(comfy, pictures(SAFE), {**BLUR, **inputs})
    assert verdicts(output)[0]["threshold"] == threshold


def test_threshold_zero_flags_everything(comfy):
    inputs = {**BLUR, "sensitivity": "threshold", "sensitivity.threshold": 0.0}
    assert flags(guard(comfy, pictures(SAFE, UNSAFE), inputs)) == [True, True]


# --- Bad input -------------------------------------------------------------------------------------------------------

NO_IMAGES = {
    "two channels": (torch.rand(1, 8, 8, 2), "shape (1, 8, 8, 2); expected an IMAGE [B, H, W, C] of at least one"),
    "five channels": (torch.rand(1, 8, 8, 5), "shape (1, 8, 8, 5); expected an IMAGE [B, H, W, C] of at least one"),
    "channels first": (torch.rand(1, 3, 8, 8), "shape (1, 3, 8, 8); expected an IMAGE [B, H, W, C] of at least one"),
    "no images": (torch.rand(0, 8, 8, 3), "shape (0, 8, 8, 3); expected an IMAGE [B, H, W, C] of at least one"),
    "no pixels": (torch.rand(1, 0, 8, 3), "shape (1, 0, 8, 3); expected an IMAGE [B, H, W, C] of at least one"),
    "a mask": (torch.rand(2, 8, 8), "which is a MASK; expected an IMAGE [B, H, W, C]. Put"),
    "one row": (torch.rand(8, 8), "shape (8, 8); expected an IMAGE [B, H, W, C] of at least one"),
    "a list": ([torch.rand(1, 8, 8, 3)], "The input is a list; expected an IMAGE."),
    "nothing": (None, "The input is a NoneType; expected an IMAGE."),
    "an array": (np.zeros((1, 8, 8, 3)), "The input is a ndarray; expected an IMAGE."),
    "whole numbers": (torch.zeros(1, 8, 8, 3, dtype=torch.int64), "dtype torch.int64; expected floating point"),
}
SCORED_NODES = {
    "NSFWG_Guard": lambda images: {"image": images, **BALANCED, **BLUR},
    "NSFWG_Classify": lambda images: {"image": images},
    "NSFWG_SaveImage": lambda images: {"images": images, "filename_prefix": "x", **BALANCED, **BLUR},
    "NSFWG_PreviewImage": lambda images: {"images": images, **BALANCED, **BLUR},
}
WRITING = ["NSFWG_SaveImage", "NSFWG_PreviewImage"]


@pytest.mark.parametrize("node", SCORED_NODES)
@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_batch_of_images_is_refused(comfy, name, node):
    images, said = NO_IMAGES[name]
    with pytest.raises(ImageError) as caught:
        comfy.run(node, SCORED_NODES[node](images))
    assert said in str(caught.value)
    assert not list(comfy.output.iterdir())


@pytest.mark.parametrize("node", ["NSFWG_Censor", "NSFWG_Split"])
@pytest.mark.parametrize("name", [name for name in NO_IMAGES if name != "whole numbers"])
def test_what_is_no_batch_of_images_is_refused_beside_scores(comfy, name, node):
    images, said = NO_IMAGES[name]
    action = BLUR if node == "NSFWG_Censor" else {}
    with pytest.raises(ImageError) as caught:
        comfy.run(node, {"image": images, "scores": classify(comfy, pictures(SAFE)), **BALANCED, **action})
    assert said in str(caught.value)


BAD_SETTINGS = {
    "unknown action": (
        {"action": "hide"},
        "action is missing, or none of its choices; expected one of blur",
    ),
    "unknown sensitivity": (
        {"sensitivity": "lax"},
        "sensitivity is missing, or none of its choices; exp",
    ),
    "threshold above 1": ({"sensitivity": "threshold", "sensitivity.threshold": 1.5}, "threshold is 1.5; expected"),
    "threshold below 0": ({"sensitivity": "threshold", "sensitivity.threshold": -0.1}, "threshold is -0.1; expected"),
    "threshold NaN": ({"sensitivity": "threshold", "sensitivity.threshold": float("nan")}, "threshold is nan; exp"),
    "threshold None": ({"sensitivity": "threshold", "sensitivity.threshold": None}, "threshold is None; expected"),
    "no cells": ({"action": "blur", "action.cells": 0}, "cells is 0; expected a whole number of at least 1"),
    "cells of text": ({"action": "pixelate", "action.cells": "8"}, "cells is '8'; expected a whole number"),
    "a colour by name": ({**BLACK, "action.color": "pink"}, "color is 'pink'; expected a colour such as #000000"),
    "a short colour": ({**BLACK, "action.color": "#fff"}, "color is '#fff'; expected a colour such as #000000"),
    "a long colour": ({**BLACK, "action.color": "#00000000"}, "color is '#00000000'; expected a colour"),
    "no colour": ({**BLACK, "action.color": ""}, "color is ''; expected a colour such as #000000"),
    "unknown fit": (
        {"action": "replace", "action.fit": "tile", "replacement": Later(lambda: torch.rand(1, 8, 8, 3))},
        "fit is 'tile'; expected one of 'cover', 'contain', 'stretch'",
    ),
    "unknown batch rule": ({"batch": "some"}, "batch is 'some'; expected 'each image by itself' or 'one flags all'"),
    "a policy that is none": ({"policy": "strict"}, "policy is a str; expected what NSFW Policy puts out"),
    "a classifier that is none": ({"classifier": "shapes"}, "classifier is a str; expected what Load NSFW Classifier"),
    "a policy for other labels": (
        {"policy": Policy(per_label={"porn": 0.5})},
        "per_label names ['porn'], which the model does not have",
    ),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_make_no_sense_are_refused(comfy, name):
    inputs, said = BAD_SETTINGS[name]
    with pytest.raises(SettingError) as caught:
        guard(comfy, pictures(UNSAFE), {**BLUR, **inputs})
    assert said in str(caught.value)


@pytest.mark.parametrize("key", [None, 3, "blur", ["blur"], {}, {"action": None}, {"action": ["blur"]}])
def test_an_action_of_another_type_is_refused(comfy, key):
    with pytest.raises(SettingError, match="action is .*; expected one of blur, pixelate"):
        comfy.prepared("NSFWG_Guard").execute(pictures(UNSAFE), {"sensitivity": "balanced"}, key)


BARE_ACTIONS = {
    "blur": Redaction("blur", cells=16),
    "pixelate": Redaction("pixelate", cells=16),
    "fill": Redaction("fill"),
    "replace": Redaction("replace", image=torch.full((3, 8, 8), 0.5), fit="cover"),
    "detect only": Redaction("none"),
}


@pytest.mark.parametrize("action", BARE_ACTIONS)
def test_an_api_prompt_may_leave_out_what_belongs_to_an_action(comfy, action):
    images = pictures(SAFE, UNSAFE)
    given = {"action": action, "replacement": Later(lambda: torch.full((1, 8, 8, 3), 0.5))}
    shown = guard(comfy, images, given)[0]
    assert torch.allclose(shown, guarded_by_the_core(images, BARE_ACTIONS[action]), atol=1e-6)


def test_an_api_prompt_may_block_without_a_message(comfy):
    held = guard(comfy, pictures(UNSAFE), {"action": "block"})[0]
    assert isinstance(held, ExecutionBlocker)
    assert held.message is None


def test_a_preset_that_the_card_lacks(comfy):
    (comfy.models / "shapes" / "nsfw_guard.toml").write_text(
        'name = "own"\n[levels]\nempty = 0\ncircle = 0\nsquare = 0\ncross = 0\nheart = 0\ntriangle = 3\n'.replace(
            "= 0", '= "neutral"'
        ).replace("= 3", '= "high"')
    )
    assert flags(guard(comfy, pictures(SAFE, UNSAFE))) == [False, True]
    with pytest.raises(SettingError, match=r"policy is 'strict'; the card 'own' has the presets \['balanced'\]"):
        guard(comfy, pictures(SAFE), {**BLUR, "sensitivity": "strict"})


LOW_ONLY = """
name = "own"
[levels]
triangle = "low"
empty = "neutral"
circle = "neutral"
square = "neutral"
cross = "neutral"
heart = "neutral"
"""


@pytest.mark.parametrize(
    "inputs",
    [
        BALANCED,
        {"sensitivity": "threshold", "sensitivity.threshold": 0.1},
        {**BALANCED, "policy": Policy("high")},
        {**BALANCED, "policy": Policy(per_label={"circle": 0.5})},
    ],
)
def test_what_could_flag_nothing_is_refused(comfy, inputs):
    (comfy.models / "shapes" / "nsfw_guard.toml").write_text(LOW_ONLY)
    with pytest.raises(SettingError, match=r"could flag nothing: .*'triangle' \(low\)"):
        guard(comfy, pictures(UNSAFE), {**BLUR, **inputs})
    low = {**BLUR, **BALANCED, "policy": Policy("low")}
    assert flags(guard(comfy, pictures(SAFE, UNSAFE), low)) == [False, True]


def test_a_preset_that_is_no_other_than_balanced_is_said_once(comfy, caplog):
    presets = "".join(f"[presets.{name}]\nthreshold = 0.5\n" for name in ("strict", "balanced"))
    (comfy.models / "shapes" / "nsfw_guard.toml").write_text(LOW_ONLY.replace('"low"', '"high"') + presets)
    for _ in range(3):
        guard(comfy, pictures(SAFE), {**BLUR, "sensitivity": "strict"})
    assert [r.getMessage()[:38] for r in caplog.records].count("The preset 'strict' of the card 'own' ") == 1


@pytest.mark.parametrize("node", ["NSFWG_Censor", "NSFWG_Split"])
def test_scores_of_another_batch_are_refused(comfy, node):
    images = pictures(SAFE, UNSAFE)
    inputs = {**BALANCED, **(BLUR if node == "NSFWG_Censor" else {})}
    with pytest.raises(ImageError, match="There are 1 images and the scores of 2; expected those of the same batch"):
        comfy.run(node, {"image": images[1:], "scores": classify(comfy, images), **inputs})
    with pytest.raises(SettingError, match="scores is a list; expected what NSFW Classify puts out"):
        comfy.run(node, {"image": images, "scores": [0.0, 1.0], **inputs})


# --- The classifier: when it runs, and how ---------------------------------------------------------------------------


def test_classify_tells_scores_and_the_highest(comfy):
    scores, highest, report = comfy.run("NSFWG_Classify", {"image": pictures(SAFE, UNSAFE)}).args
    assert len(scores) == 2
    assert isinstance(highest, float)
    assert highest == json.loads(report)["verdicts"][1]["score"] > 0.9
    assert json.loads(report)["verdicts"][0]["score"] < 0.1


def test_another_threshold_action_or_policy_runs_no_classifier(comfy, scored):
    images = pictures(SAFE, UNSAFE)
    scores = classify(comfy, images)
    assert scored == [2]
    for threshold, wanted in ((0.5, [False, True]), (0.0, [True, True]), (1.0, [False, False])):
        inputs = {**BLACK, "sensitivity": "threshold", "sensitivity.threshold": threshold}
        assert flags(censor(comfy, images, scores, inputs)) == wanted
        assert flags(guard(comfy, images, inputs)) == wanted
        assert flags(guard(comfy, images.clone(), {**inputs, "batch": ANY})) == [any(wanted)] * 2
    assert scored == [2]


@pytest.mark.parametrize("change", ["pixels", "dtype", "shape", "one bit"])
def test_a_batch_that_is_another_one_is_scored_again(comfy, scored, change):
    images = pictures(SAFE, SAFE)
    guard(comfy, images)
    if change == "pixels":
        images[1] = pictures(UNSAFE)[0]  # as nodes do that write into what they were given
    elif change == "dtype":
        images = images.half()
    elif change == "shape":
        images = images.view(2, 64, 256, 3)
    else:
        images[0, 0, 0, 0] += 1e-6
    output = guard(comfy, images, {"action": "detect only"})
    assert scored == [2, 2]
    assert flags(output) == [False, change == "pixels"]


def test_another_classifier_is_asked_itself(comfy, scored):
    install(comfy.models / "other")
    images = pictures(SAFE)
    for name in ("other", "shapes"):
        loaded = comfy.run("NSFWG_LoadClassifier", {"checkpoint": f"{name}/model.safetensors"})[0]
        guard(comfy, images, {**BLUR, "classifier": loaded})
    assert scored == [1, 1]


def test_the_model_is_loaded_once_and_moved_by_comfyui(comfy, monkeypatch):
    calls, load = [], Classifier.load.__func__
    monkeypatch.setattr(
        Classifier, "load", classmethod(lambda cls, *args, **kw: calls.append(args) or load(cls, *args, **kw))
    )
    for scene in (SAFE, UNSAFE):
        guard(comfy, pictures(scene))
        classify(comfy, pictures(scene, scene))
    assert len(calls) == 1
    patchers = [models for models, _ in comfy.loads]
    assert len(patchers) == 5  # before every inference: a blur is looked at again
    assert all(models == patchers[0] and len(models) == 1 for models in patchers)
    assert isinstance(patchers[0][0].model, Classifier)
    assert all(memory > 0 for _, memory in comfy.loads)
    assert not any(weights.requires_grad for weights in patchers[0][0].model.parameters())


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_precision_of_the_weights(comfy, precision):
    inputs = {"checkpoint": "shapes/model.safetensors", "device": "cpu", "precision": precision}
    loaded = comfy.run("NSFWG_LoadClassifier", inputs)[0]
    assert {str(weights.dtype) for weights in loaded.classifier.parameters()} == {f"torch.{precision}"}
    assert flags(guard(comfy, pictures(SAFE, UNSAFE), {**BLUR, "classifier": loaded})) == [False, True]


@pytest.mark.parametrize("inputs", [{"device": "cuda:7"}, {"precision": "int8"}])
def test_a_device_or_precision_that_there_is_not(comfy, inputs):
    with pytest.raises(SettingError, match="expected one of"):
        comfy.run("NSFWG_LoadClassifier", {"checkpoint": "shapes/model.safetensors", **inputs})


MANY = [SAFE] * 38 + [UNSAFE] * 2


def many():
    """Forty images, no two the same."""
    return pictures(*MANY, size=64) * torch.linspace(0.99, 1, len(MANY))[:, None, None, None]


def test_many_images_are_looked_at_in_chunks(comfy, scored):
    output = guard(comfy, many(), BLACK, unique_id="5")
    assert comfy.progress == [("5", 16, 40), ("5", 32, 40), ("5", 40, 40)]
    assert scored == [16, 16, 8]
    assert flags(output) == [False] * 38 + [True] * 2
    assert len(output.ui["text"][0].splitlines()) < 12


def test_an_interrupt_comes_through_between_two_chunks(comfy, scored):
    images = many()
    comfy.interrupt_at = 2
    with pytest.raises(InterruptProcessingException):
        guard(comfy, images)
    assert comfy.progress == [("7", 16, 40)]
    assert flags(guard(comfy, images, BLACK))[-2:] == [True, True]
    assert scored == [16, 16, 8]  # what was looked at by then is remembered


@pytest.mark.parametrize("node", ["NSFWG_Guard", *WRITING])
def test_a_classifier_that_fails_lets_nothing_out(comfy, monkeypatch, node):
    forward, calls = Classifier.forward, []

    def failing(self, inputs):
        calls.append(len(inputs))
        if len(calls) == 2:
            raise RuntimeError("the device is gone")
        return forward(self, inputs)

    monkeypatch.setattr(Classifier, "forward", failing)
    inputs = SCORED_NODES[node](pictures(*MANY, size=64))
    with pytest.raises(RuntimeError, match="the device is gone"):
        comfy.run(node, inputs)
    assert not [*comfy.output.iterdir(), *comfy.temp.iterdir()]
    assert flags(comfy.run(node, inputs))[-2:] == [True, True]


def test_logits_that_are_no_numbers_flag(comfy, monkeypatch):
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, inputs: forward(self, inputs) * torch.nan)
    output = guard(comfy, pictures(SAFE), BLACK)
    assert verdicts(output)[0]["reason"] == "non_finite"
    assert not output[0].any()


# --- The lazy replacement --------------------------------------------------------------------------------------------


def lazily(host, node, scene, inputs):
    """Run a node that may want a replacement."""
    images = pictures(scene)
    given = {"image": images}
    if node == "NSFWG_Video":
        given = {"video": video(images)}
    elif node in WRITING:
        given = {"images": images, "filename_prefix": "x"}
    elif node == "NSFWG_Censor":
        given["scores"] = classify(host, images)
    return host.run(node, {**given, **BALANCED, **inputs})


LAZY = ["NSFWG_Guard", "NSFWG_Censor", *WRITING, "NSFWG_Video"]


@pytest.mark.parametrize("node", LAZY)
@pytest.mark.parametrize(
    ("action", "scene", "made"),
    [(REPLACE, UNSAFE, True), (REPLACE, SAFE, False), (BLUR, UNSAFE, False), ({"action": "hide"}, UNSAFE, False)],
)
def test_the_replacement_is_made_only_when_it_is_needed(comfy, node, action, scene, made):
    later = Later(lambda: pictures(("cross", "green", "blue")))
    try:
        lazily(comfy, node, scene, {**action, "replacement": later})
    except SettingError:
        assert action == {"action": "hide"}
    assert later.made is made


@pytest.mark.parametrize("node", LAZY)
def test_a_replacement_that_is_not_linked_is_not_asked_for(comfy, node):
    with pytest.raises(SettingError, match="no picture is linked"):  # of the node: the host's would say there is none
        lazily(comfy, node, UNSAFE, REPLACE)


def test_asking_whether_anything_is_flagged_runs_the_classifier_once(comfy, scored):
    guard(comfy, pictures(UNSAFE), {**REPLACE, "replacement": Later(lambda: pictures(SAFE))})
    assert scored == [1, 1]  # the image, the replacement


# --- Censor ----------------------------------------------------------------------------------------------------------


def half_mask(*shape, value=1.0):
    mask = torch.zeros(shape)
    mask[..., :64] = value
    return mask


@pytest.mark.parametrize("shape", [(128, 128), (1, 128, 128), (2, 128, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_censoring_where_a_mask_is_white(comfy, shape, dtype):
    images = pictures(SAFE, UNSAFE).to(dtype)
    output = censor(comfy, images, classify(comfy, images), {**BLACK, "mask": half_mask(*shape)})
    assert same(output[0][0], images[0])
    assert same(output[0][1, :, 64:], images[1, :, 64:])
    assert not output[0][1, :, :64].any()
    assert output[2].amax((1, 2)).tolist() == [0, 1]
    assert len(output.args) == 4


@pytest.mark.parametrize("value", [0.3, 1.0])
def test_what_a_mask_covers_is_opaque_and_the_rest_is_as_it_was(comfy, value):
    images = with_channels(pictures(UNSAFE), 4)
    images[..., 3] = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(0))
    shown = censor(comfy, images, classify(comfy, images), {**BLACK, "mask": half_mask(128, 128, value=value)})[0]
    assert same(shown[:, :, 64:], images[:, :, 64:])
    wanted = value + (1 - value) * images[:, :, :64, 3]
    assert torch.allclose(shown[:, :, :64, 3], wanted, atol=1e-6)
    assert torch.allclose(shown[:, :, :64, :3], (1 - value) * images[:, :, :64, :3], atol=1e-6)


@pytest.mark.parametrize("mask", [half_mask(128, 128), torch.ones(128, 128), torch.zeros(1, 128, 128)], ids=str)
def test_where_a_mask_says_what_is_redacted_nothing_is_verified(comfy, mask):
    images = pictures(SAFE, UNSAFE)
    output = censor(comfy, images, classify(comfy, images), {**BLUR, "mask": mask})
    assert [verdict["verified"] for verdict in verdicts(output)] == [None, False]
    assert "  blur, 8 cells, not verified\n" in output.ui["text"][0]
    weight = mask.reshape(128, 128, 1)
    wanted = guarded_by_the_core(images)[1] * weight + images[1] * (1 - weight)
    assert torch.allclose(output[0][1], wanted, atol=1e-6)


@pytest.mark.parametrize("linked", [False, True])
def test_censor_verifies_by_the_classifier_that_classified(comfy, linked, monkeypatch):
    images, name = pictures(SAFE, UNSAFE), "zebra/model.safetensors"
    install(comfy.models / "zebra")
    given = {"checkpoint": name, "precision": "float32", "device": "cpu"}
    chosen = {"classifier": comfy.run("NSFWG_LoadClassifier", given)[0]} if linked else {}
    monkeypatch.setenv("NSFW_GUARD_MODEL", "shapes/model.safetensors")
    scores = comfy.run("NSFWG_Classify", {"image": images, **chosen})[0]
    scores = pickle.loads(pickle.dumps(scores))
    wanted = (name, "cpu", "float32") if linked else ("shapes/model.safetensors", "auto", "auto")
    assert (scores.checkpoint, scores.device, scores.precision) == wanted
    output = censor(comfy, images, scores)
    assert verdicts(output)[1]["verified"] is True
    assert flagged_again(output[0]) == [False, False]
    one = classify(comfy, images[:1])
    shutil.rmtree(comfy.models / wanted[0].split("/")[0])
    assert same(censor(comfy, images[:1], one)[0], images[:1])  # nothing to be looked at again
    with pytest.raises(CheckpointError):
        censor(comfy, images, scores)


def test_a_white_mask_fills_an_image_that_has_no_numbers(comfy):
    images = pictures(SAFE)
    images[0, 5, 7] = torch.nan
    output = censor(comfy, images, classify(comfy, images), {**BLUR, "mask": torch.ones(128, 128)})
    assert flags(output) == [True]
    assert not output[0].any()


@pytest.mark.parametrize("shape", [(64, 128), (3, 128, 128), (1, 1, 128, 128)], ids=str)
def test_a_mask_of_another_size_is_refused(comfy, shape):
    images = pictures(SAFE, UNSAFE)
    with pytest.raises(ImageError, match=r"The mask has the shape .*; expected \[H, W\] = \[128, 128\], one mask, or"):
        censor(comfy, images, classify(comfy, images), {**BLUR, "mask": torch.zeros(shape)})


@pytest.mark.parametrize("mask", [torch.zeros(1, 64, 64), torch.zeros(3, 128, 128), "none"], ids=str)
@pytest.mark.parametrize(
    ("scene", "action"),
    [(SAFE, BLUR), (SAFE, REPLACE), (UNSAFE, {"action": "detect only"}), (UNSAFE, {"action": "block"})],
)
def test_a_mask_that_is_not_needed_stops_nothing(comfy, mask, scene, action):
    images = pictures(scene)
    output = censor(comfy, images, classify(comfy, images), {**action, "mask": mask})
    assert flags(output) == [scene == UNSAFE]
    assert output[0] is images or action == {"action": "block"}


@pytest.mark.parametrize(
    ("scene", "action", "made"),
    [(UNSAFE, BLUR, True), (UNSAFE, BLACK, True), (SAFE, BLUR, False), (UNSAFE, {"action": "detect only"}, False)],
)
def test_a_mask_is_made_only_when_it_is_needed(comfy, scene, action, made):
    images, later = pictures(scene), Later(lambda: torch.ones(128, 128))
    output = censor(comfy, images, classify(comfy, images), {**action, "mask": later})
    assert later.made is made
    assert (output[0] is images) is not made


def test_a_mask_that_is_none_is_refused_where_it_is_needed(comfy):
    images = pictures(UNSAFE)
    with pytest.raises(ImageError, match="The mask is a list; expected a MASK"):
        censor(comfy, images, classify(comfy, images), {**BLUR, "mask": [[1]]})


def test_a_mask_of_true_and_false(comfy):
    images = pictures(UNSAFE)
    scores = classify(comfy, images)
    for mask in (half_mask(128, 128), torch.ones(128, 128)):
        wanted = censor(comfy, images, scores, {**BLACK, "mask": mask})[0]
        assert same(censor(comfy, images, scores, {**BLACK, "mask": mask.bool()})[0], wanted)


def test_images_of_true_and_false_are_looked_at(comfy):
    images = pictures(UNSAFE, SAFE)[..., 1:2] > 0.5
    output = guard(comfy, images)
    assert flags(output) == [True, False]
    assert torch.allclose(output[0], guarded_by_the_core(images.float()), atol=1e-6)
    assert guard(comfy, images[1:])[0].dtype == torch.bool


def test_scores_hold_for_the_same_images_at_another_size(comfy):
    scores = classify(comfy, pictures(SAFE, UNSAFE, size=64))
    images = pictures(SAFE, UNSAFE, size=96)
    shown = censor(comfy, images, scores, BLACK)[0]
    assert same(shown[0], images[0])
    assert not shown[1].any()


# --- Split and gate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenes", [[SAFE, UNSAFE, SAFE], [SAFE, SAFE], [UNSAFE]], ids=len)
def test_split_leaves_out_an_empty_side(comfy, scenes):
    images = pictures(*scenes)
    inputs = {"image": images, "scores": classify(comfy, images), **BALANCED}
    safe, flagged, safe_indices, flagged_indices = comfy.run("NSFWG_Split", inputs).args
    for side, said, scene in ((safe, safe_indices, SAFE), (flagged, flagged_indices, UNSAFE)):
        indices = [index for index, one in enumerate(scenes) if one == scene]
        assert said == str(indices)
        if indices:
            assert same(side, images[indices])
        else:
            assert isinstance(side, ExecutionBlocker)
            assert side.message is None


GATE_MODES = {
    "leave out silently": None,
    "leave out with an error": "held back",
    "stop the whole prompt": GuardError,
}


@pytest.mark.parametrize("mode", GATE_MODES)
def test_the_gate_in_its_modes(comfy, mode):
    value, wanted = object(), GATE_MODES[mode]
    inputs = {"value": value, "mode": mode, "message": "held back"}
    assert comfy.run("NSFWG_Gate", {**inputs, "flagged": False})[0] is value
    if wanted is GuardError:
        with pytest.raises(GuardError, match="held back"):
            comfy.run("NSFWG_Gate", {**inputs, "flagged": True})
        return
    held = comfy.run("NSFWG_Gate", {**inputs, "flagged": True})[0]
    assert isinstance(held, ExecutionBlocker)
    assert held.message == wanted


def test_a_gate_without_a_message_says_why(comfy):
    inputs = {"value": 1, "flagged": True, "mode": "leave out with an error", "message": " "}
    assert comfy.run("NSFWG_Gate", inputs)[0].message == "Held back: flagged as NSFW."


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"flagged": [True]}, r"flagged is \[True\]; expected the BOOLEAN of a guard"),
        ({"flagged": None}, "flagged is None; expected the BOOLEAN of a guard"),
        ({"mode": "let through"}, "mode is 'let through'; expected"),
    ],
)
def test_a_gate_that_cannot_know_is_shut(comfy, inputs, said):
    with pytest.raises(SettingError, match=said):
        comfy.run("NSFWG_Gate", {"value": 1, "flagged": False, "mode": "leave out silently", **inputs})


# --- Policy ----------------------------------------------------------------------------------------------------------


def make_policy(host, **inputs):
    return host.run("NSFWG_Policy", {"level": "high", "threshold": 1.0, **inputs})[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("heart = 0.4\n\n  triangle: 0.9  \n", {"heart": 0.4, "triangle": 0.9}),
        ("a = b = 0.5", {"a = b": 0.5}),
        ("heart=1", {"heart": 1.0}),
    ],
)
def test_thresholds_of_single_labels(comfy, text, wanted):
    policy = make_policy(comfy, per_label=text, batch=ANY)
    assert policy == Policy(level="high", threshold=1.0, per_label=wanted, batch="any")


def test_a_policy_decides(comfy):
    policy = make_policy(comfy, per_label="heart = 0.4")
    output = guard(comfy, pictures(SAFE, UNSAFE, ("heart", "red", "white")), {**BLUR, "policy": policy})
    assert flags(output) == [False, False, True]
    assert verdicts(output)[2]["reason"] == "label"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"per_label": "heart"}, "per_label has the line 'heart'; expected a label and a threshold: porn = 0.3"),
        ({"per_label": "heart = much"}, "per_label has the line 'heart = much'; expected a label"),
        ({"per_label": "heart = 1.5"}, r"per_label\['heart'\] is 1.5; expected a number in \[0, 1\]"),
        ({"per_label": "heart = nan"}, r"per_label\['heart'\] is nan; expected a number in \[0, 1\]"),
        ({"threshold": 2.0}, r"threshold is 2.0; expected a number in \[0, 1\]"),
        ({"level": "terrible"}, "level is 'terrible'; expected a Level or one of"),
        ({"batch": "some"}, "batch is 'some'; expected 'each image by itself'"),
    ],
)
def test_policies_that_make_no_sense(comfy, inputs, said):
    with pytest.raises(SettingError, match=said):
        make_policy(comfy, **inputs)


# --- Video -----------------------------------------------------------------------------------------------------------

FRAMES = [SAFE] * 5 + [UNSAFE] * 3 + [SAFE] * 4
SOUND, TAGS = object(), {"title": "shapes"}


def video(frames, *, bit_depth=10, alpha=None):
    return VideoFromComponents(VideoComponents(frames, Fraction(4), SOUND, TAGS, alpha), bit_depth=bit_depth)


def guard_video(host, given, inputs=BLACK):
    return host.run("NSFWG_Video", {"video": given, **BALANCED, **inputs})


@pytest.mark.parametrize(
    ("settings", "black", "seen"),
    [
        ({"min_run": 1}, [5, 6, 7], 12),
        ({"min_run": 1, "every": 3}, [5, 6, 7], 9),  # 0 3 6 9 11, and those next to 6
        ({"min_run": 1, "every": 1000}, [], 2),  # the first and the last
        ({"min_run": 5}, [4, 5, 6, 7, 8], 12),
        ({}, list(range(3, 11)), 12),
        ({"redact": "the whole video"}, list(range(12)), 12),
        ({"min_run": 1, "policy": Policy(batch="any")}, list(range(12)), 12),
    ],
)
def test_frames_of_a_video(comfy, settings, black, seen):
    frames = pictures(*FRAMES)
    given = frames.clone()
    output = guard_video(comfy, video(frames), {**BLACK, **settings})
    shown = output[0].get_components().images
    assert (shown.shape, shown.dtype) == (frames.shape, frames.dtype)
    for index, (one, other) in enumerate(zip(frames, shown, strict=True)):
        assert (not other.any()) if index in black else same(one, other)
    assert same(frames, given)
    assert output[1] is bool(black)
    report = json.loads(output[2])
    assert report["frames"] == 12
    assert report["redacted_seconds"] == ([[black[0] / 4, (black[-1] + 1) / 4]] if black else [])
    assert len(report["verdicts"]) == len(report["seen_frames"]) == seen


def test_the_report_of_a_video_counts_frames_and_not_looks(comfy):
    unsafe = [20, 21, 22, 23, 24, 40]
    frames = pictures(*[UNSAFE if index in unsafe else SAFE for index in range(60)], size=64)
    output = guard_video(comfy, video(frames), {**BLACK, "min_run": 1, "every": 4})
    report = json.loads(output[2])
    seen = report["seen_frames"]
    assert [verdict["index"] for verdict in report["verdicts"]] == seen
    assert report["flagged_indices"] == [index for index in unsafe if index in seen]
    assert [verdict["index"] for verdict in report["verdicts"] if verdict["redacted"]] == report["flagged_indices"]
    head, *lines = output.ui["text"][0].split("\n")
    count = len(report["flagged_indices"])
    assert head == f"60 frames, {len(seen)} looked at: {count} FLAGGED, fill"
    assert lines[:2] == ["5.00 to 6.25 s: fill", "10.00 to 10.25 s: fill"]
    assert {int(line.split(":")[0]) for line in lines if "FLAGGED" in line} <= set(unsafe)
    assert f"\n{count}: " not in "\n".join(lines)
    every = json.loads(guard_video(comfy, video(frames[:3]))[2])
    assert every["seen_frames"] == [0, 1, 2]
    assert guard_video(comfy, video(frames[:3])).ui["text"][0].startswith("3 frames: none flagged\n")


def test_what_is_not_pictures_of_a_video_is_kept(comfy):
    frames = pictures(*FRAMES)
    given = video(frames, alpha=torch.ones(frames.shape[:3]))
    guarded = guard_video(comfy, given)[0]
    assert guarded is not given
    assert guarded.get_bit_depth() == 10
    parts = guarded.get_components()
    assert (parts.frame_rate, parts.audio, parts.metadata) == (Fraction(4), SOUND, TAGS)
    assert same(parts.alpha, given.get_components().alpha)


@pytest.mark.parametrize("depth", [3, 4])
def test_redacted_frames_of_a_video_are_opaque(comfy, depth):
    frames = pictures(*FRAMES)
    alpha = torch.full(frames.shape[:depth] if depth == 3 else (*frames.shape[:3], 1), 0.5)
    given = video(frames, alpha=alpha)
    shown = guard_video(comfy, given, {**BLACK, "min_run": 1})[0].get_components()
    assert [float(one.min()) for one in shown.alpha] == [1.0 if index in (5, 6, 7) else 0.5 for index in range(12)]
    assert alpha.eq(0.5).all()


@pytest.mark.parametrize("depth", [3, 4])
def test_a_shape_that_is_only_in_the_alpha_of_a_video_is_seen(comfy, depth):
    shape = (pictures(UNSAFE)[..., 1] < 0.5).float()
    alpha = shape if depth == 3 else shape[..., None]
    _, flagged, _ = guard_video(comfy, video(torch.ones(1, 128, 128, 3), alpha=alpha)).args
    assert flagged is True


def test_another_threshold_runs_no_classifier_over_a_video_again(comfy, scored):
    given = video(many())
    for threshold in (0.5, 0.6, 0.7):
        guard_video(comfy, given, {**BLACK, "sensitivity": "threshold", "sensitivity.threshold": threshold})
    assert scored == [16, 16, 8]


def test_another_threshold_runs_no_classifier_over_a_list_again(comfy, scored):
    images = pictures(SAFE, UNSAFE, ("heart", "red", "white"))
    for threshold in (0.5, 0.6):
        for image in images:
            guard(comfy, image[None], {**BLACK, "sensitivity": "threshold", "sensitivity.threshold": threshold})
    assert scored == [1, 1, 1]


@pytest.mark.parametrize(
    ("scenes", "action"), [([SAFE] * 3, BLACK), (FRAMES, {"action": "detect only"})], ids=["safe", "detect only"]
)
def test_a_video_that_nothing_is_done_to_is_the_very_same(comfy, scenes, action):
    given = video(pictures(*scenes))
    output = guard_video(comfy, given, action)
    assert output[0] is given
    assert output[1] is (scenes is FRAMES)


@pytest.mark.parametrize("message", ["", "not here"])
def test_a_video_that_is_blocked(comfy, message):
    output = guard_video(comfy, video(pictures(*FRAMES)), {"action": "block", "action.message": message})
    assert isinstance(output[0], ExecutionBlocker)
    assert output[0].message == (message or None)
    assert output[1] is True


def test_frames_without_numbers_are_filled_and_no_others(comfy):
    frames = pictures(*[SAFE] * 4)
    frames[2, 0, 0, 0] = torch.nan
    shown = guard_video(comfy, video(frames), {**BLUR, "min_run": 1})[0].get_components().images
    assert not shown[2].any()
    assert same(shown[[0, 1, 3]], frames[[0, 1, 3]])


def test_a_frame_between_goes_with_its_run(comfy):
    frames = pictures(UNSAFE, SAFE, UNSAFE)
    shown = guard_video(comfy, video(frames), {**BLUR, "min_run": 3})[0].get_components().images
    assert torch.allclose(shown[1], redacted(frames[1], Redaction("blur", cells=8)), atol=0.6 / 255)


@pytest.mark.parametrize("every", [1, 4])
def test_a_run_of_frames_shares_one_number_of_cells(comfy, every):
    # One run is longer than what is looked at together, and only its last frame is too much at 16 cells.
    plain = [("square", "white", "white")] * 20
    frames = torch.cat([pictures(*plain), pictures(UNSAFE), pictures(*[SAFE] * 12), pictures(UNSAFE)])
    inputs = {**BLUR, "min_run": 1, "every": every, "redact": "the whole video"}
    output = guard_video(comfy, video(frames), inputs)
    shown = output[0].get_components().images
    for one, other in zip(frames, shown, strict=True):
        assert torch.allclose(other, redacted(one, Redaction("blur", cells=8)), atol=0.6 / 255)
    assert flagged_again(shown) == [False] * len(frames)
    report = json.loads(output[2])
    assert report["redactions"] == ["blur, 8 cells"]
    assert {verdict["verified"] for verdict in report["verdicts"]} == {True}
    assert "0.00 to 8.50 s: blur, 8 cells" in output.ui["text"][0]


def test_each_run_has_its_own_number_of_cells(comfy):
    frames = pictures(UNSAFE, *[SAFE] * 4, ("triangle", "white", "white"), *[SAFE] * 4, UNSAFE)
    frames[5, 0, 0, 0] = torch.nan
    output = guard_video(comfy, video(frames), {**BLUR, "min_run": 1})
    shown = output[0].get_components().images
    assert json.loads(output[2])["redactions"] == ["blur, 8 cells", "blur, 16 cells", "blur, 8 cells"]
    assert not shown[5].any()
    assert flagged_again(shown) == [False] * 11


def test_a_video_whose_replacement_is_flagged_is_filled(comfy):
    replacement = {**REPLACE, "replacement": Later(lambda: pictures(("triangle", "blue", "white")))}
    output = guard_video(comfy, video(pictures(*FRAMES)), {**replacement, "min_run": 1})
    shown = output[0].get_components().images
    assert not shown[5:8].any()
    assert json.loads(output[2])["redactions"] == ["fill"]


def test_a_long_video_is_looked_at_in_chunks_until_one_interrupts(comfy, scored):
    comfy.interrupt_at = 3
    with pytest.raises(InterruptProcessingException):
        guard_video(comfy, video(many()))
    assert scored == [16, 16]
    assert comfy.progress == [("7", 16, 40), ("7", 32, 40)]


BAD_VIDEOS = {
    "no frames": (torch.zeros(0, 8, 8, 3), {}, ImageError, "The video has no frames; expected at least one"),
    "two channels": (torch.zeros(2, 8, 8, 2), {}, ImageError, "2 channels|shape"),
    "unknown redact": (torch.zeros(2, 8, 8, 3), {"redact": "some"}, SettingError, "redact is 'some'; expected 'runs"),
    # The server looks at the range of a number that is typed in, and not at one that comes over a link.
    "every 0": (torch.zeros(2, 8, 8, 3), {"every": 0}, SettingError, "every is 0"),
    "every -1": (pictures(UNSAFE, SAFE), {"every": -1}, SettingError, "every is -1"),
    "min_run 0": (torch.zeros(2, 8, 8, 3), {"min_run": 0}, SettingError, "min_run is 0"),
    "unknown action": (pictures(UNSAFE), {"action": "hide"}, SettingError, "action is missing, or none of its choices"),
}


@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_videos_that_cannot_be_guarded(comfy, name):
    frames, inputs, error, said = BAD_VIDEOS[name]
    with pytest.raises(error, match=said):
        guard_video(comfy, video(frames), {**BLACK, **inputs})


@pytest.mark.parametrize("given", [None, torch.zeros(2, 8, 8, 3), "clip.mp4"], ids=["None", "tensor", "path"])
def test_what_is_no_video_is_refused(comfy, given):
    with pytest.raises(ImageError, match="The input is a .*; expected a VIDEO"):
        guard_video(comfy, given)


# --- Save ------------------------------------------------------------------------------------------------------------

PROMPT, WORKFLOW = {"1": {"class_type": "LoadImage", "inputs": {}}}, {"workflow": {"nodes": []}}


def save(host, images, inputs=BLUR, prefix="guarded"):
    given = {"images": images, "filename_prefix": prefix, **BALANCED, **inputs}
    return host.run("NSFWG_SaveImage", given, prompt=PROMPT, extra_pnginfo=WORKFLOW)


def saved(host):
    return sorted(file for file in host.output.rglob("*") if file.is_file())


def opened(file):
    with Image.open(file) as picture:
        return np.asarray(picture), picture.mode, dict(picture.text)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_saving_writes_what_save_image_writes(comfy, channels):
    images = with_channels(pictures(SAFE, UNSAFE), channels) * 1.2 - 0.1
    images[0, 0, 0, :3] = torch.tensor(0.5)
    output = save(comfy, images, prefix="sub/guarded_%width%")
    names = ["guarded_128_00001_.png", "guarded_128_00002_.png"]
    assert output.ui["images"] == [{"filename": name, "subfolder": "sub", "type": "output"} for name in names]
    assert saved(comfy) == [comfy.output / "sub" / name for name in names]
    safe, unsafe = (opened(file) for file in saved(comfy))
    wanted = np.clip(images.numpy() * 255.0, 0, 255).astype(np.uint8)
    assert np.array_equal(safe[0], wanted[0, ..., 0] if channels == 1 else wanted[0])
    assert safe[1] == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    assert not np.array_equal(unsafe[0], wanted[1, ..., 0] if channels == 1 else wanted[1])
    assert flags(output) == [False, True]
    save(comfy, images[:1], prefix="sub/guarded_%width%")
    assert len(saved(comfy)) == 3


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, [True, False]),
        ("in unflagged images only", [True, False]),
        ("in all images", [True, True]),
        ("never", [False, False]),
    ],
)
def test_the_prompt_is_left_out_of_flagged_images(comfy, choice, wanted):
    save(comfy, pictures(SAFE, UNSAFE), {**BLUR, **({"prompt_in_file": choice} if choice else {})})
    texts = [opened(file)[2] for file in saved(comfy)]
    assert [json.loads(text["nsfw_guard"])["flagged"] for text in texts] == [False, True]
    for text, kept in zip(texts, wanted, strict=True):
        assert ("prompt" in text) is ("workflow" in text) is kept
    if wanted[0]:
        assert json.loads(texts[0]["prompt"]) == PROMPT
        assert json.loads(texts[0]["workflow"]) == WORKFLOW["workflow"]


def test_no_metadata_where_comfyui_writes_none(comfy):
    comfy.modules["comfy.cli_args"].args.disable_metadata = True
    save(comfy, pictures(SAFE), {**BLUR, "prompt_in_file": "in all images"})
    assert opened(saved(comfy)[0])[2] == {}


@pytest.mark.parametrize("scenes", [[SAFE, UNSAFE, SAFE], [UNSAFE]], ids=len)
def test_blocked_images_are_not_saved(comfy, scenes):
    output = save(comfy, pictures(*scenes), {"action": "block", "action.message": ""})
    safe = [scene for scene in scenes if scene == SAFE]
    assert len(saved(comfy)) == len(output.ui["images"]) == len(safe)
    wanted = (pictures(SAFE)[0].numpy() * 255).astype(np.uint8)
    assert all(np.array_equal(opened(file)[0], wanted) for file in saved(comfy))
    assert set(output.ui) == {"images", "text", "nsfw_guard"}
    assert flags(output) == [scene == UNSAFE for scene in scenes]


def written(host, node, images, inputs=BLUR):
    """The output of a node that writes, and the pixels of its files."""
    output = host.run(node, {"images": images, "filename_prefix": "x%batch_num%", **BALANCED, **inputs}, prompt=PROMPT)
    root = {"output": host.output, "temp": host.temp}
    files = [root[one["type"]] / one["subfolder"] / one["filename"] for one in output.ui["images"]]
    assert sorted([*saved(host), *host.temp.iterdir()]) == sorted(files)
    return output, [opened(file)[0] for file in files]


@pytest.mark.parametrize("node", WRITING)
def test_what_is_written_is_handed_on(comfy, node):
    images = pictures(SAFE, UNSAFE)
    output, files = written(comfy, node, images)
    shown, flagged, report = output.args
    assert torch.allclose(shown, guarded_by_the_core(images), atol=1e-6)
    for one, file in zip(shown, files, strict=True):
        assert np.array_equal(np.clip(one.numpy() * 255.0, 0, 255).astype(np.uint8), file)
    assert flagged is True
    assert (report,) == output.ui["nsfw_guard"]
    assert comfy.run(node, {"images": images[:1], "filename_prefix": "y", **BALANCED, **BLUR})[1] is False


@pytest.mark.parametrize("node", WRITING)
@pytest.mark.parametrize("message", ["", "not here"])
def test_what_is_not_written_is_not_handed_on(comfy, node, message):
    block = {"action": "block", "action.message": message}
    images = pictures(UNSAFE, SAFE, UNSAFE, SAFE)
    output, files = written(comfy, node, images, block)
    assert same(output[0], images[[1, 3]])
    assert output[1] is True
    assert len(files) == 2
    output = comfy.run(node, {"images": images[:1], "filename_prefix": "y", **BALANCED, **block})
    assert isinstance(output[0], ExecutionBlocker)
    assert output[0].message == (message or None)


def test_batch_num_is_the_place_in_the_batch(comfy):
    output, _ = written(comfy, "NSFWG_SaveImage", pictures(UNSAFE, SAFE, UNSAFE, SAFE), {"action": "block"})
    assert [one["filename"] for one in output.ui["images"]] == ["x1_00001_.png", "x3_00002_.png"]


def test_a_preview_is_written_to_the_temp_folder_alone(comfy):
    output, (safe, unsafe) = written(comfy, "NSFWG_PreviewImage", pictures(SAFE, UNSAFE))
    assert {one["type"] for one in output.ui["images"]} == {"temp"}
    assert saved(comfy) == []
    assert np.array_equal(safe, (pictures(SAFE)[0].numpy() * 255).astype(np.uint8))
    assert flagged_again(torch.tensor(unsafe)[None] / 255) == [False]
    texts = [opened(file)[2] for file in sorted(comfy.temp.iterdir())]
    assert [("prompt" in text, json.loads(text["nsfw_guard"])["flagged"]) for text in texts] == [
        (True, False),
        (False, True),
    ]
    again = comfy.run("NSFWG_PreviewImage", {"images": pictures(SAFE), **BALANCED, **BLUR}).ui["images"]
    assert again[0]["filename"].split("_0")[0] not in [one["filename"].split("_0")[0] for one in output.ui["images"]]


def test_a_name_that_another_prompt_has_taken_meanwhile_is_its_own(comfy, monkeypatch):
    count = sys.modules["folder_paths"].get_save_image_path

    def counted_before(*args):
        folder, name, number, *rest = count(*args)
        Path(folder, f"{name}_{number:05}_.png").write_bytes(b"of somebody else")
        return folder, name, number, *rest

    monkeypatch.setattr("folder_paths.get_save_image_path", counted_before)
    output = save(comfy, pictures(SAFE, SAFE))
    names = [one["filename"] for one in output.ui["images"]]
    assert [name[-10:] for name in names] == ["00002_.png", "00003_.png"]
    other, *own = sorted(saved(comfy))
    assert other.read_bytes() == b"of somebody else"
    assert [file.name for file in own] == names


@pytest.mark.parametrize("what", ["PIL.ImageFile._save", "PIL.Image.Image.save", "os.fsync"])
def test_nothing_half_written_is_left(comfy, monkeypatch, what):
    finished = []

    def failing(*args, **options):
        finished.extend(file.name for file in saved(comfy) if file.suffix == ".png")
        for target in args[1:2]:
            if hasattr(target, "write"):
                target.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(what, failing)
    with pytest.raises(OSError, match="the disk is full"):
        save(comfy, pictures(SAFE))
    assert finished == []  # nothing goes by its own name before it is whole
    assert saved(comfy) == []


def test_a_choice_for_the_prompt_that_there_is_not(comfy):
    with pytest.raises(SettingError, match="prompt_in_file is 'maybe'; expected 'in unflagged images only'"):
        save(comfy, pictures(SAFE), {**BLUR, "prompt_in_file": "maybe"})
    assert saved(comfy) == []


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def single(host, name="one", *, config=True, beside="{name}."):
    """The demo as a single file with its config beside it."""
    prefix = beside.format(name=name)
    shutil.copy(DEMO / "model.safetensors", host.models / f"{name}.safetensors")
    (host.models / (f"{prefix}toml" if prefix else "nsfw_guard.toml")).write_text(DEMO_CARD, encoding="utf-8")
    shutil.copy(DEMO / "preprocessor_config.json", host.models / f"{prefix}preprocessor_config.json")
    if config:
        shutil.copy(DEMO / "config.json", host.models / (f"{prefix}json" if prefix else "config.json"))
    return f"{name}.safetensors"


def sharded(host):
    """The demo in two files."""
    folder = install(host.models / "big")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    place = {key: names[index % 2] for index, key in enumerate(sorted(weights))}
    for name in names:
        save_file({key: weights[key] for key in weights if place[key] == name}, folder / name, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return f"big/{names[0]}"


def loaded(host, name):
    return host.run("NSFWG_LoadClassifier", {"checkpoint": name})[0]


def offered(host):
    return host.nodes["NSFWG_LoadClassifier"].define_schema().inputs[0].options


def scores_by(host, name, images):
    return host.run("NSFWG_Classify", {"image": images, "classifier": loaded(host, name)})[0]


def test_what_is_installed_is_offered_and_the_demo_last(comfy):
    names = [sharded(comfy), single(comfy), "shapes/model.safetensors"]
    (comfy.models / "pytorch_model.bin").write_bytes(b"")
    *found, demo = offered(comfy)
    assert found == sorted(names)
    assert "no NSFW model" in demo


@pytest.mark.parametrize("layout", [sharded, single, lambda host: single(host, beside="")])
def test_any_layout_classifies_as_the_folder_does(comfy, layout):
    images = pictures(SAFE, UNSAFE)
    wanted = scores_by(comfy, "shapes/model.safetensors", images)
    assert scores_by(comfy, layout(comfy), images).probabilities == wanted.probabilities


def test_a_single_file_leaves_nothing_behind_when_the_process_ends(comfy, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    guard(comfy, pictures(SAFE), {**BLUR, "classifier": loaded(comfy, single(comfy))})
    for staged in comfy.pack.extension.checkpoints._STAGED:  # they take themselves away when Python ends
        assert isinstance(staged, tempfile.TemporaryDirectory)
        staged.cleanup()
    assert list(folder.iterdir()) == []


def test_a_single_file_without_a_config_says_what_to_put_where(comfy):
    name = single(comfy, "lonely", config=False)
    with pytest.raises(CheckpointError, match=r"lonely.safetensors has no config beside it.* there as lonely.json"):
        loaded(comfy, name)


def truncated(path):
    path.write_bytes(path.read_bytes()[:5000])


def pickled(path):
    torch.save({"weights": torch.zeros(3)}, path)


def empty(path):
    path.write_bytes(b"")


def with_nan(path):
    weights = load_file(path)
    next(iter(weights.values())).fill_(torch.nan)
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize("damage", [truncated, pickled, empty, with_nan])
def test_a_file_that_cannot_be_trusted_is_refused(comfy, damage):
    for name in ("shapes/model.safetensors", single(comfy)):
        damage(comfy.models / name)
        with pytest.raises(CheckpointError, match="not a readable safetensors file|holds NaN"):
            loaded(comfy, name)
    with pytest.raises(CheckpointError):
        guard(comfy, pictures(SAFE))


LABELS = {"0": "empty", "1": "circle", "2": "square", "3": "cross", "4": "heart", "5": "wedge"}


def unknown_labels(host, folder, card):
    (folder / card).unlink()
    config = folder / ("config.json" if card == "nsfw_guard.toml" else "one.json")
    table = json.loads(config.read_text())
    table |= {"id2label": LABELS, "label2id": {name: int(key) for key, name in LABELS.items()}}
    config.write_text(json.dumps(table))


def broken_card(host, folder, card):
    (folder / card).write_text("[levels", encoding="utf-8")


def broken_config(host, folder, card):
    (folder / ("config.json" if card == "nsfw_guard.toml" else "one.json")).write_text("{", encoding="utf-8")


def broken_weights(host, folder, card):
    (folder / ("model.safetensors" if card == "nsfw_guard.toml" else "one.safetensors")).write_bytes(b"no")


SAID = {
    unknown_labels: ["{weights} has the labels", "in a file {card} beside the weights"],
    broken_card: ["models/nsfw_guard/{below}{card} is not valid TOML"],
    broken_config: ["models/nsfw_guard/{below}{config} cannot be read"],
    broken_weights: ["models/nsfw_guard/{below}{file} is not a readable safetensors file"],
}


@pytest.mark.parametrize("layout", ["folder", "single", "single, plain names", "link"])
@pytest.mark.parametrize("damage", SAID)
def test_an_error_names_the_users_own_files_and_no_folder_of_the_server(comfy, damage, layout, tmp_path):
    words = {"below": "shapes/", "file": "model.safetensors", "config": "config.json", "card": "nsfw_guard.toml"}
    words["weights"] = "models/nsfw_guard/shapes"
    name, folder = "shapes/model.safetensors", comfy.models / "shapes"
    if layout.startswith("single"):
        name, folder = single(comfy, "one"), comfy.models
        words = {"below": "", "file": name, "config": "one.json", "card": "one.toml"}
        words["weights"] = "models/nsfw_guard/one.safetensors"
        if layout.endswith("names") and damage in (broken_card, broken_config):
            old, new = ("one.toml", "nsfw_guard.toml") if damage is broken_card else ("one.json", "config.json")
            damage(comfy, folder, words["card"])
            (folder / old).rename(folder / new)
            words["card" if damage is broken_card else "config"] = new
    elif layout == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.rename(tmp_path / "elsewhere" / "shapes")
        folder.symlink_to(tmp_path / "elsewhere" / "shapes")
    if not (layout.endswith("names") and damage in (broken_card, broken_config)):
        damage(comfy, folder, words["card"])
    with pytest.raises(GuardError) as caught:
        loaded(comfy, name)
    for said in SAID[damage]:
        assert said.format(**words) in str(caught.value)
    for place in (str(tmp_path), tempfile.gettempdir(), "/tmp"):
        assert place not in str(caught.value)


def test_a_checkpoint_removed_after_it_was_listed(comfy):
    name = single(comfy)
    assert name in offered(comfy)
    (comfy.models / name).unlink()
    with pytest.raises(CheckpointError, match=r"'one.safetensors' is not in ComfyUI's models/nsfw_guard any more"):
        loaded(comfy, name)


def test_a_checkpoint_removed_after_it_was_loaded(comfy):
    guard(comfy, pictures(SAFE))
    shutil.rmtree(comfy.models / "shapes")
    with pytest.raises(CheckpointError, match="No NSFW classifier is installed"):
        guard(comfy, pictures(UNSAFE))


@pytest.mark.parametrize("node", [*SCORED_NODES, "NSFWG_Video"])
def test_without_a_checkpoint_the_error_says_where_and_how(bare, node, caplog):
    inputs = {"video": video(pictures(SAFE)), **BALANCED, **BLUR}
    with pytest.raises(CheckpointError) as caught:
        bare.run(node, inputs if node == "NSFWG_Video" else SCORED_NODES[node](pictures(SAFE)))
    assert "Put one into ComfyUI's models/nsfw_guard. In ComfyUI's folder, type for example" in str(caught.value)
    assert "    nsfw-guard download freepik --to models/nsfw_guard/freepik\n" in str(caught.value)
    assert str(bare.base) not in str(caught.value)
    assert str(bare.models) in caplog.text


def test_the_demo_runs_where_it_is_chosen(bare):
    (name,) = offered(bare)
    demo = loaded(bare, name)
    assert flags(guard(bare, pictures(SAFE, UNSAFE), {**BLUR, "classifier": demo})) == [False, True]


def test_a_second_checkpoint_is_not_taken_unless_it_is_named(comfy, monkeypatch):
    install(comfy.models / "another")
    images = pictures(SAFE, UNSAFE)
    with pytest.raises(CheckpointError) as caught:
        guard(comfy, images)
    assert (
        "2 NSFW classifiers are installed, and none of them is named: another/model.safetensors, shapes/model"
        in str(caught.value)
    )
    assert "NSFW_GUARD_MODEL=another/model.safetensors" in str(caught.value)
    linked = loaded(comfy, "shapes/model.safetensors")
    assert json.loads(guard(comfy, images, {**BLUR, "classifier": linked})[3])["checkpoint"] == linked.name
    monkeypatch.setenv("NSFW_GUARD_MODEL", "shapes/model.safetensors")
    assert json.loads(guard(comfy, images)[3])["checkpoint"] == "shapes/model.safetensors"
    monkeypatch.setenv("NSFW_GUARD_MODEL", "gone/model.safetensors")
    with pytest.raises(SettingError, match="NSFW_GUARD_MODEL is 'gone/model.safetensors'; expected one of"):
        guard(comfy, images)


@pytest.mark.parametrize(
    "node", ["NSFWG_Guard", "NSFWG_Classify", "NSFWG_Censor", "NSFWG_Split", *WRITING, "NSFWG_Video"]
)
def test_every_node_names_the_classifier_that_decided(comfy, node):
    images = pictures(UNSAFE)
    given = {"image": images, "images": images, "video": video(images), **BALANCED, **BLUR, "filename_prefix": "x"}
    if node in ("NSFWG_Censor", "NSFWG_Split"):
        given["scores"] = classify(comfy, images)
    output = comfy.run(node, given)
    assert output.ui["text"][0].endswith("\nclassifier: shapes/model.safetensors")
    assert json.loads(output.ui["nsfw_guard"][0])["checkpoint"] == "shapes/model.safetensors"


def test_a_file_that_is_replaced_is_loaded_again(comfy):
    name, images = "shapes/model.safetensors", pictures(UNSAFE)
    node, path = comfy.nodes["NSFWG_LoadClassifier"], comfy.models / "shapes" / "model.safetensors"
    before, first = node.fingerprint_inputs(checkpoint=name), loaded(comfy, name)
    assert loaded(comfy, name) is first
    assert node.fingerprint_inputs(checkpoint=name, device="cpu") == before
    assert guard(comfy, images)[1] is True
    save_file({key: weights * 0 for key, weights in load_file(path).items()}, path, {"format": "pt"})
    os.utime(path, ns=(1, 1))
    assert node.fingerprint_inputs(checkpoint=name) != before
    assert loaded(comfy, name) is not first
    assert guard(comfy, images)[1] is False
    path.unlink()
    assert node.fingerprint_inputs(checkpoint=name) != before


FINGERPRINTED = ["Guard", "Classify", "Video", "SaveImage", "PreviewImage", "Enforced"]


@pytest.mark.parametrize("name", FINGERPRINTED)
def test_another_default_checkpoint_runs_a_node_again(bare, name, monkeypatch):
    node = bare.nodes[f"NSFWG_{name}"]

    def fingerprint():
        return node.fingerprint_inputs(image=None, value=None)

    found = [fingerprint()]
    install(bare.models / "shapes")
    found.append(fingerprint())
    install(bare.models / "another")
    assert fingerprint() != found[-1]  # to say that there are two
    monkeypatch.setenv("NSFW_GUARD_MODEL", "another/model.safetensors")
    found.append(fingerprint())
    os.utime(bare.models / "another" / "model.safetensors", ns=(1, 1))
    found.append(fingerprint())
    assert len(set(found)) == 4
    assert fingerprint() == found[-1]


@pytest.mark.parametrize("name", [*FINGERPRINTED, "LoadClassifier"])
def test_a_fingerprint_tells_nothing_of_the_server(comfy, name):
    # ComfyUI writes it into the prompt of every picture that it saves.
    single(comfy, "one")
    shutil.rmtree(comfy.models / "shapes")
    node = comfy.nodes[f"NSFWG_{name}"]
    found = node.fingerprint_inputs(checkpoint="one.safetensors", value=None)
    assert re.fullmatch("[0-9a-f]{32}", found)


def test_folders_of_extra_model_paths_are_kept(tmp_path):
    extra = tmp_path / "extra"
    install(extra / "far")
    with comfyui(tmp_path / "comfyui", model_paths={"nsfw_guard": ([str(extra)], set())}) as host:
        install(host.models / "near")
        (extra / "notes.txt").write_text("")
        paths, extensions = host.modules["folder_paths"].folder_names_and_paths["nsfw_guard"]
        assert paths == [str(extra), str(host.models)]
        assert extensions == {".safetensors"}
        assert offered(host)[:2] == ["far/model.safetensors", "near/model.safetensors"]
        assert flags(guard(host, pictures(UNSAFE), {**BLUR, "classifier": loaded(host, offered(host)[0])})) == [True]


# --- The stand-in against the real ComfyUI ---------------------------------------------------------------------------

# Run in both; ``folder`` is a folder to write in.
FACTS = """
import os
import folder_paths
from comfy.model_management import InterruptProcessingException
from comfy_api.latest import InputImpl, Types, io
from comfy_execution.graph_utils import ExecutionBlocker

def facts(folder):
    for name in ("a.safetensors", "a.json", "sub/b.SAFETENSORS", "out/x_00003_.png", "out/x_y_00007_.png"):
        os.makedirs(os.path.dirname(os.path.join(folder, "files", name)), exist_ok=True)
        open(os.path.join(folder, "files", name), "w").close()
    files, more, out = (os.path.join(folder, *parts) for parts in (("files",), ("more",), ("files", "out")))
    folder_paths.folder_names_and_paths["some"] = ([files], {".safetensors"})
    folder_paths.add_model_folder_path("some", more)
    folder_paths.add_model_folder_path("some", files)
    folder_paths.add_model_folder_path("none", more)
    output = io.NodeOutput(1, "b", ui={"text": ("c",)})
    clip = InputImpl.VideoFromComponents(Types.VideoComponents(images=None, frame_rate=4, audio="a"), bit_depth=10)
    kinds = [io.Image, io.Mask, io.Video, io.Boolean, io.Int, io.Float, io.String, io.Combo, io.Color, io.AnyType]
    out_path, name, counter, subfolder, _ = folder_paths.get_save_image_path("x", out, 5, 6)
    in_sub = folder_paths.get_save_image_path("s/t_%width%_%height%", out, 5, 6)
    return {
        "paths": [path == files for path in folder_paths.get_folder_paths("some")],
        "no extensions": sorted(folder_paths.folder_names_and_paths["none"][1]),
        "names": folder_paths.get_filename_list("some"),
        "full": folder_paths.get_full_path("some", "a.safetensors") == os.path.join(files, "a.safetensors"),
        "gone": folder_paths.get_full_path("some", "gone.safetensors"),
        "a folder": folder_paths.get_full_path("some", "sub"),
        "to save": [os.path.samefile(out_path, out), name, counter, subfolder],
        "to save in a folder": [os.path.isdir(in_sub[0]), *in_sub[1:4]],
        "output": [list(output.args), output.ui, output[1]],
        "blocker": [ExecutionBlocker("x").message, ExecutionBlocker(None).message, bool(ExecutionBlocker(None))],
        "interrupt is an Exception": issubclass(InterruptProcessingException, Exception),
        "clip": [clip.get_components().audio, clip.get_components().frame_rate, clip.get_bit_depth()],
        "kinds": [[kind.io_type, kind.Input("i").id, kind.Output("o").id, kind.Output("o").display_name]
                  for kind in kinds],
        "custom": [io.Custom("X").io_type, io.Custom("X").Input("a", optional=True).optional],
        "dynamic": [io.MatchType.io_type, io.DynamicCombo.io_type],
        "defaults": [io.Color.Input("c").default, io.Schema(node_id="n").category, io.ComfyNode.hidden],
        "lazily": io.ComfyNode.check_lazy_status(a=None, b=1),
    }
"""

# Run by the real ComfyUI's Python: what it has at the places that the stand-in names.
REAL = (
    FACTS
    + """
import importlib, inspect, json, sys
from enum import EnumMeta

def described(module, names):
    found = importlib.import_module(module)
    for name in names:
        found = getattr(found, name)
    if isinstance(found, EnumMeta):
        return {member.name: member.value for member in found}
    if not callable(found):
        return type(found).__name__
    return [[p.name, p.kind.name, p.default is not p.empty,
             p.default if isinstance(p.default, (str, int, float, bool, type(None))) else None]
            for p in inspect.signature(found).parameters.values()]

asked = json.load(sys.stdin)
print("ANSWER" + json.dumps([[described(*place) for place in asked["places"]], facts(asked["folder"])]))
"""
)


def places(host):
    """Every class, function and value of the stand-in: (module, names) → it."""
    found = {}

    def visit(module, names, value):
        if isinstance(value, SimpleNamespace):
            for name, one in vars(value).items():
                visit(module, (*names, name), one)
            return
        if not isinstance(value, type) or isinstance(value, EnumMeta) or "__init__" in dir_of(value):
            found[module, names] = value
        if isinstance(value, type) and not isinstance(value, EnumMeta):
            for name in dir_of(value):
                one = getattr(value, name)
                if not name.startswith("_") and (inspect.isroutine(one) or isinstance(one, type)):
                    visit(module, (*names, name), one)

    for module, content in host.modules.items():
        for name, value in vars(content).items():
            if not name.startswith("_") and not isinstance(value, ModuleType):
                visit(module, (name,), value)
    return found


def dir_of(cls):
    return {name for base in cls.__mro__ if base not in (object, str, BaseException, Exception) for name in vars(base)}


def parameters(value):
    """Name → parameter; those that an input hands on to the base class too."""
    own = dict(inspect.signature(value).parameters)
    if own.pop("shared", None):
        base = next(one for one in value.__mro__ if one.__name__ == "Input" and "__init__" in vars(one))
        own = {**own, **{name: p for name, p in inspect.signature(base).parameters.items() if name not in own}}
    return own


def differences(value, real):
    """What a call that the stand-in takes may meet in the real one."""
    if isinstance(value, EnumMeta):
        return [f"{one.name} = {one.value!r}" for one in value if real.get(one.name) != one.value]
    if not callable(value):
        return []  # that it is there was all to know
    own = parameters(value)
    theirs = {
        name: (index, kind, has_default, default) for index, (name, kind, has_default, default) in enumerate(real)
    }
    open_ended = {kind for _, kind, _, _ in real} & {"VAR_KEYWORD", "VAR_POSITIONAL"}
    wrong = [f"{name} is required there" for name, (_, kind, has, _) in theirs.items() if not has and name not in own]
    wrong = [one for one in wrong if theirs[one.split()[0]][1] not in open_ended]
    for index, (name, mine) in enumerate(own.items()):
        if name not in theirs:
            wrong.append(f"{name} is not there")
            continue
        place, kind, has_default, default = theirs[name]
        if mine.kind is mine.KEYWORD_ONLY:
            if kind not in ("KEYWORD_ONLY", "POSITIONAL_OR_KEYWORD"):
                wrong.append(f"{name} is {kind} there")
        elif mine.kind.name != kind or place != index:
            wrong.append(f"{name} is number {place} and {kind} there")
        has = mine.default is not mine.empty
        if has and not has_default:
            wrong.append(f"{name} has no default there")
        if has and isinstance(mine.default, (str, int, float, bool)) and mine.default != default:
            wrong.append(f"{name} defaults to {default!r} there")
    return wrong


@pytest.mark.skipif(
    not (os.environ.get("COMFYUI_DIR") and os.environ.get("COMFYUI_PYTHON")),
    reason="set COMFYUI_DIR and COMFYUI_PYTHON to a ComfyUI",
)
def test_the_stand_in_is_as_the_real_one(bare, tmp_path):
    found = places(bare)
    own_nodes = [place for place in found if place[0] == "nodes" and place[1] != ("NODE_CLASS_MAPPINGS",)]
    assert not own_nodes
    assert len(found) > 60
    folders = [tmp_path / "stand-in", tmp_path / "real", tmp_path / "base"]
    for folder in folders:
        folder.mkdir()
    begin = (
        f"import sys; sys.path.insert(0, {os.environ['COMFYUI_DIR']!r}); "
        f"sys.argv[1:] = ['--cpu', '--base-directory', {str(folders[2])!r}]; "
        "import comfy.options; comfy.options.enable_args_parsing()\n"
    )
    done = subprocess.run(
        [os.environ["COMFYUI_PYTHON"], "-c", begin + REAL],
        input=json.dumps({"places": list(found), "folder": str(folders[1])}),
        capture_output=True,
        text=True,
        cwd=folders[2],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers, real_facts = json.loads(done.stdout.split("ANSWER")[1])
    wrong = {
        ".".join((module, *names)): found_wrong
        for ((module, names), value), real in zip(found.items(), answers, strict=True)
        if (found_wrong := differences(value, real))
    }
    assert wrong == {}
    scope = {}
    exec(FACTS, scope)
    assert json.loads(json.dumps(scope["facts"](str(folders[0])))) == real_facts
