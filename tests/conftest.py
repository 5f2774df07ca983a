"""Fixtures: guards with random weights for what is mechanical, the demo model for verdicts that must mean something."""

from __future__ import annotations

import os

# Before anything asks: tests need no network and must not try one.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from checkpoints import save_tiny
from hypothesis import settings

from nsfw_guard import NsfwGuard

# Loading and the first forward are slow on a shared machine; nothing here is about time.
settings.register_profile("default", deadline=None, max_examples=25)
settings.load_profile("default")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A checkpoint with random weights and the labels normal and nsfw. Do not write to it."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """A guard with random weights, float32. Do not change its settings."""
    return NsfwGuard(tiny_folder, dtype="float32")


@pytest.fixture(scope="session")
def demo():
    """The guard whose verdicts mean something: it flags triangles. Do not change its settings."""
    return NsfwGuard("demo", dtype="float32")


@pytest.fixture(scope="module")
def one_thread():
    """Tiny networks are so small that threads cost more than they bring; on a busy machine fifty times more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_onnx_cache(tmp_path_factory):
    """A cache folder for exported graphs that tests share."""
    return tmp_path_factory.mktemp("onnx_cache")


@pytest.fixture
def onnx_cache(shared_onnx_cache, monkeypatch):
    """Keep exported graphs in the shared folder for one test."""
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(shared_onnx_cache))
    return shared_onnx_cache


@pytest.fixture
def own_demo():
    """A demo guard of one's own, whose settings may be changed."""
    return NsfwGuard("demo", dtype="float32")


@pytest.fixture
def images():
    """A batch of eight different images, [8, 3, 48, 64] in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 6, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(48, 64), mode="bilinear").clamp(0, 1)


@pytest.fixture
def half(tiny_folder, images):
    """A guard that flags some of ``images`` and not others: its threshold lies between their scores."""
    from nsfw_guard import Policy

    guard = NsfwGuard(tiny_folder, dtype="float32")
    scores = sorted(verdict.score for verdict in guard.check(images))
    guard.policy = Policy(threshold=(scores[3] + scores[4]) / 2)
    assert sum(guard.apply(images).flags) == 4
    return guard
