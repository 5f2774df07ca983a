"""The fast forwards. What needs a GPU is in test_cuda.py; here the bookkeeping of graphs runs on a stand-in for one."""

from __future__ import annotations

import copy
import logging
import pickle
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from checkpoints import SAVERS, save_tiny
from pictures import structured_pictures
from torch import nn

from nsfw_guard import NsfwGuard, Policy, SettingError, forward
from nsfw_guard.forward import Forward, _attention, _Made, _on_a_cpu, _OneDNN

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
LINEAR = torch.ops.mkldnn._linear_pointwise


class Network(nn.Module):
    """One linear layer that counts its calls."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.calls = 0
        self.eval()

    def forward(self, inputs):
        self.calls += 1
        return self.layer(inputs)


class StandIn:
    """Stands in for a captured CUDA graph, which needs a GPU: it gives what was computed when it was "captured"."""

    def __init__(self, network, run, inputs, pool):
        self.holds = _Made(network).holds
        self.output = run(inputs)

    def __call__(self, inputs):
        return self.output.clone()


@pytest.fixture
def graphs(monkeypatch):
    """The cache of graphs, with stand-ins, on a CPU."""
    monkeypatch.setattr(forward, "_Graph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    event = SimpleNamespace(record=lambda stream: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_event=lambda event: None))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    left = []
    cache = forward._Graphs(lambda path, error: left.append((path, error)))
    cache.left = left
    return cache


def call(graphs, network, count, value=1.0, dtype=torch.float32):
    with torch.no_grad():
        return graphs(network, network, torch.full((count, 4), value, dtype=dtype))


def test_a_graph_is_captured_at_the_second_batch_of_a_shape(graphs):
    network = Network()
    for calls, count in [(1, 3), (2, 3), (2, 3), (3, 5), (4, 5), (4, 5), (4, 3)]:
        assert call(graphs, network, count).shape == (count, 2)
        assert network.calls == calls
    assert len(graphs._graphs) == 2


def changed_in_place_dtype(network):
    network.to(torch.float64).to(torch.float32)


def replaced_weight(network):
    network.layer.weight = nn.Parameter(torch.zeros(2, 4))


def other_storage(network):
    network.layer.weight.data = torch.zeros(2, 4)


def other_layer(network):
    network.layer = nn.Sequential(network.layer, nn.ReLU())


@pytest.mark.parametrize("change", [changed_in_place_dtype, replaced_weight, other_storage, other_layer])
def test_a_changed_network_is_captured_anew(graphs, change):
    network = Network()
    for _ in range(3):
        call(graphs, network, 3)
    change(network)
    with torch.no_grad():
        expected = network(torch.ones(3, 4))
    for _ in range(3):
        assert torch.equal(call(graphs, network, 3), expected)
    assert graphs._graphs
    assert next(iter(graphs._graphs.values())).holds()


@pytest.mark.parametrize("how", ["hook", "training", "forward"])
def test_nothing_is_captured_that_does_more_than_compute(graphs, how):
    network = Network()
    if how == "hook":
        network.layer.register_forward_pre_hook(lambda module, args: None)
    elif how == "training":
        network.train()
    else:
        network.layer.forward = network.layer.forward
    for _ in range(2):  # a third would find the graph outdated
        call(graphs, network, 3)
    assert not graphs._graphs


def test_what_replaces_forward_is_never_left_out(graphs):
    """As accelerate's hooks do it; and hooks of all modules of the process."""
    network = Network()
    for _ in range(3):
        call(graphs, network, 3)
    network.layer.forward = lambda inputs: torch.zeros(len(inputs), 2)
    for _ in range(3):
        assert not call(graphs, network, 3).any()
    del network.layer.forward
    for _ in range(3):
        call(graphs, network, 3)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 0)
    try:
        assert not any(call(graphs, network, 3).any() for _ in range(3))
    finally:
        handle.remove()


