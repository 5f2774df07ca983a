"""NsfwGuard: the one way through, its promises, and bad input."""

import copy
import dataclasses
import io
import math
import pickle
import threading

import numpy as np
import pytest
import torch
from checkpoints import save_tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nsfw_guard import ImageError, NsfwGuard, Policy, Redaction, SettingError
from nsfw_guard.redact import redact


def with_policy(guard, **settings):
    """A copy of a guard with another policy."""
    other = copy.copy(guard)
    other.policy = Policy(**settings)
    return other


def test_unflagged_images_are_bit_identical_and_flagged_ones_redacted(half, images):
    half.redaction = Redaction("blur", verify=False)
    kept = images.clone()
    result = half.apply(images)
    assert torch.equal(images, kept)
    for image, out, verdict in zip(images, result.images, result.verdicts, strict=True):
        expected = redact(image, Redaction("blur")) if verdict.flagged else image
        assert torch.equal(out, expected)
    assert sum(result.flags) == 4


def test_nothing_flagged_gives_the_callers_own_object(tiny, images):
    guard = with_policy(tiny, threshold=1.0)
    assert guard.apply(images).images is images
    picture = Image.new("RGB", (9, 9), "red")
    assert guard.apply(picture).images is picture


def test_check_and_apply_and_classify_agree(half, images):
    assert half.check(images) == half.apply(images).verdicts
    assert half.policy.decide(half.classify(images)) == half.check(images)


def test_a_batch_gives_what_batches_of_one_give(tiny, images):
    together = [verdict.score for verdict in tiny.check(images)]
    alone = [tiny.check(image[None])[0].score for image in images]
    assert together == pytest.approx(alone, abs=1e-4)
    small = copy.copy(tiny)
    small.batch_size = 3
    assert [verdict.score for verdict in small.check(images)] == pytest.approx(together, abs=1e-4)
    assert max(together) - min(together) > 0.01, "the scores do not differ; this test would prove nothing"


@given(order=st.permutations(range(8)))
def test_permuting_the_batch_permutes_the_verdicts(tiny, order):
    images = torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    verdicts = tiny.check(images)
    permuted = tiny.check(images[list(order)])
    assert [v.score for v in permuted] == pytest.approx([verdicts[i].score for i in order], abs=1e-4)


@given(others=st.integers(0, 6), seed=st.integers(0, 1000), bad=st.booleans())
def test_a_flag_depends_on_no_other_image(tiny, others, seed, bad):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(7))
    company = torch.rand(others, 3, 24, 24, generator=generator)
    if bad and others:
        company[0, 0, 0, 0] = math.nan
    alone = tiny.check(image)[0]
    assert tiny.check(torch.cat([company, image]))[-1].score == pytest.approx(alone.score, abs=1e-4)
    for threshold in (alone.score - 1e-3, alone.score + 1e-3):
        guard = with_policy(tiny, threshold=threshold)
        assert guard.check(torch.cat([company, image]))[-1].flagged is guard.check(image)[0].flagged


