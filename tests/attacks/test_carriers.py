"""Ways past ``attach``: plain values, classes and texts that carry a picture which nobody takes them for."""

from __future__ import annotations

import base64
import binascii
import collections
import decimal
import enum
import fractions
import functools
import io
import json
import re
import types
import urllib.parse
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import BaseOutput
from nsfw_guard.integrations.diffusers_pipeline import attach
from nsfw_guard.integrations.diffusers_pipeline.pipeline import finish
from nsfw_guard.integrations.diffusers_pipeline.record import Record
from nsfw_guard.integrations.diffusers_pipeline.settings import Attachment, Settings
from PIL import Image
from returning import CLEAN, SIDE, C, Returns, T

from nsfw_guard import ImageError
from nsfw_guard.images import to_picture

pytestmark = pytest.mark.usefixtures("one_thread")


def returned(guard, given):
    return attach(Returns(), guard)(BaseOutput(images=[CLEAN], extra=given)).extra


def file(pixels, kind="PNG"):
    written = io.BytesIO()
    to_picture(pixels).save(written, kind)
    return written.getvalue()


def text(pixels, kind="PNG"):
    return base64.b64encode(file(pixels, kind)).decode()


def levels(pixels):
    return (pixels.movedim(0, -1) * 255).round().to(torch.uint8).numpy()


class Text(str):
    pass


class Count(int):
    pass


class Data(bytes):
    pass


class Buffer(io.BytesIO):
    pass


class Coloured(enum.Enum):
    RED = 1


def with_attribute(value, pixels):
    value.preview = to_picture(pixels)
    return value


# Each holds a picture beside, or within, a value that shows nothing.
CARRIERS = {
    "a member of an enum": lambda x: enum.Enum("Shown", {"A": x}).A,
    "an attribute of such a member": lambda x: with_attribute(Coloured.RED, x),
    "a slice": lambda x: slice(x, None),
    "a pattern": lambda x: re.compile(file(x).hex()),
    "an attribute of a text": lambda x: with_attribute(Text("x"), x),
    "an attribute of a number": lambda x: with_attribute(Count(3), x),
    "an attribute of bytes": lambda x: with_attribute(Data(b"x"), x),
    "an attribute of a file's bytes": lambda x: with_attribute(Data(file(C)), x),
    "an attribute of a buffer": lambda x: with_attribute(Buffer(b"x"), x),
    "a gradient": lambda x: with_gradient(x),
    "a mask of 0 and 1": lambda x: x.round().to(torch.uint8),
    "a mask of 0 and 1 in NumPy": lambda x: (levels(x) > 127).astype(np.uint8),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
}  # fmt: skip

LONG = {
    "a long number": lambda: int.from_bytes(file(T), "big"),
    "a long number in a range": lambda: range(int.from_bytes(file(T), "big")),
    "a decimal": lambda: decimal.Decimal(int.from_bytes(file(T), "big")),
    "a fraction": lambda: fractions.Fraction(int.from_bytes(file(T), "big")),
    "a long key": lambda: {int.from_bytes(file(T), "big"): None},
    "a number for each row": lambda: [int.from_bytes(row.tobytes(), "big") for row in levels(T)],
    "bytes for each row": lambda: [levels(T).tobytes()[at : at + 64] for at in range(0, 3 * SIDE**2, 64)],
    "bytes for each row in NumPy": lambda: np.frombuffer(levels(T).tobytes(), "V64"),
    "numbers as keys": lambda: {256 * at + int(level): None for at, level in enumerate(levels(T).ravel())},
}


def with_gradient(pixels):
    leaf = C.clone().requires_grad_()
    leaf.grad = pixels.clone()
    return leaf


def seen_in(value):
    """The picture that is carried, as whoever gets it sees it."""
    for name in ("grad", "preview", "start"):
        if getattr(value, name, None) is not None:
            return getattr(value, name)
    if isinstance(value, re.Pattern):
        return to_opened(bytes.fromhex(value.pattern))
    if isinstance(value, enum.Enum):
        return value.value
    return torch.as_tensor(value).float() if isinstance(value, torch.Tensor) else value.astype(np.float32)


