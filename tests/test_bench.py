"""The benchmark, without looking at a clock: what it runs, in which order, and what it makes of the samples."""

import importlib.machinery
import json
import pathlib
import re
import sys
import threading
import types

import pytest
import torch
from checkpoints import FREEPIK_CONFIG, save_tiny, seeded, write_json
from PIL import Image
from test_cli import run
from torch import nn
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from nsfw_guard import NsfwGuard, SettingError
from nsfw_guard.bench import command, footprint, gpu, limits, machine, memory, peers, plot, show, startup, work
from nsfw_guard.bench.ratios import Facts, Key, find_ratios
from nsfw_guard.bench.report import make_report
from nsfw_guard.bench.rounds import Spread, Timer, interleave, ratio
from nsfw_guard.bench.settings import BenchSettings, Workload, flagged_of
from nsfw_guard.bench.speed import measure
from nsfw_guard.bench.stages import STAGES, StagedCall

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
LOAD = Workload(width=64, height=48, batch=4, flagged=1)
TINY_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 56,
    "image_size": 224,
}


@pytest.fixture(scope="module")
def source(tiny_folder):
    return work.find_source(str(tiny_folder), weights="random", cache=tiny_folder.parent)


@pytest.fixture(scope="module")
def freepik(tmp_path_factory):
    """A tiny EVA-02 in the format of Freepik's checkpoint, whose folder has its name."""
    folder = tmp_path_factory.mktemp("checkpoints") / "freepik"
    config = {
        **FREEPIK_CONFIG,
        "architecture": "eva02_tiny_patch14_224",
        "model_args": {"img_size": 448, "depth": 1},
        "num_features": 192,
    }
    network = seeded(lambda: TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(config)))
    network.to(torch.bfloat16).save_pretrained(folder)
    write_json(folder / "config.json", config)
    return work.find_source(str(folder), weights="random", cache=folder)


@pytest.fixture(scope="module")
def images():
    return work.make_images(LOAD, CPU)


@pytest.fixture(scope="module")
def run_of_tiny(tiny_folder):
    """A whole run on a tiny checkpoint: three sizes of work, two rounds, both dtypes, the stock checker tiny."""
    settings = BenchSettings(
        models=[str(tiny_folder)],
        sizes=["64x48", "96x40"],
        batches=[4, 1],
        dtypes=["float32", "bfloat16"],
        rounds=2,
        minutes=5,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "_CLIP_L_14", TINY_CLIP)
        return measure(settings)


@pytest.fixture(scope="module")
def report(run_of_tiny):
    return json.loads(json.dumps(make_report(run_of_tiny)))


