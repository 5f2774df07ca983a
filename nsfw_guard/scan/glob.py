"""Globs: ``*``, ``?``, ``[…]``, ``**`` over any number of folders, and braces as webdataset writes them."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from ..errors import SettingError
from .entry import Entry
from .kinds import Choice, archive_kind
from .local import walk
from .places import Parts, is_local_file

_MAGIC = re.compile(r"[*?[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST_NAMES = 100_000


def has_magic(text: str) -> bool:
    """Return whether a name is to be matched."""
    return _MAGIC.search(text) is not None


def has_braces(text: str) -> bool:
    """Return whether a name has braces that stand for several."""
    return any("," in found or _RANGE.fullmatch(found) for found in _BRACES.findall(text))


def expand_braces(text: str) -> Iterator[str]:
    """Yield what a name with ``{000..099}`` or ``{train,test}`` stands for, in order.

    Raises:
        SettingError: More than ``MOST_NAMES``.
    """
    for count, name in enumerate(_expand(text)):
        if count == MOST_NAMES:
            raise SettingError(f"{text} stands for more than {MOST_NAMES} names; write a narrower range, or use *.")
        yield name


def _expand(text: str) -> Iterator[str]:
    for found in _BRACES.finditer(text):
        inner = found[1]
        span = _RANGE.fullmatch(inner)
        if span is None and "," not in inner:
            continue
        choices: Iterator[str] = iter(inner.split(","))
        if span is not None:
            first, last = int(span[1]), int(span[2])
            digits = len(span[1]) if len(span[1]) == len(span[2]) or span[1].startswith("0") else 0
            step = 1 if first <= last else -1
            choices = (str(number).zfill(digits) for number in range(first, last + step, step))
        for chosen in choices:
            for rest in _expand(text[found.end() :]):
                yield text[: found.start()] + chosen + rest
        return
    yield text


def fixed_part(pattern: str) -> tuple[str, Parts]:
    """Return the folder in which every match of a pattern is, absolute, and the steps that lead from there."""
    is_local = is_local_file(pattern)
    parts = (pattern.replace(os.sep, "/") if is_local else pattern).split("/")
    fixed = next(index for index, part in enumerate(parts) if has_magic(part))
    folder = "/".join(parts[:fixed]) + ("/" if fixed else "")
    return os.path.abspath(folder or ".") if is_local else folder, tuple(
        part for part in parts[fixed:] if part not in ("", ".")
    )


def find(pattern: str, choice: Choice, *, walk: Callable[..., Iterator[Entry]] = walk) -> Iterator[Entry]:
    """Yield the files that match a pattern, and what is in folders that do where it has no ``**``.

    A pattern that ends in an extension takes all that match it, and archives; others what a folder gives, and archives.

    Args:
        pattern: A path, absolute or relative, or a URL.
        choice: Which names are taken, and the count of what is not.
        walk: What walks through folders: ``local.walk`` or ``remote.walk_url``.
    """
    root, steps = fixed_part(pattern)
    deep = "**" in steps
    named = re.fullmatch(r".*\.[^.*?\[\]]+", steps[-1]) is not None

    def enter(parts: Parts) -> bool:
        return deep or _matches(steps[: len(parts)], parts[: len(steps)])

    def pick(parts: Parts) -> bool:
        name = parts[-1]
        if not deep and len(parts) > len(steps):  # in a folder that matches
            return choice.takes(name)
        return _matches(steps, parts) and (named or archive_kind(name) is not None or choice.takes(name))

    yield from walk(root, choice, enter=enter, pick=pick)


def is_found_by(pattern: str, path: str) -> bool:
    """Return whether a local file is one that matches a pattern, or lies in a folder that does, whatever its type."""
    root, steps = fixed_part(pattern)
    start = os.path.join(root, "")
    if not path.startswith(start):
        return False
    parts = tuple(path[len(start) :].split(os.sep))
    return any(_matches(steps, parts[:end]) for end in range(1 if "**" not in steps else len(parts), len(parts) + 1))


def name_matches(pattern: str, name: str) -> bool:
    """Return whether a member's name matches a pattern, whose stars also stand for slashes."""
    return has_magic(pattern) and _one(pattern).match(name) is not None


def _matches(steps: Parts, parts: Parts) -> bool:
    if not steps:
        return not parts
    if steps[0] == "**":
        return any(_matches(steps[1:], parts[start:]) for start in range(len(parts) + 1))
    return bool(parts) and _one(steps[0]).match(parts[0]) is not None and _matches(steps[1:], parts[1:])


@lru_cache(maxsize=256)
def _one(step: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(step))