def test_graphs_on_several_streams_wait_for_each_other(graphs, monkeypatch):
    """They share their memory. The stand-ins for streams and events write down what is asked of them."""
    log = []

    class Stream(SimpleNamespace):
        def wait_event(self, event):
            log.append(f"{self.name} waits for {event.of}")

    class Event:
        of = "nothing"

        def record(self, stream):
            self.of = stream.name

    now = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: now[-1])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    network = Network()
    for name, count in [("one", 3), ("one", 3), ("two", 5), ("two", 5), ("one", 3)]:
        now.append(Stream(name=name))
        call(graphs, network, count)
    assert log == ["one waits for nothing", "two waits for one", "one waits for two"]


def test_graphs_of_inference_mode_are_not_those_of_other_modes(graphs):
    network = Network()
    with torch.inference_mode():
        for _ in range(3):
            call(graphs, network, 3)
    for _ in range(3):
        assert not call(graphs, network, 3).is_inference()
    assert len(graphs._graphs) == 2


def test_weights_that_keep_moving_are_not_captured_again_and_again(graphs):
    network = Network()
    for _ in range(forward.MAX_OUTDATED):
        for _ in range(2):
            call(graphs, network, 3)
        replaced_weight(network)
    assert not graphs.left
    call(graphs, network, 3)
    assert [(path, str(error)) for path, error in graphs.left] == [
        ("CUDA graph", "the weights keep moving, as under offloading")
    ]
    assert not graphs._graphs


def test_hooks_and_training_are_never_left_out(graphs):
    network = Network()
    for _ in range(3):
        call(graphs, network, 3)
    handle = network.layer.register_forward_hook(lambda module, args, output: output * 0)
    for _ in range(3):
        assert not call(graphs, network, 3).any()
    handle.remove()
    assert all(call(graphs, network, 3).any() for _ in range(3))
    network.train()
    before = network.calls
    for _ in range(3):
        call(graphs, network, 3)
    assert network.calls == before + 3


def test_a_capture_that_fails_is_left_with_one_line(graphs, monkeypatch):
    def fail(*args):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(forward, "_Graph", fail)
    network = Network()
    for _ in range(3):
        assert call(graphs, network, 3).shape == (3, 2)
    assert {path for path, _ in graphs.left} == {"CUDA graph"}


def test_no_more_than_so_many_graphs_are_kept(graphs, monkeypatch):
    monkeypatch.setattr(forward, "MAX_GRAPHS", 2)
    network = Network()
    for count in (1, 1, 2, 2, 1, 3, 3):
        call(graphs, network, count)
    assert [key[0][0] for key in graphs._graphs] == [1, 3]  # 2 was used least recently


def test_a_graph_of_one_dtype_is_not_for_another(graphs):
    network = Network()
    for _ in range(2):
        call(graphs, network, 3)
    network.double()
    assert call(graphs, network, 3, dtype=torch.float64).dtype == torch.float64


def test_the_path_is_left_and_said(monkeypatch, caplog):
    path = Forward()
    with caplog.at_level(logging.WARNING):
        path._leave("CUDA graph", RuntimeError("no luck"))
    assert path.describe(Network(), torch.device("cuda"), torch.float16) == (
        "eager",
        "there is no other path on cuda; CUDA graph failed: no luck",
    )
    assert [record.message for record in caplog.records] == ["CUDA graph failed: no luck. The guard goes on without."]


def test_what_is_described():
    network, cpu, cuda = Network(), torch.device("cpu"), torch.device("cuda")
    assert Forward().describe(network, cuda, torch.float16)[0] == "CUDA graph"
    assert Forward().describe(Network().train(), cuda, torch.float16)[0] == "eager"
    assert Forward("torch").describe(network, cuda, torch.float16) == ("eager", 'runtime="torch"')
    assert Forward("torch").describe(network, cpu, torch.float32)[0] == "eager"
    assert Forward().describe(network, torch.device("mps"), torch.float32)[0] == "eager"
    assert Forward().describe(network, cpu, torch.float16)[0] == "eager"


