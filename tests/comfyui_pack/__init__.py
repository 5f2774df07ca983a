"""Nodes of others, for the tests against a real ComfyUI: they make, change and show pictures in ways of their own.

``T`` is the demo's triangle, which its classifier flags. What an output was given is written into the output folder.
"""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import uuid

import folder_paths
import numpy as np
import torch
from PIL import Image
from server import PromptServer


def triangle() -> torch.Tensor:
    """[1, 128, 128, 3]."""
    with Image.open(os.path.join(folder_paths.get_input_directory(), "triangle_red_white.png")) as file:
        return torch.from_numpy(np.asarray(file.convert("RGB")).copy())[None].float() / 255


def as_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image[0] * 255).round().byte().numpy())


def as_png(image: torch.Tensor) -> bytes:
    as_pil(image).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


class Holder:
    """Nothing that anybody knows."""

    __slots__ = ("image",)

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image


KINDS = {
    "numpy": lambda image: image[0].numpy(),
    "numpy of bytes": lambda image: (image[0] * 255).byte().numpy(),
    "channels first": lambda image: image.movedim(-1, 1).contiguous(),
    "one picture": lambda image: image[0].clone(),
    "whole numbers": lambda image: (image * 255).byte(),
    "six dimensions": lambda image: image[None, None].clone(),
    "PIL": as_pil,
    "list of PIL": lambda image: [as_pil(image)],
    "list of lists": lambda image: image[0].tolist(),
    "flat list": lambda image: image.flatten().tolist(),
    "dict": lambda image: {"layers": [{"name": "one", "image": image}]},
    "dict of numpy": lambda image: {"image": {"deep": [None, image.numpy()]}},
    "tuple": lambda image: (0, "text", image),
    "PNG": as_png,
    "base64": lambda image: base64.b64encode(as_png(image)).decode(),
    "data URL": lambda image: "data:image/png;base64," + base64.b64encode(as_png(image)).decode(),
    "hex": lambda image: as_png(image).hex(),
    "JSON": lambda image: json.dumps({"picture": base64.b64encode(as_png(image)).decode()}),
    "file": lambda image: io.BytesIO(as_png(image)),
    "latent": lambda image: {"samples": image.movedim(-1, 1) * 2 - 1},
    "object": Holder,
}


class Make:
    """Makes T of some kind, in a type of its own."""

    RETURN_TYPES = ("TEST_STUFF",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(KINDS),)}}

    def make(self, kind):
        return (KINDS[kind](triangle()),)


class MakeAnything(Make):
    RETURN_TYPES = ("*",)


class MakeImage(Make):
    """Takes a picture, and puts out T for all that."""

    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def make(self, image):
        return (triangle(),)


class MakeList(Make):
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return ([torch.full((1, 64, 64, 3), 0.5), triangle()],)


class MakeLatent(Make):
    """A latent of the pixel space, as a sampler leaves it."""

    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": {"latent": ("LATENT",)}}

    def make(self, latent=None):
        return ({"samples": triangle().movedim(-1, 1) * 2 - 1},)


class TurnLatent(Make):
    """What nobody knows turns a latent."""

    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    def make(self, latent):
        return ({"samples": latent["samples"].flip(-2)},)


class DecodeLatent(Make):
    """Decodes without a VAE."""

    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    def make(self, latent):
        return ((latent["samples"].movedim(1, -1) + 1) / 2,)


def pictures_in(value) -> list[np.ndarray]:
    """[H, W, 3] in [0, 1] of every picture in a value, as somebody gets them out who knows where they are."""
    if isinstance(value, Holder):
        value = value.image
    if isinstance(value, str):
        value = json.loads(value)["picture"] if value.startswith("{") else value.split(",")[-1]
        value = bytes.fromhex(value) if value.startswith("8950") else base64.b64decode(value)
    if isinstance(value, io.BytesIO):
        value = value.getvalue()
    if isinstance(value, bytes):
        value = Image.open(io.BytesIO(value)).convert("RGB")
    if isinstance(value, Image.Image):
        value = np.asarray(value) / 255
    if isinstance(value, dict):
        return pictures_in([item for item in value.values() if not isinstance(item, str)])
    if isinstance(value, (list, tuple)) and not isinstance(np.ravel(np.array(value, dtype=object))[0], float):
        return [one for item in value if not isinstance(item, (int, str)) for one in pictures_in(item)]
    if value is None or isinstance(value, int):
        return []
    array = np.asarray(value, dtype=float)
    array = array / 255 if array.max() > 1 else array
    array = array.reshape(-1, *array.shape[-3:])[0] if array.ndim > 2 else array.reshape(128, 128, 3)
    return [array if array.shape[-1] == 3 else np.moveaxis(array, 0, -1)]


class Show:
    """Writes the pictures in what it is given into the output folder."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "show"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",)}, "optional": {"vae": ("VAE",), "more": ("*", {"lazy": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def check_lazy_status(self, value, vae=None, more=""):
        return ["more"] if more is None else []

    def show(self, value, vae=None, more=""):
        value = value if isinstance(more, str) else more
        if isinstance(value, dict) and "samples" in value:
            value = (value["samples"].movedim(1, -1) + 1) / 2
        path = os.path.join(folder_paths.get_output_directory(), f"shown-{uuid.uuid4().hex}.npy")
        np.save(path, np.stack(pictures_in(value)))
        return {"ui": {}}


class MakeAndShow(Make):
    """Shows what it makes by itself."""

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        as_pil(triangle()).save(os.path.join(folder_paths.get_output_directory(), "itself.png"))
        return (triangle(),)


class Expand:
    """Puts a graph in its place while it runs."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "expand"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"graph": ("STRING", {})}, "optional": {"outer": ("*", {"rawLink": True})}}

    def expand(self, graph, outer=None):
        graph, result = json.loads(graph)
        for node in graph.values():
            node["inputs"] = {name: outer if value == "outer" else value for name, value in node["inputs"].items()}
        return {"result": (outer if result == "outer" else result,), "expand": graph}


class ExpandLater(Expand):
    """The same, in its own time."""

    FUNCTION = "later"

    async def later(self, graph, outer=None):
        import asyncio

        await asyncio.sleep(0.05)
        return self.expand(graph, outer)


class Enqueue:
    """Puts a prompt into the queue by itself, past the handlers."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "enqueue"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"prompt": ("STRING", {}), "prompt_id": ("STRING", {}), "output": ("STRING", {})}}

    def enqueue(self, prompt, prompt_id, output):
        item = (0, prompt_id, json.loads(prompt), {"preview_method": "auto", "create_time": 0}, [output], {})
        threading.Timer(0.1, PromptServer.instance.prompt_queue.put, (item,)).start()
        return {"ui": {}}


_NODES = (
    Make, MakeAnything, MakeImage, MakeList, MakeLatent, TurnLatent, DecodeLatent, Show, MakeAndShow, Expand,
    ExpandLater, Enqueue,
)  # fmt: skip
NODE_CLASS_MAPPINGS = {f"Test{node.__name__}": node for node in _NODES}
