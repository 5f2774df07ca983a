"""What decoding JPEGs at twice the model's size changes, against decoding them in full.

The figures go to the test report: pytest -m '' tests/test_scan_draft.py -rP.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from checkpoints import save_falconsai, save_marqo
from pictures import grid, noise, shapes, text, tinted
from PIL import Image

from nsfw_guard import NsfwGuard
from nsfw_guard.demo.shapes import random_scenes, render
from nsfw_guard.images import read_images
from nsfw_guard.images.settings import DecodeSettings
from nsfw_guard.preprocess import ViewBatch
from nsfw_guard.scan.decode import decode

SIZES = [(3000, 2000), (2000, 3000), (1920, 1080), (1600, 1600), (1500, 1001)]


def photo_like(width, height, rng):
    """Noise whose amplitude falls with its frequency, as in photographs."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(width, height))
    planes = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * rng.uniform(size=amplitude.shape))
        planes.append(np.fft.irfft2(amplitude * phase, s=(height, width)))
    shown = np.stack(planes, axis=-1)
    shown = 128 + 50 * shown / shown.std()
    return tinted(Image.fromarray(shown.clip(0, 255).astype(np.uint8)), rng)


def lines(width, height, rng):
    """Lines of one pixel at every tenth pixel or closer."""
    step, rows = int(rng.integers(2, 10)), np.indices((height, width))[int(rng.integers(2))]
    return tinted(Image.fromarray(np.where(rows % step == 0, 0, 255).astype(np.uint8)).convert("RGB"), rng)


def scenes(width, height, rng):
    """What the demo model knows."""
    scene = random_scenes(1, torch.Generator().manual_seed(int(rng.integers(2**31))))
    pixels = (render(scene, (height, width))[0] * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())


KINDS = {"photo-like": photo_like, "shapes": shapes, "text": text, "lines": lines, "grid": grid, "noise": noise}


def jpegs(kind, count, rng):
    for index in range(count):
        file = io.BytesIO()
        kind(*SIZES[index % len(SIZES)], rng).save(file, "JPEG", quality=int(rng.integers(75, 96)))
        yield file


def both(file, guard):
    """The model input of a JPEG, decoded in full and scaled, ``[2, V, 3, size, size]``, and its logits."""
    spec = guard.card.preprocess
    size = int(spec.size / spec.crop_pct)
    inputs = []
    for exact in (True, False):
        file.seek(0)
        ((_, frame),) = decode(file, DecodeSettings(size=size, exact=exact), name="x").frames()
        inputs.append(ViewBatch(read_images(frame), spec, views=guard.views).load(0, 1)[0])
    with torch.no_grad():
        return torch.stack(inputs), torch.stack([guard.classifier.forward(each) for each in inputs])


def measure(guard, kinds, count):
    """Print and return, per kind of picture, the differences of input (in 1/255) and of logits."""
    rng = np.random.default_rng(0)
    std = torch.tensor(guard.card.preprocess.std).view(3, 1, 1)
    found = {}
    for name, kind in kinds.items():
        inputs, logits = zip(*[both(file, guard) for file in jpegs(kind, count, rng)], strict=True)
        off = torch.cat([((each[1] - each[0]) * std * 255).abs().flatten() for each in inputs])
        found[name] = off, torch.cat([each[:, :1] for each in logits], dim=1)
    every = torch.cat([each[0] for _, each in found.values()])
    spread = every.std(dim=0).mean().item()
    print(f"{guard.card.name}: {count} JPEGs of each kind, decoded scaled against in full")
    print(f"  spread of the logits over the {len(every)} pictures (standard deviation): {spread:.3f}")
    for name, (off, each) in found.items():
        moved = (each[1] - each[0]).abs()
        print(
            f"  {name:10} input: mean {off.mean():5.2f}, max {off.max():5.1f} of 255;  logits: "
            f"mean {moved.mean():.4f}, max {moved.max():.4f} = {100 * moved.max() / spread:.1f} % of the spread"
        )
    return found, spread


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_falconsai, save_marqo])
def test_scaled_decoding_moves_the_scores_of_random_weights_little(save, tmp_path):
    guard = NsfwGuard(save(tmp_path / "checkpoint"), card=save.__name__.removeprefix("save_"), dtype="float32")
    found, _ = measure(guard, KINDS, 5)
    for name in ("photo-like", "shapes"):
        off, _ = found[name]
        assert off.mean() < 1, name


@pytest.mark.slow
def test_scaled_decoding_moves_the_scores_of_the_demo_little(demo):
    found, spread = measure(demo, {"scenes": scenes, **KINDS}, 5)
    _, each = found["scenes"]
    assert (each[1] - each[0]).abs().max() < 0.1 * spread
    assert torch.equal(each[0].argmax(-1), each[1].argmax(-1))


def test_scaled_decoding_keeps_every_decision_of_the_demo(demo):
    rng = np.random.default_rng(1)
    flags = []
    for file in jpegs(scenes, 5, rng):
        for exact in (True, False):
            file.seek(0)
            size = demo.card.preprocess.size
            ((_, frame),) = decode(file, DecodeSettings(size=size, exact=exact), name="x").frames()
            flags.append(demo.check(frame)[0].flagged)
    assert flags[::2] == flags[1::2]
