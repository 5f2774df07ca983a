"""The guard on ONNX Runtime: verdicts as with torch, whatever is in the batch, and no graph that is not ours."""

import copy
import dataclasses
import math
import multiprocessing
import pickle
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from checkpoints import save_tiny

pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from nsfw_guard import CheckpointError, NsfwGuard, Policy, SettingError, onnx_export, onnx_runtime
from nsfw_guard.onnx_runtime import BOUNDS, check_inputs

PRECISIONS = ["float32", "int8"]
# Of a probability. The tiny network is 2 layers of random weights, coarser for int8 than a real one.
CLOSE = {"float32": 1e-5, "int8": 0.1}

pytestmark = pytest.mark.usefixtures("onnx_cache", "one_thread")


@pytest.fixture(scope="module", params=PRECISIONS)
def guard(request, tiny_folder, shared_onnx_cache):
    """A guard on ONNX Runtime. Do not change its settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSFW_GUARD_CACHE", str(shared_onnx_cache))
        return NsfwGuard(tiny_folder, runtime="onnx", dtype=request.param)


def precision_of(guard):
    return guard.describe()["dtype"]


def scores(guard, images):
    return [verdict.score for verdict in guard.check(images)]


def test_it_scores_as_torch_does(guard, tiny, images):
    expected = scores(tiny, images)
    assert max(expected) - min(expected) > 0.2, "the scores do not differ; this test would prove nothing"
    assert scores(guard, images) == pytest.approx(expected, abs=CLOSE[precision_of(guard)])
    assert scores(guard, images) != expected, "this is torch"


@pytest.mark.parametrize("count", range(1, 18))
def test_every_batch_size_gives_what_single_images_give(guard, count):
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    alone = [scores(guard, image[None])[0] for image in images]
    assert scores(guard, images) == (alone if precision_of(guard) == "int8" else pytest.approx(alone, abs=1e-5))


def test_an_image_has_no_influence_on_another(guard, images):
    # In int8 the scales of the activations are those of a whole tensor: a loud neighbour would coarsen them.
    for other in (torch.zeros(1, 3, 48, 64), torch.ones(1, 3, 48, 64), torch.full((1, 3, 48, 64), math.nan)):
        together = scores(guard, torch.cat([other, images]))[1:]
        assert together == pytest.approx(scores(guard, images), abs=1e-5 if precision_of(guard) == "float32" else 0)
    pixels = check_inputs(guard.card.preprocess)
    loud = torch.cat([pixels[:1] * 50, pixels[1:]])
    torch.testing.assert_close(guard.classifier(loud)[1:], guard.classifier(pixels)[1:], atol=1e-5, rtol=0)


def test_micro_batches_and_views(guard, images, monkeypatch):
    small = copy.copy(guard)
    small.batch_size = 3
    assert scores(small, images) == pytest.approx(scores(guard, images), abs=1e-5)
    wide = torch.rand(1, 3, 32, 112)
    assert small.check(wide)[0].views == 5
    assert small.apply(images).images.shape == images.shape
    assert guard.check([]) == []
    assert guard.classifier(torch.zeros(0, 3, 32, 32)).shape == (0, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_pixels_are_flagged(guard, images, bad):
    judge = copy.copy(guard)
    judge.policy = Policy(threshold=1.0)
    images[2, 1, 5, 5] = bad
    result = judge.apply(images)
    assert result.flags == [index == 2 for index in range(8)]
    assert result.verdicts[2].reason == "non_finite"
    # And where the pixels are finite and the model input is not: never a number made up by rounding.
    pixels = check_inputs(guard.card.preprocess)
    pixels[3, 0, 0, 0] = bad
    logits = guard.classifier(pixels)
    assert logits.isfinite().all(1).tolist() == [index != 3 for index in range(8)]


def test_layouts_modes_and_dtypes_make_no_difference(guard, images):
    expected = scores(guard, images)
    for same in (images.to(memory_format=torch.channels_last), images.clone().requires_grad_(), images.double()):
        assert scores(guard, same) == pytest.approx(expected, abs=1e-5)
    with torch.inference_mode():
        assert scores(guard, images) == pytest.approx(expected, abs=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scores(guard, images) == pytest.approx(expected, abs=1e-5)
    assert guard.classifier(check_inputs(guard.card.preprocess).half()).dtype == torch.float32


def test_describe_says_which_path_and_why(guard):
    said, precision = guard.describe(), precision_of(guard)
    assert said["forward"] == {"path": f"ONNX Runtime {precision}", "why": f"runtime='onnx', dtype='{precision}'"}
    assert (said["device"], said["dtype"]) == ("cpu", precision)


@pytest.mark.parametrize("runtime", ["auto", "torch"])
def test_nobody_gets_it_unasked(tiny_folder, runtime):
    assert NsfwGuard(tiny_folder, runtime=runtime).classifier.onnx is None
    assert NsfwGuard(tiny_folder).classifier.onnx is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtime": "tensorrt"}, 'runtime is \'tensorrt\'; expected "auto", "torch" or "onnx"'),
        ({"runtime": None}, "runtime is None"),
        ({"dtype": "int8"}, 'dtype is \'int8\'; expected "auto" or one of .* "int8" goes with runtime="onnx"'),
        ({"dtype": torch.int8, "runtime": "torch"}, '"int8" goes with runtime="onnx"'),
        ({"dtype": "bfloat16", "runtime": "onnx"}, "dtype is 'bfloat16', which runtime=\"onnx\" does not have"),
        ({"dtype": torch.float16, "runtime": "onnx"}, 'expected "auto" or "float32", or "int8"'),
        ({"dtype": "int4", "runtime": "onnx"}, "dtype is 'int4'"),
        ({"device": "cuda", "runtime": "onnx"}, "device is 'cuda', and runtime=\"onnx\" computes on the CPU"),
        ({"device": torch.device("meta"), "runtime": "onnx"}, "device is 'meta'"),
        ({"device": 0, "runtime": "onnx"}, "device is '0'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny_folder, settings, message):
    with pytest.raises(SettingError, match=message):
        NsfwGuard(tiny_folder, **settings)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"])
@pytest.mark.parametrize("dtype", ["float32", torch.float32, "torch.float32"])
def test_the_settings_that_it_has_by_every_name(tiny_folder, device, dtype):
    assert precision_of(NsfwGuard(tiny_folder, runtime="onnx", device=device, dtype=dtype)) == "float32"
    assert precision_of(NsfwGuard(tiny_folder, runtime="onnx")) == "float32"
    assert precision_of(NsfwGuard(tiny_folder, runtime="onnx", dtype=torch.int8)) == "int8"


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra_it_says_what_to_install(tiny_folder, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SettingError, match=r'not installed .*: pip install "nsfw-guard\[onnx\]"'):
        NsfwGuard(tiny_folder, runtime="onnx")
    assert len(NsfwGuard(tiny_folder).check(torch.rand(1, 3, 8, 8))) == 1


def test_copies_share_the_session_and_pickles_open_their_own(guard, images):
    expected, session = scores(guard, images), guard.classifier.onnx._session.inference
    for copied in (copy.copy(guard), copy.deepcopy(guard)):
        assert copied.classifier.onnx._session.inference is session
        assert scores(copied, images) == expected
    other = pickle.loads(pickle.dumps(guard))
    assert other.classifier.onnx._session.inference is None
    assert scores(other, images) == expected
    assert other.classifier.onnx._session.inference is not session


def test_a_pickle_needs_no_cache(guard, images, monkeypatch, tmp_path):
    data = pickle.dumps(guard)
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path / "empty"))
    assert scores(pickle.loads(data), images) == pytest.approx(scores(guard, images), abs=1e-6)
    assert len(list((tmp_path / "empty").rglob("*.onnx"))) == 1


def test_threads_share_a_guard(guard, images):
    guard = pickle.loads(pickle.dumps(guard))  # not open yet: they open it together
    expected = {}
    results = {size: [] for size in range(1, 9)}

    def work(size):
        results[size] += [guard.check(images[:size]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(size,)) for size in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for size, found in results.items():
        expected = guard.check(images[:size])
        assert found == [expected] * 5


def _score_in_a_child(guard, images, queue):
    queue.put(scores(guard, images))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_opens_a_session_of_its_own(guard, images):
    expected = scores(guard, images)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_score_in_a_child, args=(guard, images, queue), daemon=True)
    child.start()
    assert queue.get(timeout=120) == expected
    child.join(60)
    assert child.exitcode == 0


def test_casts_and_moves_change_nothing(guard, images):
    guard = copy.deepcopy(guard)
    expected = scores(guard, images)
    for cast in (guard.half(), guard.to(torch.bfloat16), guard.to("cpu", torch.float16), guard.to("meta")):
        assert cast is guard
        assert (guard.dtype, guard.device) == (torch.float32, torch.device("cpu"))
        assert scores(guard, images) == expected


def test_under_the_hooks_of_accelerate(guard, images):
    accelerate = pytest.importorskip("accelerate")
    expected = scores(guard, images)
    hooked = copy.deepcopy(guard)
    accelerate.cpu_offload(hooked, execution_device=torch.device("cpu"))
    assert next(hooked.parameters()).device.type == "meta"
    assert scores(hooked, images) == expected
    out, flags = hooked(images=images * 2 - 1)
    assert flags == [verdict.flagged for verdict in guard.check(images)]


def test_images_elsewhere_are_said_once(guard, images, caplog, monkeypatch):
    # No test can have a GPU here: the batch says that it comes from one.
    guard = copy.deepcopy(guard)
    say = guard.classifier.onnx.say_copying
    monkeypatch.setattr(guard.classifier.onnx, "say_copying", lambda device: say(torch.device("cuda", 0)))
    assert guard._place(torch.device("cuda", 0)) == torch.device("cpu")
    guard.check(images)
    guard.check(images)
    assert [record.message.split(",")[0] for record in caplog.records] == ["The images are on cuda:0"]


def test_images_on_the_cpu_are_not_said(guard, images, caplog):
    copy.deepcopy(guard).check(images)
    assert not caplog.records


def test_save_and_load(guard, tmp_path, images):
    guard.save_pretrained(tmp_path / "saved")
    for cast in ({}, {"torch_dtype": torch.float16}):
        again = NsfwGuard.from_pretrained(tmp_path / "saved", **cast)
        assert again.describe() == guard.describe()
        assert scores(again, images) == pytest.approx(scores(guard, images), abs=1e-6)
    # For torch it is an ordinary checkpoint.
    plain = NsfwGuard(tmp_path / "saved", dtype="float32")
    assert scores(plain, images) == pytest.approx(scores(guard, images), abs=CLOSE[precision_of(guard)])


def test_a_saved_guard_without_the_extra_is_an_error(guard, tmp_path, monkeypatch):
    guard.save_pretrained(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingError, match="pip install"):
        NsfwGuard.from_pretrained(tmp_path / "saved")


def test_process_wide_settings_stay(tiny_folder, tmp_path, images, monkeypatch):
    import logging
    import os

    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path))

    def settings():
        return (
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.onnx.is_in_onnx_export(),
            torch.get_rng_state().tolist(),
            list(warnings.filters),
            list(logging.root.handlers),
            logging.root.level,
            dict(os.environ),
        )

    before = settings()
    for dtype in PRECISIONS:
        NsfwGuard(tiny_folder, runtime="onnx", dtype=dtype).apply(images)
    assert settings() == before


def test_the_session_takes_the_threads_of_torch(tiny_folder, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    guard = NsfwGuard(tiny_folder, runtime="onnx")
    assert guard.classifier.onnx._session.inference.get_session_options().intra_op_num_threads == 3


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_it_can_be_made_whatever_the_users_matmul_precision_is(
    tiny_folder, tmp_path, monkeypatch, tiny, images, precision
):
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        guard = NsfwGuard(tiny_folder, runtime="onnx")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert scores(guard, images) == pytest.approx(scores(tiny, images), abs=1e-5)


def test_it_can_be_made_inside_of_autocast_and_inference_mode(tiny_folder, tmp_path, monkeypatch, tiny, images):
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        guard = NsfwGuard(tiny_folder, runtime="onnx")
    assert scores(guard, images) == pytest.approx(scores(tiny, images), abs=1e-5)


def test_out_of_memory_halves_the_batch(guard, images, monkeypatch):
    # ONNX Runtime's own words for it; its errors are no RuntimeErrors.
    guard, sizes = copy.deepcopy(guard), []
    guard.batch_size = 8
    expected, run = scores(guard, images), onnx_runtime.OnnxForward._run

    class Full:
        def __init__(self, session):
            self.session = session

        def run(self, outputs, feed):
            sizes.append(len(feed["pixels"]))
            if sizes[-1] > 2:
                raise Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested")
            return self.session.run(outputs, feed)

    monkeypatch.setattr(
        onnx_runtime.OnnxForward, "_run", lambda self, session, pixels: run(self, Full(session), pixels)
    )
    assert scores(guard, images) == pytest.approx(expected, abs=1e-5)
    assert sizes == ([8, 4, 2, 2, 2, 2] if precision_of(guard) == "float32" else [1] * 8)


def test_a_failing_session_lets_no_image_out(guard, images, monkeypatch):
    guard = copy.deepcopy(guard)

    class Broken:
        def run(self, outputs, feed):
            raise Exception("[ONNXRuntimeError] : 1 : FAIL : the kernel is gone")

    monkeypatch.setattr(onnx_runtime.OnnxForward, "_opened", lambda self: Broken())
    with pytest.raises(RuntimeError, match="failed in the forward pass on ONNX Runtime: .* the kernel is gone"):
        guard.apply(images)
    assert guard.last_verdicts is None


# --- what is exported, and what is refused


def test_the_graph_says_what_one_needs_to_use_it_elsewhere(guard, onnx_cache):
    models = [onnx.load(path) for path in (onnx_cache / "onnx").glob("*.onnx")]
    said = [{prop.key: prop.value for prop in model.metadata_props} for model in models]
    mine = [props for props in said if props["nsfw_guard.precision"] == precision_of(guard)]
    assert mine
    for props in mine:
        assert props["labels"] == '["normal", "nsfw"]'
        assert '"mean": [0.5, 0.5, 0.5]' in props["preprocess"]
        assert '"resize": "squash"' in props["preprocess"]


@pytest.mark.parametrize("seed", [1, 2])
def test_other_weights_are_another_graph(tmp_path, monkeypatch, images, seed):
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path / "cache"))
    for which in (0, seed):
        folder = save_tiny(tmp_path / str(which), seed=which)
        expected = scores(NsfwGuard(folder, dtype="float32"), images)
        assert scores(NsfwGuard(folder, runtime="onnx"), images) == pytest.approx(expected, abs=1e-5)
    assert len(list((tmp_path / "cache" / "onnx").glob("*.onnx"))) == 2


def test_the_same_checkpoint_elsewhere_is_the_same_graph(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path / "cache"))
    NsfwGuard(tiny_folder, runtime="onnx").save_pretrained(tmp_path / "saved")
    NsfwGuard.from_pretrained(tmp_path / "saved")
    assert len(list((tmp_path / "cache" / "onnx").glob("*.onnx"))) == 1


@pytest.mark.parametrize("change", ["versions", "schema", "preprocess", "labels", "processor"])
def test_the_key_holds_what_the_graph_depends_on(guard, monkeypatch, change):
    forward = copy.deepcopy(guard.classifier.onnx)
    before = forward._key()
    if change == "versions":
        monkeypatch.setattr(onnx, "__version__", "9.9")
    elif change == "schema":
        monkeypatch.setattr(onnx_runtime, "SCHEMA", 99)
    elif change == "preprocess":
        forward._spec = dataclasses.replace(forward._spec, mean=(0.4, 0.5, 0.5))
    elif change == "labels":
        forward._labels = forward._labels[::-1]
    elif precision_of(guard) == "int8":
        forward._signed = not forward._signed
    else:
        forward.precision = "int8"
    assert forward._key() != before


def spoil_float32(monkeypatch, spoil):
    """Let the exporter make a graph that ``spoil`` has changed."""
    export = onnx_export.export

    def exported(network, size, path):
        export(network, size, path)
        model = onnx.load(str(path))
        spoil(model.graph)
        onnx.save(model, str(path))

    monkeypatch.setattr(onnx_runtime, "export", exported)


def swap_labels(graph):
    for tensor in graph.initializer:
        if tensor.name.endswith("classifier.weight"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))


def a_little_off(graph):
    for tensor in graph.initializer:
        if tensor.name.endswith("classifier.weight"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))


def not_a_number(graph):
    for tensor in graph.initializer:
        if tensor.name.endswith("classifier.bias"):
            tensor.CopyFrom(numpy_helper.from_array(np.array([np.nan, 0], np.float32), tensor.name))


def one_label_less(graph):
    for tensor in graph.initializer:
        if ".classifier." in tensor.name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:1].copy(), tensor.name))
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("spoil", [swap_labels, a_little_off, not_a_number, one_label_less])
def test_an_export_that_computes_something_else_is_refused(tiny_folder, tmp_path, monkeypatch, spoil, precision):
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path))
    spoil_float32(monkeypatch, spoil)
    message = "does not compute what the checkpoint does" if spoil is not one_label_less else "cannot be exported"
    with pytest.raises(CheckpointError, match=message + r'(.|\n)*runtime="torch"'):
        NsfwGuard(tiny_folder, runtime="onnx", dtype=precision)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing is kept"


def test_an_int8_graph_beyond_the_bound_is_refused(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path))

    def coarse(graph, *, signed):
        onnx_export.quantise(graph, signed=signed)
        for tensor in graph.initializer:
            if tensor.name.endswith("_scale"):  # as an overflow in the sums does: every product too small
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.7), tensor.name))

    monkeypatch.setattr(onnx_runtime, "quantise", coarse)
    with pytest.raises(CheckpointError, match='The int8 graph .* 25% of their .*Take dtype="float32"'):
        NsfwGuard(tiny_folder, runtime="onnx", dtype="int8")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert NsfwGuard(tiny_folder, runtime="onnx", dtype="float32").describe()["dtype"] == "float32"


def test_a_network_that_cannot_be_exported_is_an_error(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path))

    def fail(network, size, path):
        path.write_bytes(b"half of it")
        raise RuntimeError("no symbolic for aten::dream")

    monkeypatch.setattr(onnx_runtime, "export", fail)
    with pytest.raises(
        CheckpointError, match='cannot be exported to ONNX: no symbolic for aten::dream\nTake runtime="torch"'
    ):
        NsfwGuard(tiny_folder, runtime="onnx")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def matmul_graph(weights, *, uses=1):
    nodes = [helper.make_node("MatMul", ["x", "w"], [f"y{index}"]) for index in range(uses)]
    nodes.append(helper.make_node("MatMul", ["y0", "x2"], ["z"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "x2", "z")]
    outputs = [helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None) for index in range(uses)]
    return helper.make_graph(nodes, "g", values[:2], [values[2], *outputs], [numpy_helper.from_array(weights, "w")])


@pytest.mark.parametrize("signed", [True, False])
def test_quantised_products_are_near_and_alike_signed_or_not(signed):
    import onnxruntime

    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((64, 32)) * np.logspace(-3, 1, 32)).astype(np.float32)  # a scale for each channel
    weights[:, 5] = 0
    graph = matmul_graph(weights, uses=2)
    assert onnx_export.quantise(graph, signed=signed) == 2
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("DynamicQuantizeLinear") == 1, "products of one tensor share its rounding"
    assert kinds.count("MatMul") == 1, "what has no constant stays"
    assert {tensor.name for tensor in graph.initializer} == {"w_levels", "w_scale", "weights_zero_point"}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = rng.standard_normal((10, 64)).astype(np.float32)
    got = session.run(["y0"], {"x": x, "x2": np.zeros((32, 1), np.float32)})[0]
    # Half a level of an operand for each of 64 products that add up: 3 % of the result's own size, by far.
    off = np.abs(got - x @ weights).max(axis=0)
    assert (off <= 0.03 * np.abs(x @ weights).max(axis=0) + 1e-9).all()
    assert (off[weights.any(axis=0)] > 0).all(), "nothing was rounded"


def test_both_kinds_of_processor_compute_the_same(tiny_folder, tmp_path, monkeypatch, images):
    monkeypatch.setenv("NSFW_GUARD_CACHE", str(tmp_path))
    found = []
    for exact in (True, False):
        monkeypatch.setattr(onnx_runtime, "adds_up_int8_exactly", lambda exact=exact: exact)
        found.append(scores(NsfwGuard(tiny_folder, runtime="onnx", dtype="int8"), images))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert len(list((tmp_path / "onnx").glob("*.onnx"))) == 2


@pytest.mark.parametrize(
    ("machine", "found", "exact"),
    [
        ("x86_64", {"avx512_vnni": True}, True),
        ("AMD64", {"avx_vnni": True}, True),
        ("x86_64", {"avx2": True, "avx512_vnni": False}, False),
        ("x86_64", {}, False),
        ("aarch64", {}, True),
    ],
)
def test_which_processors_need_unsigned_weights(monkeypatch, machine, found, exact):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert onnx_export.adds_up_int8_exactly() is exact


def test_the_check_images_differ_and_are_always_the_same(guard):
    inputs = check_inputs(guard.card.preprocess)
    assert torch.equal(inputs, check_inputs(guard.card.preprocess))
    assert inputs.flatten(1).std(1).min() > 0.1
    assert inputs.flatten(1).unique(dim=0).shape[0] == 8
    assert set(BOUNDS) == set(PRECISIONS)
