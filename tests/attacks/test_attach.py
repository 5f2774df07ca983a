"""Ways past ``attach``: what a pipeline may hand over or return so that people see what the guard did not.

Each case hands on a drawn triangle, which the demo model flags. Nothing that leaves a guarded pipeline is flagged by
the same guard, and what is clean leaves as it came.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from nsfw_guard.integrations.diffusers_pipeline import NsfwGuardBlock, attach
from outputs import identical
from PIL import Image
from pipelines import images, slots, videos

from nsfw_guard import Redaction
from nsfw_guard.demo.shapes import draw
from nsfw_guard.images import read_images, to_picture

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64
T = draw("triangle", "red", "white", height=SIDE, width=SIDE)
C = draw("circle", "red", "white", height=SIDE, width=SIDE)
GRAY = T.mean(0)
_FLAT, _EMPTY = (draw(kind, "white", "blue", flat=True, height=SIDE, width=SIDE)[0] for kind in ("triangle", None))
SHAPE = (_FLAT - _EMPTY) / (_FLAT - _EMPTY).max()  # 1 within a triangle, 0 outside


class Shows(DiffusionPipeline):
    """A pipeline of a user's own: it returns what it is given, finished in one of diffusers' ways or as it is."""

    def __init__(self):
        super().__init__()
        self.register_to_config()
        self.image_processor = VaeImageProcessor()

    def __call__(self, given, finish=lambda pipe, given: given):
        return ImagePipelineOutput(images=finish(self, given))


def shown(guard, given, finish=lambda pipe, given: given):
    """What a guarded pipeline of a user's own returns."""
    return attach(Shows(), guard)(given, finish)


def looked_at(guard, image, **more):
    """Whether the guard flags an image by any of the readings that are named."""
    return guard.policy.decide(guard.classify(read_images(image, clamp=True, **more)))[0].flagged


def array(pixels):
    """``[H, W, C]`` of ``[C, H, W]``."""
    return pixels.movedim(0, -1).numpy()


# --- Pictures with alpha ---------------------------------------------------------------------------------------------


def rgba(colors, alpha):
    levels = torch.cat([colors, alpha.expand(1, SIDE, SIDE)])
    return Image.fromarray((array(levels) * 255).round().astype(np.uint8))


def la(gray, alpha):
    return rgba(gray.expand(3, SIDE, SIDE), alpha).convert("LA")


def palette(colors, transparency):
    picture = to_picture(colors).quantize(16)
    picture.info["transparency"] = transparency(picture)
    return picture


def where_it_is(picture):
    """An alpha for each entry of a palette: the triangle's entries are opaque, the others are not."""
    inside = set(np.asarray(picture)[SHAPE.numpy() > 0.5].tolist())
    return bytes(255 if index in inside else 0 for index in range(16))


OPAQUE, CLEAR = torch.ones(1), torch.zeros(1)
WHITE, BLACK = torch.ones(3, SIDE, SIDE), torch.zeros(3, SIDE, SIDE)
LAYERED = {
    "white, and a triangle in the alpha": rgba(WHITE, SHAPE),
    "black, and a triangle in the alpha": rgba(BLACK, SHAPE),
    "white, and all but a triangle in the alpha": rgba(WHITE, 1 - SHAPE),
    "a triangle under alpha 0": rgba(T, CLEAR),
    "a triangle under alpha 8": rgba(T, torch.tensor([8 / 255])),
    "a triangle under alpha 16": rgba(T, torch.tensor([16 / 255])),
    "LA, a triangle under alpha 0": la(GRAY, CLEAR),
    "LA, white, and a triangle in the alpha": la(WHITE[0], SHAPE),
    "P, a triangle under a transparent palette": palette(T, lambda _: bytes(16)),
    "P, white, and a triangle in tRNS": palette(0.98 * WHITE + 0.02 * SHAPE, where_it_is),
}


@pytest.mark.parametrize("hidden", LAYERED)
@pytest.mark.parametrize("kind", ["blur", "pixelate", "fill"])
def test_pictures_with_alpha(own_demo, hidden, kind):
    """A shape only in the alpha, or colours that it hides; the redacted picture is opaque, and no silhouette stays."""
    own_demo.redaction = Redaction(kind)
    clean = rgba(C, torch.linspace(0.9, 1, SIDE))
    out = shown(own_demo, [LAYERED[hidden], clean])
    assert out.nsfw_content_detected == [True, False]
    redacted, same = out.images
    assert same is clean
    assert redacted.size == (SIDE, SIDE)
    assert redacted.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    assert not own_demo.check(redacted)[0].flagged


def test_pictures_with_alpha_in_a_clip(demo):
    """A clip of RGBA pictures in which one frame has the triangle in its alpha."""
    clip = [[rgba(C, OPAQUE)] * 4 + [LAYERED["white, and a triangle in the alpha"]] + [rgba(C, OPAQUE)] * 4]
    out = attach(Shows(), demo, min_run=3)(clip)
    assert [verdict.flagged for verdict in out.frame_verdicts[0]] == [index == 4 for index in range(9)]
    assert [one is other for one, other in zip(out.images[0], clip[0], strict=True)] == [
        index not in (3, 4, 5) for index in range(9)
    ]
    assert not any(verdict.flagged for verdict in demo.check(out.images[0]))


