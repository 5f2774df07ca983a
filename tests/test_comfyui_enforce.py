"""The operators' mode without ComfyUI, against a stand-in; ``test_comfyui_server.py`` runs it in a real one.

The demo's classifier stands in as the installed checkpoint: what it flags are triangles.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import shutil
import sys
from copy import deepcopy
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfyui_standin import (
    ExecutionBlocker,
    LatentPreviewMethod,
    VideoComponents,
    VideoFromComponents,
    comfyui,
)
from PIL import Image

from nsfw_guard import NsfwGuard, Redaction
from nsfw_guard.audit import read, verify
from nsfw_guard.classifier import Classifier
from nsfw_guard.demo.shapes import draw
from nsfw_guard.errors import GuardError, ImageError, SettingError
from nsfw_guard.images import read_images
from nsfw_guard.redact import fill

pytestmark = pytest.mark.usefixtures("one_thread")

DEMO = Path(__file__).parents[1] / "nsfw_guard" / "demo" / "models" / "classifier"
SAFE, UNSAFE = ("circle", "red", "white"), ("triangle", "red", "white")
BALANCED = {"sensitivity": "balanced"}
BLUR = {"action": "blur", "action.cells": 16}
WORKFLOW = {"workflow": {"nodes": []}}
SETTINGS = ("ENFORCE", "MODEL", "POLICY", "ACTION", "ALLOW", "AUDIT")
LATENT = {"samples": torch.rand(1, 4, 16, 16)}
SOUND = torch.rand(1, 2, 44100)


@pytest.fixture
def unset(monkeypatch):
    """Without a word from the operator."""
    for name in SETTINGS:
        monkeypatch.delenv(f"NSFW_GUARD_{name}", raising=False)


@pytest.fixture
def bare(unset, tmp_path):
    """A host whose models folder is empty."""
    with comfyui(tmp_path / "comfyui") as host:
        yield host


@pytest.fixture
def comfy(bare):
    """A host with one checkpoint."""
    install(bare.models / "shapes")
    return bare


def install(folder):
    shutil.copytree(DEMO, folder)
    (folder / "nsfw_guard.toml").write_text('card = "demo"\n', encoding="utf-8")


def pictures(*scenes, size=128):
    """[B, H, W, 3]."""
    return torch.stack([draw(*scene, height=size, width=size).movedim(0, -1) for scene in scenes])


def video(frames):
    return VideoFromComponents(VideoComponents(frames, Fraction(4), None, {}, None))


@lru_cache
def core(redaction):
    return NsfwGuard("demo", redaction=redaction)


def guarded_by_the_core(images):
    """What the core hands on instead of [B, H, W, C]."""
    batch = read_images(images.movedim(-1, 1), clamp=True, stretch=True)
    return core(Redaction("blur")).apply(batch).images.movedim(1, -1)


def flagged_again(images):
    """Whether the guard would flag each of [B, H, W, C]."""
    return [verdict.flagged for verdict in core("none").check(images.float().movedim(-1, 1))]


def same(one, other):
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


# Nodes of ComfyUI: what they take, what they put out, and whether they show it.
CORE = {
    "LoadImage": ({}, ["IMAGE", "MASK"], False),
    "VAELoader": ({}, ["VAE"], False),
    "CheckpointLoaderSimple": ({}, ["MODEL", "CLIP", "VAE"], False),
    "EmptyLatentImage": ({}, ["LATENT"], False),
    "LoadLatent": ({}, ["LATENT"], False),
    "KSampler": ({"model": "MODEL", "latent_image": "LATENT"}, ["LATENT"], False),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"], False),
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, ["LATENT"], False),
    "LatentUpscaleBy": ({"samples": "LATENT"}, ["LATENT"], False),
    "LatentComposite": ({"samples_to": "LATENT", "samples_from": "LATENT"}, ["LATENT"], False),
    "ImageCrop": ({"image": "IMAGE"}, ["IMAGE"], False),
    "ComfySwitchNode": ({"on_false": "COMFY_MATCHTYPE_V3"}, ["COMFY_MATCHTYPE_V3"], False),
    "SaveImage": ({"images": "IMAGE"}, ["IMAGE"], True),
    "SaveLatent": ({"samples": "LATENT"}, ["LATENT"], True),
    "PreviewAny": ({"source": "*"}, ["STRING"], True),
    "CheckpointSave": ({"model": "MODEL", "clip": "CLIP", "vae": "VAE"}, [], True),
    "PreviewAudio": ({"audio": "AUDIO"}, ["AUDIO"], True),
    "SaveSVGNode": ({"svg": "SVG"}, ["SVG"], True),
    "LoadSVG": ({}, ["SVG"], False),
    **{name: ({"samples": "LATENT"}, ["LATENT"], False) for name in ("LatentCrop", "LatentCut", "LatentRotate")},
    "LatentFlip": ({"samples": "LATENT"}, ["LATENT"], False),
}
OTHERS = {
    "TheirCrop": ({"image": "IMAGE"}, ["IMAGE"], False),
    "TheirLatent": ({"latent": "LATENT"}, ["LATENT"], False),
    "TheirDecode": ({"latent": "LATENT"}, ["IMAGE"], False),
    "TheirShow": ({"value": "*", "vae": "VAE"}, [], True),
    "TheirSampler": ({"model": "MODEL"}, ["STUFF", "IMAGE,MASK"], False),
    "ShowsItself": ({}, ["IMAGE"], True),
}


def of_types(inputs, outputs, shows, module):
    declared = {"required": {name: (io_type, {}) for name, io_type in inputs.items()}}
    has = {"RETURN_TYPES": outputs, "OUTPUT_NODE": shows, "RELATIVE_PYTHON_MODULE": module}
    return type("Node", (), {**has, "INPUT_TYPES": classmethod(lambda cls: declared)})


@pytest.fixture
def typed(comfy):
    """A host with some of ComfyUI's nodes, and some of others."""
    mappings = comfy.modules["nodes"].NODE_CLASS_MAPPINGS
    mappings.update({name: of_types(*has, "comfy_extras.nodes_some") for name, has in CORE.items()})
    mappings.update({name: of_types(*has, "custom_nodes.some") for name, has in OTHERS.items()})
    mappings["TheirApi"] = of_types({"image": "IMAGE"}, ["IMAGE"], False, "comfy_api_nodes.some")
    return comfy


