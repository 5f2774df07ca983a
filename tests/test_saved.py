"""A guard as a folder: what is written, what is kept, and what hosts make of it on its way to the Hub and back."""

import base64
import fnmatch
import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pipelines
import pytest
import torch
from checkpoints import MARQO_CONFIG, seeded, write_json
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.pipelines import pipeline_utils
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner

from nsfw_guard import CheckpointError, NsfwGuard, Policy, Redaction, SettingError
from nsfw_guard.cli import app
from nsfw_guard.demo.shapes import draw
from nsfw_guard.saved import say_safetensors_only
from nsfw_guard.settings import AS_SAVED, settled

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURE = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 40).convert("RGB")
SETTINGS = {
    "policy": Policy("high", 0.875, {"nsfw": 0.9375}, "any"),
    "redaction": Redaction("replace", image=PICTURE, cells=5, color=(0.25, 0.5, 0.75), fit="contain", verify=False),
    "views": "card",
    "batch_size": 3,
}


def settings_of(guard):
    values = {name: getattr(guard.redaction, name) for name in ("kind", "cells", "verify", "color", "fit")}
    picture = None if guard.redaction.image is None else guard.redaction.image.tobytes()
    return guard.policy, values, picture, guard.views, guard.batch_size, guard._placement.dtype


@pytest.fixture
def guard(tiny_folder):
    return NsfwGuard(tiny_folder, dtype="float32", **SETTINGS)


@pytest.fixture
def folder(guard, tmp_path):
    guard.save_pretrained(tmp_path / "guard")
    return tmp_path / "guard"


# --- What is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [NsfwGuard, NsfwGuard.from_pretrained, lambda folder: NsfwGuard(str(folder))])
def test_a_saved_guard_keeps_its_settings(guard, folder, images, load):
    again = load(folder)
    assert settings_of(again) == settings_of(guard)
    assert again.card == guard.card
    before, after = guard.apply(images), again.apply(images)
    assert after.verdicts == before.verdicts
    assert torch.equal(after.images, before.images)


GIVEN = {
    "policy": ("balanced", lambda guard: guard.policy, Policy()),
    "threshold": (0.25, lambda guard: guard.policy, Policy("high", 0.25, {"nsfw": 0.9375}, "any")),
    "redaction": ("fill", lambda guard: guard.redaction, Redaction("fill")),
    "views": ("auto", lambda guard: guard.views, "auto"),
    "batch_size": (16, lambda guard: guard.batch_size, 16),
    "dtype": ("auto", lambda guard: guard._placement.dtype, None),
    "runtime": ("torch", lambda guard: guard.classifier.forward_path.runtime, "torch"),
}


LOADED = [(NsfwGuard, name) for name in GIVEN]
# As transformers has it, from_pretrained(dtype="auto") is what was saved.
LOADED += [(NsfwGuard.from_pretrained, name) for name in GIVEN if name != "dtype"]


@pytest.mark.parametrize(("load", "name"), LOADED)
def test_what_is_given_comes_before_what_was_saved(guard, folder, name, load):
    value, read, expected = GIVEN[name]
    again = load(folder, **{name: value})
    assert read(again) == expected
    for other, (_, read, _) in GIVEN.items():
        if other not in (name, "policy", "threshold", "dtype", "redaction", "runtime"):
            assert read(again) == read(guard)


def test_the_dtype_of_another_runtime_says_nothing():
    given = dict.fromkeys(["policy", "redaction", "views", "batch_size", "dtype", "runtime"], AS_SAVED)
    saved = {"dtype": "int8", "runtime": "onnx", "views": "card"}
    kept, other = settled(given, saved), settled({**given, "runtime": "torch"}, saved)
    assert (kept["dtype"], kept["runtime"], kept["views"]) == ("int8", "onnx", "card")
    assert (other["dtype"], other["runtime"], other["views"]) == ("auto", "torch", "card")