def test_batch_any_flags_them_all(half, images):
    guard = copy.copy(half)
    guard.policy = dataclasses.replace(half.policy, batch="any")
    result = guard.apply(images)
    assert all(result.flags)
    assert {verdict.reason for verdict in result.verdicts} == {"score", "batch"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("signed", [False, True])
def test_a_non_finite_image_is_flagged_and_filled_and_the_others_untouched(tiny, images, bad, signed):
    guard = with_policy(tiny, threshold=1.0)
    images[2, 1, 5, 5] = bad
    result = guard.apply(images * 2 - 1 if signed else images, value_range=(-1, 1) if signed else (0, 1))
    assert result.flags == [i == 2 for i in range(8)]
    assert result.verdicts[2].reason == "non_finite"
    assert result.images[2].unique().tolist() == [-1.0 if signed else 0.0]
    rest = [i for i in range(8) if i != 2]
    assert torch.equal(result.images[rest], (images * 2 - 1 if signed else images)[rest])


def test_a_non_finite_image_is_replaced_if_there_is_a_replacement(tiny, images):
    guard = with_policy(tiny, threshold=1.0)
    guard.redaction = Redaction("replace", image=Image.new("RGB", (4, 4), "teal"))
    images[2, 0, 0, 0] = math.nan
    out = guard.apply(images).images[2]
    assert (out[:, 5, 5] * 255).round().tolist() == [0, 128, 128]


def test_non_finite_scores_are_flagged_and_filled(tiny, images):
    guard = copy.deepcopy(with_policy(tiny, threshold=1.0))
    # As a float16 overflow does: finite pixels in, no number out.
    guard.classifier.network.register_forward_hook(
        lambda _, __, out: type(out)(logits=torch.full_like(out.logits, math.nan))
    )
    result = guard.apply(images)
    assert {verdict.reason for verdict in result.verdicts} == {"non_finite"}
    assert result.images.max() == 0


def test_report_only_changes_no_pixel(tiny, images):
    guard = copy.copy(with_policy(tiny, threshold=0.0))
    guard.redaction = Redaction("none")
    images[0, 0, 0, 0] = math.nan
    result = guard.apply(images)
    assert all(result.flags)
    assert result.images is images


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 8192), (8192, 3), (2, 2)])
def test_odd_sizes_go_through(tiny, size):
    result = with_policy(tiny, threshold=0.0).apply(torch.rand(1, 3, *size))
    assert result.images.shape == (1, 3, *size)
    assert result.flags == [True]
    assert (result.verdicts[0].reason == "too_long") is (8192 in size)
    assert result.images.unique().tolist() == [0.0]


def test_too_long_is_flagged_whatever_the_threshold(tiny):
    verdict = with_policy(tiny, threshold=1.0).check(torch.rand(1, 3, 3, 8192))[0]
    assert (verdict.flagged, verdict.reason, verdict.score) == (True, "too_long", 1.0)


@pytest.mark.parametrize("empty", [torch.zeros(0, 3, 8, 8), [], np.zeros((0, 8, 8, 3), np.uint8)])
def test_an_empty_batch_has_an_empty_result(tiny, empty):
    result = tiny.apply(empty)
    assert result.images is empty
    assert result.verdicts == []
    assert result.flagged is False
    assert tiny.last_verdicts == []


def test_mixed_sizes_and_kinds_in_a_list(half, images):
    odd = [images[0], Image.new("L", (50, 20), 100), np.zeros((30, 90, 4), np.uint8), torch.rand(1, 8, 8), images[5]]
    result = half.apply(odd)
    assert [type(out) for out in result.images] == [type(image) for image in odd]
    assert [verdict.flagged for verdict in result.verdicts] == [half.check(image)[0].flagged for image in odd]


def test_layouts_make_no_difference(half, images):
    expected = [verdict.score for verdict in half.check(images)]
    with torch.inference_mode():
        inference = images.clone()
    for same in (
        images.to(memory_format=torch.channels_last),
        images.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([images, images], 1)[:, :3],
        images.clone().requires_grad_(),
        inference,
    ):
        result = half.apply(same)
        assert [verdict.score for verdict in result.verdicts] == pytest.approx(expected, abs=1e-5)
        assert torch.equal(result.images[0], half.apply(images).images[0])
    with torch.inference_mode():
        assert [verdict.score for verdict in half.check(images)] == pytest.approx(expected, abs=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [verdict.score for verdict in half.check(images)] == pytest.approx(expected, abs=1e-5)


def test_results_can_be_used_in_training_code(half, images):
    out = half.apply(images).images
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (out * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("call", ["apply", "check", "classify"])
@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.rand(1, 3, 8, 8) * 255, {}, "expected \\[0, 1\\]"),
        (torch.rand(1, 3, 8, 8) * 2 - 1, {}, r"pass value_range=\(-1, 1\)"),
        (torch.rand(1, 3, 8, 8) * 9, {"value_range": (-1, 1)}, r"expected \[-1, 1\]"),
        (torch.rand(1, 3, 8, 8), {"value_range": (0, 255)}, r"value_range is \(0, 255\)"),
        (None, {}, "images is a NoneType"),
        (torch.zeros(1, 3, 8, 8, device="meta"), {}, "meta device"),
    ],
)
def test_bad_input_is_refused(tiny, call, images, options, message):
    with pytest.raises(ImageError, match=message):
        getattr(tiny, call)(images, **options)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1)])
