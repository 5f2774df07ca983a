"""Ways past ``attach``: places of an output in which nobody expects a picture.

Each place is filled twice: with a drawn triangle, which must not come out, whatever else does; and with a circle, which
must come out bit by bit.
"""

from __future__ import annotations

import array
import base64
import enum
import functools
import io
import json
import logging
import types
import zipfile
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils import BaseOutput
from nsfw_guard.integrations.diffusers_pipeline import attach
from nsfw_guard.integrations.diffusers_pipeline.pipeline import finish
from nsfw_guard.integrations.diffusers_pipeline.record import Record
from nsfw_guard.integrations.diffusers_pipeline.settings import Attachment, Settings
from outputs import identical
from PIL import Image
from returning import CLEAN, SIDE, C, Returns, T

from nsfw_guard import ImageError
from nsfw_guard.images import to_picture

pytestmark = pytest.mark.usefixtures("one_thread")


def returned(guard, given, **settings):
    return attach(Returns(), guard, **settings)(given)


class Place(NamedTuple):
    """A place: how a drawing ``[3, 64, 64]`` in [0, 1] is put there, and how whoever gets the output sees it again."""

    put: Any
    take: Any


def picture(pixels):
    return to_picture(pixels)


def hwc(pixels):
    return pixels.movedim(0, -1)


def levels(pixels):
    return (pixels * 255).round().to(torch.uint8)


def file(pixels, kind="PNG", **options):
    written = io.BytesIO()
    to_picture(pixels).save(written, kind, **options)
    return written.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def text(pixels):
    return base64.b64encode(file(pixels)).decode()