def test_pictures_with_alpha_before_a_modular_block(demo):
    """The block for modular pipelines is handed RGBA pictures."""
    state = pytest.importorskip("diffusers.modular_pipelines").PipelineState()
    state.set("images", [LAYERED["a triangle under alpha 0"]])
    NsfwGuardBlock()(SimpleNamespace(safety_checker=demo, device=torch.device("cpu")), state)
    assert state.get("nsfw_content_detected") == [True]
    assert not demo.check(state.get("images"))[0].flagged


# --- Ranges that nobody has declared ---------------------------------------------------------------------------------


def with_pixel(image, value):
    image = image.clone()
    image[:, 0, 0] = value
    return image


FAINT = 0.5 + 0.09 * (T - 0.5)  # seen in [0, 1], and not at half its contrast
UNDECLARED = {
    "faint, with one pixel at -0.06": with_pixel(FAINT, -0.06),
    "faint, with one pixel at -1": with_pixel(FAINT, -1.0),
    "in [-1, 1]": T * 2 - 1,
    "in [-1, 1], and hardly below 0": with_pixel(0.9 * T, -0.01),
    "below 0 alone: clamped it is black": 0.049 * (T - 1),
    "above 1 alone: clamped it is white": 1 + 0.4 * T,
    "faint above 1": 1.2 + 0.1 * T,
}


@pytest.mark.parametrize("hidden", UNDECLARED)
@pytest.mark.parametrize("kind", ["pt", "np", "pt, one of two", "bfloat16", "a clip"])
def test_values_of_an_undeclared_range(demo, hidden, kind):
    """Every reading counts, and what is redacted is clean in every one."""
    image = UNDECLARED[hidden]
    if kind == "bfloat16":
        image = image.bfloat16()
    given = torch.stack([image, C.to(image)]) if "two" in kind else image[None]
    if kind == "np":
        given = given.movedim(1, -1).numpy()
    elif kind == "a clip":
        given = given[None].repeat(1, 3, 1, 1, 1)
    before = given.copy() if kind == "np" else given.clone()
    out = shown(demo, given)
    assert out.nsfw_content_detected[0]
    assert identical(given, before)
    redacted = out.images[0][0] if kind == "a clip" else out.images[0]
    for span in ((0, 1), (-1, 1)):
        assert not looked_at(demo, redacted, value_range=span, stretch=True)


def test_values_of_an_undeclared_range_that_are_clean(demo):
    """Whatever they may mean, they come out as they are."""
    given = torch.stack([with_pixel(C, -0.06), with_pixel(C, 1.2)])
    out = shown(demo, given)
    assert out.images is given
    assert out.nsfw_content_detected == [False, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_beside_an_image_without_numbers(demo, bad):
    """One image of NaN hides from ``min`` that the other one is in [-1, 1]."""
    hidden = 0.3 * (T - 0.5) - 0.5  # clamped to [0, 1] it is black
    out = shown(demo, torch.stack([with_pixel(C, bad), hidden]))
    assert [verdict.reason for verdict in out.verdicts] == ["non_finite", "score"]
    assert bool(out.images.isfinite().all())
    assert out.images[1].min() < 0  # written in the range that was guessed
    assert not looked_at(demo, out.images[1], value_range=(-1, 1))


# --- Values that wrap around in 8 bits -------------------------------------------------------------------------------

# Clamped it is white, and one pixel makes it white from least to greatest, too; in 8 bits 256 levels are taken off.
WRAPPED = with_pixel(1 + 1 / 255 + T, 50.0)


@pytest.mark.parametrize(
    "finish",
    [
        lambda pipe, given: pipe.numpy_to_pil(given.movedim(1, -1).numpy()),
        lambda pipe, given: pipe.image_processor.postprocess(given, "pil", do_denormalize=[False]),
    ],
    ids=["numpy_to_pil", "postprocess without denormalising"],
)
def test_values_that_wrap_around(demo, finish):
    """Values above 1 that a host takes to 8 bits by leaving off what is above 255."""
    unguarded = finish(Shows(), WRAPPED[None])
    assert demo.check(unguarded)[0].flagged
    out = shown(demo, WRAPPED[None], finish)
    assert out.nsfw_content_detected == [True]
    assert not demo.check(out.images)[0].flagged


# --- Changes after the check -----------------------------------------------------------------------------------------


def _palette_of_it(picture):
    """Give a gray picture that shows nothing a palette that shows it."""
    picture.putpalette([value for level in range(256) for value in ((level % 2) * 255, 0, 0)])


def test_a_palette_changed_after_the_check(demo):
    """The picture keeps its bytes and its name; only what they stand for changes."""
    hidden = (128 + SHAPE.round()).numpy().astype(np.float32)[None, ..., None] / 255

    def finish(pipe, given):
        (picture,) = pipe.numpy_to_pil(given)
        _palette_of_it(picture)
        return [picture]

    assert demo.check(finish(Shows(), hidden))[0].flagged
    out = shown(demo, hidden, finish)
    assert out.nsfw_content_detected == [True]
    assert not demo.check(out.images)[0].flagged


@pytest.mark.parametrize(
    "write",
    [lambda images: images.numpy().__setitem__(0, T.numpy()), lambda images: images.data.copy_(T[None])],
    ids=["numpy", "data"],
)
def test_writes_past_a_tensors_count_of_them(demo, write):
    """A view of the same memory is written to after the check."""

    def finish(pipe, given):
        images = pipe.image_processor.postprocess(given, "pt")
        write(images)
        return images

    out = shown(demo, C[None] * 2 - 1, finish)
    assert out.nsfw_content_detected == [True]
    assert not demo.check(out.images)[0].flagged


# --- Redactions that the same guard flags ----------------------------------------------------------------------------


def showing(pipe, drawn):
    """Make the decoder of a real pipeline decode anything to these images, in [-1, 1]."""
    pipe.vae.decode = lambda latents, *args, **kwargs: (drawn,)
    return pipe


REAL = {"in the slot": slots.CASES["stable_diffusion"], "in the processor": images.CASES["sdxl"]}


@pytest.mark.parametrize("case", REAL)
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["blur", "pixelate"])
def test_redacted_images_are_looked_at_as_they_leave(own_demo, case, output_type, dtype, kind):
    """A blurred triangle is a triangle still: after half precision and 8 bits, too, it is none any more."""
    own_demo.redaction = Redaction(kind)
    drawn = (torch.stack([T, C, draw("triangle", "blue", "yellow", height=SIDE, width=SIDE)]) * 2 - 1).to(dtype)
    plain = REAL[case].run(showing(REAL[case].build(), drawn), output_type).images
    out = REAL[case].run(attach(showing(REAL[case].build(), drawn), own_demo), output_type)
    assert out.nsfw_content_detected == [True, False, True]
    assert identical(out.images[1], plain[1])
    assert not any(verdict.flagged for verdict in own_demo.check(out.images))
    assert not identical(out.images[0], plain[0])


