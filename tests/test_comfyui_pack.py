"""What lies in the node pack's folder beside its code: what is installed, the icon, the examples, the help."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACK = ROOT / "integrations" / "comfyui"
PROJECT = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
EXAMPLES = sorted((PACK / "example_workflows").glob("*.json"))


def required():
    lines = (PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_requirements_are_what_an_index_has_and_the_guard_needs():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert required() == PROJECT["project"]["dependencies"]
    assert set(required()) <= set(needed)  # of which the guard itself is none: no index has it
    with_comfyui = {"torch", "torchvision", "transformers", "safetensors", "pillow", "numpy"}
    assert not {re.split("[<>=]", line)[0] for line in required()} & with_comfyui


def test_the_icon_is_one_that_the_registry_takes():
    url = PROJECT["tool"]["comfy"]["Icon"]
    repository = PROJECT["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    base = f"https://raw.githubusercontent.com/{repository}/main/"
    assert url.startswith(base)
    with Image.open(ROOT / url.removeprefix(base)) as icon:
        assert icon.format == "PNG"
        assert max(icon.size) <= 400


def origins(workflow, node, seen=()):
    """The types of all nodes behind a node's linked inputs, up to the first guard."""
    sources = {link[0]: link[1] for link in workflow["links"]}
    nodes = {one["id"]: one for one in workflow["nodes"]}
    found = set()
    for link in (one["link"] for one in node["inputs"] if one.get("link")):
        source = nodes[sources[link]]
        found.add(source["type"])
        if not source["type"].startswith("NSFWG_"):
            found |= origins(workflow, source)
    return found


def test_an_example_guards_what_a_sampler_makes():
    (name,) = [file for file in EXAMPLES if '"KSampler"' in file.read_text(encoding="utf-8")]
    workflow = json.loads(name.read_text(encoding="utf-8"))
    types = [node["type"] for node in workflow["nodes"]]
    assert {"CheckpointLoaderSimple", "KSampler", "VAEDecode", "NSFWG_Guard", "SaveImage"} <= set(types)
    for node in workflow["nodes"]:
        if node["type"] in ("SaveImage", "PreviewImage"):
            assert origins(workflow, node) == {"NSFWG_Guard"}
        if node["type"] == "NSFWG_Guard":
            assert {"VAEDecode", "KSampler", "CheckpointLoaderSimple"} <= origins(workflow, node)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_has_its_picture_and_names_no_machine(file):
    assert file.with_suffix(".jpg").is_file()
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"/home/|/root/|/tmp/|/work/|[A-Z]:\\\\", text)
    linked = {link[0] for link in json.loads(text)["links"]}
    for node in json.loads(text)["nodes"]:
        assert {one["link"] for one in node["inputs"] if one.get("link") is not None} <= linked
