"""How far ONNX Runtime is from torch, in float32 and in int8; printed by pytest -m "" tests/test_onnx_fidelity.py -rP.

The four public architectures have random weights here; the demo's model is a trained one, on drawings it never saw.
"""

from __future__ import annotations

import pytest
import torch
from checkpoints import SAVERS
from pictures import structured_pictures

pytest.importorskip("onnxruntime")

from nsfw_guard import NsfwGuard
from nsfw_guard.demo import shapes
from nsfw_guard.images import read_images
from nsfw_guard.preprocess import ViewBatch

slow = pytest.mark.slow
PICTURES = structured_pictures()
# Of the logits' standard deviation over the pictures: the largest and the median shift that a test lets pass.
LIMITS = {"float32": (0.002, 0.0005), "int8": (0.25, 0.05)}


PRECISIONS = ["float32", "int8"]
# The demo's model is compared by default.
CASES = [pytest.param(name, precision, marks=slow) for name in sorted(SAVERS) for precision in PRECISIONS]


@pytest.fixture(scope="module")
def checkpoint(request, tmp_path_factory):
    """The name of a card, and a folder with a checkpoint in that model's layout."""
    return request.param, SAVERS[request.param](tmp_path_factory.mktemp(request.param))


def logits_of(guard):
    inputs, _, _ = ViewBatch(read_images(PICTURES), guard.card.preprocess, views="card").load(0, len(PICTURES))
    with torch.no_grad():
        return torch.cat([guard.classifier(part) for part in inputs.split(4)])


@pytest.fixture(scope="module")
def reference(checkpoint):
    """The logits of torch in float32."""
    name, folder = checkpoint
    return logits_of(NsfwGuard(folder, card=name, dtype="float32"))


def agreement(ours, reference):
    """Count the decisions that agree, at nine thresholds on the first label that lie between pictures."""
    ours, reference = ours.softmax(1)[:, :1], reference.softmax(1)[:, :1]
    thresholds = torch.quantile(reference, torch.linspace(0.11, 0.91, 9))
    same = (ours >= thresholds) == (reference >= thresholds)
    return same.sum().item(), same.numel()


@pytest.mark.parametrize(("checkpoint", "precision"), CASES, indirect=["checkpoint"])
def test_the_logits_are_those_of_torch(checkpoint, reference, precision, onnx_cache):
    name, folder = checkpoint
    spread = reference.std(dim=0)
    assert spread.min() > 1e-3, "the random network does not react to the pictures; this test would prove nothing"
    logits = logits_of(NsfwGuard(folder, card=name, runtime="onnx", dtype=precision))
    off = (logits - reference).abs() / spread
    same, decisions = agreement(logits, reference)
    print(
        f"{name}, ONNX Runtime {precision}: logits off by at most {off.max():.4%} of their standard deviation, median "
        f"{off.median():.4%}, over {len(PICTURES)} pictures; {same} of {decisions} decisions agree"
    )
    most, median = LIMITS[precision]
    assert off.max() < most
    assert off.median() < median


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_demo_decides_as_with_torch(demo, precision, onnx_cache, one_thread):
    guard = NsfwGuard("demo", runtime="onnx", dtype=precision)
    generator = torch.Generator().manual_seed(987654321)  # no seed of the training script
    scenes = shapes.random_scenes(600, generator, empty=1 / 6)
    drawings = shapes.render(scenes, 128)
    # It is sure of nearly all of those, which proves little; of one that fades into another it is not.
    unsafe = torch.tensor([scene.shape == shapes.FLAGGED_SHAPE for scene in scenes])
    pairs = min(unsafe.sum().item(), 100)
    fading = [drawings[unsafe][:pairs].lerp(drawings[~unsafe][:pairs], share) for share in (0.35, 0.45, 0.55)]
    drawings = torch.cat([drawings, *fading])
    reference, verdicts = (
        [verdict for part in drawings.split(100) for verdict in each.check(part)] for each in (demo, guard)
    )
    changed = [
        abs(ours.score - theirs.score)
        for ours, theirs in zip(verdicts, reference, strict=True)
        if ours.flagged != theirs.flagged
    ]
    off = torch.tensor([ours.score - theirs.score for ours, theirs in zip(verdicts, reference, strict=True)]).abs()
    flagged = sum(verdict.flagged for verdict in reference)
    close = sum(0.1 < verdict.score < 0.9 for verdict in reference)
    print(
        f"demo, ONNX Runtime {precision}: {len(drawings) - len(changed)} of {len(drawings)} verdicts agree at the "
        f"card's threshold ({flagged} flagged, {close} with scores from 0.1 to 0.9); the probability is off by at most "
        f"{off[:600].max():.2g} on drawings and {off[600:].max():.2g} where one fades into another, "
        f"median {off.median():.2g}"
    )
    assert close >= 20, "the model is sure of everything; this test would prove little"
    assert off.max() < (1e-4 if precision == "float32" else 0.1)
    assert len(changed) <= (0 if precision == "float32" else 0.01 * len(drawings))