def test_rounding_of_the_callers_own_is_within_the_range(tiny, low, high):
    ramp = torch.linspace(low, high, 60).view(3, 4, 5)
    assert len(tiny.check(ramp + 0.0005, value_range=(low, high))) == 1
    assert len(tiny.check(ramp - 0.0005, value_range=(low, high))) == 1
    for images in (ramp + 0.01, ramp - 0.01):
        with pytest.raises(ImageError, match="has values from"):
            tiny.check(images, value_range=(low, high))


def test_the_slot_clamps_what_the_public_calls_refuse(half, images):
    raw = (images * 2 - 1) * 1.3
    kept = raw.clone()
    out, flags = half(images=raw, clip_input=torch.zeros(8, 3, 2, 2))
    assert torch.equal(raw, kept)
    assert all(type(flag) is bool for flag in flags)
    expected = half.apply(raw.clamp(-1, 1), value_range=(-1, 1))
    assert flags == expected.flags
    for i, flag in enumerate(flags):
        if flag:
            assert 0 <= out[i].min() <= out[i].max() <= 1
            torch.testing.assert_close(out[i], (expected.images[i] + 1) / 2, atol=1e-6, rtol=0)
        else:
            assert torch.equal(out[i], raw[i])


def test_a_slot_that_only_reports_clamps_what_is_flagged(half, images):
    half.redaction = Redaction("none")
    raw = (images * 2 - 1) * 1.3
    out, flags = half(images=raw)
    assert any(flags)
    for image, before, flag in zip(out, raw, flags, strict=True):
        assert torch.equal(image, (before / 2 + 0.5).clamp(0, 1) if flag else before)


def test_the_slot_without_images_says_what_to_call(tiny, images):
    with pytest.raises(ImageError, match=r"guard\(images=...\), or call guard.apply\(images\)"):
        tiny(images)


def test_last_verdicts_are_this_threads(half, images):
    verdicts = half.check(images)
    assert half.last_verdicts is verdicts
    seen = []
    thread = threading.Thread(target=lambda: seen.extend([half.last_verdicts, len(half.check(images[:2]))]))
    thread.start()
    thread.join()
    assert seen == [None, 2]
    assert half.last_verdicts is verdicts


@pytest.mark.parametrize("call", ["apply", "check", "classify"])
def test_what_fails_leaves_no_verdicts(half, images, call):
    assert half.check(images) is half.last_verdicts
    with pytest.raises(ImageError):
        getattr(half, call)(None)
    assert half.last_verdicts is None