@pytest.fixture
def operator(comfy):
    """A host with some nodes of its own."""
    flags = {
        "LoadImage": {},
        "VAEDecode": {"OUTPUT_NODE": False, "HAS_INTERMEDIATE_OUTPUT": False},
        "SaveImage": {"OUTPUT_NODE": True},
        "PreviewMany": {"OUTPUT_NODE": True, "HAS_INTERMEDIATE_OUTPUT": False},
        "Crop": {"OUTPUT_NODE": False, "HAS_INTERMEDIATE_OUTPUT": True},
    }
    comfy.modules["nodes"].NODE_CLASS_MAPPINGS.update({name: type(name, (), has) for name, has in flags.items()})
    return comfy


def enforce(host):
    return host.pack.extension.enforce


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


GRAPH = {
    "1": node("LoadImage", image="x.png"),
    "2": node("VAEDecode", images=["1", 0]),
    "3": node("SaveImage", images=["2", 0], filename_prefix="x"),
    "4": node("PreviewMany", **{"first": ["1", 0], "more.mask": ["1", 1], "size": [8, 8], "names": ["a", "b"]}),
    "5": node("Crop", image=["1", 0]),
    "6": node("NSFWG_Guard", image=["1", 0], **BALANCED, **BLUR),
    "7": node("NSFWG_SaveImage", images=["1", 0], filename_prefix="x", **BALANCED, **BLUR),
}
OUTPUTS = [("3", "images"), ("4", "first"), ("4", "more.mask"), ("5", "image"), ("7", "images")]


def followed(prompt, value):
    """What is at the other end of a link."""
    return prompt[value[0]]


def through(prompt, value):
    """The guards behind a link, the last one first, and the link behind them."""
    passed = []
    while followed(prompt, value)["class_type"].startswith("NSFWG_Enforced"):
        passed.append(followed(prompt, value)["class_type"])
        value = followed(prompt, value)["inputs"]["value"]
        assert len(passed) < 10, "a cycle, which ComfyUI refuses"
    return passed, value


OUTPUT, SOURCE, UNCUT = "NSFWG_Enforced", "NSFWG_EnforcedSource", "NSFWG_EnforcedUncut"


def test_a_guard_is_put_before_each_linked_input_of_each_output(operator):
    sent = {"prompt": GRAPH, "client_id": "me", "extra_data": {"preview_method": "auto", "extra_pnginfo": WORKFLOW}}
    given = deepcopy(sent)
    rewritten = enforce(operator).guard_prompt(sent)
    assert sent == given
    assert rewritten["client_id"] == "me"
    assert rewritten["extra_data"] == {"extra_pnginfo": WORKFLOW}
    prompt = rewritten["prompt"]
    assert prompt["1"] == GRAPH["1"]
    for key, name in OUTPUTS:
        assert through(prompt, prompt[key]["inputs"][name]) == ([OUTPUT, SOURCE], GRAPH[key]["inputs"][name])
    for key, name in (("2", "images"), ("6", "image")):  # what comes from elsewhere goes nowhere unseen
        assert through(prompt, prompt[key]["inputs"][name]) == ([SOURCE], GRAPH[key]["inputs"][name])
    assert prompt["3"]["inputs"]["filename_prefix"] == "x"
    assert {name: prompt["4"]["inputs"][name] for name in ("size", "names")} == {"size": [8, 8], "names": ["a", "b"]}
    assert set(GRAPH) <= set(prompt)


def test_a_prompt_that_was_guarded_can_be_sent_again(operator):
    # As it is in the history, and in saved pictures.
    guard_prompt = enforce(operator).guard_prompt
    once = guard_prompt({"prompt": GRAPH})
    assert guard_prompt(once) == once


def guarded_or_refused(host, images, class_type="SaveImage"):
    """Whether an output node gets no picture without a guard."""
    sent = {"prompt": {**GRAPH, "3": node(class_type, images=images, filename_prefix="x")}}
    prompt = enforce(host).guard_prompt(sent)["prompt"]
    if set(prompt) == {"nsfw_guard"}:
        return True
    value = prompt["3"]["inputs"]["images"]
    link = value["__value__"] if isinstance(value, dict) else value
    return through(prompt, link)[0] == [OUTPUT, SOURCE]


def test_a_link_that_comfyui_unwraps_is_a_link(operator):
    # ComfyUI's validation puts what is in "__value__" in the place of the dict, links too.
    assert guarded_or_refused(operator, ["2", 0])
    assert guarded_or_refused(operator, {"__value__": ["2", 0]})


def test_a_node_by_an_old_name_may_be_an_output(operator):
    # After the handlers, ComfyUI puts other nodes in the place of those that it knows to be replaced (io.NodeReplace).
    assert guarded_or_refused(operator, ["2", 0], "OldSaveImage")