def test_what_was_loaded_and_changed_is_saved_again(folder, tmp_path):
    again = NsfwGuard(folder)
    again.policy, again.redaction = "balanced", "fill"
    again.save_pretrained(tmp_path / "again")
    assert settings_of(NsfwGuard(tmp_path / "again"))[:2] == settings_of(again)[:2]
    again.save_pretrained(folder)
    assert NsfwGuard(folder).policy == Policy()


def test_the_folder_is_an_ordinary_checkpoint(guard, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    network = AutoModelForImageClassification.from_pretrained(folder)
    assert network.config.id2label == guard.classifier.network.config.id2label
    assert torch.equal(network.classifier.weight, guard.classifier.network.classifier.weight)


def test_the_settings_of_a_guard_are_not_the_networks(folder, tmp_path):
    NsfwGuard(folder).classifier.network.save_pretrained(tmp_path / "network")
    assert "nsfw_guard" not in json.loads((tmp_path / "network" / "config.json").read_text())


def test_the_demo_and_a_timm_model(tmp_path):
    import timm

    save_file(
        seeded(lambda: timm.create_model("vit_tiny_patch16_384", num_classes=2)).state_dict(),
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    write_json(tmp_path / "config.json", json.loads(json.dumps(MARQO_CONFIG)))
    for name in ("demo", tmp_path):
        guard = NsfwGuard(name, policy=Policy("high", 0.25), dtype="float32")
        guard.save_pretrained(tmp_path / "saved")
        again = NsfwGuard(tmp_path / "saved")
        assert (again.policy, again.card) == (guard.policy, guard.card)
        assert again.check(PICTURE) == guard.check(PICTURE)
        shutil.rmtree(tmp_path / "saved")


# --- Folders of earlier versions -------------------------------------------------------------------------------------


def as_before(folder):
    """Rewrite a saved guard as earlier versions wrote it."""
    config = json.loads((folder / "config.json").read_text())
    saved = config.pop("nsfw_guard")
    write_json(folder / "config.json", config)
    picture = saved["guard"]["redaction"].pop("image")
    (folder / "replacement.png").write_bytes(base64.b64decode(picture.split(",")[1]))
    saved["guard"]["redaction"]["image"] = "replacement.png"
    write_json(folder / "nsfw_guard.json", saved)
    return saved


@pytest.mark.parametrize("load", [NsfwGuard, NsfwGuard.from_pretrained])
def test_a_folder_of_an_earlier_version_is_read(guard, folder, load):
    as_before(folder)
    assert settings_of(load(folder)) == settings_of(guard)


@pytest.mark.parametrize("image", ["../secret.png", "/etc/hostname", "sub/replacement.png", "data:image/png;base64,%%"])
def test_a_replacement_is_no_file_from_elsewhere(folder, image):
    saved = as_before(folder)
    Image.new("RGB", (3, 3)).save(folder.parent / "secret.png")
    saved["guard"]["redaction"]["image"] = image
    write_json(folder / "nsfw_guard.json", saved)
    with pytest.raises(CheckpointError, match="settings of the guard in .* cannot be read"):
        NsfwGuard(folder)


@pytest.mark.parametrize("saved", [[], {"card": {}}, {"card": [], "guard": {}}, "x", {"guard": {}}])
def test_what_save_pretrained_did_not_write_is_refused(folder, saved):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "nsfw_guard": saved})
    with pytest.raises(CheckpointError, match="config.json was not written by NsfwGuard.save_pretrained"):
        NsfwGuard(folder)


@pytest.mark.parametrize("change", [{"policy": {"threshold": 2}}, {"policy": {"x": 1}}, {"redaction": {"kind": "x"}}])
def test_settings_that_cannot_be_are_refused(folder, change):
    config = json.loads((folder / "config.json").read_text())
    config["nsfw_guard"]["guard"].update(change)
    write_json(folder / "config.json", config)
    with pytest.raises(CheckpointError, match="settings of the guard in .* cannot be read"):
        NsfwGuard(folder)


