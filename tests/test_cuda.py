"""What only a GPU can show; skipped without one. Everything is compared with the same guard on the CPU, or eagerly."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from checkpoints import SAVERS
from pictures import structured_pictures

from nsfw_guard import CARDS, NsfwGuard, Policy, Redaction
from nsfw_guard.bench.gpu import copies_to_host, count_synchronisations
from nsfw_guard.images import Frames, read_images
from nsfw_guard.preprocess import ViewBatch, kernels, model_input, plan_views

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def falconsai(tmp_path_factory):
    return SAVERS["falconsai"](tmp_path_factory.mktemp("falconsai"))


def pictures(count, size=256, dtype=torch.float32):
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").to(CUDA, dtype)


def splitting(guard, images):
    """The guard with a policy that flags about half of the images."""
    scores = sorted(verdict.score for verdict in guard.check(images))
    guard.policy = Policy(threshold=(scores[len(scores) // 2] + scores[len(scores) // 2 - 1]) / 2)
    return guard


def test_tritons_kernels_are_used_here():
    fused, why = kernels(CUDA)
    assert fused is not None, why


@pytest.mark.parametrize("name", ["falconsai", "freepik", "marqo", "adamcodd"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
def test_the_fused_resize_is_the_plain_one(name, dtype):
    spec = CARDS.get(name).preprocess
    fused, _ = kernels(CUDA)
    std = torch.tensor(spec.std, device=CUDA).view(3, 1, 1)
    for height, width in [(1024, 1024), (720, 1280), (1000, 333), (100, 150), (2048, 300)]:
        pixels = torch.rand(2, 3, height, width, device=CUDA)
        if dtype == torch.uint8:
            frames = Frames((pixels * 255).to(dtype), 0, 255)
        else:
            frames = Frames((pixels * 2.2 - 1.1).to(dtype), 1, 2)
        for view in plan_views(height, width, spec) or ():
            expected = model_input(frames, view, spec)
            given, extent = fused(frames, view, spec)
            off = ((given - expected) * std * 255).abs()
            assert off.max() < 1.6  # a level after the first axis, where rounding decides
            assert off.mean() < 0.01
            if extent is not None:
                torch.testing.assert_close(extent, frames.extent())


def test_the_model_input_is_that_of_the_cpu(falconsai):
    spec = CARDS.get("falconsai").preprocess
    for picture in structured_pictures():
        array = torch.from_numpy(np.array(picture)).movedim(-1, 0)[None]
        here, _, _ = ViewBatch(read_images(array), spec).load(0, 1)
        there, extent, _ = ViewBatch(read_images(array.to(CUDA)), spec).load(0, 1)
        assert ((there.cpu() - here) * 0.5 * 255).abs().max() <= 1.25
        assert extent.device == there.device == CUDA


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.02), ("float16", 0.1), ("bfloat16", 0.5)])
@pytest.mark.parametrize("name", sorted(SAVERS))
def test_scores_are_those_of_the_cpu(name, dtype, bound, tmp_path):
    folder = SAVERS[name](tmp_path)
    images = pictures(12, 300)
    plain = NsfwGuard(folder, card=name, dtype="float32", runtime="torch")
    fast = NsfwGuard(folder, card=name, dtype=dtype)

    def logits(guard, images):
        guard.check(images[:1])
        inputs, _, _ = ViewBatch(read_images(images), guard.card.preprocess).load(0, len(images))
        probabilities = [guard.classifier.probabilities(inputs) for _ in range(3)]
        assert torch.equal(probabilities[1], probabilities[2])
        return probabilities[-1].log().cpu()

    expected = logits(plain, images.cpu())
    off = (logits(fast, images) - expected).abs() / expected.std(dim=0)
    print(f"{name} {dtype}: off by at most {off.max():.3%} of the spread, median {off.median():.3%}")
    assert fast.describe()["forward"]["path"] == "CUDA graph"
    assert off.max() < bound


def test_a_graph_gives_what_the_eager_forward_gives(falconsai):
    graph, eager = NsfwGuard(falconsai, card="falconsai"), NsfwGuard(falconsai, card="falconsai", runtime="torch")
    for count in (1, 3, 16, 20, 1, 3, 20, 16, 3):
        images = pictures(count)
        given, expected = graph.classify(images), eager.classify(images)
        torch.testing.assert_close(
            torch.tensor(given.probabilities), torch.tensor(expected.probabilities), atol=1e-5, rtol=0
        )
    assert len(graph.classifier.forward_path._graphs._graphs) == 4  # 20 is 16 and 4


def test_a_graph_never_reads_old_weights(falconsai):
    guard = NsfwGuard(falconsai, card="falconsai")
    images = pictures(4)

    def scores():
        return [guard.classify(images).probabilities for _ in range(3)][-1]

    before = scores()
    head = guard.classifier.network.classifier
    with torch.no_grad():
        head.bias += torch.tensor([1.0, -1.0], device=CUDA)
    in_place = scores()
    assert in_place != before
    head.bias = torch.nn.Parameter(head.bias.detach().clone() * -1, requires_grad=False)
    replaced = scores()
    assert replaced not in (before, in_place)
    guard.to("cpu")
    assert scores() == replaced  # it follows the images back
    head.register_forward_hook(lambda module, args, output: output * 0)
    assert all(p == pytest.approx(0.5) for views in scores() for view in views for p in view)
    assert guard.describe()["forward"]["path"] == "eager"


@pytest.mark.parametrize(
    "redaction", [*("blur", "pixelate", "fill", "none"), Redaction("replace", image=torch.rand(3, 9, 9))]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8])
def test_the_host_waits_once_per_call(falconsai, redaction, dtype):
    images = pictures(4) if dtype != torch.uint8 else (pictures(4) * 255).to(torch.uint8)
    images = images.to(dtype)
    guard = splitting(NsfwGuard(falconsai, card="falconsai", redaction=redaction), images)
    for _ in range(3):
        guard.apply(images)
    results = []
    waits = count_synchronisations(lambda: results.append(guard.apply(images)))
    assert 0 < sum(results[0].flags) < 4
    assert waits == 1


@pytest.mark.parametrize(("exact", "expected"), [(True, 1), (False, 0)])
def test_what_a_pipeline_returns_is_compared_in_one_wait_at_most(falconsai, exact, expected):
    """And only where tensors are asked for; a change that the count of writes does not tell is found then."""
    pytest.importorskip("diffusers")
    from nsfw_guard.integrations.diffusers_pipeline.record import Passed, Record
    from nsfw_guard.integrations.diffusers_pipeline.settings import Attachment, Settings

    guard, images = NsfwGuard(falconsai, card="falconsai"), pictures(2)
    record = Record(Attachment(guard, Settings()), CUDA, exact=exact)
    record.add(images, [Passed(verdict) for verdict in guard.check(images)])
    found = []
    waits = count_synchronisations(lambda: found.append((record.find(images), record.find(images, final=True))))
    assert waits == expected
    assert found == [(record.passed, record.passed)]
    images.data.mul_(0.5)
    assert (record.find(images, final=True) is None) == exact


def test_no_pixels_leave_the_device(falconsai):
    images = pictures(4, 512)
    guard = splitting(NsfwGuard(falconsai, card="falconsai"), images)
    for _ in range(3):
        guard.apply(images)
    assert len(copies_to_host(lambda: guard.apply(images))) == 1


def test_threads_on_streams_of_their_own_get_their_own_scores(falconsai):
    guard = NsfwGuard(falconsai, card="falconsai")
    batches = [pictures(1 + index % 3, 64 * (1 + index)) for index in range(6)]
    expected = [guard.classify(batch).probabilities for batch in batches]
    expected = [guard.classify(batch).probabilities for batch in batches]
    wrong = []

    def run(index):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(30):
                if guard.classify(batches[index]).probabilities != expected[index]:
                    wrong.append(index)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_capture_their_own_graphs(falconsai):
    guard = NsfwGuard(falconsai, card="falconsai")
    images = pictures(2)
    expected = [guard.classify(images).probabilities for _ in range(3)][-1]
    other = copy.deepcopy(guard)
    del guard
    torch.cuda.empty_cache()
    assert [other.classify(images).probabilities for _ in range(3)][-1] == expected


def test_within_a_hosts_own_graph_nothing_is_captured_twice(falconsai):
    guard = NsfwGuard(falconsai, card="falconsai")
    guard.check(pictures(2))
    inputs = torch.rand(2, 3, 224, 224, device=CUDA, dtype=guard.dtype)
    classifier = guard.classifier
    classifier.probabilities(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = classifier.probabilities(inputs)
    graph.replay()
    torch.testing.assert_close(output, classifier.probabilities(inputs), atol=1e-3, rtol=0)


def test_many_large_images_in_little_memory(falconsai):
    guard = NsfwGuard(falconsai, card="falconsai")
    images = torch.rand(64, 3, 2048, 2048, device=CUDA, dtype=torch.float16)
    guard.check(images[:16])
    guard.check(images[:16])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    guard.check(images)
    extra = torch.cuda.max_memory_allocated() - before
    print(f"64 images of 2048x2048 in float16 ({images.nbytes / 2**20:.0f} MiB): {extra / 2**20:.0f} MiB more at most")
    assert extra < 2**30


def test_out_of_memory_halves_the_batch(falconsai):
    guard = NsfwGuard(falconsai, card="falconsai", batch_size=64, runtime="torch", dtype="float32")
    images = pictures(64, 224)
    expected = guard.check(images)
    torch.cuda.empty_cache()
    free = torch.cuda.memory_allocated() + 120 * 2**20  # less than 64 views need
    torch.cuda.set_per_process_memory_fraction(free / torch.cuda.get_device_properties(0).total_memory)
    try:
        given = guard.check(images)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close([v.score for v in given], [v.score for v in expected], atol=1e-4, rtol=0)


def test_compile_and_graph_together(falconsai):
    guard = NsfwGuard(falconsai, card="falconsai")
    images = pictures(4)
    expected = [v.score for v in guard.check(images)]
    guard.compile()
    given = [[v.score for v in guard.check(images)] for _ in range(3)][-1]
    torch.testing.assert_close(given, expected, atol=0.02, rtol=0)
    assert guard.describe()["forward"]["path"] == "CUDA graph", guard.describe()