def test_a_classifier_that_raises_lets_no_image_out(tiny, images):
    guard = copy.deepcopy(tiny)
    guard.batch_size = 3
    calls = []

    def fail_on_the_second(module, inputs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the driver is gone")

    guard.classifier.register_forward_pre_hook(fail_on_the_second)
    with pytest.raises(RuntimeError, match="the driver is gone"):
        guard.apply(images)
    assert len(calls) == 2
    assert guard.last_verdicts is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    ],
)
def test_out_of_memory_halves_the_batch(tiny, images, error):
    # No test can fill a GPU's memory here: the classifier says that it is full when it gets more than two images.
    guard = copy.deepcopy(tiny)
    guard.batch_size = 8
    sizes = []

    def small_memory(module, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise error

    guard.classifier.register_forward_pre_hook(small_memory)
    scores = [verdict.score for verdict in guard.check(images)]
    assert scores == pytest.approx([verdict.score for verdict in tiny.check(images)], abs=1e-5)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert guard.batch_size == 8


def test_the_views_of_one_image_count_for_the_batch_size(tiny):
    guard = copy.deepcopy(tiny)
    guard.batch_size = 2
    sizes = []
    guard.classifier.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    verdict = guard.check(torch.rand(1, 3, 32, 112))[0]
    assert verdict.views == sum(sizes) == 5
    assert max(sizes) == 2


def test_out_of_memory_with_a_single_image_is_an_error(tiny, images):
    guard = copy.deepcopy(tiny)

    def no_memory(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    guard.classifier.register_forward_pre_hook(no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        guard.apply(images)


def test_copies_and_pickles_decide_alike(half, images):
    expected = half.check(images)
    for other in (copy.deepcopy(half), pickle.loads(pickle.dumps(half))):
        assert other.last_verdicts is None
        assert other.check(images) == expected


def test_threads_share_a_guard(half, images):
    expected = {size: half.check(images[:size]) for size in range(1, 9)}
    wrong = []

    def work(size):
        for _ in range(5):
            if half.check(images[:size]) != expected[size] or half.last_verdicts != expected[size]:
                wrong.append(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_process_wide_settings_stay(tiny_folder, images):
    def settings():
        return (
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            Image.MAX_IMAGE_PIXELS,
            torch.get_rng_state().tolist(),
        )

    before = settings()
    NsfwGuard(tiny_folder).apply(images)
    assert settings() == before


def test_the_dtype_follows_the_host_unless_pinned(tiny_folder):
    guard = NsfwGuard(tiny_folder, dtype="float32")
    assert guard.to(torch.float16).half().dtype == torch.float32
    guard = NsfwGuard(tiny_folder)
    assert guard.to("cpu", torch.float16).dtype == torch.float16
    guard.check(torch.rand(1, 3, 8, 8))
    assert guard.dtype == torch.float16, "a cast by the host outlasts a call"
    assert guard.float().dtype == torch.float32
    assert guard.bfloat16().dtype == torch.bfloat16
    parent = torch.nn.ModuleList([NsfwGuard(tiny_folder, dtype="float32")])
    assert next(parent.to(torch.bfloat16).parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.float32, "auto"])
def test_every_dtype_decides(tiny_folder, images, dtype):
    reference = [verdict.score for verdict in NsfwGuard(tiny_folder, dtype="float32").check(images)]
    guard = NsfwGuard(tiny_folder, dtype=dtype)
    assert [verdict.score for verdict in guard.check(images)] == pytest.approx(reference, abs=0.05)
    assert guard.describe()["dtype"] == str(guard.classifier.dtype)
    assert dtype == "auto" or guard.classifier.dtype == getattr(torch, str(dtype).removeprefix("torch."))


def test_probabilities_are_computed_in_float32(tiny_folder, images):
    guard = NsfwGuard(tiny_folder, dtype="bfloat16")
    values = [p for verdict in guard.check(images) for p in verdict.labels.values()]
    assert torch.tensor(values).bfloat16().double().tolist() != values


def test_the_dtype_follows_the_device_at_the_next_call(monkeypatch, tiny_folder):
    guard = NsfwGuard(tiny_folder)
    monkeypatch.setattr("nsfw_guard.placement.fastest_dtype", lambda device, stored: torch.float16)
    guard.check(torch.rand(1, 3, 8, 8))
    assert guard.classifier.dtype == torch.float16
    guard.double()
    guard.check(torch.rand(1, 3, 8, 8))
    assert guard.classifier.dtype == torch.float64, "a cast by the host, whichever, outlasts a call"


def test_the_weights_are_not_trained(tiny):
    assert not any(weights.requires_grad for weights in tiny.parameters())
    assert not any(module.training for module in tiny.modules())


def test_describe(tiny_folder):
    policy = Policy("high", 0.25, per_label={"nsfw": 0.75}, batch="any")
    redaction = Redaction("fill", color=(0.5, 0.25, 0.0), verify=False)
    guard = NsfwGuard(tiny_folder, dtype="float32", views="card", redaction=redaction, policy=policy, batch_size=3)
    assert guard.describe() == {
        "model": "checkpoint",
        "labels": {"normal": "neutral", "nsfw": "high"},
        "policy": {"level": "high", "threshold": 0.25, "per_label": {"nsfw": 0.75}, "batch": "any"},
        "redaction": {"kind": "fill", "cells": 16, "verify": False, "color": (0.5, 0.25, 0.0), "fit": "cover"},
        "views": "card",
        "batch_size": 3,
        "runtime": "auto",
        "pinned": {"dtype": "torch.float32"},
        "device": "cpu",
        "dtype": "torch.float32",
        "preprocess": "PyTorch's own resize on cpu",
        "forward": {"path": "oneDNN", "why": "linear layers by oneDNN"},
    }


def test_views_see_what_the_card_does_not(tmp_path):
    from nsfw_guard import CARDS, ModelCard

    card = CARDS.get("falconsai")
    spec = dataclasses.replace(card.preprocess, size=32, resize="crop")
    cropping = ModelCard(name="cropping", levels=dict(card.levels), preprocess=spec)
    folder = save_tiny(tmp_path / "tiny")
    wide = torch.zeros(1, 3, 32, 96)
    wide[..., :16] = torch.rand(3, 32, 16)
    by_card = NsfwGuard(folder, card=cropping, dtype="float32", views="card")
    auto = NsfwGuard(folder, card=cropping, dtype="float32")
    blank = torch.zeros(1, 3, 32, 96)
    assert by_card.classify(wide).probabilities == by_card.classify(blank).probabilities
    assert auto.classify(wide).probabilities != auto.classify(blank).probabilities
    assert auto.check(wide)[0].views == 4


def test_animated_pictures_have_one_verdict_the_maximum(half, images):
    pictures = [Image.fromarray((image * 255).byte().movedim(0, -1).contiguous().numpy()) for image in images]
    scores = [half.check(picture)[0].score for picture in pictures]
    file = io.BytesIO()
    pictures[0].save(file, "PNG", save_all=True, append_images=pictures[1:])
    (verdict,) = half.check(file.getvalue())
    assert verdict.score == pytest.approx(max(scores), abs=1e-4)
    assert verdict.views == 8
    result = half.apply(file.getvalue())
    for index, frame in enumerate(pictures):
        result.images.seek(index)
        assert np.abs(np.asarray(result.images.convert("RGB")).astype(int) - np.asarray(frame)).mean() > 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "lenient"}, r"policy is 'lenient'; the card .* has the presets \['balanced'\].*Policy\(level="),
        ({"policy": 0.5}, "policy is 0.5; expected a Policy or one of the card's presets"),
        ({"policy": Policy(per_label={"gore": 0.5})}, r"per_label names \['gore'\]"),
        ({"redaction": "mosaic"}, "redaction is 'mosaic'"),
        ({"views": "some"}, "views is 'some'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected \"auto\" or one of"),
        ({"device": "tpu9"}, "device is 'tpu9', which cannot be used here"),
        ({"device": "meta"}, "device is 'meta', which cannot be used here"),
        ({"card": "nobody"}, "There is no model card 'nobody'. Cards: adamcodd, demo, falconsai, freepik, marqo"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny_folder, settings, message):
    with pytest.raises(SettingError, match=message):
        NsfwGuard(tiny_folder, **settings)


def test_save_and_load(tmp_path, tiny_folder, images):
    policy = Policy(level="high", threshold=0.25, per_label={"nsfw": 0.75}, batch="any")
    redaction = Redaction("replace", image=Image.new("RGB", (5, 5), "teal"), fit="contain", color=(0, 0.5, 1))
    guard = NsfwGuard(tiny_folder, policy=policy, redaction=redaction, views="card", dtype="float32", batch_size=5)
    guard.save_pretrained(tmp_path / "saved")
    again = NsfwGuard.from_pretrained(tmp_path / "saved")
    assert again.policy == policy
    assert (again.views, again.batch_size, again.classifier.dtype) == ("card", 5, torch.float32)
    assert again.card == guard.card
    before, after = guard.apply(images), again.apply(images)
    assert after.verdicts == before.verdicts
    assert torch.equal(after.images, before.images)
    # The folder is an ordinary checkpoint, too.
    assert NsfwGuard(tmp_path / "saved", policy=policy, dtype="float32", views="card").check(images) == before.verdicts


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_host_casts_what_it_loads_unless_a_dtype_is_pinned(tmp_path, tiny_folder, name):
    for pinned, expected in (("auto", torch.float16), ("bfloat16", torch.bfloat16)):
        NsfwGuard(tiny_folder, dtype=pinned).save_pretrained(tmp_path / pinned)
        assert NsfwGuard.from_pretrained(tmp_path / pinned, **{name: torch.float16}).classifier.dtype == expected


def test_apply_as_torch_modules_mean_it_is_refused(tiny):
    # torch.nn.Module.apply(fn) would be free to rewrite the weights.
    with pytest.raises(ImageError, match="images is a function"):
        tiny.apply(lambda module: None)