@pytest.mark.parametrize(
    ("where", "change", "said"),
    [
        ("guard", {"policy": None}, "policy is None; expected an object"),
        ("guard", {"redaction": []}, "redaction is \\[\\]; expected an object"),
        ("guard", {"threshold": 0.1}, "guard has \\['threshold'\\], which no guard of this version has"),
        ("guard", {"treshold": 0.1}, "guard has \\['treshold'\\]"),
        ("guard", {"policy": ...}, "guard does not say \\['policy'\\]"),
        ("guard", {"views": ...}, "guard does not say \\['views'\\]"),
        ("policy", {"threshold": ...}, "policy does not say \\['threshold'\\]"),
        ("policy", {"per_label": ..., "level": ...}, "policy does not say \\['level', 'per_label'\\]"),
        ("redaction", {"cells": ...}, "redaction does not say \\['cells'\\]"),
        ("redaction", {"radius": 3}, "redaction has \\['radius'\\]"),
    ],
)
def test_settings_that_are_left_out_or_called_otherwise_are_no_defaults(folder, where, change, said):
    """A guard at 0.875 whose file has lost the number would judge by 0.5, and nobody would know."""
    config = json.loads((folder / "config.json").read_text())
    table = config["nsfw_guard"]["guard"] if where == "guard" else config["nsfw_guard"]["guard"][where]
    for name, value in change.items():
        if value is ...:
            del table[name]
        else:
            table[name] = value
    write_json(folder / "config.json", config)
    with pytest.raises(CheckpointError, match=f"The settings of the guard in .* cannot be read: {said}"):
        NsfwGuard(folder)


@pytest.mark.parametrize("dtype", [3, torch.Tensor, "float8"])
def test_a_cast_that_is_none_is_refused(folder, dtype):
    for name in ("dtype", "torch_dtype"):
        with pytest.raises(SettingError, match="dtype is"):
            NsfwGuard.from_pretrained(folder, **{name: dtype})


# --- from_pretrained takes what NsfwGuard takes ----------------------------------------------------------------------


def test_from_pretrained_of_a_card_a_checkpoint_and_a_hub_id(tiny_folder, monkeypatch):
    assert NsfwGuard.from_pretrained("demo").card.name == "demo"
    assert NsfwGuard.from_pretrained(tiny_folder, policy="balanced", redaction="fill").redaction.kind == "fill"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tiny_folder))
    assert NsfwGuard.from_pretrained("org/tiny").policy == Policy()
    with pytest.raises(SettingError, match="There is no model card 'nobody'"):
        NsfwGuard.from_pretrained("nobody")


@pytest.mark.parametrize("call", ["from_pretrained", "save_pretrained"])
def test_what_only_a_newer_host_passes_is_ignored_and_said(guard, tiny_folder, tmp_path, caplog, call):
    """To fail here would leave half a pipeline."""
    if call == "from_pretrained":
        NsfwGuard.from_pretrained(tiny_folder, device_mesh=None)
    else:
        guard.save_pretrained(tmp_path / "saved", device_mesh=None)
        assert settings_of(NsfwGuard(tmp_path / "saved")) == settings_of(guard)
    assert f"{call}(…, device_mesh=…): a guard has no such setting, and ignores it." in caplog.text


def test_from_pretrained_knows_its_arguments(tiny_folder):
    hosts = {"device_map": None, "low_cpu_mem_usage": True, "use_safetensors": None, "max_memory": None}
    assert NsfwGuard.from_pretrained(tiny_folder, **hosts).views == "auto"
    with pytest.raises(SettingError, match=r"from_pretrained\(…, polcy=…\) is not known.*Did you mean 'policy'\?"):
        NsfwGuard.from_pretrained(tiny_folder, polcy="strict")


