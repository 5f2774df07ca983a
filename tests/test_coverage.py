"""The table of pipeline classes, against the diffusers that is installed."""

from __future__ import annotations

import ast
import functools
import inspect
import json
from pathlib import Path

import diffusers
import pytest
from nsfw_guard.integrations.diffusers_pipeline import coverage, table
from typer.testing import CliRunner

from nsfw_guard import cli

INSTALLED = coverage.installed_pipelines()
source_of = functools.cache(inspect.getsource)  # which parses the whole file each time


def importable():
    """The classes that diffusers exports and whose dependencies are here."""
    for name in INSTALLED:
        cls = getattr(diffusers, name, None)
        if inspect.isclass(cls) and not hasattr(cls, "_backends"):
            yield cls


def test_every_pipeline_class_of_the_installed_diffusers_is_in_the_table():
    """A new release of diffusers tells us here: classify the class by what §3 of the module's docs says it does."""
    assert len(INSTALLED) > 300
    assert coverage.unclassified() == []


def test_the_classes_are_those_that_pythons_own_parser_finds():
    """Of every eighth file: all of them take seconds."""
    for file in sorted((Path(diffusers.__file__).parent / "pipelines").rglob("*.py"))[::8]:
        text = file.read_text(encoding="utf-8")
        parsed = {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.bases}
        assert {name for name, _ in coverage._CLASS.findall(text)} == parsed, file


def test_no_name_stands_twice():
    names = [name for names in table._TABLE.values() for name in names.split()]
    assert len(names) == len(set(names))
    assert set(table._TABLE) == set(table.MECHANISMS)
    assert set(names) >= table._SIGNED


def test_slots_are_what_constructors_take():
    for cls in importable():
        takes = "safety_checker" in inspect.signature(cls.__init__).parameters
        slot = table.mechanism_of(cls) in ("slot", "slot, three values", "slot, inline", "cosmos")
        assert takes == slot, cls.__name__


def test_three_values_are_what_run_safety_checker_returns():
    for cls in importable():
        if hasattr(cls, "run_safety_checker") and table.mechanism_of(cls).startswith("slot"):
            source = inspect.getsource(cls.run_safety_checker)
            values = source.rsplit("return ", 1)[1].splitlines()[0].count(",") + 1
            assert values == table.slot_values(cls), cls.__name__


@pytest.mark.parametrize(
    ("mechanism", "text"),
    [
        ("image processor", "processor.postprocess("),
        ("video processor", "processor.postprocess"),
        ("by hand", "numpy_to_pil("),
        ("inner pipelines", "_pipe"),
    ],
)
def test_the_mechanism_is_what_the_class_uses(mechanism, text):
    found = [cls for cls in importable() if table.mechanism_of(cls) == mechanism]
    assert found
    for cls in found:
        source = "".join(source_of(base) for base in cls.__mro__ if base.__module__.startswith("diffusers"))
        assert text in source, cls.__name__


@pytest.mark.parametrize(
    ("mechanism", "clips"), [("cosmos", True), ("video processor", True), ("image processor", False), ("slot", False)]
)
def test_which_classes_make_clips(mechanism, clips):
    names = table._TABLE[mechanism].split()
    assert names
    assert {table.makes_clips(type(name, (), {})) for name in names} == {clips}


def test_classes_of_a_users_own_count_as_what_they_descend_from():
    class Mine(diffusers.StableDiffusionXLPipeline):
        pass

    class Odd(diffusers.DiffusionPipeline):
        pass

    assert table.mechanism_of(Mine) == "image processor"
    assert table.mechanism_of(Odd) is None


def test_the_command_names_every_class_if_asked_to(monkeypatch):
    monkeypatch.setattr(coverage, "coverage", lambda: {"StableDiffusionXLPipeline": "image processor"})
    named, short = (CliRunner().invoke(cli.app, ["coverage", *more]) for more in (["--classes"], []))
    assert named.exit_code == short.exit_code == 0
    assert "StableDiffusionXLPipeline" in named.stdout
    assert "StableDiffusionXLPipeline" not in short.stdout


def test_the_command_prints_the_table(monkeypatch):
    result = CliRunner().invoke(cli.app, ["coverage"])
    assert result.exit_code == 0, result.output
    assert "image processor" in result.output
    named = CliRunner().invoke(cli.app, ["coverage", "--json"])
    found = json.loads(named.stdout)
    assert sorted(found) == INSTALLED
    assert found["StableDiffusionXLPipeline"] == "image processor"
    monkeypatch.delitem(table._MECHANISM_OF, "FluxPipeline")
    result = CliRunner().invoke(cli.app, ["coverage"])
    assert result.exit_code == 1
    assert "FluxPipeline" in result.output
    assert "unclassified" in result.output
