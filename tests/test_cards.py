"""Model cards: data with sources, and how users write their own."""

import json

import pytest
import torch
from checkpoints import save_tiny

from nsfw_guard import (
    CARDS,
    CardRegistry,
    Level,
    ModelCard,
    NsfwGuard,
    Policy,
    PreprocessSpec,
    Preset,
    Scores,
    SettingError,
)

PUBLIC = ("freepik", "falconsai", "marqo", "adamcodd")
NAMES = (*PUBLIC, "demo")


def test_the_built_in_cards():
    assert [card.name for card in CARDS] == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_card_is_complete_and_every_number_has_a_source(name):
    card = CARDS.get(name)
    assert card.repo
    assert card.license
    assert card.architecture
    assert card.note
    assert card.preprocess.source
    assert {"strict", "balanced", "permissive"} <= set(card.presets)
    for preset in card.presets.values():
        kinds = ("vendor:", "third party:", "argmax", "ours: for the demo only")
        assert preset.source.startswith(kinds)
    for figure in card.figures:
        assert figure.source.startswith(("vendor:", "third party:"))
        assert figure.data
        assert 0 < figure.value <= 1


@pytest.mark.parametrize("name", PUBLIC)
def test_public_checkpoints_are_pinned_to_a_full_commit(name):
    revision = CARDS.get(name).revision
    assert len(revision) == 40
    assert set(revision) <= set("0123456789abcdef")
    assert CARDS.get(name).identity == f"{CARDS.get(name).repo}@{revision}"


@pytest.mark.parametrize("name", NAMES)
def test_stricter_presets_flag_more(name):
    presets = CARDS.get(name).presets
    strict, balanced, permissive = (presets[key] for key in ("strict", "balanced", "permissive"))
    assert (strict.level, strict.threshold) <= (balanced.level, balanced.threshold)
    assert (balanced.level, balanced.threshold) <= (permissive.level, permissive.threshold)


@pytest.mark.parametrize(
    ("name", "safe", "worst"),
    [
        ("freepik", ["neutral"], "high"),
        ("falconsai", ["normal"], "nsfw"),
        ("marqo", ["SFW"], "NSFW"),
        ("adamcodd", ["sfw"], "nsfw"),
        ("demo", ["empty", "circle", "square", "cross", "heart"], "triangle"),
    ],
)
def test_every_preset_flags_the_worst_label_and_passes_the_safe_ones(name, safe, worst):
    card = CARDS.get(name)
    labels = tuple(card.levels)
    for preset in card.presets:
        for label in (*safe, worst):
            sure = tuple(float(label == other) for other in labels)
            (verdict,) = card.policy(preset).decide(Scores(card, labels, ((sure,),), (None,)))
            assert verdict.flagged is (label == worst), (preset, label)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("freepik", "strict LOW 0.5, balanced MEDIUM 0.5, permissive HIGH 0.5"),
        ("falconsai", "strict MEDIUM 0.5, balanced MEDIUM 0.5, permissive MEDIUM 0.85, bfl MEDIUM 0.85"),
        ("marqo", "strict MEDIUM 0.15, balanced MEDIUM 0.3, permissive MEDIUM 0.6"),
        ("adamcodd", "strict MEDIUM 0.5, balanced MEDIUM 0.5, permissive MEDIUM 0.96"),
    ],
)
def test_the_published_numbers(name, numbers):
    presets = CARDS.get(name).presets.items()
    assert ", ".join(f"{key} {preset.level.name} {preset.threshold:g}" for key, preset in presets) == numbers


def test_the_demo_says_everywhere_that_it_is_no_nsfw_model():
    card = CARDS.get("demo")
    assert card.note.startswith("NO NSFW MODEL")
    assert "triangle" in card.note
    assert card.identity == "demo"


def test_the_bfl_preset_is_fluxs_own_threshold():
    assert CARDS.get("falconsai").policy("bfl") == Policy(threshold=0.85)


def test_labels_are_resolved_by_name_not_by_index():
    assert CARDS.get("marqo").levels == {"NSFW": Level.HIGH, "SFW": Level.NEUTRAL}


def test_an_unknown_preset_names_those_that_there_are():
    with pytest.raises(
        SettingError, match=r"policy is 'lax'; the card 'marqo' has the presets \['balanced', 'permissive'"
    ):
        CARDS.get("marqo").policy("lax")


