"""Ways past the nodes and the operators' mode that were tried, each a case that runs: all of them end at the guard.

``T`` is a picture that the demo's classifier flags, ``C`` one that it does not.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_standin import ExecutionBlocker, VideoComponents, VideoFromComponents, comfyui
from PIL import Image

from nsfw_guard import NsfwGuard
from nsfw_guard.demo.shapes import draw
from nsfw_guard.errors import ImageError

pytestmark = pytest.mark.usefixtures("one_thread")

DEMO = Path(__file__).parents[2] / "nsfw_guard" / "demo" / "models" / "classifier"
BLUR = {"sensitivity": "balanced", "action": "blur", "action.cells": 16}
FILL = {"sensitivity": "balanced", "action": "fill", "action.color": "#808080"}


@pytest.fixture
def comfy(tmp_path, monkeypatch):
    """A host with the demo's classifier installed."""
    for name in ("ENFORCE", "MODEL", "POLICY", "ACTION", "ALLOW", "AUDIT"):
        monkeypatch.delenv(f"NSFW_GUARD_{name}", raising=False)
    with comfyui(tmp_path / "comfyui") as host:
        shutil.copytree(DEMO, host.models / "shapes")
        (host.models / "shapes" / "nsfw_guard.toml").write_text('card = "demo"\n', encoding="utf-8")
        yield host


@pytest.fixture(scope="module")
def judge():
    """What tells whether any of some images [B, H, W, C] is flagged."""
    guard = NsfwGuard("demo")

    def flagged(images):
        color = images[..., :3].float()
        return any(verdict.flagged for verdict in guard.check(color.movedim(-1, 1).expand(-1, 3, -1, -1).contiguous()))

    return flagged


def picture(shape, color="red", background="white"):
    """[1, 128, 128, 3]."""
    return draw(shape, color, background, height=128, width=128).movedim(0, -1)[None]


T, C = picture("triangle"), picture("circle")


def as_numbers(image):
    """What a node makes of an image that hardly shows when it spreads its numbers over [0, 1]."""
    color = image[..., :3].float()
    low, high = color.amin(), color.amax()
    return (color - low) / (high - low) if 0 < high - low < 1 / 8 else color


def with_one_pixel(image, value):
    image = image.clone()
    image[:, 3, 3] = value
    return image


def with_rows(image, value):
    image = image.clone()
    image[:, :12] = value
    return image


def with_alpha(image, alpha):
    return torch.cat([image, alpha.expand(*image.shape[:3], 1)], -1)


def silhouette(image):
    """[B, H, W, 1]: 1 on the shape, 0 beside it."""
    return (image[..., 1:2] < 0.5).float()


TINT = torch.tensor([1.0, 0.0, 0.5])
# What was tried: what is made of an image, so that it shows nothing and can be had back.
HIDDEN = {
    "scaled down to 1/1000, for a file of 16 bits": lambda image: image * 1e-3,
    "scaled down to 1e-7, for a file of floats": lambda image: image * 1e-7,
    "around middle gray": lambda image: 0.5 + (image - 0.5) * 1e-3,
    "just below white": lambda image: 1 - image * 1e-3,
    "faint on a tint, so that the channels together span the range": lambda image: (
        TINT + image * 1e-3 * torch.tensor([-1, 1, 1])
    ),
    "faint beside one white pixel": lambda image: with_one_pixel(image * 1e-3, 1.0),
    "faint beside a few white rows, and outside of the range": lambda image: with_rows(image * 1e-3, -1000.0),
    "scaled up, so that nearly all is white when it is clamped": lambda image: 1 + image * 1000,
    "below zero, so that all is black when it is clamped": lambda image: image - 5,
    "outside of the range beside one pixel further out": lambda image: with_one_pixel(image - 5, 1e4),
    "each channel in a range of its own": lambda image: image + torch.tensor([-50.0, 0.0, 70.0]),
    "all colours under an alpha of 0": lambda image: with_alpha(image, torch.zeros(1)),
    "in the alpha alone, on black": lambda image: with_alpha(torch.ones_like(image), 1 - silhouette(image)),
    "faint, in the alpha alone": lambda image: with_alpha(torch.ones_like(image), 1 - silhouette(image) * 1e-3),
    "faint under an alpha of 0": lambda image: with_alpha(image * 1e-3, torch.zeros(1)),
}


def guard(host, images, action=BLUR):
    return host.run("NSFWG_Guard", {"image": images, **action})


