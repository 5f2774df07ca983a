"""Model cards: data with sources, and how users write their own."""

import json
from dataclasses import replace

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
        (
            "[levels]\nsafe = 'neutral'\nsexy = 'low'\n[presets.balanced]\nthreshold = 0.4",
            r"The preset 'balanced' of the card .*: A policy of the level 'medium' could flag nothing",
        ),
        (
            "[levels]\nsafe = 'neutral'\nfew = 'medium'\n[presets.lax]\nthreshold = 0.4\nlevel = 'high'",
            "The preset 'lax' of the card .*: A policy of the level 'high' could flag nothing",
        ),
        ("presets = 5\n[levels]\nnsfw = 'high'", "presets.*5|'int'"),
        (
            "[levels]\nsfw = 'neutral'\nodd = '?'",
            r"does not say yet how severe \['odd'\] are: write \"neutral\", \"low\"",
        ),
        ("license = 'mit'", "levels"),
        ("card = 'nobody'", "There is no model card 'nobody'"),
        ("card = ['demo']", r"There is no model card \['demo'\]"),
        ("repo = 5\n[levels]\nnsfw = 'high'", "A card has repo=5; expected text"),
        ("revision = 5\n[levels]\nnsfw = 'high'", "A card has revision=5; expected a commit, as text"),
        ("name = ''\n[levels]\nnsfw = 'high'", "A card has name=''; expected text"),
        ("note = 5\n[levels]\nnsfw = 'high'", "A card has note=5; expected text"),
        ("a = " + "[" * 50_000, "is not valid TOML"),
    ],
)
def test_cards_that_cannot_be_read_are_refused(tmp_path, toml, message):
    path = tmp_path / "nsfw_guard.toml"
    path.write_text(toml)
    with pytest.raises(SettingError, match=message):
        ModelCard.from_toml(path)


@pytest.mark.parametrize(
    "given",
    [
        {"repo": None},
        {"repo": 5},
        {"revision": 1},
        {"preprocess": {"size": 3}},
        {"figures": None},
        {"figures": ("F1",)},
        {"presets": {1: Preset(0.5)}},
        {"name": None},
    ],
)
def test_cards_of_the_wrong_kinds_are_refused_when_they_are_made(given):
    with pytest.raises(SettingError, match=f"{next(iter(given))}|preset"):
        ModelCard(**{"name": "mine", "levels": {"nsfw": "high"}, **given})


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
        (("Anime", "Hentai", "Normal", "Pornography", "Sensual"), "NEUTRAL HIGH NEUTRAL HIGH LOW"),
        ((" NSFW ", "Safe-Content", "Enticing  or_sensual", "Sfw"), "HIGH NEUTRAL LOW NEUTRAL"),
        (("nsfw", "NSFW", "safe"), "HIGH HIGH NEUTRAL"),
        (("sfw", "low", "suggestive", "sexy", "enticing_or_sensual", "questionable"), "NEUTRAL LOW LOW LOW LOW LOW"),
        (("safe", "unsafe", "porn", "pornography", "hentai picture", "explicit"), "NEUTRAL HIGH HIGH HIGH HIGH HIGH"),
    ],
)
def test_the_vocabulary(labels, levels):
    card = ModelCard.from_labels(labels, name="x", source="x")
    assert " ".join(card.levels[label].name for label in labels) == levels


@pytest.mark.parametrize("label", ["LABEL_0", "0", "not nsfw", "unsafe?", "nude", "", "?", "porn, safe", "nsfwish"])
def test_what_is_not_a_word_of_the_vocabulary_is_never_guessed(label):
    with pytest.raises(SettingError, match="it is not known how severe"):
        ModelCard.from_labels((label, "explicit"), name="x", source="x")