@pytest.mark.parametrize("name", NAMES)
def test_a_card_survives_being_written_down(name):
    card = CARDS.get(name)
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def test_a_card_of_ones_own_in_python(tmp_path):
    card = ModelCard(
        name="mine",
        repo=str(save_tiny(tmp_path / "mine", id2label={"0": "ok", "1": "spicy"})),
        levels={"ok": "neutral", "spicy": "medium"},
        presets={"balanced": Preset(0.4, source="measured on our own data")},
    )
    guard = NsfwGuard(card)
    assert guard.policy == Policy(threshold=0.4)
    assert guard.card.preprocess.size == 32
    verdict = guard.check(torch.rand(1, 3, 40, 40))[0]
    assert verdict.score == pytest.approx(verdict.labels["spicy"])


def test_a_card_of_ones_own_as_toml(tmp_path):
    folder = save_tiny(tmp_path / "mine", id2label={"0": "ok", "1": "spicy"})
    (folder / "nsfw_guard.toml").write_text(
        """
        [levels]
        ok = "neutral"
        spicy = "medium"

        [preprocess]
        size = 32
        resize = "crop"
        interpolation = "bicubic"

        [presets.balanced]
        threshold = 0.4
        source = "measured on our own data"
        """
    )
    guard = NsfwGuard(folder)
    assert guard.card.name == "mine"
    assert guard.policy == Policy(threshold=0.4)
    assert guard.card.preprocess == PreprocessSpec(32, "crop", "bicubic")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("levels = 5", "levels=5; expected label name → level"),
        ("[levels]\nnsfw = 'severe'", "level is 'severe'"),
        ("[levels]\nsfw = 'neutral'", "only neutral labels"),
        ("[levels", "is not valid TOML"),
        ("treshold = 0.5\n[levels]\nnsfw = 'high'", "unexpected keyword argument 'treshold'"),
        ("[levels]\nnsfw = 'high'\n[preprocess]\nsize = 0", "preprocess.size is 0"),
        ("[levels]\nnsfw = 'high'\n[presets.balanced]\nthreshold = 2", "threshold is 2"),
        ("[levels]\nnsfw = 'high'\n[presets.balanced]\nsource = 'x'", "threshold"),
        ("license = 'mit'", "levels"),
        ("card = 'nobody'", "There is no model card 'nobody'"),
    ],
)
def test_cards_that_cannot_be_read_are_refused(tmp_path, toml, message):
    path = tmp_path / "nsfw_guard.toml"
    path.write_text(toml)
    with pytest.raises(SettingError, match=message):
        ModelCard.from_toml(path)


def test_a_registry_is_strict_and_a_failed_registration_changes_nothing():
    registry = CardRegistry((CARDS.get("marqo"),))
    for bad, message in (
        (CARDS.get("marqo"), "There is a card 'marqo' already"),
        ("marqo", "Expected a ModelCard, got str"),
    ):
        with pytest.raises(SettingError, match=message):
            registry.register(bad)
    assert list(registry) == [CARDS.get("marqo")]
    assert "marqo" in registry
    assert "freepik" not in registry
    assert registry.for_repo("Marqo/nsfw-image-detection-384").name == "marqo"
    assert registry.for_repo("org/other") is None


@pytest.mark.parametrize(
    ("labels", "levels"),
    [
        (("normal", "nsfw"), "NEUTRAL HIGH"),
        (("Unsafe Content", "Safe Content"), "HIGH NEUTRAL"),  # the index trap
        (("drawings", "hentai", "neutral", "porn", "sexy"), "NEUTRAL HIGH NEUTRAL HIGH LOW"),
        (("SAFE", "QUESTIONABLE", "UNSAFE"), "NEUTRAL LOW HIGH"),
        (("neutral", "low", "medium", "high"), "NEUTRAL LOW MEDIUM HIGH"),
        (("unsafe_content", "Safe_Content"), "HIGH NEUTRAL"),
        (("sfw", "low", "suggestive", "sexy", "enticing_or_sensual", "questionable"), "NEUTRAL LOW LOW LOW LOW LOW"),
        (("safe", "unsafe", "porn", "pornography", "hentai picture", "explicit"), "NEUTRAL HIGH HIGH HIGH HIGH HIGH"),
    ],
)
def test_the_vocabulary(labels, levels):
    card = ModelCard.from_labels(labels, name="x", source="x")
    assert " ".join(card.levels[label].name for label in labels) == levels