def film(pixels, kind="mp4", codec="mpeg4"):
    av = pytest.importorskip("av")
    written = io.BytesIO()
    with av.open(written, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(levels(hwc(pixels)).numpy(), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return written.getvalue()


def first_frame(data):
    if data.startswith(b"\x89PNG"):
        return opened(data)
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(data)) as container:
        return next(container.decode(video=0)).to_image()


@dataclass(frozen=True)
class Frozen:
    name: str
    preview: Any


class Slotted:
    __slots__ = ("__hidden", "name")

    def __init__(self, hidden):
        self.name, self.__hidden = "x", hidden

    @property
    def hidden(self):
        return self.__hidden


class Plain:
    def __init__(self, preview):
        self.preview = preview


class Nested(BaseOutput):
    pass


Fields = namedtuple("Fields", "seed images")
Extra = namedtuple("Extra", "images preview")


def marked(pixels):
    marked = C.clone()
    marked.preview = pixels
    return marked


# Structures, each with the picture where nobody expects one.
STRUCTURES = {
    "a field": Place(lambda x: BaseOutput(images=[CLEAN], extra=picture(x)), lambda out: out.extra),
    "a dict in a field": Place(lambda x: BaseOutput(images=[CLEAN], extra={"k": x}), lambda out: out.extra["k"]),
    "a list in a dict in a list": Place(
        lambda x: BaseOutput(images=[CLEAN], extra=[{"k": [1, x]}]), lambda out: out.extra[0]["k"][1]
    ),
    "an attribute of an output": Place(
        lambda x: (lambda out: setattr(out, "hidden", picture(x)) or out)(BaseOutput(images=[CLEAN])),
        lambda out: out.hidden,
    ),
    "a field before the images": Place(lambda x: BaseOutput(extra=x, images=[CLEAN]), lambda out: out.extra),
    "an output in an output": Place(
        lambda x: BaseOutput(images=[CLEAN], inner=Nested(images=[picture(x)])), lambda out: out.inner.images[0]
    ),
    "a list of pairs": Place(lambda x: [(0, picture(x))], lambda out: out[0][1]),
    "a list of pairs with tensors": Place(lambda x: [(0, x)], lambda out: out[0][1]),
    "behind None": Place(lambda x: [None, x], lambda out: out[1]),
    "behind None, a picture": Place(lambda x: BaseOutput(images=[None, picture(x)]), lambda out: out.images[1]),
    "a picture beside a tensor": Place(lambda x: BaseOutput(images=[CLEAN, x]), lambda out: out.images[1]),
    "a tuple with a dict": Place(lambda x: ([CLEAN], {"a": x}), lambda out: out[1]["a"]),
    "a tuple with a seed": Place(lambda x: ([picture(x)], 7), lambda out: out[0][0]),
    "a tuple behind a seed": Place(lambda x: (7, [picture(x)]), lambda out: out[1][0]),
    "a named tuple": Place(lambda x: Fields(7, [picture(x)]), lambda out: out.images[0]),
    "another field of a named tuple": Place(lambda x: Extra([CLEAN], x), lambda out: out.preview),
    "a namespace": Place(lambda x: types.SimpleNamespace(images=[picture(x)]), lambda out: out.images[0]),
    "a namespace in a field": Place(
        lambda x: BaseOutput(images=[CLEAN], more=types.SimpleNamespace(k=x)), lambda out: out.more.k
    ),
    "a frozen dataclass": Place(lambda x: Frozen("x", picture(x)), lambda out: out.preview),
    "an object": Place(lambda x: [Plain(x)], lambda out: out[0].preview),
    "slots": Place(lambda x: Slotted(picture(x)), lambda out: out.hidden),
    "an object's list": Place(lambda x: Plain([Plain([picture(x)])]), lambda out: out.preview[0].preview[0]),
    "a dict": Place(lambda x: {"images": [picture(x)]}, lambda out: out["images"][0]),
    "a dict of dicts": Place(lambda x: {"a": {"b": {"c": x}}}, lambda out: out["a"]["b"]["c"]),
    "an ordered dict": Place(lambda x: OrderedDict(a=picture(x)), lambda out: out["a"]),
    "a defaultdict": Place(lambda x: defaultdict(list, a=[picture(x)]), lambda out: out["a"][0]),
    "a chain of maps": Place(lambda x: ChainMap({"a": 1}, {"b": picture(x)}), lambda out: out["b"]),
    "a user's dict": Place(lambda x: UserDict(a=picture(x)), lambda out: out["a"]),
    "a user's list": Place(lambda x: UserList([picture(x)]), lambda out: out[0]),
    "a read-only map": Place(lambda x: types.MappingProxyType({"a": picture(x)}), lambda out: out["a"]),
    "the values of a dict": Place(lambda x: {"a": picture(x)}.values(), lambda out: next(iter(out))),
    "a deque": Place(lambda x: deque([picture(x)], maxlen=3), lambda out: out[0]),
    "a set": Place(lambda x: {x}, lambda out: next(iter(out))),
    "a frozen set": Place(lambda x: frozenset([x]), lambda out: next(iter(out))),
    "a generator": Place(lambda x: (one for one in [picture(x)]), next),
    "a generator in a field": Place(
        lambda x: BaseOutput(images=(one for one in [picture(x)])), lambda out: next(out.images)
    ),
    "map": Place(lambda x: map(picture, [x]), next),
    "clips of several lengths": Place(lambda x: [[CLEAN], [CLEAN, picture(x)]], lambda out: out[1][1]),
    "lists in lists in lists": Place(lambda x: [[[CLEAN, picture(x)]]], lambda out: out[0][0][1]),
    "an attribute of a tensor": Place(
        lambda x: BaseOutput(images=[CLEAN], extra=marked(x)), lambda out: out.extra.preview
    ),
    "an array of objects": Place(lambda x: np.array([{"a": x}], dtype=object), lambda out: out[0]["a"]),
}  # fmt: skip

# Forms of the picture itself, in a field of which nothing is known.
FORMS = {
    "PNG": Place(file, opened),
    "JPEG": Place(lambda x: file(x, "JPEG", quality=95), opened),
    "WebP": Place(lambda x: file(x, "WEBP", lossless=True), opened),
    "GIF": Place(lambda x: file(x, "GIF"), opened),
    "PPM": Place(lambda x: file(x, "PPM"), opened),
    "a bytearray": Place(lambda x: bytearray(file(x)), opened),
    "a memoryview": Place(lambda x: memoryview(file(x)), opened),
    "a BytesIO": Place(lambda x: io.BytesIO(file(x)), lambda out: opened(out.getvalue())),
    "an array.array": Place(lambda x: array.array("B", file(x)), lambda out: opened(bytes(out))),
    "bytes in NumPy": Place(lambda x: np.frombuffer(file(x), np.uint8), lambda out: opened(out.tobytes())),
    "bytes in a tensor": Place(
        lambda x: torch.tensor(list(file(x)), dtype=torch.uint8), lambda out: opened(out.numpy().tobytes())
    ),
    "bytes in a list": Place(lambda x: list(file(x)), lambda out: opened(bytes(out))),
    "base64": Place(text, lambda out: opened(base64.b64decode(out))),
    "base64 for URLs": Place(
        lambda x: base64.urlsafe_b64encode(file(x)).decode(), lambda out: opened(base64.urlsafe_b64decode(out))
    ),
    "base64 without padding": Place(
        lambda x: text(x).rstrip("="), lambda out: opened(base64.b64decode(out + "=" * (-len(out) % 4)))
    ),
    "base64 in lines": Place(
        lambda x: base64.encodebytes(file(x)).decode(), lambda out: opened(base64.b64decode(out))
    ),
    "base64 as bytes": Place(lambda x: text(x).encode(), lambda out: opened(base64.b64decode(out))),
    "hex": Place(lambda x: file(x).hex(), lambda out: opened(bytes.fromhex(out))),
    "hex with spaces": Place(lambda x: file(x).hex(" "), lambda out: opened(bytes.fromhex(out))),
    "HEX": Place(lambda x: file(x).hex().upper(), lambda out: opened(bytes.fromhex(out))),
    "a data: URL": Place(
        lambda x: "data:image/png;base64," + text(x), lambda out: opened(base64.b64decode(out.partition(",")[2]))
    ),
    "a data: URL in Markdown": Place(
        lambda x: f"look: ![it](data:image/png;base64,{text(x)}) there",
        lambda out: opened(base64.b64decode(out.partition("base64,")[2].partition(")")[0])),
    ),
    "base64 in JSON": Place(
        lambda x: json.dumps({"image": text(x)}), lambda out: opened(base64.b64decode(json.loads(out)["image"]))
    ),
    "a letter for each byte": Place(lambda x: file(x).decode("latin-1"), lambda out: opened(out.encode("latin-1"))),
    "a film": Place(film, first_frame),
    "another film": Place(lambda x: film(x, "matroska"), first_frame),
    "a film in a data: URL": Place(
        lambda x: "data:video/mp4;base64," + base64.b64encode(film(x)).decode(),
        lambda out: first_frame(base64.b64decode(out.partition(",")[2])),
    ),
    "CHW": Place(lambda x: x, lambda out: out),
    "HWC": Place(hwc, lambda out: out.movedim(-1, 0)),
    "NHWC": Place(lambda x: hwc(x)[None], lambda out: out[0].movedim(-1, 0)),
    "HWC in uint8": Place(lambda x: levels(hwc(x)), lambda out: out.movedim(-1, 0)),
    "CHW in NumPy": Place(lambda x: x.numpy(), torch.from_numpy),
    "NCHW in NumPy": Place(lambda x: x[None].numpy(), lambda out: torch.from_numpy(out[0])),
    "RGBA in NumPy": Place(
        lambda x: hwc(torch.cat([x, torch.ones(1, SIDE, SIDE)])).numpy(),
        lambda out: torch.from_numpy(out).movedim(-1, 0)[:3],
    ),
    "RGBA": Place(lambda x: torch.cat([x, torch.ones(1, SIDE, SIDE)]), lambda out: out[:3]),
    "under alpha 0": Place(lambda x: torch.cat([x, torch.zeros(1, SIDE, SIDE)]), lambda out: out[:3]),
    "gray and alpha": Place(lambda x: torch.cat([x[1:2], torch.ones(1, SIDE, SIDE)]), lambda out: out[:1]),
    "6-D": Place(lambda x: x[None, None, None], lambda out: out[0, 0, 0]),
    "6-D, HWC": Place(lambda x: hwc(x)[None, None, None], lambda out: out[0, 0, 0].movedim(-1, 0)),
    "a clip, colours first": Place(lambda x: x[:, None].repeat(1, 9, 1, 1), lambda out: out[:, 4]),
    "clips, colours first": Place(lambda x: x[None, :, None].repeat(1, 1, 9, 1, 1), lambda out: out[0, :, 4]),
    "gray": Place(lambda x: x[1], lambda out: out[None]),
    "gray in NumPy": Place(lambda x: x[1].numpy(), lambda out: torch.from_numpy(out)[None]),
    "one of three gray ones": Place(
        lambda x: np.stack([C[1].numpy(), x[1].numpy(), C[1].numpy()]), lambda out: torch.from_numpy(out[1])[None]
    ),
    "gray ones behind each other": Place(lambda x: x[1][..., None].repeat(1, 1, SIDE), lambda out: out[None, ..., 0]),
    "int64": Place(lambda x: levels(x).long(), lambda out: out.to(torch.uint8)),
    "int16": Place(lambda x: levels(x).short(), lambda out: out.to(torch.uint8)),
    "uint16": Place(
        lambda x: (x.numpy() * 65535).round().astype(np.uint16),
        lambda out: torch.from_numpy(out.astype(np.float32) / 65535),
    ),
    "bool": Place(lambda x: x > 0.5, lambda out: out.float()),
    "a mask": Place(lambda x: x[1] > 0.5, lambda out: out.float()[None]),
    "float16": Place(lambda x: x.half(), lambda out: out.float()),
    "bfloat16": Place(lambda x: x.bfloat16(), lambda out: out.float()),
    "float64": Place(lambda x: x.double().numpy(), lambda out: torch.from_numpy(out)),
    "a parameter": Place(torch.nn.Parameter, lambda out: out.detach()),
    "not contiguous": Place(lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0), lambda out: out),
    "big-endian": Place(
        lambda x: x.numpy().astype(">f4"), lambda out: torch.from_numpy(out.astype(np.float32))
    ),
    "lists of lists of numbers": Place(lambda x: x.tolist(), torch.tensor),
    "lists of lists of levels": Place(
        lambda x: levels(hwc(x)).tolist(), lambda out: torch.tensor(out, dtype=torch.uint8).movedim(-1, 0)
    ),
    "in [-1, 1]": Place(lambda x: x * 2 - 1, lambda out: (out / 2 + 0.5).clamp(0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(demo, name):
    place = STRUCTURES[name]
    try:
        out = returned(demo, place.put(T))
    except ImageError:
        assert name == "an array of objects"
    else:
        assert any(verdict.flagged for verdict in demo.last_verdicts)
        assert not demo.check(place.take(out))[0].flagged


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_that_are_clean(demo, name):
    place = STRUCTURES[name]
    given = place.put(C)
    out = returned(demo, given)
    assert type(out) is type(given) or "generator" in name or name == "map"
    assert identical(place.take(out), place.take(place.put(C)))
    assert not any(verdict.flagged for verdict in demo.last_verdicts)


@pytest.mark.parametrize("name", FORMS)
def test_forms(demo, name):
    place = FORMS[name]
    assert demo.check(place.take(place.put(T)))[0].flagged
    out = returned(demo, BaseOutput(images=[CLEAN], extra=place.put(T)))
    assert not demo.check(place.take(out.extra))[0].flagged
    assert out.nsfw_content_detected[0] is False
    assert any(out.nsfw_content_detected)
    assert out.images[0] is CLEAN


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_are_clean(demo, name):
    given = FORMS[name].put(C)
    out = returned(demo, BaseOutput(images=[CLEAN], extra=given))
    assert out.extra is given
    assert not any(out.nsfw_content_detected)


class Coloured(enum.Enum):
    RED = 1


def reader():
    return open(__file__, "rb")  # noqa: SIM115


def carrying(pixels, *, info):
    carrier = CLEAN.copy()
    if info:
        carrier.info["preview"] = picture(pixels)
    else:
        carrier.preview = pixels
    return carrier


@pytest.mark.parametrize("info", [True, False])
def test_pictures_that_carry_another_one(demo, info):
    clean = carrying(C, info=info)
    assert returned(demo, BaseOutput(images=[clean])).images[0] is clean
    for given in ([carrying(T, info=info)], [[CLEAN, carrying(T, info=info)]], carrying(T, info=info)):
        with pytest.raises(ImageError, match="is flagged, and cannot be redacted there"):
            returned(demo, BaseOutput(images=given))


def zipped():
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("t.png", file(T))
    return written.getvalue()


REFUSED = {
    "raw bytes": lambda: levels(T).numpy().tobytes(),
    "numbers in a row": lambda: T.flatten(),
    "a list of numbers in a row": lambda: T.flatten().tolist(),
    "rows in a list": lambda: list(T.reshape(-1, SIDE)),
    "rows in a dict": lambda: dict(enumerate(T.reshape(-1, SIDE))),
    "numbers in dicts": lambda: dict(enumerate(T.flatten().tolist())),
    "seven channels": lambda: torch.rand(1, 7, SIDE, SIDE),
    "latents": lambda: torch.randn(1, 4, 16, 16),
    "values up to 255": lambda: T * 255,
    "one large number": lambda: int.from_bytes(file(T), "big"),
    "a zip": zipped,
    "complex numbers": lambda: T.to(torch.complex64),
    "a sparse tensor": lambda: T[1].to_sparse(),
    "a nested tensor": lambda: torch.nested.nested_tensor([T, C]),
    "a quantised tensor": lambda: torch.quantize_per_tensor(T, 0.1, 0, torch.quint8),
    "a function": lambda: lambda: T,
    "a partial function": lambda: functools.partial(picture, T),
    "a module": lambda: torch.nn.Linear(2, 2),
    "a class": lambda: Plain,
    "an exception": lambda: ValueError(T),
    "an open file": reader,
    "a drawing": lambda: "<svg xmlns='http://www.w3.org/2000/svg'><polygon points='0,0 9,9 0,9'/></svg>",
    "half of a PNG": lambda: file(T)[:200],
    "half of a PNG in base64": lambda: text(T)[:400],
    "lists of several lengths": lambda: [[0.5] * 3000, [0.5] * 2000],
    "more channels than pictures": lambda: torch.rand(SIDE, SIDE, 5),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_looked_at(demo, name):
    with pytest.raises(ImageError, match=r"output\.extra") as error:
        returned(demo, BaseOutput(images=[CLEAN], extra=REFUSED[name]()))
    assert "expected" in str(error.value) or "values" in str(error.value)


class Logging:
    """As people write classes: with a log, and with a method that knows its class."""

    log = logging.getLogger("b")

    def __init__(self):
        super().__init__()
        self.seed = 7


PASSING = [
    None, 7, 0.5, True, 3 + 4j, "a cat", "x" * 5000, b"short", Coloured.RED, torch.device("cpu"), torch.float32,
    np.float32(0.5), torch.tensor(3), torch.linspace(0, 1, 64), np.zeros(10), [0.1] * 4096,
    {"seed": 7, "steps": [1, 2, 3]}, logging.getLogger("a"), Logging(), torch.Size([1, 2]), range(5000),
    "0123456789abcdef" * 4, "GIF89a is a format that some of us remember well",
    torch.zeros(0, 3, SIDE, SIDE), [], {}, np.array(["a", "b"]), [True] * 100, "https://example.com/" + "a" * 100,
]  # fmt: skip


@pytest.mark.parametrize("value", PASSING, ids=lambda value: str(value)[:20])
def test_what_shows_nothing(demo, value):
    out = returned(demo, BaseOutput(images=[CLEAN], extra=value))
    assert out.extra is value
    assert out.nsfw_content_detected == [False]


def test_embeddings_of_a_class_of_a_users_own(demo):
    """By their name, and only where they are allowed."""
    given = BaseOutput(images=[CLEAN], prompt_embeds=torch.randn(1, 7, 32) * 3)
    with pytest.raises(ImageError, match=r"output\.prompt_embeds"):
        returned(demo, given)
    allowed = returned(demo, given, latents="allow")
    assert allowed.prompt_embeds is given.prompt_embeds
    assert allowed.nsfw_content_detected == [False]


def test_a_structure_that_refers_to_itself(demo):
    loop = {"name": "x"}
    loop["self"] = loop
    assert returned(demo, [loop])[0] is loop
    loop["image"] = T
    with pytest.raises(ImageError, match="refers to itself"):
        returned(demo, [loop])


def test_files_that_a_pipeline_wrote(demo, tmp_path):
    """What is on the disk stays there: an error says so, and names no path."""
    for pixels, name in ((T, "t.png"), (C, "c.png")):
        (tmp_path / name).write_bytes(file(pixels))
    for kind in (str, lambda path: path):
        given = BaseOutput(images=[CLEAN], path=kind(tmp_path / "c.png"))
        assert returned(demo, given).path == kind(tmp_path / "c.png")
        with pytest.raises(ImageError, match=r"output\.path is the path of a file that is flagged") as error:
            returned(demo, BaseOutput(images=[CLEAN], path=kind(tmp_path / "t.png")))
        assert str(tmp_path) not in str(error.value)


def test_nothing_of_the_pipelines_is_written_to(demo):
    inner, pixels = {"k": T}, T.clone()
    given = [inner, [T]]
    out = returned(demo, given)
    assert out is not given
    assert inner["k"] is given[1][0] is T
    assert torch.equal(T, pixels)


# --- Whose flags are whose -------------------------------------------------------------------------------------------


def test_flags_are_those_of_the_images(demo):
    """Whatever stands before them, or in another field for pictures."""
    out = returned(demo, BaseOutput(extra=T, video=[CLEAN], images=[CLEAN, picture(T), CLEAN]))
    assert out.nsfw_content_detected == [False, True, False, False, True]
    assert [verdict.flagged for verdict in out.verdicts] == out.nsfw_content_detected


def test_a_seed_beside_images(demo):
    assert returned(demo, ([CLEAN], 7)) == ([CLEAN], 7)
    images, seed = returned(demo, ([CLEAN, picture(T)], 7))
    assert (images[0], seed) == (CLEAN, 7)
    assert not demo.check(images[1])[0].flagged
    assert demo.last_verdicts is not None


def test_a_seed_beside_images_where_flags_would_be(demo):
    """A class that descends from one with a slot."""
    record = Record(Attachment(demo, Settings()), None)
    mine = type("Mine", (type("StableDiffusionPipeline", (), {}),), {})()
    assert finish(mine, ([CLEAN], 7), record) == ([CLEAN], 7)
    assert finish(mine, ([CLEAN], [False]), record) == ([CLEAN], [False])
    images, flags, extra = finish(mine, ([CLEAN], [False], {"a": T}), record)
    assert (images, flags) == ([CLEAN], [False, True])
    assert not demo.check(extra["a"])[0].flagged


def test_named_tuples_stay_what_they_are(demo):
    for given in (Fields(7, [CLEAN]), Fields(7, [picture(T)])):
        out = returned(demo, given)
        assert type(out) is Fields
        assert out.seed == 7


@pytest.mark.parametrize(
    "name", ["a field", "a dict in a field", "an output in an output", "an attribute of an output"]
)
def test_classes_of_diffusers_and_what_descends_from_them(demo, name):
    place = STRUCTURES[name]
    for bases in ((), (StableDiffusionXLPipeline,)):
        pipe = object.__new__(type("FluxPipeline" if not bases else "Mine", bases, {}))
        for pixels, flagged in ((T, True), (C, False)):
            out = finish(pipe, place.put(pixels), Record(Attachment(demo, Settings()), None))
            assert out.nsfw_content_detected == [False, flagged]
            assert not demo.check(place.take(out))[0].flagged


# --- What is declared ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "field"),
    [("LTX2Pipeline", "audio"), ("Kandinsky6TI2VAPipeline", "audio"), ("Cosmos3OmniPipeline", "sound")],
)
@pytest.mark.parametrize("mine", [False, True])
def test_sound_passes_where_it_is_known(demo, cls, field, mine):
    """Of a class that descends from a known one, too, unless it has the shape of pictures."""
    known = type(cls, (), {})
    pipe = type("Mine", (known,), {})() if mine else known()
    sound = torch.randn(1, 2, 16000)
    record = Record(Attachment(demo, Settings()), None)
    out = finish(pipe, BaseOutput(frames=[[CLEAN] * 2], **{field: sound}), record)
    assert out[field] is sound
    assert finish(pipe, ([[CLEAN] * 2], sound), record)[1] is sound
    if mine:
        assert not demo.check(finish(pipe, BaseOutput(frames=[[CLEAN]], **{field: T}), record)[field])[0].flagged


def test_sound_of_a_class_that_nobody_knows(demo):
    with pytest.raises(ImageError, match=r"output\.audio .*of shape \(1, 2, 16000\)"):
        returned(demo, BaseOutput(images=[CLEAN], audio=torch.randn(1, 2, 16000)))


def test_latents_that_were_asked_for_are_those_in_the_fields_for_pictures(demo):
    """What is in another field is not asked for."""
    latents = torch.randn(1, 4, 8, 8)
    record = Record(Attachment(demo, Settings(latents="allow")), None)
    out = finish(Returns(), ImagePipelineOutput(images=latents), record, latents=True)
    assert out.images is latents
    out = finish(Returns(), BaseOutput(images=latents, extra=T), record, latents=True)
    assert out.images is latents
    assert not demo.check(out.extra)[0].flagged