def censor(host, images, action=BLUR):
    scores = host.run("NSFWG_Classify", {"image": images})[0]
    return host.run("NSFWG_Censor", {"image": images, "scores": scores, **action})


def enforced(host, value):
    return host.run("NSFWG_Enforced", {"value": value})[0]


def video(frames, alpha=None):
    return VideoFromComponents(VideoComponents(frames, Fraction(4), None, {}, alpha))


@pytest.mark.parametrize("tried", HIDDEN)
def test_a_picture_that_hides_in_its_numbers_is_flagged(comfy, tried):
    for image, wanted in ((T, True), (C, False)):
        assert guard(comfy, HIDDEN[tried](image), {**BLUR, "action": "detect only"})[1] is wanted


@pytest.mark.parametrize("node", [guard, censor])
@pytest.mark.parametrize("tried", HIDDEN)
def test_no_node_gives_back_what_it_flagged(comfy, judge, tried, node):
    shown = node(comfy, HIDDEN[tried](T))[0]
    assert 0 <= shown.min() <= shown.max() <= 1
    assert not judge(shown)
    assert not judge(as_numbers(shown))
    assert shown.shape[-1] == 3 or shown[..., 3].eq(1).all()


@pytest.mark.parametrize("kind", ["image", "mask", "video", "list"])
@pytest.mark.parametrize("tried", HIDDEN)
def test_nothing_comes_back_from_what_the_operator_lets_through(comfy, judge, tried, kind):
    hidden = HIDDEN[tried](T)
    if kind == "mask":
        hidden = hidden[..., 1] if hidden.shape[-1] == 3 else 1 - hidden[..., 3]
        shown = enforced(comfy, hidden)[..., None]
    elif kind == "video":
        alpha = hidden[..., 3] if hidden.shape[-1] == 4 else None
        parts = enforced(comfy, video(hidden[..., :3], alpha)).get_components()
        shown = parts.images if alpha is None else torch.cat([parts.images, parts.alpha[..., None]], -1)
    else:
        shown = enforced(comfy, [hidden])[0] if kind == "list" else enforced(comfy, hidden)
    assert 0 <= shown.min() <= shown.max() <= 1
    assert not judge(shown)
    assert not judge(as_numbers(shown))
    if shown.shape[-1] == 4:
        assert not judge(as_numbers(shown[..., 3:]))


@pytest.mark.parametrize(
    "outside", [lambda one: one * 3 - 1, lambda one: one * 500, lambda one: one - 0.2], ids=range(3)
)
@pytest.mark.parametrize("kind", ["image", "mask", "video", "alpha of a video"])
def test_what_the_operator_lets_through_is_within_the_range(comfy, kind, outside):
    if kind == "mask":
        given = outside(C[..., 1])
        shown = enforced(comfy, given)
    elif kind == "image":
        given = outside(C)
        shown = enforced(comfy, given)
    else:
        alpha = torch.full(C.shape[:3], 1.5) if kind.startswith("alpha") else None
        given = C if kind.startswith("alpha") else outside(C)
        parts = enforced(comfy, video(given, alpha)).get_components()
        shown, given = (parts.images, given) if alpha is None else (parts.alpha, alpha)
    assert torch.equal(shown, given.clamp(0, 1))
    inside = C[..., 1] if kind == "mask" else C
    assert enforced(comfy, inside) is inside


def test_one_image_without_numbers_opens_no_way_for_the_others_of_its_batch(comfy):
    images = torch.cat([torch.full_like(C, torch.nan), C * 500])
    shown = enforced(comfy, images)
    assert 0 <= shown.min() <= shown.max() <= 1


