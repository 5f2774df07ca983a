"""Finding, downloading and loading checkpoints: what is trusted, and what is refused."""

import contextlib
import json
import re
import struct
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from checkpoints import (
    FALCONSAI_PROCESSOR,
    MARQO_CONFIG,
    SAVERS,
    TINY_CONFIG,
    TINY_PROCESSOR,
    save_tiny,
    seeded,
    write_json,
)
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import nsfw_guard
from nsfw_guard import CARDS, CheckpointError, ModelCard, NsfwGuard, PreprocessSpec, SettingError, download
from nsfw_guard.checkpoint import CARD_FILE, SAVED_FILE, WEIGHTS, find_checkpoint
from nsfw_guard.classifier import _NothingToInitialise, stored_dtype


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "checkpoint")


def change_weights(folder, change):
    """Rewrite the weights file as ``change`` makes it."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    write_json(folder / "config.json", {key: value for key, value in config.items() if value is not None})


HEAD = "classifier.weight"
CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 40},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(HEAD), "missing: classifier.weight"),
        (lambda weights: weights.update(extra=torch.zeros(2)), "surplus: extra"),
        (lambda weights: weights.update({HEAD: torch.zeros(3, 32)}), "cannot be loaded|misshapen"),
        (lambda weights: weights[HEAD].fill_(float("nan")), "classifier.weight holds NaN or infinite values"),
        (lambda weights: weights[HEAD][0, 0].fill_(float("inf")), "classifier.weight holds NaN or infinite values"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, change, message):
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        NsfwGuard(folder)


def test_broken_files_are_refused(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for data in (
        whole[: len(whole) // 2],
        b"",
        whole[:7],
        struct.pack("<Q", 2**40) + whole[8:],
        b"\x80\x04pickle" * 99,
    ):
        (folder / WEIGHTS).write_bytes(data)
        with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
            NsfwGuard(folder)


def test_a_pickle_is_refused_and_never_opened(folder):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(folder / 'sprung')!r}, 'w').close()",))

    (folder / WEIGHTS).unlink()
    torch.save({"weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"only as pytorch_model.bin.*unpickling can run any code(.|\n)*save_pretrained"
    ):
        NsfwGuard(folder)
    assert not (folder / "sprung").exists()


def test_code_in_a_checkpoint_is_not_run(folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'sprung')!r}, 'w').close()\nclass Model: ...\n")
    change_config(folder, auto_map={"AutoModelForImageClassification": "evil.Model", "AutoConfig": "evil.Model"})
    with contextlib.suppress(CheckpointError):
        NsfwGuard(folder)
    change_config(folder, model_type="evil")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        NsfwGuard(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": None, "label2id": None}, "does not name the labels"),
        ({"id2label": {}}, "does not name the labels"),
        ({"id2label": {"1": "normal", "2": "nsfw"}}, "does not name the labels"),
        ({"id2label": {"0": "nsfw", "1": "nsfw"}}, "has a label twice"),
        ({"id2label": {"0": "normal", "1": "nsfw", "2": "porn"}}, "cannot be loaded|do not fit"),
    ],
)
def test_configs_without_usable_labels_are_refused(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        NsfwGuard(folder)


def test_labels_are_in_the_order_of_their_indices(folder):
    change_config(folder, id2label={"1": "nsfw", "0": "normal"})
    assert NsfwGuard(folder).classifier.labels == ("normal", "nsfw")


def test_labels_that_nobody_knows_are_refused_and_the_error_maps_them(folder):
    change_config(folder, id2label={"0": "LABEL_0", "1": "spicy"})
    with pytest.raises(SettingError, match=r"not known how severe \['LABEL_0', 'spicy'\] are") as caught:
        NsfwGuard(folder)
    # What the error says to put into the file works, once the levels are said.
    table = str(caught.value).split("beside the weights:\n")[1]
    (folder / CARD_FILE).write_text(table)
    with pytest.raises(SettingError, match=r"does not say yet how severe \['LABEL_0', 'spicy'\] are"):
        NsfwGuard(folder)
    (folder / CARD_FILE).write_text(table.replace('"spicy" = "?"', '"spicy" = "high"').replace('"?"', '"neutral"'))
    assert NsfwGuard(folder).card.levels["spicy"].name == "HIGH"


def test_a_card_about_other_labels_is_refused(folder):
    with pytest.raises(CheckpointError, match=r"labels \['normal', 'nsfw'\], and the card 'marqo' is about"):
        NsfwGuard(folder, card="marqo")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "holds a list; expected an object"),
        (lambda f: (f / WEIGHTS).unlink(), f"has no weights as {WEIGHTS}. Pickles"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessing .* cannot be read(.|\n)*PreprocessSpec"),
        (lambda f: write_json(f / "preprocessor_config.json", {**TINY_PROCESSOR, "resample": 1}), "resample is 1"),
        (
            lambda f: write_json(f / "preprocessor_config.json", {**TINY_PROCESSOR, "rescale_factor": 1 / 127.5}),
            "rescales by another factor",
        ),
        (lambda f: write_json(f / "preprocessor_config.json", {**CLIP, "do_resize": False}), "it does not resize"),
        (
            lambda f: write_json(f / "preprocessor_config.json", {**CLIP, "do_center_crop": False}),
            "it resizes the shortest edge without a centre crop",
        ),
        (
            lambda f: write_json(
                f / "preprocessor_config.json", {**TINY_PROCESSOR, "size": {"height": 32, "width": 48}}
            ),
            r"model input is \[32, 48\]; expected a square",
        ),
        (
            lambda f: (
                (f / WEIGHTS).unlink(),
                write_json(f / f"{WEIGHTS}.index.json", {"weight_map": {"a": "b.safetensors"}}),
            ),
            r"lacks the shards \['b.safetensors'\]",
        ),
    ],
)
def test_incomplete_folders_are_refused(folder, break_it, message):
    break_it(folder)
    with pytest.raises(CheckpointError, match=message):
        NsfwGuard(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, PreprocessSpec(32, "crop", "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop_pct=0.8)),
        (
            {"size": {"height": 40, "width": 40}, "do_normalize": False},
            PreprocessSpec(32, "squash", "bicubic", (0, 0, 0), (1, 1, 1), crop_pct=0.8),
        ),
        (
            {"size": {"height": 32, "width": 32}, "do_center_crop": False},
            PreprocessSpec(32, "squash", "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ),
    ],
)
def test_what_a_processors_file_says(folder, changes, expected):
    write_json(folder / "preprocessor_config.json", {**CLIP, **changes})
    assert find_checkpoint(folder)[1].preprocess == expected


def test_what_a_timm_config_says_of_its_crop(folder):
    cfg = {**MARQO_CONFIG["pretrained_cfg"], "crop_pct": 0.875}
    write_json(folder / "config.json", {**MARQO_CONFIG, "pretrained_cfg": cfg})
    spec = find_checkpoint(folder)[1].preprocess
    assert (spec.size, spec.resize, spec.crop_pct) == (384, "crop", 0.875)
    write_json(folder / "config.json", {**MARQO_CONFIG, "pretrained_cfg": {**cfg, "crop_mode": "border"}})
    with pytest.raises(CheckpointError, match="crop_mode is 'border'; expected one of"):
        find_checkpoint(folder)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": 3}, "model is 3; expected a card, its name, a Hub id"),
        ({"model": b"demo"}, "model is b'demo'; expected a card"),
        ({"model": []}, r"model is \[\]; expected a card"),
        ({"model": ""}, "model is ''; expected a card"),
        ({"model": "demo", "card": 3}, "card is 3; expected a ModelCard"),
        ({"model": "demo", "card": {"levels": {}}}, "card is {'levels': {}}; expected a ModelCard"),
        ({"model": "demo", "subfolder": 1}, "subfolder is 1; expected the name of a folder"),
        ({"model": "x" * 5000}, "There is no model card 'xxx"),
    ],
)
def test_what_can_be_no_model_is_refused(given, said, monkeypatch, folder):
    monkeypatch.chdir(folder)  # which an empty name must not mean
    with pytest.raises(SettingError, match=said):
        NsfwGuard(**given)


@pytest.mark.parametrize("variant", ["fp16", "", "../x"])
def test_a_variant_that_a_folder_does_not_have(folder, variant):
    with pytest.raises(CheckpointError, match=f"no weights of the variant {variant!r}; leave variant out"):
        NsfwGuard(folder, variant=variant)


def test_a_config_that_is_nested_too_deeply_is_refused(folder):
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        NsfwGuard(folder)


def test_places_that_do_not_exist(tmp_path):
    with pytest.raises(CheckpointError, match="There is no folder"):
        NsfwGuard(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="There is no folder nowhere"):
        NsfwGuard("./nowhere")
    with pytest.raises(
        SettingError, match="There is no model card 'nowhere'. Cards: adamcodd, demo, falconsai, freepik, marqo"
    ):
        NsfwGuard("nowhere")
    file = tmp_path / "file.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file; expected the folder"):
        NsfwGuard(file)
    with pytest.raises(SettingError, match="revision is 'abc', and .* is a local folder"):
        NsfwGuard(tmp_path, revision="abc")
    with pytest.raises(CheckpointError, match="does not say where its checkpoint is"):
        NsfwGuard(ModelCard(name="mine", levels={"nsfw": "high", "sfw": "neutral"}))


def test_without_a_hub_the_error_says_what_where_and_the_two_ways():
    with pytest.raises(CheckpointError) as caught:
        NsfwGuard()
    text = str(caught.value)
    assert "Freepik/nsfw_image_detector (revision 15b85477e4fd2000db76ae9aae0f89a72f95e2e3)" in text
    assert "Looked in the Hugging Face cache" in text
    assert "nsfw-guard download freepik\n" in text
    assert "nsfw-guard download freepik --to FOLDER" in text
    with pytest.raises(CheckpointError, match="local_files_only=True"):
        NsfwGuard("some/model", local_files_only=True)


def test_a_siglip_checkpoint_is_read(tmp_path):
    from transformers import SiglipConfig, SiglipForImageClassification

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(vision_config={**vision, "image_size": 32, "patch_size": 8}, text_config=vision)
    config.id2label = {0: "Anime Picture", 1: "Hentai", 2: "Normal", 3: "Pornography", 4: "Enticing or Sensual"}
    seeded(lambda: SiglipForImageClassification(config)).save_pretrained(tmp_path)
    write_json(
        tmp_path / "preprocessor_config.json",
        {**FALCONSAI_PROCESSOR, "image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
    )
    guard = NsfwGuard(tmp_path, dtype="float32")
    assert {label: level.name for label, level in guard.card.levels.items()} == {
        "Anime Picture": "NEUTRAL",
        "Hentai": "HIGH",
        "Normal": "NEUTRAL",
        "Pornography": "HIGH",
        "Enticing or Sensual": "LOW",
    }
    assert sum(guard.check(torch.rand(1, 3, 40, 40))[0].labels.values()) == pytest.approx(1, abs=1e-5)


def test_a_sharded_checkpoint_is_read(folder, tmp_path):
    from transformers import AutoModelForImageClassification

    AutoModelForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    write_json(tmp_path / "shards" / "preprocessor_config.json", TINY_PROCESSOR)
    assert not (tmp_path / "shards" / WEIGHTS).exists()
    image = torch.rand(1, 3, 40, 40)
    one, other = (NsfwGuard(f, dtype="float32", card="falconsai", views="card") for f in (folder, tmp_path / "shards"))
    assert one.classifier.card.preprocess.size == 224  # the card's word counts, not the file's
    del one, other
    one, other = (NsfwGuard(f, dtype="float32").check(image)[0].score for f in (folder, tmp_path / "shards"))
    assert one == other


def test_the_outer_number_of_classes_counts(tmp_path):
    import timm

    config = json.loads(json.dumps(MARQO_CONFIG))
    network = seeded(lambda: timm.create_model("vit_tiny_patch16_384", num_classes=2))
    save_file(network.state_dict(), tmp_path / WEIGHTS, {"format": "pt"})
    write_json(tmp_path / "config.json", config)
    assert config["pretrained_cfg"]["num_classes"] == 1000
    guard = NsfwGuard(tmp_path)
    assert guard.classifier.labels == ("NSFW", "SFW")
    assert guard.card.preprocess == CARDS.get("marqo").preprocess


def test_a_model_with_other_outputs_than_labels(tmp_path):
    import timm

    network = seeded(lambda: timm.create_model("vit_tiny_patch16_384", num_classes=3))
    save_file(network.state_dict(), tmp_path / WEIGHTS, {"format": "pt"})
    write_json(tmp_path / "config.json", {**MARQO_CONFIG, "num_classes": 3})
    with pytest.raises(
        CheckpointError, match=r"logits of the shape \(1, 3\); expected one for each of \['NSFW', 'SFW'\]"
    ):
        NsfwGuard(tmp_path).check(torch.rand(1, 3, 40, 40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_on_disk(folder, dtype):
    change_weights(folder, lambda weights: weights.update({name: w.to(dtype) for name, w in weights.items()}))
    assert stored_dtype(folder) == dtype
    change_weights(folder, lambda weights: weights.update({HEAD: weights[HEAD].float()}))
    assert stored_dtype(folder) == torch.float32  # that loses nothing


def test_a_card_may_lie_beside_the_weights(folder):
    (folder / CARD_FILE).write_text('card = "falconsai"\n')
    assert find_checkpoint(folder)[1] is CARDS.get("falconsai")
    (folder / CARD_FILE).write_text('license = "mit"\n[levels]\nnormal = "low"\nnsfw = "medium"\n')
    card = find_checkpoint(folder)[1]
    assert (card.name, card.license, card.levels["normal"].name) == ("checkpoint", "mit", "LOW")
    assert card.preprocess.size == 32
    mine = ModelCard(name="mine", levels={"normal": "neutral", "nsfw": "high"})
    assert find_checkpoint(folder, card=mine)[1].name == "mine"  # one that is named comes before


def test_a_file_that_save_pretrained_did_not_write(folder):
    write_json(folder / SAVED_FILE, {"card": {}})
    with pytest.raises(CheckpointError, match="was not written by NsfwGuard.save_pretrained"):
        NsfwGuard.from_pretrained(folder)


@pytest.fixture
def asked_for(folder, monkeypatch):
    """The revisions that are asked of a Hub that has the tiny checkpoint under every id."""
    revisions = set()

    def snapshot(repo, *, revision, **_):
        revisions.add(revision)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return revisions


@pytest.mark.parametrize("model", ["falconsai", CARDS.get("falconsai").repo])
@pytest.mark.parametrize("given", [None, "abc"])
def test_a_cards_checkpoint_is_fetched_at_its_revision_or_the_one_given(asked_for, model, given):
    card = CARDS.get("falconsai")
    revision = given or card.revision
    assert find_checkpoint(model, revision=given)[1].identity == f"{card.repo}@{revision}"
    assert asked_for == {revision}
    asked_for.clear()
    download(model, revision=given)
    assert asked_for == {revision}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A working directory with a checkpoint under every name that could be taken for another one."""
    here = tmp_path / "here"
    repos = [card.repo for card in CARDS if card.name != "demo"]
    for name in (*(card.name for card in CARDS), *repos, "org/name"):
        save_tiny(here / name)
        (here / name / CARD_FILE).write_text('card = "falconsai"\n')
    monkeypatch.chdir(here)
    return here


