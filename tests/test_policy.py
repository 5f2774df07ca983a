"""Policy and its decisions, without a model."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsfw_guard import CARDS, Level, ModelCard, Policy, Scores, SettingError

FREEPIK = ("neutral", "low", "medium", "high")


def scores(*views, card="freepik", labels=FREEPIK, problem=None):
    """Scores of one image with these views."""
    return Scores(CARDS.get(card), labels, (tuple(views),), (problem,))


def decide(policy, *views, **options):
    return policy.decide(scores(*views, **options))[0]


@pytest.mark.parametrize(
    ("level", "expected"),
    [("low", 0.1 + 0.2 + 0.3), ("medium", 0.2 + 0.3), ("high", 0.3), ("neutral", 1.0)],
)
def test_the_score_is_the_tail_sum(level, expected):
    assert decide(Policy(level=level), (0.4, 0.1, 0.2, 0.3)).score == pytest.approx(expected)


@pytest.mark.parametrize(("threshold", "flagged"), [(0.5, True), (math.nextafter(0.5, 1), False)])
def test_a_score_at_the_threshold_is_flagged(threshold, flagged):
    verdict = decide(Policy(threshold=threshold), (0.5, 0.0, 0.25, 0.25))
    assert verdict.flagged is flagged
    assert verdict.reason == ("score" if flagged else None)


def test_the_level_is_the_most_severe_whose_own_tail_reaches_the_threshold():
    policy = Policy(level="high", threshold=0.5)
    verdict = decide(policy, (0.1, 0.3, 0.4, 0.2))
    assert not verdict.flagged
    assert verdict.level is Level.MEDIUM
    assert decide(policy, (0.9, 0.1, 0.0, 0.0)).level is Level.NEUTRAL
    assert decide(policy, (0.1, 0.1, 0.1, 0.7)).level is Level.HIGH
    assert decide(policy, (0.5, 0.0, 0.25, 0.25)).level is Level.MEDIUM  # exactly at the threshold
    assert decide(policy, (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)).level is Level.HIGH  # of any view


def test_a_score_is_at_most_one():
    assert decide(Policy(level="neutral", threshold=1.0), (0.5, 0.25, 0.25, 1e-7)).score == 1.0


def test_the_maximum_over_the_views_counts_and_its_labels_are_reported():
    verdict = decide(Policy(), (0.9, 0.1, 0.0, 0.0), (0.1, 0.1, 0.2, 0.6), (0.5, 0.5, 0.0, 0.0))
    assert verdict.flagged
    assert verdict.score == pytest.approx(0.8)
    assert verdict.labels["high"] == 0.6
    assert verdict.views == 3


def test_per_label_flags_on_its_own():
    policy = Policy(threshold=0.9, per_label={"low": 0.3})
    verdict = decide(policy, (0.9, 0.1, 0.0, 0.0), (0.6, 0.4, 0.0, 0.0))
    assert (verdict.flagged, verdict.reason, verdict.score) == (True, "label", 0.0)
    assert verdict.labels["low"] == 0.4
    assert not decide(policy, (0.8, 0.2, 0.0, 0.0)).flagged


@pytest.mark.parametrize(("probability", "reason"), [(0.25, "label"), (math.nextafter(0.25, 0), None)])
def test_a_label_at_its_own_threshold_is_flagged(probability, reason):
    verdict = decide(Policy(threshold=0.9, per_label={"low": 0.25}), (0.75, probability, 0.0, 0.0))
    assert verdict.reason == reason


def test_per_label_refuses_labels_that_the_model_lacks():
    with pytest.raises(
        SettingError, match=r"per_label names \['nsfw'\].*labels are \['neutral', 'low', 'medium', 'high'\]"
    ):
        decide(Policy(per_label={"nsfw": 0.5}), (1.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("problem", ["non_finite", "too_long"])
def test_an_image_without_a_score_is_flagged(problem):
    verdict = decide(Policy(threshold=1.0), problem=problem)
    assert (verdict.flagged, verdict.reason, verdict.score, verdict.level) == (True, problem, 1.0, Level.HIGH)


def test_an_image_without_views_and_without_a_problem_is_flagged_all_the_same():
    assert decide(Policy(threshold=1.0)).flagged


@pytest.mark.parametrize("problem", ["non_finite", "too_long", None])
def test_an_image_without_a_score_says_what_was_asked_of_which_model(problem):
    verdict = decide(Policy(threshold=0.75), problem=problem)
    assert (verdict.threshold, verdict.model, verdict.labels) == (0.75, CARDS.get("freepik").identity, {})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_probabilities_are_flagged(bad):
    verdict = decide(Policy(threshold=1.0), (1.0, 0.0, 0.0, 0.0), (bad, 0.0, 0.0, 0.0))
    assert (verdict.flagged, verdict.reason) == (True, "non_finite")


def test_batch_any_flags_the_whole_batch():
    card = CARDS.get("freepik")
    views = (((1.0, 0.0, 0.0, 0.0),), ((0.0, 0.0, 0.0, 1.0),))
    both = Scores(card, FREEPIK, views, (None, None))
    each = Policy().decide(both)
    together = Policy(batch="any").decide(both)
    assert [v.flagged for v in each] == [False, True]
    assert [v.flagged for v in together] == [True, True]
    assert [v.reason for v in together] == ["batch", "score"]
    clean = Scores(card, FREEPIK, (views[0],), (None,))
    assert not Policy(batch="any").decide(clean)[0].flagged


@given(
    raw=st.lists(st.floats(0.001, 1), min_size=4, max_size=4),
    threshold=st.floats(0, 1),
    level=st.sampled_from(list(Level)),
)
def test_a_stricter_policy_never_clears_what_a_laxer_one_flags(raw, threshold, level):
    view = tuple(p / sum(raw) for p in raw)
    if not decide(Policy(level=level, threshold=threshold), view).flagged:
        return
    assert decide(Policy(level=level, threshold=threshold / 2), view).flagged
    assert decide(Policy(level=Level(max(level - 1, 0)), threshold=threshold), view).flagged


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, r"threshold is 1.5; expected a number in \[0, 1\]"),
        ({"threshold": -0.1}, r"threshold is -0.1; expected a number in \[0, 1\]"),
        ({"threshold": math.nan}, r"threshold is nan; expected a number in \[0, 1\]"),
        ({"threshold": "0.5"}, r"threshold is '0.5'; expected a number"),
        ({"threshold": True}, r"threshold is True; expected a number"),
        ({"threshold": None}, r"threshold is None; expected a number"),
        ({"level": "severe"}, r"level is 'severe'; expected a Level or one of 'neutral', 'low', 'medium', 'high'"),
        ({"level": 2}, r"level is 2; expected a Level"),
        ({"per_label": {"nsfw": math.nan}}, r"per_label\['nsfw'\] is nan"),
        ({"per_label": ["nsfw"]}, r"per_label is \['nsfw'\]; expected a mapping"),
        ({"batch": "all"}, r'batch is \'all\'; expected "each" or "any"'),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        Policy(**settings)


def test_policies_can_be_compared_hashed_and_are_not_changed_from_outside():
    thresholds = {"high": 0.3}
    policy = Policy(per_label=thresholds)
    thresholds["high"] = 1.0
    assert policy.per_label["high"] == 0.3
    assert policy == Policy(per_label={"high": 0.3})
    assert hash(policy) == hash(Policy(per_label={"high": 0.3}))
    with pytest.raises(AttributeError):
        policy.threshold = 1.0


SEXY = ModelCard(name="sexy", levels={"safe": "neutral", "sexy": "low"})


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(threshold=1e-6),
        Policy("high", batch="any"),
        Policy(per_label={"safe": 0.5}),  # that a model is sure that nothing is there is no reason
    ],
)
def test_a_policy_that_no_label_can_reach_is_refused_before_it_passes_anything(policy):
    surely = Scores(SEXY, ("safe", "sexy"), (((0.0, 1.0),),), (None,))
    for judge in (policy, policy.with_room()):
        with pytest.raises(SettingError) as caught:
            judge.decide(surely)
    assert f"A policy of the level '{policy.level}' could flag nothing" in str(caught.value)
    assert "'safe' (neutral), 'sexy' (low)" in str(caught.value)
    assert "Policy(level=Level.LOW)" in str(caught.value)
    assert "Policy(per_label={'sexy': 0.5})" in str(caught.value)
    # What it says to type flags.
    for better in (Policy(level=Level.LOW), Policy(per_label={"sexy": 0.5}), Policy("high", per_label={"sexy": 1.0})):
        assert better.decide(surely)[0].flagged


def test_a_policy_that_counts_neutral_labels_too_flags_everything_and_is_none_of_those():
    assert Policy(level=Level.NEUTRAL).decide(Scores(SEXY, ("safe", "sexy"), (((1.0, 0.0),),), (None,)))[0].flagged


def test_a_policy_comes_back_from_its_plain_values():
    policy = Policy("high", 0.25, {"porn": 0.75}, "any")
    assert Policy(**json.loads(json.dumps(policy.to_dict()))) == policy
