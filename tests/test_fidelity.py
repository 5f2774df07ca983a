"""The four public architectures through their cards, against the reference processors and models.

Reference for the model input: transformers' ViTImageProcessorPil (Pillow) and ViTImageProcessor (torchvision), and
timm's create_transform (Pillow through torchvision). The figures go to the test report: pytest -m ''
tests/test_fidelity.py -rP.
"""

from __future__ import annotations

import io

import numpy as np
import PIL
import pytest
import timm.data
import torch
import transformers
from checkpoints import SAVERS
from pictures import structured_pictures
from profiles import ADOBE, P3, SRGB, gamma_curve, matrix_profile, srgb_curve
from transformers import AutoModelForImageClassification

from nsfw_guard import CARDS, NsfwGuard
from nsfw_guard.demo.shapes import COLORS, SHAPES, draw
from nsfw_guard.images import read_images, to_picture
from nsfw_guard.preprocess import ViewBatch

PICTURES = structured_pictures()
# What is looked at first is what is stored; see test_ordinary_profiles_move_scores_little for the rest.
PROFILES = [("sRGB", SRGB, srgb_curve()), ("Display P3", P3, srgb_curve()), ("Adobe RGB", ADOBE, gamma_curve(2.2))]


@pytest.fixture(scope="module", params=sorted(SAVERS))
def model(request, tmp_path_factory):
    """The name of a card, and a folder with a checkpoint in that model's layout."""
    return request.param, SAVERS[request.param](tmp_path_factory.mktemp(request.param))


def reference_transforms(name, folder):
    """Reference name → function from a PIL picture to the model input."""
    if name in ("marqo", "freepik"):
        import json

        config = json.loads((folder / "config.json").read_text())
        data = timm.data.resolve_data_config(pretrained_cfg=config["pretrained_cfg"])
        return {"timm create_transform": timm.data.create_transform(**data, is_training=False)}
    found = {"ViTImageProcessor": transformers.ViTImageProcessor}
    if hasattr(transformers, "ViTImageProcessorPil"):
        found["ViTImageProcessorPil"] = transformers.ViTImageProcessorPil
    processors = {key: cls.from_pretrained(folder) for key, cls in found.items()}
    return {key: lambda x, p=p: p(images=x, return_tensors="pt").pixel_values[0] for key, p in processors.items()}


def our_input(card, image, **options):
    return ViewBatch(read_images(image, **options), card.preprocess, views="card").load(0, 1)[0][0]


def input_kinds(picture, *, profiles):
    """One picture as every kind of input that holds 8-bit values; as files with a profile, too."""
    array = np.array(picture)
    tensor = torch.from_numpy(array).movedim(-1, 0)
    yield "PIL", picture, {}
    yield "uint8 array", array, {}
    yield "uint8 tensor", tensor, {}
    yield "float tensor in [0, 1]", tensor.float() / 255, {}
    yield "float tensor in [-1, 1]", tensor.float() / 127.5 - 1, {"value_range": (-1, 1)}
    for space, primaries, curve in PROFILES if profiles else ():
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1, icc_profile=matrix_profile(primaries, curve))
        yield f"PNG in {space}", file.getvalue(), {}


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="older Pillow resizes in another order of axes")
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_the_model_input_is_the_reference_processors(model, every):
    name, folder = model
    card = CARDS.get(name)
    std = torch.tensor(card.preprocess.std).view(3, 1, 1)
    worst = {}
    for key, transform in reference_transforms(name, folder).items():
        for number, picture in enumerate(PICTURES[::every]):
            expected = transform(picture)
            for kind, image, options in input_kinds(picture, profiles=number % 5 == 0):
                off = ((our_input(card, image, **options) - expected) * std * 255).abs().max().item()
                worst[key, kind] = max(worst.get((key, kind), 0), off)
    print(f"{name}: largest difference of the model input, in 1/255, over {len(PICTURES[::every])} pictures; ", end="")
    print(f"Pillow {PIL.__version__}, transformers {transformers.__version__}, timm {timm.__version__}")
    for (key, kind), off in worst.items():
        print(f"  {key}, {kind}: {off:.3f}")
    assert max(worst.values()) <= 1.25


