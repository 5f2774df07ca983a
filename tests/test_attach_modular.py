"""Modular pipelines: attached to, and composed with a block of ours."""

from __future__ import annotations

import copy
import sys

import diffusers
import numpy as np
import pytest
import torch
from nsfw_guard.integrations import diffusers_pipeline
from nsfw_guard.integrations.diffusers_pipeline import NsfwGuardBlock, attach, detach, is_guarded
from PIL import Image
from pipelines import modular

from nsfw_guard import NsfwGuard, Policy, SettingError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def guard(tiny_folder):
    """A guard that flags everything."""
    return NsfwGuard(tiny_folder, dtype="float32", policy=Policy(threshold=0.0))


CASE = modular.CASES["modular_flux"]


def arguments(**more):
    return {**CASE.call(), "generator": torch.Generator().manual_seed(0), "output_type": "np", **more}


def test_everything_that_can_be_asked_for(guard):
    pipe = attach(CASE.build(), guard)
    plain = CASE.build()(**arguments(output="images"))
    images = pipe(**arguments(output="images"))
    assert not np.array_equal(images, plain)
    state = pipe(**arguments())
    assert np.array_equal(state.images, images)
    assert state.nsfw_content_detected == [True] * 2
    asked = pipe(**arguments(output=["images", "nsfw_content_detected", "verdicts"]))
    assert np.array_equal(asked["images"], images)
    assert asked["nsfw_content_detected"] == [True] * 2
    assert [verdict.flagged for verdict in asked["verdicts"]] == [True] * 2
    assert pipe(**arguments(output="nsfw_content_detected")) == [True] * 2


def test_detach_gives_the_components_back(guard):
    pipe = CASE.build()
    cls, processor = type(pipe), pipe.image_processor
    plain = pipe(**arguments(output="images"))
    attach(pipe, guard)
    attach(pipe)
    assert pipe.image_processor is not processor
    assert type(processor) is diffusers.image_processor.VaeImageProcessor
    assert is_guarded(pipe)
    detach(pipe)
    assert type(pipe) is cls
    assert pipe.image_processor is processor
    assert np.array_equal(pipe(**arguments(output="images")), plain)


def test_a_pipeline_that_shares_the_components_is_not_guarded(guard):
    pipe = CASE.build()
    other = copy.copy(pipe)
    attach(pipe, guard)
    assert not is_guarded(other)
    assert other(**arguments()).values.get("nsfw_content_detected") is None


def test_latents_are_refused_and_hidden(guard):
    pipe = attach(CASE.build(), guard)
    for more in ({"output": "latents"}, {"output": ["images", "latents"]}, {"output_type": "latent"}):
        with pytest.raises(SettingError, match="is asked for latents, which the guard cannot look at"):
            pipe(**arguments(**more))
    assert pipe(**arguments()).latents is None  # they show what was redacted
    attach(pipe, latents="allow")
    assert isinstance(pipe(**arguments(output="latents")), torch.Tensor)
    assert isinstance(pipe(**arguments()).latents, torch.Tensor)


def test_allowed_latents_are_no_images(guard):
    state = attach(CASE.build(), guard, latents="allow")(**arguments(output_type="latent"))
    plain = CASE.build()(**arguments(output_type="latent"))
    assert torch.equal(torch.as_tensor(state.images), torch.as_tensor(plain.images))


def test_a_guard_that_fails(guard, monkeypatch):
    pipe = attach(CASE.build(), guard)
    with monkeypatch.context() as broken:
        broken.setattr(guard.classifier.network, "forward", None)
        with pytest.raises(TypeError):
            pipe(**arguments())
    assert pipe(**arguments()).nsfw_content_detected == [True] * 2


# --- The block -------------------------------------------------------------------------------------------------------


def composed(guard, **settings):
    """Flux with our block behind its own, and the same without it."""
    plain = CASE.build()
    blocks = plain.blocks
    blocks.sub_blocks.insert("guard", NsfwGuardBlock(**settings), len(blocks.sub_blocks))
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: part for name, part in plain.components.items() if part is not None})
    if guard is not None:
        pipe.update_components(safety_checker=guard)
    return pipe, plain


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_a_composed_pipeline(guard, kind):
    pipe, plain = composed(guard)
    guard.policy = Policy(threshold=1.0)
    scores = [verdict.score for verdict in pipe(**arguments(output="verdicts", output_type=kind))]
    guard.policy = Policy(threshold=max(scores))
    state = pipe(**arguments(output_type=kind))
    before = plain(**arguments(output_type=kind, output="images"))
    assert sorted(state.nsfw_content_detected) == [False, True]
    for image, original, flagged in zip(state.images, before, state.nsfw_content_detected, strict=True):
        assert isinstance(image, Image.Image) == (kind == "pil")
        assert np.array_equal(np.asarray(image), np.asarray(original)) != flagged


def test_a_composed_pipeline_without_a_guard_gives_no_image():
    pipe, _ = composed(None)
    with pytest.raises(SettingError, match="The component safety_checker is None; expected an NsfwGuard"):
        pipe(**arguments())


def test_a_block_has_nothing_to_look_at_in_latents(guard):
    pipe, _ = composed(guard)
    with pytest.raises(SettingError, match='output_type="latent" gives the guard nothing to look at'):
        pipe(**arguments(output_type="latent"))


def test_a_block_tells_what_it_found(guard):
    calls = []
    pipe, _ = composed(guard, on_verdicts=lambda verdicts, originals: calls.append((len(verdicts), sorted(originals))))
    pipe(**arguments())
    assert calls == [(2, [0, 1])]


def test_settings_of_a_block():
    with pytest.raises(SettingError, match="every is 0"):
        NsfwGuardBlock(every=0)


def test_what_a_block_gives():
    given = {output.name for output in NsfwGuardBlock().intermediate_outputs}
    assert given == {"images", "videos", "nsfw_content_detected", "verdicts"}


def test_older_releases_without_blocks(monkeypatch):
    monkeypatch.setitem(sys.modules, "nsfw_guard.integrations.diffusers_pipeline.block", None)
    with pytest.raises(SettingError, match="NsfwGuardBlock needs a diffusers with modular pipelines"):
        diffusers_pipeline.__getattr__("NsfwGuardBlock")


def test_a_pipeline_that_decodes_nothing_returns_no_latents(guard):
    plain = CASE.build()
    blocks = plain.blocks
    blocks.sub_blocks.pop("decode")
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: part for name, part in plain.components.items() if part is not None})
    state = attach(pipe, guard)(**arguments())
    assert not [name for name, value in state.values.items() if "latent" in name and torch.is_tensor(value)]


def test_latents_asked_for_through_a_state(guard):
    state = diffusers.modular_pipelines.PipelineState()
    state.set("output_type", "latent")
    kwargs = {name: value for name, value in arguments().items() if name != "output_type"}
    with pytest.raises(SettingError, match="is asked for latents"):
        attach(CASE.build(), guard)(state=state, **kwargs)


def test_a_block_in_the_wrong_place_gives_no_image(guard):
    plain = CASE.build()
    blocks = plain.blocks
    blocks.sub_blocks.insert("guard", NsfwGuardBlock(), 0)
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: part for name, part in plain.components.items() if part is not None})
    pipe.update_components(safety_checker=guard)
    with pytest.raises(SettingError, match="found no images or videos; put it behind the block that decodes"):
        pipe(**arguments())