@pytest.mark.parametrize("value", [1, 255], ids=["white is 1", "white is 255"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_whole_numbers_mean_different_things_to_different_nodes_and_are_refused(comfy, dtype, value):
    numbers = (T * value).round().to(dtype)
    with pytest.raises(ImageError, match="expected floating point"):
        guard(comfy, numbers)
    with pytest.raises(ImageError, match="expected floating point"):
        enforced(comfy, numbers[..., 1])


def drawn_in_alpha():
    """A flagged picture whose alpha has its shape too."""
    return with_alpha(T, 0.2 + 0.8 * silhouette(T))


@pytest.mark.parametrize("action", [BLUR, FILL], ids=["blur", "fill"])
@pytest.mark.parametrize("way", ["guard", "censor", "censor with a mask", "save", "operator", "video"])
def test_no_silhouette_stays_in_the_alpha_of_what_is_redacted(comfy, judge, monkeypatch, way, action):
    images = drawn_in_alpha()
    if way == "guard":
        shown = guard(comfy, images, action)[0]
    elif way.startswith("censor"):
        mask = {"mask": torch.ones(128, 128)} if way.endswith("mask") else {}
        shown = censor(comfy, images, {**action, **mask})[0]
    elif way == "save":
        comfy.run("NSFWG_SaveImage", {"images": images, "filename_prefix": "x", **action})
        with Image.open(next(comfy.output.iterdir())) as file:
            assert file.mode == "RGBA"
            shown = torch.from_numpy(np.asarray(file).copy())[None] / 255
    elif way == "operator":
        monkeypatch.setenv("NSFW_GUARD_ACTION", action["action"])
        shown = enforced(comfy, images)
    else:
        parts = comfy.run("NSFWG_Video", {"video": video(T, images[..., 3]), **action})[0].get_components()
        shown = torch.cat([parts.images, parts.alpha[..., None]], -1)
    assert shown[..., 3].eq(1).all()
    assert not judge(shown)


def test_a_replacement_that_is_the_picture_itself(comfy, judge):
    action = {"sensitivity": "balanced", "action": "replace", "action.fit": "stretch", "replacement": T.clone()}
    for shown in (guard(comfy, T, action)[0], censor(comfy, T, action)[0]):
        assert not judge(shown)


def test_as_many_cells_as_there_are(comfy, judge):
    for kind in ("blur", "pixelate"):
        action = {"sensitivity": "balanced", "action": kind, "action.cells": 256}
        assert not judge(guard(comfy, T, action)[0])
        assert not judge(comfy.run("NSFWG_Video", {"video": video(T), **action})[0].get_components().images)


def test_a_frame_of_a_run_that_nobody_looked_at(comfy, judge):
    # At every third frame; what is between two flagged ones is redacted with them, and looked at all the same.
    other, gray = picture("triangle", "blue"), torch.full_like(T, 0.5)
    frames = torch.cat([T, other, other, T, gray, gray, gray])
    output = comfy.run("NSFWG_Video", {"video": video(frames), **BLUR, "every": 3, "min_run": 1})
    shown = output[0].get_components().images
    assert len(json.loads(output[2])["seen_frames"]) < len(frames)
    assert not judge(shown)
    assert torch.equal(shown[4:], frames[4:])


def test_a_censored_picture_is_none_the_operator_lets_out_again(comfy, judge):
    # "detect only" flags and hands on; a mask that covers nothing does too.
    shown = guard(comfy, T, {"sensitivity": "balanced", "action": "detect only"})[0]
    assert not judge(enforced(comfy, shown))
    shown = censor(comfy, T, {**BLUR, "mask": torch.zeros(128, 128)})[0]
    assert not judge(enforced(comfy, shown))


def test_block_holds_hidden_pictures_back(comfy):
    block = {"sensitivity": "balanced", "action": "block", "action.message": ""}
    for make in HIDDEN.values():
        assert isinstance(guard(comfy, make(T), block)[0], ExecutionBlocker)


# --- Before an output of the operators' mode -------------------------------------------------------------------------


def as_pil(image):
    return Image.fromarray((image[0] * 255).round().byte().numpy())


def as_png(image):
    as_pil(image).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


class Held:
    __slots__ = ("image",)

    def __init__(self, image):
        self.image = image


KINDS = {
    "numpy": lambda image: image[0].numpy(),
    "numpy of bytes": lambda image: (image[0] * 255).byte().numpy(),
    "one picture": lambda image: image[0].clone(),
    "one picture, channels first": lambda image: image[0].movedim(-1, 0).contiguous(),
    "PIL": as_pil,
    "list of PIL": lambda image: [as_pil(image)],
    "rows of numbers": lambda image: image[0].tolist(),
    "layers": lambda image: {"layers": [{"name": "one", "image": image}]},
    "deep": lambda image: {"a": [None, ({"b": image.numpy()},)]},
    "tuple": lambda image: (0, "text", image),
    "film in a dict": lambda image: {"film": [video(image)]},
    "PNG": as_png,
    "file": lambda image: io.BytesIO(as_png(image)),
    "base64": lambda image: base64.b64encode(as_png(image)).decode(),
    "data URL": lambda image: "data:image/png;base64," + base64.b64encode(as_png(image)).decode(),
    "hex": lambda image: as_png(image).hex(),
    "JSON": lambda image: json.dumps({"p": [base64.b64encode(as_png(image)).decode()]}),
    "object": Held,
    "mesh": lambda image: MESH(image),
    "sound of many channels": lambda image: {"waveform": image[..., 1], "sample_rate": 1},
}


class MESH:
    def __init__(self, texture, colors=None):
        self.vertices, self.faces, self.uvs = torch.rand(1, 100, 3), torch.zeros(1, 90, 3), torch.rand(1, 100, 2)
        self.vertex_colors, self.texture = colors, texture


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_before_an_output_is_looked_at(comfy, monkeypatch, kind):
    make = KINDS[kind]
    safe, unsafe = make(C), make(T)
    assert enforced(comfy, safe) is safe
    output = comfy.run("NSFWG_Enforced", {"value": unsafe})
    assert output[0] is not unsafe
    assert json.loads(output.ui["nsfw_guard"][0])["flagged"]
    again = comfy.run("NSFWG_Enforced", {"value": output[0]})
    assert again[0] is output[0], "it is not flagged again"
    monkeypatch.setenv("NSFW_GUARD_ACTION", "block")
    assert isinstance(enforced(comfy, unsafe), ExecutionBlocker)


class File3D:
    def __init__(self, data, kind="glb"):
        self.data, self.format = data, kind

    def get_data(self):
        return io.BytesIO(self.data)


def gltf(image, *, color=False, inside=True):
    """A 3D model with a picture on it, binary or as JSON."""
    png = as_png(image)
    described = {
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, **({"COLOR_0": 1} if color else {})}}]}],
        "images": [{"uri": "data:image/png;base64," + base64.b64encode(png).decode()}],
    }
    if not inside:
        return File3D(json.dumps(described).encode(), "gltf")
    described["images"] = [{"bufferView": 0, "mimeType": "image/png"}]
    described["bufferViews"] = [{"buffer": 0, "byteOffset": 4, "byteLength": len(png)}]
    text, binary = json.dumps(described).encode(), b"0000" + png
    chunks = [struct.pack("<II", len(part), kind) + part for part, kind in ((text, 0x4E4F534A), (binary, 0x004E4942))]
    return File3D(struct.pack("<4sII", b"glTF", 2, 12 + sum(map(len, chunks))) + b"".join(chunks))