BROKEN = {
    "a link to nothing": (
        {"prompt": {**GRAPH, "3": node("SaveImage", images=["no", 0])}},
        "which is not in the",
    ),
    "a link to half an output": (
        {"prompt": {**GRAPH, "3": node("SaveImage", images=["2", 0.5])}},
        "links to output 0.5",
    ),
    "text": ("hello", "string indices|str"),
    "nothing": (None, "NoneType"),
    "no prompt": ({"client_id": "me"}, "prompt"),
    "a list": ({"prompt": []}, "list"),
    "a node that is none": ({"prompt": {**GRAPH, "3": "SaveImage"}}, "str"),
    "no class type": ({"prompt": {**GRAPH, "3": {"inputs": {"images": ["2", 0]}}}}, "class_type"),
    "a class type that is none": ({"prompt": {**GRAPH, "3": node(["SaveImage"])}}, "list"),
    "inputs that are none": ({"prompt": {**GRAPH, "3": {"class_type": "SaveImage", "inputs": 3}}}, "int"),
    "extra data that is none": ({"prompt": GRAPH, "extra_data": 3}, "int"),
}


def refusal(host, sent):
    """Why a prompt is refused; fails if it is not."""
    host.modules["server"].PromptServer.instance.add_on_prompt_handler(enforce(host).guard_prompt)
    answer = host.modules["server"].PromptServer.instance.trigger_on_prompt(sent)
    assert [one["class_type"] for one in answer["prompt"].values()] == ["NSFWG_Refused"]
    assert not answer.get("partial_execution_targets")
    (refused,) = answer["prompt"].values()
    schema = host.nodes["NSFWG_Refused"].define_schema()
    assert schema.is_output_node
    reason = host.prepared("NSFWG_Refused").validate_inputs(**refused["inputs"])
    assert isinstance(reason, str)
    assert reason.startswith("This server guards every prompt, and could not guard this one, so it was not run: ")
    with pytest.raises(SettingError):
        host.run("NSFWG_Refused", refused["inputs"])
    return reason


@pytest.mark.parametrize("name", BROKEN)
def test_a_prompt_that_cannot_be_guarded_is_refused(operator, name):
    sent, said = BROKEN[name]
    given = deepcopy(sent)
    assert any(word in refusal(operator, sent) for word in said.split("|"))
    assert sent == given


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MODEL", "gone.safetensors", "NSFW_GUARD_MODEL is 'gone.safetensors'; expected one of ['shapes/model"),
        ("ACTION", "replace", "NSFW_GUARD_ACTION is 'replace'; expected one of blur, pixelate, fill, block"),
        ("ACTION", "detect only", "NSFW_GUARD_ACTION is 'detect only'; expected one of blur"),
        ("POLICY", "threshold", "NSFW_GUARD_POLICY is 'threshold'; expected one of balanced, strict, permissive"),
    ],
)
def test_settings_of_the_operator_that_make_no_sense_refuse(operator, monkeypatch, name, value, said):
    monkeypatch.setenv(f"NSFW_GUARD_{name}", value)
    assert said in refusal(operator, {"prompt": GRAPH})
    with pytest.raises(SettingError):
        operator.run("NSFWG_Enforced", {"value": pictures(SAFE)})


def test_without_a_checkpoint_every_prompt_is_refused(bare):
    assert "nsfw-guard download freepik" in refusal(bare, {"prompt": GRAPH, "partial_execution_targets": ["3"]})


def enforced(host, value):
    return host.run("NSFWG_Enforced", {"value": value})[0]


def test_images_are_guarded(operator):
    images = pictures(SAFE, UNSAFE)
    shown = enforced(operator, images)
    assert same(shown[0], images[0])
    assert torch.allclose(shown, guarded_by_the_core(images), atol=1e-6)
    assert flagged_again(shown) == [False, False]
    assert enforced(operator, images[:1]).shape == (1, 128, 128, 3)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_mask_that_holds_a_picture_is_guarded(operator, ndim):
    masks = pictures(SAFE, ("triangle", "white", "blue")).mean(-1)
    safe, unsafe = (masks[0], masks[1]) if ndim == 2 else (masks[:1], masks[1:])
    assert enforced(operator, safe) is safe
    shown = enforced(operator, unsafe)
    assert shown.shape == unsafe.shape
    assert not torch.allclose(shown, unsafe, atol=0.05)


@pytest.mark.parametrize("kind", [list, tuple])
def test_each_item_of_a_list_is_guarded(operator, kind):
    clip = video(pictures(UNSAFE))
    items = kind([pictures(SAFE), "text", pictures(UNSAFE), clip])
    shown = enforced(operator, items)
    assert type(shown) is kind
    assert shown[:2] == items[:2]
    assert not same(shown[2], items[2])
    assert shown[3] is not clip
    (only,) = enforced(operator, kind([clip]))
    assert only is not clip


def test_a_video_is_guarded(operator):
    safe, unsafe = video(pictures(SAFE)), video(pictures(SAFE, UNSAFE))
    assert enforced(operator, safe) is safe
    shown = enforced(operator, unsafe).get_components().images
    assert not same(shown[1], pictures(UNSAFE)[0])


@pytest.mark.parametrize(
    "value",
    ["text", 3, 0.5, True, None, [1, 2], ["a", 1], {"a": [1, {"b": "c"}]}, {"waveform": SOUND, "sample_rate": 44100}],
    ids=["text", "int", "float", "bool", "nothing", "list", "mixed", "dict", "sound"],
)
def test_what_is_no_picture_is_handed_on(operator, value):
    assert enforced(operator, value) is value


