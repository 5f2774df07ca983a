"""Where paths lie below what their sources have in common: names for copies, safe on any system."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from .entry import split_member, text_to_path

_UNSAFE = re.compile(r'[\x00-\x1f\x7f:*?"<>|\\]')
# Stands for "the folder above", and for a root.
_UP = "_up"

Parts = tuple[str, ...]


def is_local_file(path: str) -> bool:
    """Return whether a row's path is a file of this machine, which can be moved or linked; no member and no URL."""
    return "://" not in path  # an absolute path has no double slash


def parts_of(path: str) -> Parts:
    """Take an absolute path or a URL apart: the first part is the root, a drive or a protocol."""
    if not is_local_file(path):
        protocol, _, rest = path.partition("://")
        return (protocol, *(part for part in rest.split("/") if part not in ("", ".")))
    drive, rest = os.path.splitdrive(path)
    parts = re.split(r"[/\\]" if os.name == "nt" else "/", rest)
    return (drive.strip(":/\\") or _UP, *(part for part in parts if part))


def common(bases: Sequence[Parts]) -> Parts:
    """Return the parts that all have in front."""
    if not bases:
        return ()
    first, last = min(bases), max(bases)
    return first[: _shared(first, last)]


def relative(path: str, base: Parts) -> str:
    """Return where a row's path lies below a base; see ``Sources.relative_to_source``."""
    member = split_member(path)
    outer = path if member is None else member.archive
    parts = parts_of(text_to_path(outer))
    shared = _shared(parts, base)
    below = [_UP] * (len(base) - shared)
    below += parts[shared:] if is_local_file(outer) else map(_safe, parts[shared:])
    if member is not None:
        name = member.name if member.number == 1 else f"{member.number}/{member.name}"
        below += [_safe(part) for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    return "/".join(below) or parts[-1]


def _shared(one: Parts, other: Parts) -> int:
    """Return how many parts two have in common in front."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _safe(part: str) -> str:
    """Make a part of a member's name or a URL one that can be a file's name anywhere."""
    part = _UNSAFE.sub("_", part)
    return _UP if part == ".." else part