def test_a_dtype_by_name_is_a_setting_and_a_torch_dtype_is_a_hosts_cast(tiny_folder):
    named = NsfwGuard.from_pretrained(tiny_folder, dtype="float16")
    assert (named.classifier.dtype, named.describe()["pinned"]) == (torch.float16, {"dtype": "torch.float16"})
    cast = NsfwGuard.from_pretrained(tiny_folder, torch_dtype=torch.float16)
    assert (cast.classifier.dtype, cast.describe()["pinned"]) == (torch.float16, {})
    with pytest.raises(SettingError, match="dtype is 'float8'"):
        NsfwGuard.from_pretrained(tiny_folder, dtype="float8")


def test_the_guard_of_a_saved_pipeline(guard, tmp_path, monkeypatch):
    pipelines.stable_diffusion(guard).save_pretrained(tmp_path / "pipe")
    for load in (NsfwGuard, NsfwGuard.from_pretrained):
        assert settings_of(load(tmp_path / "pipe", subfolder="safety_checker")) == settings_of(guard)
    asked = []

    def snapshot(repo, *, allow_patterns, **_):
        asked.append(allow_patterns)
        return str(tmp_path / "pipe")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = NsfwGuard.from_pretrained("me/guarded", subfolder="safety_checker")
    assert settings_of(found) == settings_of(guard)
    assert {pattern.split("/")[0] for patterns in asked for pattern in patterns} == {"safety_checker"}
    with pytest.raises(CheckpointError, match="config.json"):
        NsfwGuard(tmp_path / "pipe", subfolder="nowhere")


def test_a_relative_path_of_a_saved_guard_is_no_hub_id_where_a_host_gives_it(guard, tmp_path, monkeypatch):
    """diffusers names the folder of a component by its path, as it was given to the pipeline."""
    monkeypatch.chdir(tmp_path)
    pipelines.stable_diffusion(guard).save_pretrained("pipe")
    assert settings_of(DiffusionPipeline.from_pretrained("pipe").safety_checker) == settings_of(guard)
    shutil.copytree("pipe", "org/pipe")
    nested = NsfwGuard.from_pretrained("org/pipe", subfolder="safety_checker")
    assert settings_of(nested) == settings_of(guard)
    with pytest.raises(SettingError, match="has the form of a Hub id"):
        NsfwGuard("pipe/safety_checker")
    fetched = []

    def refuse(repo, **_):
        fetched.append(repo)
        raise FileNotFoundError(repo)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    shutil.copytree("pipe/safety_checker", "Falconsai/nsfw_image_detection")
    for name, given in (("Falconsai/nsfw_image_detection", {}), ("pipe/safety_checker", {"revision": "main"})):
        with pytest.raises(CheckpointError):
            NsfwGuard.from_pretrained(name, **given)
        assert fetched.pop() == name


# --- Variants, shards, pickles ---------------------------------------------------------------------------------------


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_variant_is_carried(guard, tmp_path):
    guard.save_pretrained(tmp_path, variant="fp16")
    assert names_in(tmp_path) == ["config.json", "model.fp16.safetensors"]
    for load in (NsfwGuard, NsfwGuard.from_pretrained):
        for given in ({}, {"variant": "fp16"}):
            assert load(tmp_path, **given).check(PICTURE) == guard.check(PICTURE)
    with pytest.raises(CheckpointError, match=r"no weights of the variant 'bf16'; it has the variants \['fp16'\]"):
        NsfwGuard(tmp_path, variant="bf16")