@needs_onednn
def test_a_cpu_takes_onednn(monkeypatch):
    assert _on_a_cpu(torch.float32)[0] == _on_a_cpu(torch.bfloat16)[0] == "oneDNN"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    _on_a_cpu.cache_clear()
    try:
        assert _on_a_cpu(torch.float32)[0] == "eager"
    finally:
        _on_a_cpu.cache_clear()


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("broken", ["raises", "is wrong"])
def test_a_kernel_that_is_broken_here_is_not_used(monkeypatch, caplog, dtype, broken):
    def kernel(input, *args, **kwargs):
        if broken == "raises":
            raise RuntimeError("not on this CPU")
        return input * 3

    monkeypatch.setattr(forward, "_linear", kernel)
    monkeypatch.setattr(forward, "_attention", kernel)
    _on_a_cpu.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            path, why = _on_a_cpu(dtype)
            _on_a_cpu(dtype)
    finally:
        _on_a_cpu.cache_clear()
    assert path == "eager"
    assert why.startswith("oneDNN failed: ")
    assert len(caplog.records) == 1


@needs_onednn
def test_linear_layers_take_it_only_in_float32_and_only_within(monkeypatch):
    calls = []
    monkeypatch.setattr(forward, "_linear", lambda *args: calls.append(1) or LINEAR(*args, "none", [], ""))
    layer, inputs = nn.Linear(8, 3), torch.rand(2, 5, 8)
    with torch.no_grad():
        expected = layer(inputs)
        with _OneDNN():
            torch.testing.assert_close(layer(inputs), expected)
            assert calls == [1]
            layer.double()(inputs.double())
            layer.bfloat16()(inputs.bfloat16())
        layer.float()(inputs)
    assert calls == [1]


@needs_onednn
def test_gradients_are_there_for_who_asks(tmp_path):
    guard = NsfwGuard(save_tiny(tmp_path), dtype="float32")
    inputs = torch.rand(2, 3, 32, 32, requires_grad=True)
    guard.classifier.probabilities(inputs)[:, 1].sum().backward()
    assert inputs.grad.abs().max() > 0


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (2, 3, 50, 16), (1, 2, 1100, 16)])
def test_attention_is_what_it_was(shape):
    query, key, value = (torch.randn(shape).bfloat16() for _ in range(3))
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    with _OneDNN():
        given = F.scaled_dot_product_attention(query, key, value)
        scaled = F.scaled_dot_product_attention(query, key, value, scale=0.5)
    torch.testing.assert_close(given.float(), expected, atol=0.03, rtol=0.03)
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=0.5)
    torch.testing.assert_close(scaled.float(), expected, atol=0.03, rtol=0.03)


def test_attention_with_a_mask_or_of_another_kind_is_left_to_pytorch():
    query, key, value = (torch.randn(1, 2, 6, 8).bfloat16() for _ in range(3))
    mask = torch.zeros(6, 6).bool().fill_diagonal_(True)
    cases = [
        ((query, key, value), {"attn_mask": mask}),
        ((query, key, value, mask), {}),
        ((query, key, value), {"is_causal": True}),
        ((query, key, value, None, 0.0, True), {}),
        ((query[:, :, :3], key, value), {}),
        ((query[0], key[0], value[0]), {}),
        ((query, key, value, None, 0.0, False), {"scale": None}),
    ]
    for args, options in cases[:-1]:
        assert torch.equal(_attention(*args, **options), F.scaled_dot_product_attention(*args, **options))
    args, options = cases[-1]
    torch.testing.assert_close(
        _attention(*args, **options), F.scaled_dot_product_attention(*args), atol=0.03, rtol=0.03
    )


def logits(guard, pictures):
    scores = guard.classify(pictures)
    return torch.tensor([views[0] for views in scores.probabilities]).log()