PINNED = [card for card in CARDS if card.name != "demo"]


@pytest.mark.parametrize("card", PINNED, ids=lambda card: card.name)
def test_a_folder_here_is_never_taken_for_what_is_pinned(planted, asked_for, folder, card):
    for model in (card.name, card.repo, card.repo.swapcase(), card):
        found, told = find_checkpoint(model)
        assert (found, told.identity) == (folder, f"{card.repo}@{card.revision}")
    assert find_checkpoint(card.repo, card="falconsai")[0] == folder
    download(card.repo)
    assert asked_for == {card.revision}


def test_the_default_and_the_demo_are_no_folder_here(planted, asked_for, folder):
    assert find_checkpoint()[0] == folder
    assert asked_for == {CARDS.get("freepik").revision}
    assert find_checkpoint("demo")[0].is_relative_to(Path(nsfw_guard.__file__).parent)


def test_without_a_hub_the_error_says_how_to_mean_the_folder(planted):
    with pytest.raises(CheckpointError, match=r"not meant by that name; write './Falconsai/nsfw_image_detection'"):
        NsfwGuard("falconsai", local_files_only=True)


def test_a_folder_that_could_be_a_hub_id_must_be_said(planted, asked_for, folder):
    for options in ({}, {"card": "falconsai"}, {"local_files_only": True}):
        with pytest.raises(
            SettingError, match=r"folder here, and has the form of a Hub id.*write './org/name'; for"
        ) as e:
            find_checkpoint("org/name", **options)
    assert 'revision="main"' in str(e.value)
    with pytest.raises(SettingError, match="'org/name' is a folder here"):
        find_checkpoint(ModelCard(name="mine", repo="org/name", levels={"normal": "neutral", "nsfw": "high"}))
    assert not asked_for
    for model in ("./org/name", Path("org/name"), str(planted / "org/name"), "org/name/", "../here/org/name", "./demo"):
        assert find_checkpoint(model)[0].resolve().is_relative_to(planted)
    assert find_checkpoint("org/name", revision="main")[0] == folder
    assert find_checkpoint("org/other")[0] == folder