def test_the_template_fills_in_what_is_known_and_only_the_rest_is_to_be_said(tmp_path):
    labels = ("explicit", 'Odd "one"\n[presets.balanced]', "Pornography", "LABEL_3", "normal", "Sexy")
    with pytest.raises(SettingError) as caught:
        ModelCard.from_labels(labels, name="mine", source="x")
    text = str(caught.value)
    template = text.split("beside the weights:\n")[1]
    path = tmp_path / "nsfw_guard.toml"
    path.write_text(template, encoding="utf-8")
    with pytest.raises(SettingError) as left:
        ModelCard.from_toml(path)
    assert f"how severe {[labels[1], labels[3]]} are" in str(left.value)
    path.write_text(template.replace('= "?"', '= "low"', 1), encoding="utf-8")
    with pytest.raises(SettingError, match=r"how severe \['LABEL_3'\] are"):
        ModelCard.from_toml(path)
    path.write_text(template.replace('= "?"', '= "neutral"'), encoding="utf-8")
    card = ModelCard.from_toml(path)
    assert tuple(card.levels) == labels
    assert " ".join(level.name for level in card.levels.values()) == "HIGH NEUTRAL HIGH NEUTRAL NEUTRAL LOW"
    # The same in Python.
    code = text.split("NsfwGuard(..., card=")[1].split(")\nor in a file")[0]
    with pytest.raises(SettingError, match="does not say yet how severe"):
        eval(code, {"ModelCard": ModelCard})
    assert eval(code.replace(': "?"', ': "neutral"'), {"ModelCard": ModelCard}).levels == card.levels


@pytest.fixture
def sexy(tmp_path):
    """A checkpoint whose worst label is low."""
    return save_tiny(tmp_path / "sexy", id2label={"0": "safe", "1": "sexy"})


def test_a_guard_that_can_flag_nothing_is_not_made(sexy):
    for policy in (None, "balanced", Policy(), Policy("high", 0.0), Policy(per_label={"safe": 0.1})):
        with pytest.raises(SettingError, match="could flag nothing: no label of the model is that severe"):
            NsfwGuard(sexy, policy=policy)
    guard = NsfwGuard(sexy, policy=Policy(level=Level.LOW, threshold=0.0))
    assert guard.check(torch.rand(1, 3, 40, 40))[0].flagged
    assert NsfwGuard(sexy, policy=Policy(per_label={"sexy": 0.0})).check(torch.rand(1, 3, 40, 40))[0].flagged


def test_the_card_says_what_its_error_says_to_write(sexy):
    (sexy / "nsfw_guard.toml").write_text(
        '[levels]\nsafe = "neutral"\nsexy = "low"\n[presets.balanced]\nlevel = "low"\nthreshold = 0.4\n'
    )
    guard = NsfwGuard(sexy)
    assert guard.policy == Policy(level=Level.LOW, threshold=0.4)
    guard.save_pretrained(sexy.with_name("saved"))
    assert NsfwGuard.from_pretrained(sexy.with_name("saved")).policy == guard.policy


def test_a_guard_by_numbers_on_a_card_without_presets_that_fit_can_be_saved(sexy):
    guard = NsfwGuard(sexy, policy=Policy(level=Level.LOW))
    guard.save_pretrained(sexy.with_name("saved"))
    assert NsfwGuard.from_pretrained(sexy.with_name("saved")).policy == guard.policy


def test_presets_in_python_are_checked_too():
    levels = {"safe": "neutral", "sexy": "low"}
    assert ModelCard(name="x", levels=levels, presets={"balanced": Preset(0.5, "low")}).policy().level is Level.LOW
    for presets, message in (
        ({"balanced": Preset(0.5)}, "could flag nothing"),
        ({"balanced": Policy("low")}, "expected a Preset"),
        ({"balanced": Preset(1.5, "low")}, "threshold is 1.5"),
        (0.5, "expected name → Preset"),
    ):
        with pytest.raises(SettingError, match=message):
            ModelCard(name="x", levels=levels, presets=presets)


@pytest.mark.parametrize(
    ("preset", "said"), [("strict", True), ("balanced", False), (None, False), ("permissive", False)]
)
def test_a_preset_that_is_no_other_than_balanced_says_so_once(tmp_path, caplog, preset, said):
    card = replace(CARDS.get("falconsai"), preprocess=None)
    guard = NsfwGuard(save_tiny(tmp_path / "copy"), card=card, policy=preset)
    guard.check(torch.rand(2, 3, 40, 40))
    guard.check(torch.rand(2, 3, 40, 40))
    told = [record.getMessage() for record in caplog.records if "is the same as" in record.getMessage()]
    assert len(told) == said
    assert not said or "'strict' of the card 'falconsai' is the same as 'balanced'" in told[0]


def test_a_policy_of_no_name_is_not_the_balanced_one(tiny_folder):
    with pytest.raises(SettingError, match="policy is ''; the card"):
        NsfwGuard(tiny_folder, policy="")