@pytest.mark.parametrize("inside", [True, False], ids=["glb", "gltf"])
def test_pictures_on_3d_models_are_looked_at(comfy, inside):
    safe = gltf(C, inside=inside)
    assert enforced(comfy, safe) is safe
    with pytest.raises(ImageError, match="on the surface of the 3D model is flagged"):
        enforced(comfy, [gltf(T, inside=inside)])


def test_pictures_among_other_things_are_clamped_too(comfy):
    for given in ((0, C * 3), [1.5, "text", {"a": C * 3}]):
        shown = enforced(comfy, given)
        image = shown[1] if isinstance(shown, tuple) else shown[2]["a"]
        assert torch.equal(image, (C * 3).clamp(0, 1))


def test_a_picture_that_is_the_key_of_a_dict_is_looked_at(comfy):
    text = base64.b64encode(as_png(T)).decode()
    with pytest.raises(ImageError, match="has a key that is flagged"):
        enforced(comfy, {text: 1})


REFUSED = {
    "colours of a 3D model": gltf(C, color=True),
    "3D of another format": File3D(b"ply\nformat ascii 1.0", "ply"),
    "broken 3D": File3D(gltf(C).data[:-100]),
    "latent": {"samples": torch.rand(1, 4, 16, 16)},
    "model": torch.nn.Linear(2, 2),
    "function": print,
    "file": open(__file__, "rb"),  # noqa: SIM115
    "embedding": torch.rand(300),
    "whole numbers": torch.zeros(1, 16, 16, 3, dtype=torch.int32),
    "colours of vertices": MESH(None, torch.rand(1, 100, 3)),
    "drawing": "<svg xmlns='http://www.w3.org/2000/svg'><polygon points='0,0 9,9 0,9'/></svg>",
    "words of memory": memoryview(bytes(300)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_looked_at_before_an_output_stops_the_prompt(comfy, kind):
    with pytest.raises(ImageError):
        enforced(comfy, REFUSED[kind])