def test_a_card_that_is_lent_says_neither_revision_nor_repository(asked_for):
    """Of what is fetched, whatever the card that maps its labels is about."""
    own = ModelCard(name="mine", levels={"normal": "neutral", "nsfw": "high"}, revision="c0ffee")
    for card, revision, told in (
        ("falconsai", None, "org/tuned"),
        (CARDS.get("falconsai"), "abc", "org/tuned@abc"),
        (own, None, "org/tuned@c0ffee"),
    ):
        asked_for.clear()
        assert find_checkpoint("org/tuned", card=card, revision=revision)[1].identity == told
        assert asked_for == {revision or (own.revision if card is own else None)}


def test_a_card_in_a_repository_cannot_claim_to_be_another(asked_for, folder):
    (folder / CARD_FILE).write_text('card = "falconsai"\n')
    assert find_checkpoint("org/tuned")[1].identity == "org/tuned"
    (folder / CARD_FILE).write_text('repo = "a/b"\nrevision = "c"\n[levels]\nnormal = "neutral"\nnsfw = "high"\n')
    assert find_checkpoint("org/tuned", revision="d")[1].identity == "org/tuned@d"


def test_a_folder_does_not_claim_the_commit_that_its_card_names(folder):
    card = replace(CARDS.get("falconsai"), preprocess=None)
    for guard in (NsfwGuard(folder, card=card), NsfwGuard(folder.rename(folder.with_name("b" * 40)), card=card)):
        assert guard.check(torch.rand(1, 3, 32, 32))[0].model == card.repo
        assert guard.describe()["model"] == card.repo
    snapshot = guard.classifier.folder.rename(folder.with_name(card.revision))
    assert NsfwGuard(snapshot, card=card).check(torch.rand(1, 3, 32, 32))[0].model == card.identity


