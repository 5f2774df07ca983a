"""Triton's kernels, run by Triton's own interpreter on a CPU; on a GPU they run in test_cuda.py. And how often the host
waits for a device."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from nsfw_guard import ModelCard, Policy, PreprocessSpec, Redaction, drawing, preprocess
from nsfw_guard.classifier import Classifier
from nsfw_guard.images import read_images
from nsfw_guard.images import stack as images_module
from nsfw_guard.preprocess import ViewBatch, kernels
from nsfw_guard.redact import redact_flagged

# In a process of its own: the interpreter is switched on for the whole of it, before Triton is imported.
SCRIPT = """
import torch
from nsfw_guard.images import Frames
from nsfw_guard.fused import model_input as fused
from nsfw_guard.preprocess import PreprocessSpec, View, model_input, plan_views

torch.manual_seed(0)
measured = 0
for mode, resize, size, shape, dtype in [
    ("bilinear", "squash", 28, (2, 3, 64, 64), torch.float32),
    ("bicubic", "squash", 28, (2, 3, 60, 96), torch.float32),
    ("bicubic", "crop", 24, (1, 3, 60, 96), torch.bfloat16),
    ("bicubic", "squash", 28, (1, 3, 20, 16), torch.float32),
    ("bilinear", "squash", 28, (1, 1, 120, 40), torch.uint8),
    ("bicubic", "crop", 24, (1, 3, 128, 48), torch.uint8),
    ("bilinear", "squash", 24, (1, 3, 128, 48), torch.float16),
]:
    spec = PreprocessSpec(size, resize, mode, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    std = torch.tensor(spec.std).view(3, 1, 1)
    if dtype == torch.uint8:
        frames = Frames((torch.rand(shape) * 255).to(dtype), 0, 255)
    else:
        frames = Frames((torch.rand(shape) * 2.4 - 1.2).to(dtype), 1, 2)  # some out of range, to be clamped
    first, *_, last = plan_views(*shape[-2:], spec, views="card") + plan_views(*shape[-2:], spec)
    for view in (first, last):
        given, extent = fused(frames, view, spec)
        off = ((given - model_input(frames, view, spec)) * std * 255).abs()
        assert off.max() < 1.1 and off.mean() < 0.01, (mode, resize, shape, dtype, view, off.max())
        if extent is not None:
            measured += 1
            torch.testing.assert_close(extent, frames.extent())
assert measured >= 4
pixels = torch.rand(3, 3, 64, 64)
pixels[0, 1, 5, 5], pixels[1, 2, 3, 3] = float("nan"), float("inf")
given, extent = fused(Frames(pixels), View(0, 0, 64, 64), PreprocessSpec(28))
assert extent[0].isnan().all() and extent[1, 1].isinf() and extent[2].isfinite().all()
assert not given[0].isfinite().all() and given[2].isfinite().all()
assert fused(Frames(pixels), View(0, 0, 64, 64), PreprocessSpec(64)) is None  # nothing to resize
# A crop that cuts off one row at the end: what was not read is not measured.
pixels = torch.rand(1, 3, 64, 69)
pixels[..., -1, -1] = float("nan")
spec = PreprocessSpec(14, "crop")
_, extent = fused(Frames(pixels), plan_views(64, 69, spec, views="card")[0], spec)
assert extent is None or extent.isnan().all()
negative = Frames(torch._neg_view(-torch.rand(1, 3, 64, 64)))
given, extent = fused(negative, View(0, 0, 64, 64), PreprocessSpec(28))
assert (given - model_input(negative, View(0, 0, 64, 64), PreprocessSpec(28))).abs().max() < 0.01
assert extent.min() >= 0
torch.set_default_dtype(torch.float16)
_, extent = fused(Frames(pixels[..., :40, :40]), View(0, 0, 40, 40), PreprocessSpec(28))
assert extent.dtype == torch.float32
print("all the same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_do_what_the_plain_resize_does():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "all the same", done.stderr[-2000:]


def test_without_triton_pytorch_resizes(monkeypatch, caplog):
    kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "nsfw_guard.fused", None)
    try:
        found = [kernels(torch.device("cuda")) for _ in range(2)]
    finally:
        kernels.cache_clear()
    assert found[0][0] is None
    assert found[0][1].startswith("PyTorch's own resize; Triton failed: ")
    assert len(caplog.records) == 1
    assert kernels(torch.device("cpu"))[0] is None


class Network(nn.Module):
    """Stands in for a classifier: those of the libraries cannot be made of tensors without numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 32, device="cuda")

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.layer(pixel_values).flatten(1))


class NothingIsBroughtThere(TorchFunctionMode):
    """Within it, making a tensor on the GPU from numbers of the host is an error: the host would wait for the copy."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        assert not (made and result.device.type == "cuda"), "a tensor is brought to the device"
        return result


@pytest.mark.parametrize("kind", ["blur", "pixelate", "fill"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8])
@pytest.mark.parametrize("size", [(64, 64), (40, 100)])
def test_the_host_waits_once(monkeypatch, kind, dtype, size):
    """On tensors that only say that they are on a GPU: reading any number of them would raise."""
    reads, constants = [], {}

    def constant(values, device):  # the real one does not keep what is no real tensor
        if (values, device) not in constants:
            constants[values, device] = torch.tensor(values, device=device)
        return constants[values, device]

    def read(tensor):
        reads.append(tensor.numel())
        return [0.5] * tensor.numel()

    monkeypatch.setattr(FakeTensor, "tolist", read)
    for module in (preprocess, drawing, images_module):
        monkeypatch.setattr(module, "constant", constant)
    monkeypatch.setattr(preprocess, "kernels", lambda device: (None, "a stand-in"))
    card = ModelCard("tiny", {"a": "neutral", "b": "high"}, preprocess=PreprocessSpec(32, "crop", "bicubic"))
    with FakeTensorMode(), torch.no_grad():
        classifier = Classifier(Network(), card, ("a", "b"), runtime="torch")
        images = torch.zeros(3, 3, *size, device="cuda").to(dtype)

        def apply():
            batch = read_images(images)
            views = ViewBatch(batch, classifier.preprocess)
            scores = classifier.score(views, device=images.device, batch_size=16)
            verdicts = Policy(threshold=0.5).decide(scores)
            assert all(verdict.flagged for verdict in verdicts)
            return batch.replace(redact_flagged(batch, verdicts, Redaction(kind)))

        apply()  # constants are brought to the device once
        reads.clear()
        with NothingIsBroughtThere():
            assert apply().device.type == "cuda"
    assert len(reads) == 1
