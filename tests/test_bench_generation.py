"""The benchmark of batch generation, at sizes at which its figures mean nothing."""

import json
import re

import pytest
from typer.testing import CliRunner

from nsfw_guard.bench import generation
from nsfw_guard.cli import app


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["bench", "generate", *arguments])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(generation, "IMAGES", 3)
    monkeypatch.setattr(generation, "STEPS", 2)


@pytest.mark.usefixtures("quick", "one_thread")
def test_all_three_draw_the_same_and_the_ratios_are_of_one_round():
    result = run("--rounds", "2", "--batch", "2", "--flagged", "0.34", "--json", "-")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["images"], found["flagged"], found["steps"], found["batch"], found["rounds"]) == (3, 1, 2, 2, 2)
    assert found["ratios"]["bare"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    for name in ("guarded", "generation"):
        assert found["ms_per_image"][name] > 0
        assert found["ratios"][name]["low"] <= found["ratios"][name]["high"]
        times = found["ms_per_image"]
        assert found["ratios"][name]["median"] == pytest.approx(times[name] / times["bare"])


@pytest.mark.usefixtures("quick", "one_thread")
def test_what_is_shown_is_measured_and_not_judged():
    text = run("--rounds", "1").stdout
    assert "1 of 3 images flagged" in text
    assert "Batch generation, 128x128, 2 steps, batches of 1" in text
    assert "÷ bare" in text
    assert not re.search("[Gg]oal|[≤≥✓✗]", text)
