"""Results that cannot be misread."""

import json
import pickle

import pytest

from nsfw_guard import CARDS, GuardResult, Level, Policy, Scores, Verdict


def example():
    return Verdict(True, 0.75, 0.5, Level.HIGH, {"normal": 0.25, "nsfw": 0.75}, "score", "org/name@abc", 1)


def test_levels_are_ordered():
    assert Level.NEUTRAL < Level.LOW < Level.MEDIUM < Level.HIGH


def test_levels_by_name_in_any_case():
    assert Level.parse("High") is Level.parse("HIGH") is Level.parse("high") is Level.HIGH


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (example(), "verdict.flagged"),
        (GuardResult([], [example()]), "result.flagged"),
        (Scores(CARDS.get("falconsai"), ("normal", "nsfw"), (), ()), "len"),
    ],
)
def test_the_truth_value_is_an_error(value, hint):
    with pytest.raises(TypeError, match=hint):
        bool(value)


def test_a_verdict_is_json():
    table = json.loads(json.dumps(example().to_dict()))
    assert table == {
        "flagged": True,
        "score": 0.75,
        "threshold": 0.5,
        "level": "high",
        "labels": {"normal": 0.25, "nsfw": 0.75},
        "reason": "score",
        "model": "org/name@abc",
        "views": 1,
    }


def test_a_result_sums_its_verdicts_up():
    clean = Verdict(False, 0.1, 0.5, Level.NEUTRAL)
    assert GuardResult([], []).flagged is False
    assert GuardResult([1, 2], [clean, example()]).flags == [False, True]
    assert GuardResult([1, 2], [clean, example()]).flagged is True
    assert GuardResult([1], [clean]).flagged is False


def test_scores_survive_pickling_and_decide_without_the_model(tiny, images):
    scores = tiny.classify(images)
    again = pickle.loads(pickle.dumps(scores))
    assert again == scores
    assert Policy(threshold=0.3).decide(again) == Policy(threshold=0.3).decide(scores)
    assert len(again) == 8
