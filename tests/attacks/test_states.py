"""Ways past the guard of modular pipelines: values of the state that are not called images or videos."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nsfw_guard.integrations.diffusers_pipeline import NsfwGuardBlock, attach
from nsfw_guard.integrations.diffusers_pipeline.record import Record, _state
from nsfw_guard.integrations.diffusers_pipeline.settings import Attachment, Settings
from PIL import Image
from returning import C, T

from nsfw_guard import ImageError, SettingError
from nsfw_guard.images import to_picture

modular = pytest.importorskip("diffusers.modular_pipelines")

pytestmark = pytest.mark.usefixtures("one_thread")

CLEAN = [to_picture(C)]


class Leaves(modular.ModularPipelineBlocks):
    """A block that leaves what it is given in the state, under any names."""

    @property
    def inputs(self):
        return [modular.InputParam(name) for name in ("leave", "output_type", "picture")]

    @property
    def intermediate_outputs(self):
        return [modular.OutputParam("images")]

    def __call__(self, components, state):
        for name, value in self.get_block_state(state).leave().items():
            state.set(name, value)
        return components, state


def pipeline(guard, **settings):
    return attach(
        modular.SequentialPipelineBlocks.from_blocks_dict({"it": Leaves()}).init_pipeline(), guard, **settings
    )


def composed(guard, **settings):
    blocks = modular.SequentialPipelineBlocks.from_blocks_dict({"it": Leaves(), "guard": NsfwGuardBlock(**settings)})
    pipe = blocks.init_pipeline()
    pipe.update_components(safety_checker=guard)
    return pipe


def png(pixels):
    file = io.BytesIO()
    to_picture(pixels).save(file, "PNG")
    return file.getvalue()


def seen(value):
    """What whoever gets a value sees: ``None`` is nothing."""
    if isinstance(value, str):
        value = base64.b64decode(value.partition(",")[2])
    if isinstance(value, bytes):
        return Image.open(io.BytesIO(value)).convert("RGB")
    if isinstance(value, (list, tuple)):
        return seen(value[0])
    if isinstance(value, dict):
        return seen(value["k"])
    if isinstance(value, SimpleNamespace):
        return seen(value.k)
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value).movedim(-1, -3)
    return value.reshape(-1, *value.shape[-3:]) if isinstance(value, torch.Tensor) else value


NAMES = {
    "image": to_picture,
    "preview": lambda x: [to_picture(x)],
    "result": lambda x: x[None],
    "grid": lambda x: x.movedim(0, -1).numpy()[None],
    "frames": lambda x: [[to_picture(x)]],
    "video": lambda x: x[None, None],
    "file": png,
    "url": lambda x: "data:image/png;base64," + base64.b64encode(png(x)).decode(),
    "extra": lambda x: {"k": to_picture(x)},
    "more": lambda x: SimpleNamespace(k=[x]),
    "out_frames": lambda x: x[None],
    "audio": lambda x: x,
    "sound": lambda x: [x],
    "depth": lambda x: x[1:2][None],
    "output_chunks": lambda x: [x],
    "decoded": lambda x: (to_picture(x), 0.5),
    "condition_strength": lambda x: x,
    "text": png,
    "previous_output": lambda x: [to_picture(x)],
    "keyframes": lambda x: [to_picture(x)],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["asked for", "asked for with others", "the whole state", "behind the block"])
def test_values_of_any_name(demo, name, way):
    for pixels, flagged in ((T, True), (C, False)):
        value = NAMES[name](pixels)
        pipe = composed(demo) if way == "behind the block" else pipeline(demo)
        given = {"leave": lambda value=value: {"images": CLEAN, name: value}}
        if way == "asked for":
            out = pipe(**given, output=name)
        elif way == "asked for with others":
            out = pipe(**given, output=["images", name])[name]
        else:
            state = pipe(**given)
            assert state.nsfw_content_detected == [False, flagged]
            out = state.get(name)
        flags = [verdict.flagged for verdict in demo.last_verdicts]
        assert flags == [False, flagged]
        assert not demo.check(seen(out))[0].flagged
        assert flagged or out is value


HIDDEN = {
    "latents": lambda x: x,
    "image_latents": lambda x: x[None],
    "prompt_embeds": lambda x: x,
    "negative_prompt_embeds_2": lambda x: x,
    "mask": lambda x: x[1],
    "initial_noise": lambda x: x,
    "noise_pred": lambda x: x,
    "velocity_vision": lambda x: x,
    "vision_tokens_full": lambda x: [x],
    "timesteps": lambda x: x,
    "img_ids": lambda x: x,
    "processed_image": to_picture,
    "mask_overlay_kwargs": lambda x: {"k": to_picture(x)},
    "schedule": lambda x: x.flatten(),
    "helper": lambda x: lambda: x,
    "model": lambda x: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("build", [pipeline, composed])
def test_values_that_are_left_out(demo, name, build):
    """Whatever they show, and without an error: the images are there."""
    state = build(demo)(leave=lambda: {"images": CLEAN, name: HIDDEN[name](T)})
    assert state.get(name) is None
    assert state.images is CLEAN
    assert state.nsfw_content_detected == [False]


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "image_latents", "mask"])
def test_values_that_are_refused_and_allowed(demo, name):
    def leave():
        return {"images": CLEAN, name: T}

    with pytest.raises(SettingError, match="is asked for latents"):
        pipeline(demo)(leave=leave, output=["images", name])
    assert pipeline(demo, latents="allow")(leave=leave, output=name) is T
    assert pipeline(demo, latents="allow")(leave=leave).get(name) is T
    assert composed(demo, latents="allow")(leave=leave).get(name) is T


def test_values_that_cannot_be_looked_at_are_an_error_if_they_are_asked_for(demo):
    with pytest.raises(ImageError, match=r"output\['schedule'\]"):
        pipeline(demo)(leave=lambda: {"images": CLEAN, "schedule": T.flatten()}, output="schedule")
    with pytest.raises(ImageError, match=r"output\['images'\]"):
        pipeline(demo)(leave=lambda: {"images": ["a.png"]})


def test_what_the_caller_put_in_is_there_as_it_was(demo):
    """Unless somebody has written to it."""
    picture = to_picture(T)
    state = pipeline(demo)(leave=lambda: {"images": CLEAN}, picture=picture)
    assert state.picture is picture
    assert state.nsfw_content_detected == [False]
    canvas = to_picture(C)
    state = pipeline(demo)(leave=lambda: canvas.paste(picture) or {"images": CLEAN}, picture=canvas)
    assert state.nsfw_content_detected == [False, True]
    assert not demo.check(state.picture)[0].flagged


def test_plain_values_stay(demo):
    plain = {"latent_height": 8, "num_frames": 5, "img_shapes": [(1, 8, 8)], "mu": 0.5, "latents_mean": torch.zeros(4)}
    state = pipeline(demo)(leave=lambda: {"images": CLEAN, **plain})
    assert all(state.get(name) is value for name, value in plain.items())


# --- Tensors on a GPU, which are not read: a stand-in on the CPU -----------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch):
    from nsfw_guard.integrations.diffusers_pipeline import record

    monkeypatch.setattr(record, "is_elsewhere", lambda value: isinstance(value, torch.Tensor))


def passed_in(guard, images, **more):
    from nsfw_guard.integrations.diffusers_pipeline.checks import check_images

    record = Record(Attachment(guard, Settings()), None, **more)
    images, passed = check_images(images, record, value_range=(0, 1))
    record.add(images, passed)
    return record


@pytest.mark.parametrize("write", [lambda x: x.data.copy_(T[None]), lambda x: x.numpy().__setitem__(0, T.numpy())])
def test_tensors_elsewhere_are_compared_with_what_passed(demo, elsewhere, write):
    images = C[None].clone()
    record = passed_in(demo, images, exact=True)
    assert record.find(images, final=True) == record.passed
    assert record.find(images[0], final=True) == record.passed
    write(images)
    assert record.find(images) is not None  # within the call nobody waits for an answer
    assert record.find(images.clone(), final=True) is None
    assert record.find(images, final=True) is None


def test_tensors_elsewhere_are_compared_in_one_wait_and_only_where_they_come_out(demo, elsewhere, monkeypatch):
    waits = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: waits.append(1) or tolist(self))
    images = C[None].clone()
    record = passed_in(demo, images, exact=True)
    waits.clear()
    record.find(images)
    record.find(images)
    assert waits == []
    record.find(images, final=True)
    assert waits == [1]
    plain = passed_in(demo, images)
    waits.clear()
    assert plain.find(images, final=True) == plain.passed
    assert waits == []


def test_a_digest_of_every_kind():
    """One bit makes another one."""
    for value in (C, C.bfloat16(), C.movedim(0, -1), C.numpy(), C.numpy()[::-1], (C > 0.5)):
        other = value.clone() if isinstance(value, torch.Tensor) else value.copy()
        assert _state(value) == _state(other)
        other[0, 0, 0] = other[0, 0, 0] == 0
        assert _state(value) != _state(other)
        assert len(_state(value)) >= 16