def to_opened(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.mark.parametrize("name", CARRIERS)
def test_carriers(demo, name):
    assert demo.check(seen_in(CARRIERS[name](T)))[0].flagged
    try:
        out = returned(demo, CARRIERS[name](T))
    except ImageError as error:
        assert "is flagged" in str(error)  # noqa: PT017
    else:
        assert not demo.check(seen_in(out))[0].flagged
    given = CARRIERS[name](C)
    assert returned(demo, given) is given


@pytest.mark.parametrize("name", LONG)
def test_numbers_that_are_many(demo, name):
    with pytest.raises(ImageError, match="loose numbers"):
        returned(demo, LONG[name]())


# --- Classes ---------------------------------------------------------------------------------------------------------

SHOWN: list[Any] = []


class Property:
    @property
    def image(self):
        return SHOWN[0]


class Cached:
    @functools.cached_property
    def image(self):
        return SHOWN[0]


class Output(BaseOutput):
    @property
    def image(self):
        return SHOWN[0]


class Sequence:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return [SHOWN[0]][index]


class Iterable:
    def __iter__(self):
        return iter(SHOWN)


class Anything:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return SHOWN[0]


def of_a_closure(shown):
    class Holds:
        def image(self):
            return shown

    return Holds()


def of_a_default(shown):
    class Holds:
        def image(self, shown=shown):
            return shown

    return Holds()


def of_the_class(shown):
    return type("Holds", (), {"__module__": __name__, "image": shown})()


CLASSES = {
    "a property": Property, "a cached property": Cached, "a property of an output": Output, "a sequence": Sequence,
    "an iterable": Iterable, "a method's closure": lambda: of_a_closure(SHOWN[0]),
    "a method's default": lambda: of_a_default(SHOWN[0]), "an attribute of the class": lambda: of_the_class(SHOWN[0]),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_hold_pictures(demo, name):
    SHOWN[:] = [to_picture(T)]
    with pytest.raises(ImageError, match="is flagged, and cannot be redacted there"):
        returned(demo, CLASSES[name]())
    SHOWN[:] = [CLEAN]
    given = CLASSES[name]()
    assert returned(demo, given) is given
    assert "image" not in vars(given) or name == "a cached property"


def test_classes_that_answer_anything(demo):
    SHOWN[:] = [to_picture(C)]
    with pytest.raises(ImageError, match="cannot be seen into"):
        returned(demo, Anything())
    known = type("Known", (dict,), {"__module__": __name__, "__getattr__": dict.get})(seed=7)
    assert returned(demo, known) is known


@dataclass
class First(BaseOutput):
    images: list

    @property
    def first(self):
        return self.images[0]


def test_a_property_of_pictures_that_were_looked_at(demo):
    """It shows what was redacted; no picture gets a second flag."""
    out = attach(Returns(), demo)(First(images=[to_picture(T), CLEAN]))
    assert out.nsfw_content_detected == [True, False]
    assert not demo.check(out.first)[0].flagged


# --- What hangs on a picture -----------------------------------------------------------------------------------------

HUNG = {
    "a list": lambda x: [to_picture(x)], "a dict": lambda x: {"k": x}, "bytes": file, "base64": text,
    "an object": lambda x: types.SimpleNamespace(k=x),
}  # fmt: skip


@pytest.mark.parametrize("info", [True, False])
@pytest.mark.parametrize("name", HUNG)
def test_what_hangs_on_a_picture(demo, name, info):
    for pixels in (T, C):
        carrier = CLEAN.copy()
        (carrier.info if info else vars(carrier))["more"] = HUNG[name](pixels)
        if pixels is T:
            with pytest.raises(ImageError, match="is flagged, and cannot be redacted there"):
                returned(demo, [carrier])
        else:
            assert returned(demo, [carrier])[0] is carrier


def test_what_pictures_usually_have(demo, tmp_path):
    """Metadata, profiles, and what Pillow keeps of a file that it has written."""
    picture, other = to_picture(C), to_picture(T)
    picture.info |= {
        "parameters": "a cat, steps: 20 " * 99,
        "icc_profile": bytes(900),
        "exif": Image.Exif().tobytes(),
        "dpi": (1, 1),
    }
    picture.meta = {"seed": 7, "lock": collections.Counter()}
    picture.save(tmp_path / "two.gif", save_all=True, append_images=[other])
    assert returned(demo, picture) is picture


# --- Texts -----------------------------------------------------------------------------------------------------------


def uuencoded(data):
    lines = [binascii.b2a_uu(data[at : at + 45]).decode() for at in range(0, len(data), 45)]
    return "begin 644 t.png\n" + "".join(lines) + "`\nend\n"


TEXTS = {
    "percent": lambda x: urllib.parse.quote_from_bytes(file(x)),
    "percent over base64": lambda x: "https://h/?i=" + urllib.parse.quote(text(x, "JPEG"), safe=""),
    "repr": lambda x: repr(file(x)),
    "JSON with slashes": lambda x: json.dumps({"i": text(x, "JPEG")}).replace("/", "\\/"),
    "JSON with lines": lambda x: json.dumps({"i": base64.encodebytes(file(x)).decode()}),
    "JSON with numbers": lambda x: json.dumps(list(file(x))),
    "JSON with code points": lambda x: "".join(f"\\u{ord(letter):04x}" for letter in text(x)),
    "lines in prose": lambda x: f"Here it is:\n{base64.encodebytes(file(x)).decode()}\nBye.",
    "base85": lambda x: base64.b85encode(file(x)).decode(),
    "base85 in JSON": lambda x: json.dumps({"i": base64.b85encode(file(x)).decode()}),
    "Ascii85": lambda x: base64.a85encode(file(x)).decode(),
    "Ascii85 between signs": lambda x: base64.a85encode(file(x), adobe=True, wrapcol=70).decode(),
    "base32": lambda x: base64.b32encode(file(x)).decode(),
    "uuencoding": lambda x: uuencoded(file(x)),
    "base64 twice": lambda x: base64.b64encode(text(x).encode()).decode(),
    "behind another picture": lambda x: text(C)[: len(text(C)) // 4 * 4].rstrip("=") + text(x)
    if len(file(C)) % 3 == 0
    else text(C) + "," + text(x),
    "a letter for each byte, in a text": lambda x: "result: " + file(x).decode("latin-1"),
    "bytes that are no UTF-8": lambda x: file(x).decode("utf-8", "surrogateescape"),
    "a PNM of figures": lambda x: "P3 64 64 255\n" + " ".join(map(str, levels(x).ravel())),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_hold_pictures(demo, name):
    given = TEXTS[name](C)
    assert returned(demo, given) is given
    try:
        out = returned(demo, TEXTS[name](T))
    except ImageError as error:
        assert "flagged" in str(error)  # noqa: PT017
    else:
        assert out != TEXTS[name](T)
        assert any(verdict.flagged for verdict in demo.last_verdicts)


@pytest.mark.parametrize(
    "value",
    [
        "draw an <svg> icon", "the <svg></svg> element", "100 % sure, 50%", "C:\\new\\table\\users", "a\tb\n" * 99,
        "ABCDEFGH" * 20, "begin 644 things", "P3 is a bird", "#define X 1", json.dumps({"steps": list(range(200))}),
        "\x1b[31mred\x1b[0m" * 50, "!!" * 60, "<~" + "a" * 90, json.dumps({"prompt": "a \"cat\" \\ " * 30}),
    ],
    ids=lambda value: value[:12],
)  # fmt: skip
def test_texts_that_hold_none(demo, value):
    assert returned(demo, value) is value


def test_base64_of_anything_is_no_picture(demo):
    """Some kinds of pictures begin with nothing certain."""
    bytes_of = np.random.default_rng(7).bytes
    given = [base64.b64encode(bytes_of(900)).decode() for _ in range(100)]
    assert returned(demo, given) is given


def test_text_that_is_none(demo):
    with pytest.raises(ImageError, match="bytes that are no text"):
        returned(demo, np.arange(256, dtype=np.uint8).tobytes().decode("latin-1"))


# --- Latents that are declared ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"frames": [[CLEAN]], "keyframes": T},
        types.SimpleNamespace(frames=[[CLEAN]], keyframes=T),
        [[CLEAN], None, T],
        with_attribute(BaseOutput(frames=[[CLEAN]]), T),
    ],
    ids=["a dict", "a namespace", "a list", "an attribute"],
)
def test_latents_where_nobody_takes_them_out(demo, given):
    """Only those in an output of diffusers, or in a tuple, become None."""
    known = type("Mine", (type("LTX2Pipeline", (), {}),), {})()
    out = finish(known, given, Record(Attachment(demo, Settings()), None))
    names = out if isinstance(out, dict) else {}
    shown = out[2] if isinstance(out, list) else {**getattr(out, "__dict__", {}), **names}
    shown = shown if isinstance(shown, torch.Tensor) else shown.get("keyframes", shown.get("preview"))
    assert not demo.check(shown)[0].flagged