@pytest.mark.parametrize("reason", ["score", "non_finite"])
def test_a_replacement_that_is_flagged_itself(own_demo, reason, caplog):
    """The picture to show instead is a triangle: it is filled, and a warning says so once."""
    own_demo.redaction = Redaction("replace", image=T)
    given = T if reason == "score" else with_pixel(C, math.nan)
    for _ in range(2):
        out = shown(own_demo, given[None])
        assert [verdict.reason for verdict in out.verdicts] == [reason]
        assert not out.images.any()
    assert caplog.text.count("replacement picture is flagged") <= 1  # once in a process


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_frames_that_nobody_looked_at_before(demo, output_type):
    """Between two flagged frames there are some that nobody has looked at: redacted, they are looked at."""
    case = videos.CASES["wan"]
    clip = torch.stack([T] * 13 + [C] * 27) * 2 - 1
    drawn = torch.stack([clip, clip.flip(0)]).movedim(1, 2)
    out = case.run(attach(showing(case.build(), drawn), demo, every=3, min_run=1), output_type)
    assert out.nsfw_content_detected == [True, True]
    for frames, verdicts in zip(out.frames, out.frame_verdicts, strict=True):
        assert 0 < sum(verdict is None for verdict in verdicts) < 40
        assert not any(verdict.flagged for verdict in demo.check(frames))


def test_a_detail_that_only_one_frame_of_a_run_gives_away(demo):
    """The last of a long run would be flagged at the cells that all the others pass with."""
    large = draw("triangle", "red", "white")
    clip = torch.stack([0.5 + 0.09 * (large - 0.5)] * 39 + [large])
    out = attach(Shows(), demo)(clip[None])
    shown_frames = out.images[0]
    assert not any(verdict.flagged for verdict in demo.check(shown_frames))
    assert torch.equal(shown_frames[0], shown_frames[38])


# --- Pipelines with layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_layers_of_a_pipeline(demo, output_type):
    """Four channels in a processor are a layer: hidden under alpha 0, or only in the alpha."""
    hidden = [torch.cat([T, 0 * SHAPE[None]]), torch.cat([WHITE, SHAPE[None]])]
    layers = torch.stack([*hidden, torch.cat([C, WHITE[:1]])])
    pipe = attach(Shows(), demo)
    finish = pipe.image_processor.postprocess
    out = pipe(layers * 2 - 1, lambda _, given: finish(given, output_type))
    assert out.nsfw_content_detected == [True, True, False]
    for image in out.images[:2]:
        alpha = np.asarray(image)[..., 3] if output_type != "pt" else image[3].numpy()
        assert alpha.min() == alpha.max() == (255 if output_type == "pil" else 1)
    assert not any(verdict.flagged for verdict in demo.check(out.images))