@pytest.mark.parametrize("shape", [(1, 8, 8, 2), (0, 8, 8, 3), (1, 2, 8, 8, 3)], ids=str)
def test_a_tensor_that_cannot_be_looked_at_stops_the_prompt(operator, shape):
    with pytest.raises(ImageError, match="expected an IMAGE"):
        enforced(operator, torch.zeros(shape))


@pytest.mark.parametrize("kind", ["image", "mask", "video", "list"])
def test_the_operator_can_block(operator, monkeypatch, kind):
    monkeypatch.setenv("NSFW_GUARD_ACTION", "block")
    images = pictures(UNSAFE)
    mask = pictures(("triangle", "white", "blue")).mean(-1)
    values = {"image": images, "mask": mask, "video": video(images), "list": [pictures(SAFE), images]}
    held = enforced(operator, values[kind])
    assert isinstance(held, ExecutionBlocker)
    assert held.message == "Held back by the operator of this server: flagged as NSFW."


def test_the_operator_chooses_checkpoint_policy_and_action(operator, monkeypatch):
    install(operator.models / "zebra")
    settings = {"MODEL": "zebra/model.safetensors", "POLICY": "strict", "ACTION": "fill"}
    for name, value in settings.items():
        monkeypatch.setenv(f"NSFW_GUARD_{name}", value)
    images = pictures(UNSAFE)
    assert torch.equal(enforced(operator, images)[0], fill(images[0].movedim(-1, 0), Redaction("fill")).movedim(0, -1))
    (kept,) = enforce(operator).classifier._LOADED.values()
    assert kept.name == "zebra/model.safetensors"


def preview_methods(host):
    return (
        host.modules["comfy.cli_args"].args.preview_method,
        host.modules["latent_preview"].default_preview_method,
    )


