"""Which pipeline classes does the installed diffusers have, and is each of them in the table?"""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from pathlib import Path

from nsfw_guard.errors import SettingError

from . import table

_ROOTS = {"pipelines": "DiffusionPipeline", "modular_pipelines": "ModularPipeline"}


def installed_pipelines() -> list[str]:
    """Return the names of all pipeline classes of the installed diffusers, sorted.

    Read from its source, so that classes count whose optional dependencies are not installed.

    Raises:
        SettingError: diffusers is not installed.
    """
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None:
        raise SettingError("diffusers is not installed; type: pip install 'nsfw-guard[diffusers]'.")
    names: set[str] = set()
    for folder, root in _ROOTS.items():
        bases: dict[str, list[str]] = {}
        for file in (Path(spec.origin).parent / folder).rglob("*.py"):
            for node in ast.parse(file.read_bytes()).body:
                if isinstance(node, ast.ClassDef):
                    bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
        names |= {name for name in bases if name != root and _descends(name, root, bases)}
    return sorted(names)


def unclassified() -> list[str]:
    """Return the installed pipeline classes that the table does not know; they are guarded by detection alone."""
    return [name for name in installed_pipelines() if table.mechanism(name) is None]


def coverage() -> Counter[str]:
    """Return how many of the installed classes are guarded by which mechanism."""
    return Counter(table.mechanism(name) or "unclassified" for name in installed_pipelines())


def _descends(name: str, root: str, bases: dict[str, list[str]]) -> bool:
    return any(base == root or _descends(base, root, bases) for base in bases.get(name, []) if base != name)