def test_ordinary_profiles_move_scores_little(demo):
    """With the one trained network that is at hand: the verdicts are the same, the scores nearly."""
    names = [name for name in SHAPES for _ in range(6)]
    colors = list(zip(COLORS, COLORS[3:] + COLORS[:3], strict=True)) * 4
    pictures = [to_picture(draw(name, *pair)) for name, pair in zip(names, colors, strict=False)]
    plain = [verdict.score for verdict in demo.check(pictures)]
    for space, primaries, curve in PROFILES:
        for picture in pictures:
            picture.info["icc_profile"] = matrix_profile(primaries, curve)
        found = demo.check(pictures)
        moved = [abs(verdict.score - score) for verdict, score in zip(found, plain, strict=True)]
        looks = sum(verdict.views for verdict in found) / len(found)
        print(f"{space}: {looks:.1f} looks, scores move by {max(moved):.4f} at most, {np.mean(moved):.5f} on average")
        assert [verdict.flagged for verdict in found] == [score >= 0.5 for score in plain]
        assert np.mean(moved) < 0.01
        assert (looks == 1) == (space == "sRGB")


def reference_logits(name, folder, pictures):
    transform = next(reversed(reference_transforms(name, folder).values()))
    network = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.cat([network(pixel_values=transform(picture)[None]).logits for picture in pictures])


def our_logits(guard, pictures):
    """By the fastest path that there is here."""
    classifier = guard.classifier
    inputs, _, _ = ViewBatch(read_images(pictures), guard.card.preprocess, views="card").load(0, len(pictures))
    with torch.no_grad():
        dtype = next(guard.parameters()).dtype
        parts = [part.to(dtype) for part in inputs.split(8)]
        return torch.cat([classifier.forward_path(classifier.body, classifier, part).float() for part in parts])


# All of them take minutes; every seventh is one of each kind.
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_the_logits_are_the_reference_models(model, every):
    name, folder = model
    pictures = PICTURES[::every]
    reference = reference_logits(name, folder, pictures)
    spread = reference.std(dim=0)
    assert spread.min() > 1e-3, "the random network does not react to the pictures; this test would prove nothing"
    logits = our_logits(NsfwGuard(folder, card=name, dtype="float32", views="card"), pictures)
    off = (logits - reference).abs() / spread
    print(
        f"{name} float32, {len(pictures)} pictures: logits off by at most {off.max():.3%} of their standard deviation, "
        f"median {off.median():.3%}"
    )
    assert off.max() < 0.02
    # The order of two pictures changes only where the reference itself hardly separates them.
    for label in range(reference.shape[1]):
        apart = reference[:, None, label] - reference[None, :, label]
        ours = logits[:, None, label] - logits[None, :, label]
        assert not ((apart * ours < 0) & (apart.abs() > 0.02 * spread[label])).any()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.25), ("float16", 0.05)])
def test_half_precision_stays_near_float32(model, dtype, bound):
    name, folder = model
    reference = our_logits(NsfwGuard(folder, card=name, dtype="float32", views="card"), PICTURES)
    logits = our_logits(NsfwGuard(folder, card=name, dtype=dtype, views="card"), PICTURES)
    off = (logits - reference).abs() / reference.std(dim=0)
    print(
        f"{name} {dtype}: logits off by at most {off.max():.3%} of their standard deviation, median {off.median():.3%}"
    )
    assert off.max() < bound


def test_the_card_says_what_the_checkpoints_own_files_say(model):
    name, folder = model
    from nsfw_guard.checkpoint import _spec_of, read_config

    assert _spec_of(folder, read_config(folder)) == CARDS.get(name).preprocess