class Clock:
    """A clock that only moves when something is done."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


# Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ["1024"]}, "size is '1024'; expected width x height in pixels, such as 1344x768"),
        ({"sizes": ["0x5"]}, "size is '0x5'"),
        ({"batches": [0]}, "batch is 0; expected"),
        ({"dtypes": ["int8"]}, "dtype is 'int8'; expected"),
        ({"device": "tpu9"}, "device is 'tpu9'"),
        ({"flagged": 1.5}, "flagged is 1.5; expected a share"),
        ({"redaction": "mosaic"}, "redaction is 'mosaic'; expected blur, pixelate, fill or none"),
        ({"redaction": "replace"}, "redaction is 'replace'"),
        ({"rounds": 0}, "rounds is 0"),
        ({"minutes": float("nan")}, "minutes nan"),
        ({"peers": ["nudenet"]}, "peer is 'nudenet'; expected one of stock, pipeline, recipe, or none"),
        ({"peers": ["none", "stock"]}, "none goes with no other"),
        ({"weights": "some"}, "weights is 'some'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        BenchSettings(**options)


def test_the_default_is_both_shapes_and_one_large_image(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = BenchSettings()
    assert [load.label for load in settings.workloads()] == [
        "1024x1024, 4 images",
        "1344x768, 4 images",
        "4096x4096, 1 image",
    ]
    assert [(load.flagged, load.large) for load in settings.workloads()] == [(1, False), (1, False), (0, True)]
    assert settings.wanted_models == ("falconsai", "marqo", "freepik")
    assert settings.wanted_dtypes("falconsai") == ("auto", "float32")
    assert settings.wanted_dtypes("freepik") == ("auto",)
    assert settings.wanted_peers == ("stock", "pipeline", "recipe")
    assert BenchSettings(peers=["none"]).wanted_peers == ()
    assert not any(load.large for load in BenchSettings(models=["marqo"]).workloads())


def test_every_size_at_the_first_batch_and_every_batch_at_the_first_size():
    loads = BenchSettings(sizes=["8x4", "6x6"], batches=[2, 1, 8], flagged=0.5).workloads()
    assert [(load.width, load.height, load.batch, load.flagged) for load in loads] == [
        (8, 4, 2, 1),
        (6, 6, 2, 1),
        (8, 4, 1, 1),
        (8, 4, 8, 4),
    ]


@pytest.mark.parametrize(
    ("share", "batch", "number"), [(0.25, 4, 1), (0.25, 1, 1), (0, 4, 0), (1, 4, 4), (0.6, 4, 2), (0.01, 64, 1)]
)
def test_a_share_of_a_batch_is_a_number_of_images(share, batch, number):
    assert flagged_of(share, batch) == number


# Rounds


def test_rounds_are_interleaved_and_values_stay_in_their_order():
    clock, order = Clock(), []

    def case(name):
        def run_case():
            order.append(name)
            clock.now += 1
            return clock.now

        return run_case

    seen = []
    values = interleave(
        {name: case(name) for name in "ABC"},
        rounds=3,
        seconds=100,
        deadline=100,
        clock=clock,
        on_case=lambda number, name: seen.append((number, name)),
    )
    assert "".join(order) == "ABCABCABC"
    assert values == {"A": [1, 4, 7], "B": [2, 5, 8], "C": [3, 6, 9]}
    assert seen[:4] == [(1, "A"), (1, "B"), (1, "C"), (2, "A")]


@pytest.mark.parametrize(
    ("deadline", "rounds"),
    [
        (1000, 5),  # time enough
        (42, 4),  # a fifth would end at 50
        (31, 3),
        (29, 3),  # the third round may take a little more than was asked for
        (5, 1),  # one is always made
        (12, 1),
    ],
)
def test_no_round_is_begun_that_would_end_late(deadline, rounds):
    clock = Clock()

    def slow():
        clock.now += 10

    values = interleave({"A": slow}, rounds=5, seconds=deadline, deadline=deadline, clock=clock)
    assert len(values["A"]) == rounds


def test_a_spread_is_the_median_between_least_and_greatest():
    assert Spread.of([5.0, 1.0, 2.0]) == (2.0, 1.0, 5.0)
    assert Spread.of([4.0, 2.0]) == (3.0, 2.0, 4.0)


def test_a_ratio_is_taken_round_by_round():
    assert ratio([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError):
        ratio([1.0, 2.0], [1.0])


def test_the_timer_waits_for_the_device_on_both_sides():
    clock, events = Clock(), []

    def call():
        events.append("call")
        clock.now += 2

    timer = Timer(lambda: events.append("wait"), clock)
    assert timer.once(call) == 2
    assert events == ["wait", "call", "wait"]
    assert [timer.repeats(seconds) for seconds in (1.0, 0.1, 0.03, 1e-9)] == [1, 1, 4, 20]


# Memory, machine, limits


@pytest.mark.parametrize("marked", [True, False])
def test_peak_memory_is_that_of_the_call(monkeypatch, marked):
    looked = threading.Event()
    if not marked:
        rss = memory._rss
        monkeypatch.setattr(memory, "_can_mark", lambda: False)
        monkeypatch.setattr(memory, "_rss", lambda: (rss(), looked.set())[0])

    def call():
        held = torch.ones(64_000_000, dtype=torch.uint8)
        for _ in range(0 if marked else 2):  # the second look began after the first one
            looked.clear()
            assert looked.wait(60)
        assert held[-1] == 1

    peak = memory.peak_of(call, CPU)
    assert 60e6 < peak.host < 120e6
    assert peak.gpu is None


def test_memory_that_cannot_be_told_is_none_and_says_what_to_install(monkeypatch):
    monkeypatch.setattr(memory, "_can_mark", lambda: False)
    monkeypatch.setitem(sys.modules, "psutil", None)
    called = []
    assert memory.peak_of(lambda: called.append(1), CPU).host is None
    assert called == [1]
    assert "pip install psutil" in memory.how()


def test_the_machine_and_the_process_are_described():
    found = machine.describe_machine(CPU)
    assert found["cpu"] and found["cores"] >= 1 and found["gpu"] is None
    assert machine.process_settings()["threads"] == torch.get_num_threads()
    assert machine.process_settings()["float32_matmul_precision"] == torch.get_float32_matmul_precision()
    assert machine.versions()["torch"] == torch.__version__.split("+")[0] or machine.versions()["torch"]


def test_the_commit_is_that_of_the_checkout_or_none(monkeypatch, tmp_path):
    found = machine.commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{40,64}\+?", found)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine.commit() is None
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.commit() is None


def test_operations_are_counted_twice_for_a_multiplication_and_an_addition(monkeypatch):
    linear = nn.Linear(7, 5, bias=False)
    assert limits.flop_of(lambda: linear(torch.ones(3, 7))) == 2 * 3 * 7 * 5
    attention = torch.ones(1, 2, 11, 4)  # two products of 11 x 4 x 11 for each of two heads
    count = limits.flop_of(lambda: nn.functional.scaled_dot_product_attention(attention, attention, attention))
    assert count == 2 * 2 * 2 * 11 * 11 * 4
    monkeypatch.setitem(limits.SIDE, "cpu", 16)
    product = limits.MatrixProduct(torch.float32, CPU)
    assert product.flop == 2 * 16**3
    assert product().shape == (16, 16)


# Work


def test_images_are_as_a_vae_decodes_them(images):
    assert images.shape == (4, 3, 48, 64)
    assert images.dtype == torch.float32
    assert -1 <= images.min() < -0.5 and 0.5 < images.max() <= 1
    assert torch.equal(images, work.make_images(LOAD, CPU))
    assert len({float(image.mean()) for image in images}) == 4


@pytest.mark.parametrize("wanted", range(5))
def test_the_threshold_flags_as_many_as_were_asked_for(tiny_folder, images, wanted):
    guard = NsfwGuard(tiny_folder, dtype="float32")
    guard.policy = work.policy_that_flags(guard, images, wanted)
    assert sum(guard.apply(images, value_range=(-1, 1)).flags) == wanted


def test_a_folder_is_taken_as_it_is_and_a_card_stands_for_its_architecture(source, tiny_folder, tmp_path, monkeypatch):
    assert (source.folder, source.name, source.random) == (tiny_folder, "checkpoint", False)
    saved = []
    monkeypatch.setitem(work.SAVERS, "falconsai", lambda folder: saved.append(folder) or save_tiny(folder))
    found = work.find_source("falconsai", weights="random", cache=tmp_path)
    assert found.random and found.folder == tmp_path / "falconsai" and found.card.name == "falconsai"
    work.find_source("falconsai", weights="random", cache=tmp_path)
    assert saved == [tmp_path / "falconsai"]  # the second time it was there


def test_the_runtime_is_handed_on(source, monkeypatch):
    monkeypatch.setattr(work, "NsfwGuard", lambda folder, **options: options)
    for runtime, expected in [("auto", ("auto", "auto")), ("onnx", ("onnx", "auto")), ("onnx-int8", ("onnx", "int8"))]:
        given = work.load_guard(source, CPU, "auto", redaction="blur", runtime=runtime)
        assert (given["runtime"], given["dtype"]) == expected
    with pytest.raises(SettingError, match="runtime is 'fast'; expected one of auto, torch, onnx, onnx-int8"):
        BenchSettings(runtimes=["fast"])


# Peers


def test_pictures_are_made_as_diffusers_makes_them(images):
    from diffusers.image_processor import VaeImageProcessor

    ours, theirs = peers.to_pil(images), VaeImageProcessor().postprocess(images, output_type="pil")
    assert [picture.tobytes() for picture in ours] == [picture.tobytes() for picture in theirs]


@pytest.mark.parametrize("wanted", [0, 1, 3, 4])
def test_the_stock_checker_is_called_through_its_pipeline_and_its_flags_come_back(images, wanted):
    stock = peers.StockPath(CPU, vision=TINY_CLIP)
    calls = []
    original = stock.pipeline.run_safety_checker
    stock.pipeline.run_safety_checker = lambda *args: calls.append(args) or original(*args)
    stock.aim(images, wanted)
    given = images.clone()
    flags = stock(given)
    assert sum(flags) == wanted
    assert [bool((image == 0).all()) for image in given] == flags  # it paints in place, so it really was given these
    assert len(calls) == 2
    assert calls[-1][0] is given
    assert type(stock.pipeline).__name__ == "StableDiffusionPipeline"
    assert type(stock.pipeline.safety_checker).__name__ == "StableDiffusionSafetyChecker"
    assert not torch.equal(images, given) or wanted == 0


def test_the_stock_checker_in_another_dtype_is_another_module(images):
    stock = peers.StockPath(CPU, vision=TINY_CLIP)
    half = stock.to(torch.bfloat16)
    assert next(half.pipeline.safety_checker.parameters()).dtype == torch.bfloat16
    assert next(stock.pipeline.safety_checker.parameters()).dtype == torch.float32
    assert len(half(images.clone())) == len(stock(images.clone())) == 4


def test_the_stock_checker_has_the_real_architecture():
    from transformers import CLIPConfig

    config = CLIPConfig(vision_config=peers._CLIP_L_14, projection_dim=768).vision_config
    assert (config.hidden_size, config.num_hidden_layers, config.patch_size, config.image_size) == (1024, 24, 14, 224)


def test_the_transformers_pipeline_classifies_each_image(source, images):
    found = peers.TransformersPipeline(source, CPU)
    guard = NsfwGuard(source.folder, dtype="float32")
    scores = [verdict.score for verdict in guard.check(images, value_range=(-1, 1))]
    assert found(images) == [score >= 0.5 for score in scores]
    assert found.dtype == torch.float32


def test_the_recipe_classifies_each_image(freepik, images, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    recipe = peers.FreepikRecipe(freepik, CPU)
    assert recipe.name == "the model card's recipe"
    verdicts = NsfwGuard(freepik.folder, dtype="bfloat16").check(images, value_range=(-1, 1))
    clear = [index for index, verdict in enumerate(verdicts) if abs(verdict.score - 0.5) > 0.05]
    flags = recipe(images)
    assert len(flags) == 4
    assert [flags[index] for index in clear] == [verdicts[index].flagged for index in clear]


def test_the_package_of_the_recipe_is_taken_if_it_is_installed(freepik, images, monkeypatch):
    asked = []

    class NSFWDetector:
        def __init__(self, model_name, device, dtype):
            asked.append((model_name, device, dtype))

        def is_nsfw(self, pictures):
            asked.append([type(picture) for picture in pictures])
            return [True, False, False, True]

    package = types.ModuleType("nsfw_image_detector")
    package.NSFWDetector = NSFWDetector
    package.__spec__ = importlib.machinery.ModuleSpec("nsfw_image_detector", None)
    monkeypatch.setitem(sys.modules, "nsfw_image_detector", package)
    recipe = peers.FreepikRecipe(freepik, CPU)
    assert recipe.name == "nsfw-image-detector"
    assert recipe(images) == [True, False, False, True]
    assert asked == [(str(freepik.folder), "cpu", torch.bfloat16), [Image.Image] * 4]


def test_the_bare_forward_is_the_classifier_that_the_guard_has(source):
    bare = peers.BareForward(source, CPU, torch.float32)
    inputs = bare.inputs(3)
    assert inputs.shape == (3, 3, 32, 32)
    classifier = NsfwGuard(source.folder, dtype="float32").classifier
    assert torch.allclose(bare(inputs).softmax(-1), classifier.probabilities(inputs), atol=1e-5)


# Stages


def test_stages_are_the_guarded_call_in_its_order(tiny_folder, images):
    guard = NsfwGuard(tiny_folder, dtype="float32", batch_size=3)
    guard.policy = work.policy_that_flags(guard, images, 2)
    expected = guard.apply(images, value_range=(-1, 1)).flags
    staged = StagedCall(guard, images, Timer())
    spent = staged()
    assert tuple(spent) == STAGES
    assert staged.flags == expected
    assert all(seconds > 0 for stage, seconds in spent.items() if stage != "preprocess")


# Ratios


def facts(**changes):
    load = Workload(1024, 1024, 4, 1)
    wide = Workload(1344, 768, 4, 1)
    place = (1024, 1024, 4)
    guard = Key("guard", "falconsai", "bfloat16", "auto", *place)
    given = {
        "device": "cpu",
        "workloads": [load, wide],
        "models": {"falconsai": ["bfloat16"]},
        "auto": {"falconsai": "bfloat16"},
        "seconds": {
            guard: [1.0, 2.0, 1.0],
            Key("bare", "falconsai", "bfloat16", batch=4): [1.0, 1.0, 0.5],
            Key("stock", "", "float32", "", *place): [20.0, 20.0, 18.0],
            Key("pipeline", "falconsai", "float32", "", *place): [3.0, 4.0, 2.0],
            Key("guard", "falconsai", "int8", "onnx-int8", *place): [0.5, 1.0, 0.25],
            Key("matmul", dtype="bfloat16"): [2.0, 2.0, 2.0],
        },
        "forward": {guard: [0.8, 1.6, 0.8]},
        "flop": {"falconsai": 100},
        "views": {guard: 4},
        "matrix_flop": 1000,
    }
    return Facts(**{**given, **changes})


def found_in(rows, name, dtype="bfloat16"):
    return [row for row in rows if (row["ratio"], row["dtype"]) == (name, dtype) and "median" in row]


@pytest.mark.parametrize(
    ("name", "per_round", "spread"),
    [
        ("guard / bare", [1.0, 2.0, 2.0], (2.0, 1.0, 2.0)),
        ("stock float32 / guard", [20.0, 10.0, 18.0], (18.0, 10.0, 20.0)),
        ("pipeline / guard", [3.0, 2.0, 2.0], (2.0, 2.0, 3.0)),
        ("onnx-int8 / guard", [0.5, 0.5, 0.25], (0.5, 0.25, 0.5)),
        # 4 x 100 operations in 0.8 s, of 1000 in 2 s: all of the rate, then half of it.
        ("guard's forward, share of the matrix rate", [1.0, 0.5, 1.0], (1.0, 0.5, 1.0)),
    ],
)
def test_ratios_are_computed_from_the_samples(name, per_round, spread):
    (row,) = found_in(find_ratios(facts()), name)
    assert row["per_round"] == pytest.approx(per_round)
    assert (row["median"], row["low"], row["high"]) == pytest.approx(spread)
    assert (row["size"], row["batch"], row["flagged"], row["auto"]) == ([1024, 1024], 4, 1, True)


# A whole run


def test_a_run_times_everything_the_same_number_of_times(run_of_tiny):
    assert run_of_tiny.rounds == 2
    assert {len(samples) for samples in run_of_tiny.samples.values()} == {2}
    kinds = {key.kind for key in run_of_tiny.samples}
    assert kinds == {"matmul", "stock", "bare", "guard", "stages", "pipeline"}
    guards = [key for key in run_of_tiny.samples if key.kind == "guard"]
    assert {(key.dtype, key.width, key.batch) for key in guards} == {
        (dtype, *place) for dtype in ("float32", "bfloat16") for place in ((64, 4), (96, 4), (64, 1))
    }
    assert all(run_of_tiny.flagged[key] == 1 for key in guards)
    # More than twice as wide as high: the squashed whole, and three tiles.
    assert {run_of_tiny.views[key] / key.batch for key in guards if key.width == 64} == {1}
    assert {run_of_tiny.views[key] / key.batch for key in guards if key.width == 96} == {4}


def test_the_report_is_plain_and_complete(report):
    assert set(report) >= {
        "schema", "date", "command", "commit", "machine", "versions", "process", "device", "rounds", "workloads",
        "models", "results", "matrix_rates", "ratios", "stages", "missing", "notes", "seconds", "memory_by",
    }  # fmt: skip
    assert report["models"][0]["random_weights"] is False
    assert report["models"][0]["dtypes"] == ["float32", "bfloat16"]
    for row in report["results"]:
        ms = row["ms_per_image"]
        assert 0 < ms["low"] <= ms["median"] <= ms["high"]
        assert row["images_per_second"] == pytest.approx(1000 / ms["median"])
        assert ms["high"] == pytest.approx(1000 * max(row["seconds"]) / row["batch"])
        assert row["first_call_ms"] > 0
        assert row["peak_host_mb"] is None or row["peak_host_mb"] >= 0
        assert (row["describe"] is not None) == (row["kind"] == "guard")
    for row in report["stages"]:
        assert sum(stage["share"] for stage in row["stages"]) == pytest.approx(1, abs=0.5)  # medians, part by part
    assert {rate["dtype"] for rate in report["matrix_rates"]} == {"float32", "bfloat16"}
    assert any(row["ratio"] == "stock same dtype / guard" for row in report["ratios"])
    assert all(row["low"] <= row["median"] <= row["high"] for row in report["ratios"])


def shown(report, width=200, show=show.show):
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=width)
    show(report, console)
    return console.file.getvalue()


def assert_not_judged(text):
    assert not re.search("goal|target|[✓✗]", text, re.IGNORECASE)


def test_what_is_printed_has_every_figure_and_what_is_missing(report):
    text = shown(report)
    for words in (
        "64x48 ×4, 1 of 4 flagged (blur)",
        "nsfw-guard checkpoint f32",
        "stock checker bf16",
        "transformers.pipeline checkpoint",
        "× the bare forward",
        "over 2 interleaved rounds",
        "preprocess",
        "float32 matmul precision",
        "GFLOP/s",
        "views per image: 1 at 64x48, 4 at 96x40",
    ):
        assert words in text, words


@pytest.mark.parametrize("width", [100, 200])
def test_only_measurements_are_printed_and_none_is_judged(report, width):
    assert_not_judged(shown(report, width))


def test_the_real_number_of_flagged_images_is_said(report):
    rows = [{**row, "flagged": 3} if row["kind"] == "guard" else row for row in report["results"]]
    assert "3 (asked: 1) of 4 flagged" in shown({**report, "results": rows})


def test_the_path_that_a_guard_took_is_shown_if_it_says_so(report):
    rows = [
        {**row, "describe": {**(row["describe"] or {}), "forward": {"path": "native", "why": "it is faster"}}}
        for row in report["results"]
    ]
    assert "float32: native (it is faster)" in shown({**report, "results": rows})


@pytest.mark.parametrize("several", [True, False])
def test_the_plot_is_a_picture(report, tmp_path, several):
    some = report if several else {**report, "workloads": report["workloads"][:1]}
    plot.plot(some, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_a_peer_that_fails_is_said_and_one_asked_for_by_name_is_an_error(tiny_folder, monkeypatch):
    def broken(self, images):
        raise RuntimeError("no luck")

    monkeypatch.setattr(peers.TransformersPipeline, "__call__", broken)
    monkeypatch.setattr(peers, "_CLIP_L_14", TINY_CLIP)
    options = {"models": [str(tiny_folder)], "sizes": ["64x48"], "batches": [2], "rounds": 1, "minutes": 5}
    run_of = measure(BenchSettings(**options))
    assert "no luck" in run_of.missing["pipeline checkpoint"]
    assert not any(key.kind == "pipeline" for key in run_of.samples)
    with pytest.raises(SettingError, match="pipeline checkpoint float32, 2 of 64x48 failed: no luck"):
        measure(BenchSettings(**options, peers=["pipeline"]))


def test_without_diffusers_the_stock_checker_is_said_to_be_missing(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.pipelines.stable_diffusion.safety_checker", None)
    options = {"models": [str(tiny_folder)], "sizes": ["64x48"], "batches": [1], "rounds": 1, "minutes": 5}
    assert "pip install 'nsfw-guard[bench]'" in measure(BenchSettings(**options)).missing["stock"]
    with pytest.raises(SettingError, match="needs diffusers: pip install"):
        measure(BenchSettings(**options, peers=["stock"]))


def test_work_for_which_there_is_no_time_is_left_out_and_said(tiny_folder):
    settings = BenchSettings(
        models=[str(tiny_folder)], sizes=["64x48", "96x40"], batches=[1], peers=["none"], rounds=1, minutes=1e-6
    )
    run_of = measure(settings)
    assert run_of.rounds == 1
    assert [load.label for load in run_of.workloads] == ["64x48, 1 image"]
    assert "no time" in run_of.missing["96x40, 1 image"]
    assert any("Peak memory of" in note for note in run_of.notes)
    assert not any(key.width == 96 for key in run_of.samples)


# The command


@pytest.fixture
def tiny_bench(tiny_folder):
    return ["bench", "--model", tiny_folder, "--size", "64x48", "--batch", "2", "--rounds", "1", "--peer", "pipeline"]


def test_the_command_prints_writes_and_draws(tiny_bench, tmp_path):
    threads = torch.get_num_threads()
    files = ["--json", tmp_path / "r.json", "--plot", tmp_path / "p.png"]
    result = run(*tiny_bench, *files, "--threads", "2", "--flagged", "0.5", "--redaction", "fill")
    assert result.exit_code == 0, result.output
    assert "64x48 ×2, 1 of 2 flagged (fill)" in result.stdout
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert found["process"]["threads"] == 2
    assert torch.get_num_threads() == threads
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG"


def test_json_on_standard_output_is_alone_there(tiny_bench):
    result = run(*tiny_bench, "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rounds"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sped"], "What to measure is 'sped'; expected one of speed, memory, startup"),
        (["--model", "nobody"], "There is no model card 'nobody'"),
        (["--dtype", "int4"], "dtype is 'int4'"),
        (["--size", "big"], "size is 'big'"),
        (["--peer", "nudenet"], "peer is 'nudenet'"),
        (["--device", "cuda:77"], "device is 'cuda:77'"),
        (["--threads", "0"], "threads is 0"),
        (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["--plot", "/nowhere/at/all.png"], "there is no folder /nowhere/at"),
        (["--plot", "plot.txt"], "expected a name that ends in .png"),
        (["--images", "3"], "--images is for `nsfw-guard bench memory`, scan and scan-memory"),
        (["memory", "--plot", "x.png"], "memory has no plot"),
        (["memory", "--batch", "3"], "--images instead of --batch"),
        (["memory", "--images", "0"], "images is 0"),
        (["startup", "--size", "64x64"], "looks at no image"),
        (["generate", "--batch", "1", "--batch", "2"], "takes one --model, --size, --batch, --dtype and"),
        (["generate", "--redaction", "none"], 'redaction is "none"'),
    ],
)
def test_what_could_not_run_ends_with_2_and_says_why(arguments, message):
    result = run("bench", *arguments)
    assert result.exit_code == 2, result.output
    assert message in re.sub(r"\s+", " ", result.stderr)
    assert result.stdout == ""


def test_two_models_of_one_name_are_refused(tiny_folder, tmp_path):
    other = save_tiny(tmp_path / tiny_folder.name)
    result = run("bench", "--model", tiny_folder, "--model", other, "--peer", "none", "--size", "64x48")
    assert result.exit_code == 2
    assert "Two models have the name 'checkpoint'" in result.stderr


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("bench", "--plot", tmp_path / "p.png")
    assert result.exit_code == 2
    assert "pip install 'nsfw-guard[bench]'" in result.stderr


def test_the_help_names_the_extra_and_every_choice():
    text = re.sub(r"\s+", " ", run("bench", "--help").stdout)
    for words in ('the extra "bench"', "--json", "--plot", "--runtime", "memory", "startup", "pipeline"):
        assert words in text, words
    assert {"speed", "memory", "startup", "generate"} <= set(command.WHAT)


# Memory of many images, and starting


def test_many_images_go_through_and_their_memory_is_told(tiny_folder):
    result = run("bench", "memory", "--model", tiny_folder, "--images", "8", "--size", "64x64", "--json", "-")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["results"]
    assert [(row["images"], row["flagged"]) for row in rows] == [(2, 1), (4, 1), (8, 2)]
    for row in rows:
        assert row["input_mb"] == row["output_mb"] == row["images"] * 3 * 64 * 64 * 4 / 1e6
        assert row["extra_mb"] >= 0
    text = run("bench", "memory", "--model", tiny_folder, "--images", "4", "--size", "64x64", "--flagged", "0").stdout
    assert "Peak memory of one call" in text


def test_images_for_which_there_is_no_memory_are_refused():
    with pytest.raises(SettingError, match=r"pass --images \d+, or a smaller --size"):
        footprint.measure(BenchSettings(sizes=["8192x8192"]), 1_000_000, lambda words: None)


def test_start_up_ratios_are_taken_round_by_round(tiny_folder, monkeypatch):
    order = []

    def fresh(code, given=None):
        kind = "import" if given is None else f"guard {given['dtype']}" if "dtype" in given else "reference"
        order.append(kind)
        number = len(order)
        if kind == "import":
            return {"import": 0.001 * number}
        if kind == "reference":
            return {
                f"{n}{again}": 1.0
                for n in ("load_file", "load_file, read", "meta", "default")
                for again in ("", " again")
            }
        return {"guard": 3.0, "guard again": 2.0}

    monkeypatch.setattr(startup, "fresh", fresh)
    found = startup.measure(BenchSettings(models=[str(tiny_folder)], rounds=2), lambda words: None)
    assert order == ["import", "reference", "guard float32", "guard auto"] * 2
    assert found["rounds"] == 2
    assert found["import_ms"] == pytest.approx({"median": 3.0, "low": 1.0, "high": 5.0})
    ratios = found["models"][0]["ratios"]["guard float32 ÷ (load_file + module on meta)"]
    assert ratios["first"]["median"] == 1.5 and ratios["again"]["median"] == 1.0
    text = shown(found, show=startup.show)
    assert "import nsfw_guard: 3 (1–5) ms" in text
    assert_not_judged(text)


def test_a_fresh_process_that_fails_is_an_error():
    assert startup.fresh("print('noise')\nprint('{\"a\": 1}')") == {"a": 1}
    with pytest.raises(Exception, match="A fresh process failed: (.|\n)*no such thing"):
        startup.fresh("raise SystemExit('no such thing')")


@pytest.mark.slow
def test_starting_is_measured_in_fresh_processes(tiny_folder):
    result = run("bench", "startup", "--model", tiny_folder, "--rounds", "1")
    assert result.exit_code == 0, result.output
    assert "import nsfw_guard" in result.stdout
    assert "guard float32 ÷ (load_file + module on meta)" in result.stdout


# The GPU


def test_copies_to_the_host_are_read_from_a_trace():
    trace = {
        "traceEvents": [
            {"name": "Memcpy DtoH (Device -> Pageable)", "args": {"bytes": 24}},
            {"name": "Memcpy HtoD (Pageable -> Device)", "args": {"bytes": 999}},
            {"name": "Memcpy DtoH (Device -> Pinned)", "args": {"bytes": 8}},
            {"name": "aten::copy_"},
        ]
    }
    assert gpu.copies_in(trace) == [24, 8]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_synchronisations_and_copies_are_counted():
    values = torch.ones(1000, device="cuda")
    assert gpu.count_synchronisations(lambda: values * 2) == 0
    assert gpu.count_synchronisations(lambda: (values.sum().item(), values.max().item())) == 2
    assert sum(gpu.copies_to_host(lambda: values.cpu())) == 4000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_guarded_call_waits_once_and_copies_no_pixels(tiny_folder):
    images = work.make_images(LOAD, torch.device("cuda"))
    guard = NsfwGuard(tiny_folder, device="cuda")
    guard.policy = work.policy_that_flags(guard, images, 1)

    def call():
        guard.apply(images, value_range=(-1, 1))

    call()
    found = gpu.host_traffic(call)
    assert found.synchronisations == 1
    assert found.largest_copy < 3 * 48 * 64


def test_bench_scan_compares_with_its_halves_and_a_plain_loop(tiny_folder):
    result = run(
        "bench", "scan", "--model", tiny_folder, "--images", "3", "--size", "96x64", "--rounds", "1", "--json", "-"
    )
    assert result.exit_code == 0, result.output
    (model,) = json.loads(result.stdout)["models"]
    rates = {name: spread["median"] for name, spread in model["files_per_second"].items()}
    assert set(rates) == {"scan", "scan, the card's view only", "decode alone", "model alone", "plain loop"}
    slower = min(rates["decode alone"], rates["model alone"])
    assert model["ratios"]["scan ÷ the slower half"]["median"] == pytest.approx(rates["scan"] / slower)
    assert model["ratios"]["scan ÷ plain loop"]["median"] == pytest.approx(rates["scan"] / rates["plain loop"])
    text = run("bench", "scan", "--model", tiny_folder, "--images", "2", "--size", "96x64", "--rounds", "1").stdout
    assert "scan ÷ plain loop" in text
    assert_not_judged(text)


def test_bench_scan_compares_dtypes_and_runtimes(tiny_folder):
    choices = [*("--dtype", "float32", "--dtype", "bfloat16"), *("--runtime", "auto", "--runtime", "torch")]
    result = run(
        "bench", "scan", "--model", tiny_folder, "--images", "2", "--size", "96x64", "--rounds", "1", *choices,
        "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    name = pathlib.Path(tiny_folder).name
    expected = [f"{name} {dtype}{runtime}" for runtime in ("", " torch") for dtype in ("float32", "bfloat16")]
    assert [model["name"] for model in json.loads(result.stdout)["models"]] == expected


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").is_file(), reason="needs /proc")
def test_bench_scan_memory_counts_both_scans(monkeypatch):
    from nsfw_guard.bench import scan_memory

    monkeypatch.setattr(scan_memory, "FEW", 20)
    result = run("bench", "scan-memory", "--images", "60", "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(row["files"], row["errors"]) for row in report["results"]] == [(20, 0), (60, 0)]
    few, many = (row["peak"] for row in report["results"])
    assert report["memory_ratio"] == pytest.approx(many / few)
    assert_not_judged(shown(report, show=scan_memory.show))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scan", "--batch", "4"], "leave out --batch"),
        (["scan", "--size", "64x64", "--size", "96x64"], "files of one --size"),
        (["scan-memory", "--model", "marqo"], "takes --images and --threads only"),
        (["scan-memory", "--dtype", "float32"], "takes --images and --threads only"),
        (["startup", "--runtime", "torch"], "leave out --size, --batch, --runtime and --peer"),
        (["generate", "--runtime", "torch", "--runtime", "auto"], "takes one --model, --size, --batch, --dtype and"),
        (["scan-memory", "--images", "10"], "expected more than 1000"),
    ],
)
def test_bench_scan_refuses_what_means_nothing_there(arguments, words):
    result = run("bench", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
