"""Which pipeline classes does the installed diffusers have, and is each of them in the table?"""

from __future__ import annotations

import re
from pathlib import Path

import diffusers

from . import table

# A class and its bases: parsing all of diffusers' pipelines takes seconds.
_CLASS = re.compile(r"^class (\w+)\(([\w\s,.=]*)\):", re.MULTILINE)
_ROOTS = {"pipelines": "DiffusionPipeline", "modular_pipelines": "ModularPipeline"}


def installed_pipelines() -> list[str]:
    """Return the names of all pipeline classes of the installed diffusers, sorted.

    Read from its source, so that classes count whose optional dependencies are not installed.
    """
    names: set[str] = set()
    for folder, root in _ROOTS.items():
        bases: dict[str, list[str]] = {}
        for file in (Path(diffusers.__file__).parent / folder).rglob("*.py"):
            for name, given in _CLASS.findall(file.read_text(encoding="utf-8")):
                bases[name] = [base.strip() for base in given.split(",")]
        names |= {name for name in bases if name != root and _descends(name, root, bases)}
    return sorted(names)


def coverage() -> dict[str, str]:
    """Return the mechanism that guards each installed class, or ``"unclassified"``."""
    return {name: table.mechanism(name) or "unclassified" for name in installed_pipelines()}


def unclassified() -> list[str]:
    """Return the installed classes that the table does not know; they are guarded by detection alone."""
    return [name for name, how in coverage().items() if how == "unclassified"]


def _descends(name: str, root: str, bases: dict[str, list[str]]) -> bool:
    return any(base == root or _descends(base, root, bases) for base in bases.get(name, []) if base != name)