def test_of_several_variants_the_one_that_is_named(tiny_folder, guard, tmp_path):
    other = NsfwGuard(tiny_folder, dtype="float32", **SETTINGS)
    with torch.no_grad():
        other.classifier.network.classifier.weight.neg_()
    guard.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path, variant="ema")
    assert NsfwGuard(tmp_path).check(PICTURE) == guard.check(PICTURE)
    assert NsfwGuard(tmp_path, variant="ema").check(PICTURE) == other.check(PICTURE) != guard.check(PICTURE)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    with pytest.raises(CheckpointError, match=r"no weights without a variant's name; .*\['ema', 'fp16'\]"):
        NsfwGuard(tmp_path)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(guard, tmp_path, variant):
    guard.save_pretrained(tmp_path, variant=variant, max_shard_size="20KB")
    index = "model.safetensors.index.json" if variant is None else "model.safetensors.index.fp16.json"
    assert index in names_in(tmp_path)
    assert len(names_in(tmp_path)) > 4
    assert NsfwGuard(tmp_path, variant=variant).check(PICTURE) == guard.check(PICTURE)
    assert NsfwGuard(tmp_path).check(PICTURE) == guard.check(PICTURE)
    shard = next(path for path in sorted(tmp_path.glob("*.safetensors")))
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"lacks the shards .*{re.escape(shard.name)}.* that its {index} names"):
        NsfwGuard(tmp_path)


@pytest.mark.parametrize("cast", [None, torch.float16])
def test_a_pipeline_with_a_variant(guard, tmp_path, cast):
    pipelines.stable_diffusion(guard).save_pretrained(tmp_path, variant="fp16")
    assert names_in(tmp_path / "safety_checker") == ["config.json", "model.fp16.safetensors"]
    pipe = DiffusionPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=cast)
    assert settings_of(pipe.safety_checker) == settings_of(guard)
    assert pipe.safety_checker.check(PICTURE) == guard.check(PICTURE)


def test_a_pipeline_that_is_saved_without_safetensors_is_whole(guard, tmp_path, caplog):
    say_safetensors_only.cache_clear()
    pipe = pipelines.stable_diffusion(guard)
    with caplog.at_level(logging.WARNING, logger="nsfw_guard"):
        for name in ("once", "twice"):
            pipe.save_pretrained(tmp_path / name, safe_serialization=False)
    said = [record.message for record in caplog.records if record.name.startswith("nsfw_guard")]
    assert said == ["A guard is saved as safetensors: safe_serialization=False does not apply to it."]
    assert names_in(tmp_path / "once" / "safety_checker") == ["config.json", "model.safetensors"]
    again = DiffusionPipeline.from_pretrained(tmp_path / "once")
    assert settings_of(again.safety_checker) == settings_of(guard)


def test_what_hosts_pass_when_they_save(guard, tmp_path):
    for given in ({"max_shard_size": "10GB"}, {"save_peft_format": False, "use_flashpack": False}, {"token": None}):
        guard.save_pretrained(tmp_path / "saved", True, **given)
        assert NsfwGuard(tmp_path / "saved").check(PICTURE) == guard.check(PICTURE)
    guard.save_pretrained(tmp_path / "other process", is_main_process=False)
    assert not (tmp_path / "other process").exists()
    with pytest.raises(SettingError, match=r"save_pretrained\(…, varient=…\) is not known.*Did you mean 'variant'"):
        guard.save_pretrained(tmp_path / "typo", varient="fp16")
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_a_guard_is_uploaded_as_it_is_saved(guard, tmp_path, monkeypatch, how):
    sent = {}

    def upload(self, folder, repo_id, **_):
        shutil.copytree(folder, tmp_path / "sent")
        sent["repo"] = repo_id

    api = SimpleNamespace(create_repo=lambda repo, **_: SimpleNamespace(repo_id=f"me/{repo}"))
    hub = "transformers.utils.hub"
    monkeypatch.setattr(f"{hub}.hf_api", lambda: api, raising=False)
    monkeypatch.setattr(f"{hub}.create_and_tag_model_card", lambda *_, **__: SimpleNamespace(save=lambda path: None))
    monkeypatch.setattr(f"{hub}.PushToHubMixin._upload_modified_files", upload)
    if how == "push_to_hub":
        guard.push_to_hub("guard")
    else:
        guard.save_pretrained(tmp_path / "guard", push_to_hub=True, commit_message="A guard")
    assert sent["repo"] == "me/guard"
    assert settings_of(NsfwGuard(tmp_path / "sent")) == settings_of(guard)