def test_a_download_without_weights_is_an_error(asked_for, folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"has no weights as {WEIGHTS}"):
        download("org/pickle")


def test_an_incomplete_copy_in_the_cache_is_fetched_again(folder, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "config.json").write_text((folder / "config.json").read_text())

    def snapshot(repo, *, local_files_only=False, **_):
        return str(tmp_path / "cache" if local_files_only else folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find_checkpoint("org/tiny")[0] == folder


@pytest.fixture
def hub(folder):
    """A stand-in for the Hub on loopback, because the real one cannot be reached: the routes that its client asks for.

    It serves the tiny checkpoint as ``org/tiny`` and as Falconsai's repository; whose branch has moved on since.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            parts = self.path.split("?")[0].strip("/").split("/")
            repo = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2])
            if repo not in ("org/tiny", "Falconsai/nsfw_image_detection", "org/pickle"):
                return self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            commit = re.search(r"/(?:revision|tree|resolve)/([0-9a-f]{40})\b", self.path)
            commit = commit[1] if commit else "f" * 40
            names = ["config.json", "preprocessor_config.json", WEIGHTS, "README.md", "optimizer.pt"]
            if repo == "org/pickle":
                names = ["config.json", "pytorch_model.bin"]
            if parts[0] == "api":
                siblings = [{"rfilename": name} for name in names]
                files = [
                    {"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": "0" * 40}
                    for n in names
                    if (folder / n).exists()
                ]
                body = files if "tree" in parts else {"id": repo, "sha": commit, "siblings": siblings}
                return self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
            data = (folder / parts[-1]).read_bytes()
            return self.answer(200, data, {"ETag": f'"{hash(data):x}"', "X-Repo-Commit": commit})

        do_HEAD = do_GET

        def answer(self, status, body, headers):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def run_online(endpoint, cache, code):
    """Run code in a fresh process whose hub client, the real one, asks ``endpoint``."""
    import os
    import subprocess
    import sys

    env = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)


def test_download_fetches_config_and_safetensors_and_nothing_else(hub, tmp_path):
    endpoint, asked = hub
    done = run_online(
        endpoint,
        tmp_path / "cache",
        f"from nsfw_guard import download; print(download('falconsai', to={str(tmp_path / 'copy')!r}))",
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "copy").iterdir() if path.is_file()}
    assert names == {"config.json", "preprocessor_config.json", WEIGHTS, CARD_FILE}
    of_it = [path for path in asked if "Falconsai" in path]
    assert of_it
    assert all(CARDS.get("falconsai").revision in path for path in of_it)
    assert not any("optimizer" in path for path in asked)
    # The copy stands for itself, offline: the card file says which card it is.
    assert find_checkpoint(tmp_path / "copy")[1] is CARDS.get("falconsai")


def test_a_hub_id_is_loaded_once_and_then_from_the_cache(hub, tmp_path):
    endpoint, asked = hub
    code = "from nsfw_guard import NsfwGuard; print(NsfwGuard('org/tiny', revision='main').describe()['model'])"
    done = run_online(endpoint, tmp_path / "cache", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"org/tiny@{'f' * 40}"  # what the branch was
    asked.clear()
    done = run_online(endpoint, tmp_path / "cache", code)
    assert done.returncode == 0, done.stderr
    assert asked == []


def test_a_repository_of_pickles_and_an_unknown_one(hub, tmp_path):
    endpoint, _ = hub
    done = run_online(endpoint, tmp_path / "cache", "from nsfw_guard import NsfwGuard; NsfwGuard('org/pickle')")
    assert "has no weights as model.safetensors. Pickles" in done.stderr
    done = run_online(endpoint, tmp_path / "cache", "from nsfw_guard import NsfwGuard; NsfwGuard('org/nobody')")
    assert "CheckpointError: The checkpoint org/nobody (revision main)" in done.stderr
    assert done.returncode == 1


def test_there_is_nothing_to_download_for_the_demo():
    with pytest.raises(CheckpointError, match="nothing to download for 'demo'"):
        download("demo")
    with pytest.raises(SettingError, match="no model card 'nobody'"):
        download("nobody")


def test_tiny_config_is_falconsais_layout():
    # The tests above stand on it.
    assert TINY_CONFIG["id2label"] == {"0": "normal", "1": "nsfw"}


def test_nothing_is_initialised_that_the_weights_replace(tmp_path):
    drawn = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.uniform_, torch.ops.aten.normal_, torch.ops.aten.erfinv_):
                drawn.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    folder = SAVERS["marqo"](tmp_path)
    with Watch():
        NsfwGuard(folder, card="marqo")
    assert not drawn
    with _NothingToInitialise():
        assert torch.ones(2).mul_(3).tolist() == [3, 3]
        assert torch.ones(2, device="meta").unsqueeze_(0).shape == (1, 2)
