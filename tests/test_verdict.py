"""Results that cannot be misread."""

import copy
import dataclasses
import json
import pickle

import pytest

from nsfw_guard import CARDS, GuardResult, Level, Policy, Scores, SettingError, Verdict


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


def test_every_way_to_write_a_verdict_gives_the_same():
    """A level as a number would read as another scale where nobody knows ours."""
    verdict = example()
    assert json.loads(json.dumps(dataclasses.asdict(verdict))) == verdict.to_dict()
    assert dataclasses.asdict(verdict) == verdict.to_dict()
    policy = Policy("high", 0.25, {"porn": 0.75}, "any")
    assert json.loads(json.dumps(dataclasses.asdict(policy))) == policy.to_dict()
    adapter = pytest.importorskip("pydantic").TypeAdapter(Verdict)
    assert json.loads(adapter.dump_json(verdict)) == verdict.to_dict()
    assert list(json.loads(adapter.dump_json(verdict))) == list(verdict.to_dict())
    assert adapter.dump_python(verdict, mode="json") == verdict.to_dict()
    assert adapter.validate_json(adapter.dump_json(verdict)) == verdict


@pytest.mark.parametrize("level", Level)
def test_a_level_is_text_that_compares_and_counts_as_a_number(level):
    assert json.dumps(level) == f'"{level.name.lower()}"'
    assert f"{level}" == str(level) == level.value == level.name.lower()
    assert pickle.loads(pickle.dumps(level)) is copy.deepcopy(level) is Level(level.value) is Level(int(level)) is level
    assert level == int(level) == list(Level).index(level)
    assert bool(level) is (level is not Level.NEUTRAL)
    for other in Level:
        number = int(other)
        assert (level < other) is (level < number) is (level < other.value) is (int(level) < number)
        assert (level >= other) is (level >= number) is (level >= other.value) is (int(level) >= number)
        assert (level > other, level <= other) == (int(level) > number, int(level) <= number)
        assert level - other == int(level) - number
        assert (level == other) is (hash(level) == hash(other)) is (level is other)
    with pytest.raises(SettingError, match="level is 'severe'"):
        level < "severe"  # noqa: B015 - the comparison raises
    with pytest.raises(ValueError, match="7 is not a valid Level"):
        Level(7)


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