# --- The Hub, through diffusers' own filter --------------------------------------------------------------------------


class Hub:
    """Serves a folder as a repository to ``DiffusionPipeline.download``, which decides what it fetches."""

    def __init__(self, monkeypatch, repository, cache):
        self.repository, self.cache = repository, cache
        files = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
        self.listing = sorted(files)
        monkeypatch.setattr(pipeline_utils, "_resolve_revision", lambda *_, **__: None, raising=False)
        monkeypatch.setattr(pipeline_utils, "model_info", self.info)
        monkeypatch.setattr(pipeline_utils, "hf_hub_download", lambda repo, name, **_: self.fetch(name))
        monkeypatch.setattr(pipeline_utils, "snapshot_download", self.snapshot)

    def info(self, *_, **__):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.listing], sha="0" * 40)

    def fetch(self, name):
        (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.repository / name, self.cache / name)
        return str(self.cache / name)

    def snapshot(self, repo, allow_patterns=None, ignore_patterns=None, **_):
        for name in self.listing:
            allowed = allow_patterns is None or any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
            ignored = any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns or ())
            if allowed and not ignored and (self.repository / name).exists():
                self.fetch(name)
        return str(self.cache)


@pytest.fixture(params=[None, "fp16"])
def hub(request, guard, tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    pipelines.stable_diffusion(guard).save_pretrained(repository, variant=request.param)
    made = Hub(monkeypatch, repository, tmp_path / "cache")
    made.variant = request.param
    return made


def test_diffusers_refuses_components_of_other_packages_on_the_hub(hub):
    """Documents diffusers, and why the README has another line for it: nothing in a repository can change this."""
    for given in ({}, {"safety_checker": None}):
        with pytest.raises(ValueError, match=r"safety_checker/nsfw_guard.py as defined in `model_index.json` does not"):
            DiffusionPipeline.from_pretrained("me/guarded", variant=hub.variant, **given)


def test_a_pipeline_from_the_hub_whole(hub, guard):
    pipe = DiffusionPipeline.from_pretrained(hub.snapshot("me/guarded"), variant=hub.variant)
    assert settings_of(pipe.safety_checker) == settings_of(guard)


def test_what_diffusers_fetches_of_a_guard_is_all_of_it(hub, guard):
    """As if it let the package pass: then it takes config.json and the weights, and nothing else of a component."""
    hub.listing.append("safety_checker/nsfw_guard.py")
    folder = Path(StableDiffusionPipeline.download("me/guarded", variant=hub.variant))
    weights = "model.safetensors" if hub.variant is None else "model.fp16.safetensors"
    assert names_in(folder / "safety_checker") == ["config.json", weights]
    pipe = DiffusionPipeline.from_pretrained(folder, variant=hub.variant)
    assert settings_of(pipe.safety_checker) == settings_of(guard)


def test_commands_keep_the_settings_of_a_saved_guard(tmp_path):
    NsfwGuard("demo", policy=Policy(threshold=1.0, per_label={"circle": 0.5}), redaction="pixelate").save_pretrained(
        tmp_path / "guard"
    )
    to_pil_image(draw("circle", "red", "white")).save(tmp_path / "circle.png")
    check = ["check", str(tmp_path / "circle.png"), "--model", str(tmp_path / "guard"), "--json"]
    scan = ["scan", str(tmp_path / "circle.png"), "--model", str(tmp_path / "guard"), "--out", str(tmp_path / "out")]
    for command in (check, scan):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1, done.output  # flagged by the label that the saved policy names
        named = CliRunner().invoke(
            app, [*command, "--policy", "balanced", *(["--rejudge"] if "scan" in command else [])]
        )
        assert named.exit_code == 0, named.output