@pytest.mark.parametrize("value", [None, "", "0", "false", "Off", "no"])
def test_nothing_is_enforced_unless_the_environment_says_so(operator, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("NSFW_GUARD_ENFORCE", value)
    enforce(operator).install_if_asked()
    assert operator.modules["server"].PromptServer.instance.on_prompt_handlers == []
    assert preview_methods(operator) == (LatentPreviewMethod.Auto, LatentPreviewMethod.Auto)


@pytest.mark.parametrize("value", ["1", "true", "yes", "2", " 1", "enforce"])
def test_any_other_word_enforces(operator, monkeypatch, value):
    monkeypatch.setenv("NSFW_GUARD_ENFORCE", value)
    enforce(operator).install_if_asked()
    server = operator.modules["server"].PromptServer.instance
    assert server.on_prompt_handlers == [enforce(operator).guard_prompt]
    server.prompt_queue.put((0, "id", GRAPH, {"preview_method": "auto"}, ["3"]))
    ((number, prompt_id, prompt, extra_data, outputs),) = server.prompt_queue.queue
    assert (number, prompt_id, extra_data, outputs) == (0, "id", {}, ["3"])
    assert prompt == enforce(operator).guard_prompt({"prompt": GRAPH})["prompt"]
    assert preview_methods(operator) == (LatentPreviewMethod.NoPreviews, LatentPreviewMethod.NoPreviews)


def loaded(tmp_path, checkpoint=True):
    """A host that has loaded the pack."""
    folder = tmp_path / "comfyui"
    host = comfyui(folder, before=lambda models: install(models / "shapes") if checkpoint else None)
    with host as made:
        return made


def test_a_pack_that_is_loaded_with_it_enforces(unset, tmp_path, monkeypatch):
    monkeypatch.setenv("NSFW_GUARD_ENFORCE", "1")
    host = loaded(tmp_path)
    assert len(host.modules["server"].PromptServer.instance.on_prompt_handlers) == 1
    assert preview_methods(host) == (LatentPreviewMethod.NoPreviews,) * 2


WRONG = {
    "no checkpoint": ({}, "No NSFW classifier is installed"),
    "another model": ({"MODEL": "gone"}, "NSFW_GUARD_MODEL is 'gone'"),
    "no such action": ({"ACTION": "hide"}, "NSFW_GUARD_ACTION is 'hide'"),
    "no such policy": ({"POLICY": "lenient"}, "NSFW_GUARD_POLICY is 'lenient'"),
    "no folder for the log": ({"AUDIT": __file__}, "File exists|Not a directory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_comfyui_does_not_start_when_it_cannot_be_guarded(unset, tmp_path, monkeypatch, name):
    settings, said = WRONG[name]
    monkeypatch.setenv("NSFW_GUARD_ENFORCE", "1")
    for key, value in settings.items():
        monkeypatch.setenv(f"NSFW_GUARD_{key}", value)
    with pytest.raises(SystemExit, match=f"(?s)NSFW_GUARD_ENFORCE is set.*({said})"):
        loaded(tmp_path, checkpoint=name != "no checkpoint")


def test_a_pack_without_its_core_ends_comfyui(bare, monkeypatch):
    name = f"{bare.pack.__name__}.extension"
    kept, sys.modules[name] = sys.modules[name], None
    try:
        for value, error in (("1", SystemExit), ("0", ImportError)):
            monkeypatch.setenv("NSFW_GUARD_ENFORCE", value)
            with pytest.raises(error, match="extension"):
                bare.pack.__spec__.loader.exec_module(bare.pack)
    finally:
        sys.modules[name] = kept


def test_a_comfyui_that_has_changed_ends_too(comfy, monkeypatch):
    monkeypatch.setenv("NSFW_GUARD_ENFORCE", "1")
    del comfy.modules["execution"].get_output_from_returns
    with pytest.raises(SettingError, match="this ComfyUI has no get_output_from_returns"):
        enforce(comfy).install_if_asked()
    comfy.modules["execution"].get_output_from_returns = lambda return_values, obj: None
    del comfy.modules["execution"].get_output_data
    with pytest.raises(SettingError, match="this ComfyUI has no use for get_output_from_returns"):
        enforce(comfy).install_if_asked()


# --- Where guards are put --------------------------------------------------------------------------------------------


def prompt_of(host, **nodes):
    """The guarded prompt; fails if it is refused."""
    prompt = enforce(host).guard_prompt({"prompt": nodes})["prompt"]
    assert not [one for one in prompt.values() if one["class_type"] == "NSFWG_Refused"], prompt
    return prompt


def reason_of(host, **nodes):
    """Why it is refused, and the node that the page shows it at."""
    ((key, refused),) = enforce(host).guard_prompt({"prompt": nodes})["prompt"].items()
    assert refused["class_type"] == "NSFWG_Refused"
    return key, refused["inputs"]["reason"]


SAVED = node("SaveImage", images=["end", 0], filename_prefix="x")
CUTS = ["LatentCrop", "LatentCut", "LatentRotate", "LatentFlip"]


def test_what_makes_a_picture_is_guarded_before_anything_cuts_it(typed):
    prompt = prompt_of(typed, load=node("LoadImage"), end=node("ImageCrop", image=["load", 0]), save=SAVED)
    assert through(prompt, prompt["end"]["inputs"]["image"]) == ([SOURCE], ["load", 0])
    assert through(prompt, prompt["save"]["inputs"]["images"]) == ([OUTPUT], ["end", 0])  # only changed in between


@pytest.mark.parametrize("name", ["TheirCrop", "TheirApi"])
def test_nodes_of_others_may_make_new_pictures_whatever_they_take(typed, name):
    prompt = prompt_of(
        typed,
        load=node("LoadImage"),
        theirs=node(name, image=["load", 0]),
        end=node("ImageCrop", image=["theirs", 0]),
        save=SAVED,
    )
    assert through(prompt, prompt["end"]["inputs"]["image"]) == ([SOURCE], ["theirs", 0])


def test_every_output_that_may_hold_a_picture_is_guarded(typed):
    theirs = node("TheirSampler", model=["load", 0])
    nodes = {"load": node("CheckpointLoaderSimple"), "theirs": theirs}
    for index, guards in ((1, [OUTPUT, SOURCE]), (-1, [OUTPUT, SOURCE]), (7, [OUTPUT, SOURCE]), (0, [OUTPUT])):
        prompt = prompt_of(typed, **nodes, show=node("TheirShow", value=["theirs", index]))
        assert through(prompt, prompt["show"]["inputs"]["value"])[0] == guards


def test_a_switch_of_comfyuis_is_what_goes_into_it(typed):
    nodes = {"load": node("CheckpointLoaderSimple"), "switch": node("ComfySwitchNode", on_false=["load", 0])}
    prompt = prompt_of(typed, **nodes, save=node("CheckpointSave", model=["switch", 0]))
    assert prompt["save"]["inputs"]["model"] == ["switch", 0]
    key, reason = reason_of(typed, **nodes, show=node("TheirShow", value=["switch", 0]))
    assert (key, "a MODEL cannot be looked at" in reason) == ("show", True)


def test_many_switches_behind_each_other_take_no_time(typed):
    nodes = {"0": node("LoadImage")}
    for index in range(1, 200):
        nodes[f"{index}"] = node("ComfySwitchNode", on_false=[f"{index - 1}", 0], on_true=[f"{index - 1}", 0])
    prompt = prompt_of(typed, **nodes, save=node("SaveImage", images=["199", 0]))
    assert through(prompt, prompt["save"]["inputs"]["images"]) == ([OUTPUT], ["199", 0])
    circle = {"1": node("ComfySwitchNode", on_false=["2", 0]), "2": node("ComfySwitchNode", on_false=["1", 0])}
    prompt_of(typed, **circle, save=node("SaveImage", images=["2", 0]))


def cut_graph(cut, decoder="VAEDecode", **more):
    return {
        "loader": node("CheckpointLoaderSimple"),
        "empty": node("EmptyLatentImage"),
        "made": node("KSampler", model=["loader", 0], latent_image=["empty", 0]),
        "cut": node(cut, samples=["made", 0]),
        "end": node(decoder, samples=["cut", 0], vae=["loader", 2]),
        "save": SAVED,
        **more,
    }


@pytest.mark.parametrize("name", CUTS)
def test_a_latent_that_is_cut_is_looked_at_as_a_whole(typed, name):
    prompt = prompt_of(typed, **cut_graph(name))
    guards, link = through(prompt, prompt["save"]["inputs"]["images"])
    assert (guards, link) == ([OUTPUT, SOURCE, UNCUT], ["end", 0])
    (uncut,) = [one for one in prompt.values() if one["class_type"] == UNCUT]
    assert uncut["inputs"] == {"value": ["end", 0], "latent": ["made", 0], "vae": ["loader", 2]}


def uncut_in(prompt):
    return sorted(one["inputs"]["latent"] for one in prompt.values() if one["class_type"] == UNCUT)


def test_cuts_are_followed_through_samplers_switches_mixes_and_nodes_of_others(typed):
    again = node("KSampler", model=["loader", 0], latent_image=["cut", 0])
    end = node("VAEDecode", samples=["again", 0], vae=["loader", 2])
    assert uncut_in(prompt_of(typed, **cut_graph("LatentCrop", again=again, end=end))) == [["made", 0]]
    again = node("ComfySwitchNode", on_false=["cut", 0])
    assert uncut_in(prompt_of(typed, **cut_graph("LatentCrop", again=again, end=end))) == [["made", 0]]
    again = node("LatentFlip", samples=["cut", 0])
    assert uncut_in(prompt_of(typed, **cut_graph("LatentCrop", again=again, end=end))) == [["cut", 0], ["made", 0]]
    again = node("LatentComposite", samples_to=["made", 0], samples_from=["empty", 0])
    assert uncut_in(prompt_of(typed, **cut_graph("LatentCrop", again=again, end=end))) == [["made", 0]]
    again = node("TheirLatent", latent=["made", 0])
    assert uncut_in(prompt_of(typed, **cut_graph("LatentCrop", again=again, end=end))) == [["made", 0]]


def test_a_latent_that_stays_whole_is_decoded_once(typed):
    assert uncut_in(prompt_of(typed, **cut_graph("LatentUpscaleBy"))) == []
    for dim, found in (("t", []), ("x", [["made", 0]])):
        cut = node("LatentCut", samples=["made", 0], dim=dim)
        assert uncut_in(prompt_of(typed, **{**cut_graph("LatentCut"), "cut": cut})) == found
    of_picture = node("VAEEncode", pixels=["load", 0], vae=["loader", 2])  # looked at when it was loaded
    assert uncut_in(prompt_of(typed, **cut_graph("LatentCrop", load=node("LoadImage"), made=of_picture))) == []
    assert uncut_in(prompt_of(typed, **cut_graph("LatentCrop", made=node("LoadLatent")))) == [["made", 0]]


def test_a_cut_latent_that_is_decoded_without_a_vae_is_refused(typed):
    key, reason = reason_of(typed, **cut_graph("LatentCrop", end=node("TheirDecode", latent=["cut", 0])))
    assert key == "end"
    assert "node end (TheirDecode) shows a latent after something has cut, turned or mixed it" in reason


UNSEEN = {
    "a latent saved": ({"show": node("SaveLatent", samples=["latent", 0])}, "SaveLatent.samples"),
    "a latent shown": ({"show": node("PreviewAny", source=["latent", 0])}, "PreviewAny.source"),
    "a latent to a node that decodes": (
        {"show": node("TheirShow", value=["latent", 0], vae=["loader", 2])},
        "TheirShow.value",
    ),
    "a VAE to a node of others": ({"show": node("TheirShow", value=["load", 0], vae=["loader", 2])}, "TheirShow.vae"),
    "a drawing": ({"svg": node("LoadSVG"), "show": node("SaveSVGNode", svg=["svg", 0])}, "SaveSVGNode.svg"),
    "its own pictures": ({"show": node("ShowsItself")}, "ShowsItself"),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_an_output_that_is_given_what_cannot_be_looked_at_is_refused_unless_it_is_allowed(typed, monkeypatch, name):
    nodes, allow = UNSEEN[name]
    loaders = {"loader": node("CheckpointLoaderSimple"), "latent": node("LoadLatent"), "load": node("LoadImage")}
    key, reason = reason_of(typed, **loaders, **nodes)
    assert key == "show"
    assert f"put {allow} into NSFW_GUARD_ALLOW" in reason
    monkeypatch.setenv("NSFW_GUARD_ALLOW", f"Other, {allow},TheirShow.vae")
    prompt_of(typed, **loaders, **nodes)


def test_pictures_are_guarded_at_an_output_that_is_allowed_more(typed, monkeypatch):
    monkeypatch.setenv("NSFW_GUARD_ALLOW", "TheirShow")
    prompt = prompt_of(typed, load=node("LoadImage"), show=node("TheirShow", value=["load", 0]))
    assert through(prompt, prompt["show"]["inputs"]["value"])[0] == [SOURCE, SOURCE]


def test_comfyuis_own_outputs_are_given_what_shows_no_picture(typed):
    loaders = {"loader": node("CheckpointLoaderSimple")}
    save = node("CheckpointSave", model=["loader", 0], clip=["loader", 1], vae=["loader", 2])
    assert prompt_of(typed, **loaders, save=save)["save"] == save
    show = node("PreviewAny", source=["loader", 0])
    assert prompt_of(typed, **loaders, show=show)["show"] == show


@pytest.mark.parametrize("name", [OUTPUT, SOURCE, UNCUT])
def test_a_guard_that_came_with_the_prompt_counts_for_nothing(typed, name):
    mine = {"mine": node(name, value=["load", 0], latent=["load", 0], vae=["load", 0])}
    prompt = prompt_of(typed, load=node("LoadImage"), **mine, save=node("SaveImage", images=["mine", 0]))
    assert through(prompt, prompt["save"]["inputs"]["images"]) == ([OUTPUT, SOURCE], ["load", 0])
    assert "mine" not in prompt
    for value in ("text", ["mine", 0]):
        mine = {"mine": node(name, value=value)}
        assert "guards nothing" in reason_of(typed, **mine, save=node("SaveImage", images=["mine", 0]))[1]


def test_a_node_by_the_name_of_a_guard_gets_no_guard_out_of_the_way(typed):
    names = {"load_nsfw_source_0": node("LoadImage"), "save_nsfw_guard_images": node("LoadImage")}
    prompt = prompt_of(typed, load=node("LoadImage"), **names, save=node("SaveImage", images=["load", 0]))
    assert through(prompt, prompt["save"]["inputs"]["images"]) == ([OUTPUT, SOURCE], ["load", 0])


# --- Graphs that take a node's place while it runs -------------------------------------------------------------------


def expanded(host, graph, *result):
    """The graph and the results of a node that puts a graph in its place."""
    enforce(host).install_if_asked()
    returned = [{"expand": graph, "result": result}]
    ((nodes, results),), _, expands = host.modules["execution"].get_output_from_returns(
        returned, type("Expand", (), {})
    )
    assert expands
    return nodes, results


@pytest.fixture
def expanding(typed, monkeypatch):
    monkeypatch.setenv("NSFW_GUARD_ENFORCE", "1")
    return typed


def test_what_a_node_puts_in_its_place_is_guarded(expanding):
    graph = {"a": node("LoadImage"), "b": node("ImageCrop", image=["a", 0]), "c": node("SaveImage", images=["b", 0])}
    given = deepcopy(graph)
    nodes, (result, other) = expanded(expanding, graph, ["a", 0], "text")
    assert graph == given
    assert through(nodes, nodes["b"]["inputs"]["image"]) == ([SOURCE], ["a", 0])
    assert through(nodes, nodes["c"]["inputs"]["images"]) == ([OUTPUT], ["b", 0])
    assert (through(nodes, result), other) == (([SOURCE], ["a", 0]), "text")


def test_what_comes_from_outside_of_it_is_taken_for_new(expanding):
    graph = {"b": node("ImageCrop", image=["out", 0]), "c": node("KSampler", model=["out", 1])}
    nodes, (result,) = expanded(expanding, graph, ["out", 2])
    assert nodes["b"]["inputs"]["image"] != ["out", 0]
    assert nodes[nodes["b"]["inputs"]["image"][0]] == node(SOURCE, value=["out", 0])
    assert nodes["c"]["inputs"]["model"] == ["out", 1]
    assert nodes[result[0]] == node(SOURCE, value=["out", 2])


def test_a_picture_that_is_no_link_is_guarded_before_an_output(expanding):
    images = pictures(UNSAFE)
    nodes, _ = expanded(expanding, {"c": node("SaveImage", images=images, filename_prefix="x")})
    guard = followed(nodes, nodes["c"]["inputs"]["images"])
    assert guard["class_type"] == OUTPUT
    assert guard["inputs"]["value"] is images
    assert nodes["c"]["inputs"]["filename_prefix"] == "x"


def test_a_latent_of_outside_that_is_cut_inside_is_decoded_with_the_vae_of_outside(expanding):
    graph = {"cut": node("LatentCrop", samples=["out", 0]), "b": node("VAEDecode", samples=["cut", 0], vae=["out", 1])}
    nodes, (result,) = expanded(expanding, graph, ["b", 0])
    (uncut,) = [one for one in nodes.values() if one["class_type"] == UNCUT]
    assert uncut["inputs"] == {"value": ["b", 0], "latent": ["out", 0], "vae": ["out", 1]}
    assert through(nodes, result) == ([SOURCE, UNCUT], ["b", 0])


@pytest.mark.parametrize("samples", [LATENT, ["out", 0]], ids=["value", "link"])
def test_a_latent_of_outside_is_not_decoded_and_shown_inside(expanding, samples):
    graph = {"b": node("VAEDecode", samples=samples, vae=["out", 1]), "c": node("SaveImage", images=["b", 0])}
    with pytest.raises(GuardError, match="from a latent of outside"):
        expanded(expanding, graph)
    del graph["c"]
    expanded(expanding, graph, ["b", 0])  # what comes out is looked at outside


def test_a_latent_that_comes_round_in_a_loop_is_not_decoded_and_shown_inside(expanding):
    start = node("TheirLatent", latent=[1, LATENT])
    graph = {
        "start": start,
        "again": node("KSampler", model=["out", 0], latent_image=["start", 0]),
        "b": node("VAEDecode", samples=["again", 0], vae=["out", 1]),
        "c": node("SaveImage", images=["b", 0]),
    }
    with pytest.raises(GuardError, match="from a latent of outside"):
        expanded(expanding, graph)
    graph["again"] = node("KSampler", model=["out", 0], latent_image=["empty", 0])
    expanded(expanding, {**graph, "empty": node("EmptyLatentImage")})


def test_a_node_that_expands_to_what_cannot_be_guarded_stops_the_prompt(expanding):
    graph = {"a": node("LoadLatent"), "b": node("SaveLatent", samples=["a", 0])}
    with pytest.raises(GuardError, match="a LATENT cannot be looked at"):
        expanded(expanding, graph)


def test_a_node_that_shows_in_secret_shows_text_alone(expanding):
    enforce(expanding).install_if_asked()
    mappings = expanding.modules["nodes"].NODE_CLASS_MAPPINGS
    png = base64.b64encode(as_png(pictures(SAFE))).decode()
    ui = {"images": [{"filename": "x.png", "type": "temp"}], "text": ["12 images", 3], "picture": [png]}
    outputs_of = expanding.modules["execution"].get_output_from_returns
    shown = {name: outputs_of([{"ui": ui, "result": ()}], mappings[name])[1] for name in ("TheirCrop", "SaveImage")}
    assert shown == {"TheirCrop": {"text": ["12 images", 3]}, "SaveImage": ui}


# --- What is looked at -----------------------------------------------------------------------------------------------


def as_pil(image):
    return Image.fromarray((image[0] * 255).round().byte().numpy())


def as_png(image):
    as_pil(image).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def at_source(host, value):
    return host.run(SOURCE, {"value": value})[0]


@pytest.mark.parametrize(
    "value",
    [
        LATENT,
        object(),
        torch.nn.Linear(2, 2),
        [[torch.rand(1, 77, 768), {"pooled": torch.rand(1, 768)}]],
        "text",
        torch.rand(300),
        torch.arange(77)[None],
    ],
    ids=["latent", "object", "model", "conditioning", "text", "row", "tokens"],
)
def test_what_makes_pictures_may_put_out_other_things(operator, value):
    assert at_source(operator, value) is value


KINDS = {
    "numpy": lambda image: image[0].numpy(),
    "PIL": as_pil,
    "list of PIL": lambda image: [as_pil(image)],
    "layers": lambda image: {"layers": [{"name": "one", "image": image}]},
    "deep": lambda image: {"a": [None, ({"b": image.numpy()},)]},
    "film in a dict": lambda image: {"film": [video(image)]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_within_a_wildcard_are_looked_at_where_they_come_into_being(operator, kind):
    safe, unsafe = (KINDS[kind](pictures(scene)) for scene in (SAFE, UNSAFE))
    assert at_source(operator, safe) is safe
    assert at_source(operator, unsafe) is not unsafe


def test_a_picture_that_goes_through_two_guards_is_classified_once(operator, monkeypatch):
    counts, score = [], Classifier.score
    monkeypatch.setattr(Classifier, "score", lambda *given, **how: counts.append(1) or score(*given, **how))
    images = pictures(SAFE, ("heart", "blue", "white"))
    assert enforced(operator, at_source(operator, images)) is images
    assert len(counts) == 1


class Vae:
    """Latents of the pixels themselves."""

    def decode(self, samples):
        return (samples.movedim(1, -1) + 1) / 2


def uncut(host, value, *scenes, latent=None, vae=None):
    latent = latent or {"samples": pictures(*scenes).movedim(-1, 1) * 2 - 1}
    return host.run(UNCUT, {"value": value, "latent": latent, "vae": vae or Vae()})


@pytest.mark.parametrize("action", ["blur", "block"])
def test_pieces_of_a_flagged_latent_are_filled_or_held_back(operator, monkeypatch, action):
    monkeypatch.setenv("NSFW_GUARD_ACTION", action)
    piece = pictures(SAFE)[:, :64, :64]
    assert uncut(operator, piece, SAFE)[0] is piece
    output = uncut(operator, piece, SAFE, UNSAFE)
    assert json.loads(output.ui["nsfw_guard"][0])["flagged_indices"] == [1]
    if action == "block":
        assert isinstance(output[0], ExecutionBlocker)
    else:
        assert output[0].shape == piece.shape
        assert not output[0].any()


def test_latents_of_films_and_within_wildcards_are_decoded(operator):
    film = pictures(SAFE, UNSAFE).movedim(-1, 1)[None].movedim(1, 2) * 2 - 1  # [1, 3, 2, H, W]
    piece = pictures(SAFE)
    shown = uncut(operator, piece, latent=[None, {"pipe": {"samples": film}}])[0]
    assert not shown.any()


def test_a_latent_that_its_vae_cannot_decode_stops_the_prompt(operator):
    with pytest.raises(ImageError, match="the whole cannot be decoded with the same VAE"):
        uncut(operator, pictures(SAFE), SAFE, vae=SimpleNamespace(decode=lambda samples: 1 / 0))


# --- What a redaction leaves behind ----------------------------------------------------------------------------------


def test_a_redaction_leaves_a_trace(operator, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("NSFW_GUARD_AUDIT", str(tmp_path / "logs"))
    with caplog.at_level(logging.WARNING):
        output = operator.run(SOURCE, {"value": pictures(SAFE, UNSAFE)}, unique_id="8_nsfw_source_0")
    assert "8_nsfw_source_0: 1 of 2 flagged (highest score 1.00): blur, 8 cells." in caplog.text
    report = json.loads(output.ui["nsfw_guard"][0])
    assert report["flagged_indices"] == [1]
    assert report["verdicts"][1]["redacted"] == "blur, 8 cells"
    log = tmp_path / "logs/audit-comfyui.jsonl"
    (line,) = list(read(log))
    assert (line["event"], line["where"], line["index"]) == ("redacted", "8_nsfw_source_0", 1)
    assert (line["flagged"], line["redacted"], line["verified"]) == (True, "blur, 8 cells", True)
    assert verify(log).intact
    caplog.clear()
    assert operator.run(SOURCE, {"value": pictures(SAFE)}).ui is None
    assert not caplog.text
    assert len(list(read(log))) == 1


def test_nothing_goes_on_without_its_trace(operator, monkeypatch, tmp_path):
    (tmp_path / "logs").write_text("")
    monkeypatch.setenv("NSFW_GUARD_AUDIT", str(tmp_path / "logs"))
    with pytest.raises(OSError):
        operator.run(SOURCE, {"value": pictures(UNSAFE)})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No such file: '/srv/comfy/models/x.safetensors'", "No such file: 'x.safetensors'"),
        (r"C:\\Users\\me\\model.bin is broken", "model.bin is broken"),
        ("in /home/me/", "in ..."),
        ("node '3' (SaveImage), ALLOW=A.b and/or 1/2", "node '3' (SaveImage), ALLOW=A.b and/or 1/2"),
    ],
)
def test_what_users_are_told_names_no_folder_of_the_server(operator, text, said):
    assert enforce(operator).without_paths(text) == said