@needs_onednn
@pytest.mark.parametrize(("name", "dtype", "bound"), [("marqo", "float32", 0.002), ("marqo", "bfloat16", 0.25)])
def test_the_fast_forward_stays_near_the_plain_one_in_float32(tmp_path, name, dtype, bound):
    folder = SAVERS[name](tmp_path)
    pictures = structured_pictures()[:18]
    plain = logits(NsfwGuard(folder, card=name, dtype="float32", views="card", runtime="torch"), pictures)
    guard = NsfwGuard(folder, card=name, dtype=dtype, views="card")
    assert guard.describe()["forward"]["path"] == "oneDNN"
    off = (logits(guard, pictures) - plain).abs() / plain.std(dim=0)
    print(f"{name} {dtype}: off by at most {off.max():.3%} of the spread, median {off.median():.3%}")
    assert off.max() < bound


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_images_score_does_not_depend_on_its_batch(tmp_path, dtype):
    folder = save_tiny(tmp_path)
    pictures = structured_pictures()[:12]
    alone = torch.cat([logits(NsfwGuard(folder, dtype=dtype), [picture]) for picture in pictures])
    spread = alone.std(dim=0)
    for batch_size in (1, 3, 16):
        together = logits(NsfwGuard(folder, dtype=dtype, batch_size=batch_size), pictures)
        assert ((together - alone).abs() / spread).max() < (0.002 if dtype == "float32" else 0.1)


def test_threads_that_are_not_in_it_are_not_changed():
    import threading

    seen = []
    with _OneDNN():
        thread = threading.Thread(target=lambda: seen.append(torch.overrides._get_current_function_mode()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_compile_that_fails_is_left_with_one_line(tmp_path, caplog):
    guard = NsfwGuard(save_tiny(tmp_path), dtype="float32")
    images = torch.rand(2, 3, 40, 40)
    expected = [verdict.score for verdict in guard.check(images)]

    def broken(graph, inputs):
        raise RuntimeError("no compiler on this machine")

    guard.compile(backend=broken)
    assert guard.describe()["forward"]["path"] == "torch.compile"
    with caplog.at_level(logging.WARNING, logger="nsfw_guard"):
        given = [[verdict.score for verdict in guard.check(images)] for _ in range(2)]
    assert given == [pytest.approx(expected, abs=1e-5)] * 2
    assert len([record for record in caplog.records if "torch.compile failed" in record.message]) == 1
    assert "torch.compile failed" in guard.describe()["forward"]["why"]


def test_a_compiled_network_scores_the_same(tmp_path):
    guard = NsfwGuard(save_tiny(tmp_path), dtype="float32")
    images = torch.rand(2, 3, 40, 40)
    expected = [verdict.score for verdict in guard.check(images)]
    guard.compile(backend="eager")
    assert [verdict.score for verdict in guard.check(images)] == pytest.approx(expected, abs=1e-5)
    assert guard.describe()["forward"] == {"path": "torch.compile", "why": "compile() was called"}


def test_a_timm_model_is_compiled_too(tmp_path):
    guard = NsfwGuard(SAVERS["marqo"](tmp_path), card="marqo", dtype="float32")
    graphs = []
    guard.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    guard.check(torch.rand(1, 3, 64, 64))
    assert graphs
    assert guard.describe()["forward"]["path"] == "torch.compile"


@needs_onednn
@pytest.mark.parametrize("setting", ["dtype", "device"])
def test_the_processs_defaults_make_no_difference(setting):
    guard, images = NsfwGuard("demo", dtype="float32"), torch.rand(2, 3, 64, 64)
    guard.policy = Policy(threshold=0)
    expected = guard.apply(images)
    _on_a_cpu.cache_clear()
    try:
        if setting == "dtype":
            torch.set_default_dtype(torch.float64)
            given = guard.apply(images)
        else:
            with torch.device("meta"):
                given = guard.apply(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert guard.describe()["forward"]["path"] == "oneDNN"
    assert torch.equal(given.images, expected.images)
    assert given.verdicts == expected.verdicts


def test_copies_and_pickles_keep_the_runtime(tmp_path):
    guard = NsfwGuard(save_tiny(tmp_path / "a"), runtime="torch")
    for other in (copy.deepcopy(guard), pickle.loads(pickle.dumps(guard))):
        assert other.describe()["forward"] == {"path": "eager", "why": 'runtime="torch"'}
    guard.save_pretrained(tmp_path / "b")
    assert NsfwGuard.from_pretrained(tmp_path / "b").describe()["forward"]["path"] == "eager"


def test_an_unknown_runtime(tmp_path):
    with pytest.raises(SettingError, match='runtime is \'fast\'; expected "auto", "torch" or "onnx"'):
        NsfwGuard("demo", runtime="fast")
