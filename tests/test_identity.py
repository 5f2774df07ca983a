"""Which weights a verdict is from."""

import shutil
from dataclasses import replace

import pytest

from nsfw_guard import NsfwGuard
from nsfw_guard.identity import model_identity, weights_sha256


@pytest.fixture
def shards(demo, tmp_path):
    """The demo's checkpoint in several files, and a card with a revision, as it lies beside a tuned one."""
    folder = tmp_path / "tuned"
    demo.classifier.network.save_pretrained(folder, max_shard_size="200KB")
    for name in ("config.json", "preprocessor_config.json"):
        if (demo.classifier.folder / name).is_file():
            shutil.copy(demo.classifier.folder / name, folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder, replace(demo.card, repo="org/base", revision="a" * 40)


def test_the_weights_of_a_folder_are_told_apart_whatever_revision_its_card_names(shards):
    folder, card = shards
    before = model_identity(NsfwGuard(folder, card=card))
    assert before.startswith(f"org/base@{'a' * 40}@sha256:")
    last = max(folder.glob("*.safetensors"))
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    assert model_identity(NsfwGuard(folder, card=card)) != before


def test_a_snapshot_of_the_hub_is_told_by_its_commit(shards):
    folder, card = shards
    snapshot = folder.rename(folder.with_name("a" * 40))
    assert model_identity(NsfwGuard(snapshot, card=card)) == f"org/base@{'a' * 40}"
    assert "@sha256:" in model_identity(NsfwGuard(snapshot, card=replace(card, revision="main")))


def test_a_checkpoint_that_is_gone_has_no_hash(shards):
    folder, card = shards
    guard = NsfwGuard(folder, card=card)
    guard.classifier.folder = None
    assert model_identity(guard) == card.identity
    with pytest.raises(FileNotFoundError, match="no checkpoint to hash"):
        weights_sha256(guard)
