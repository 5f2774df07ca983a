"""Which files `nsfw-guard check` looks at: those that were named, and the pictures in folders."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath

from .scan.entry import Entry, path_to_text, text_to_path
from .scan.glob import expand_braces, find, fixed_part, has_braces, has_magic
from .scan.kinds import Choice, archive_kind, is_media_name
from .scan.local import Parts, open_file, walk

STDIN = "-"

Order = tuple[tuple[tuple[bool, int, str], ...], ...]


@dataclass(frozen=True)
class Listed:
    """One file that is to be looked at.

    Attributes:
        name: What it is called in what is printed.
        path: Where it is; ``None`` for standard input.
        place: Where a copy of it belongs, below the folder for copies.
        error: Why it cannot be looked at, if that is known already.
    """

    name: str
    path: Path | None = None
    place: PurePath = PurePath()
    error: str | None = None


@dataclass(frozen=True)
class Listing:
    """All of them, each once, in the order of what was named; what is in a folder in natural order.

    Attributes:
        files: The files.
        skipped: Why → how many were passed over in folders.
    """

    files: Sequence[Listed]
    skipped: Counter[str] = field(default_factory=Counter)

    def collisions(self) -> Iterator[tuple[Listed, Listed]]:
        """Yield files whose copies would have the same name."""
        seen: dict[PurePath, Listed] = {}
        for file in self.files:
            if file.path is not None and file.error is None and (other := seen.setdefault(file.place, file)) != file:
                yield other, file


def list_files(given: Sequence[str], *, without: Path | None = None) -> Listing:
    """Find what is to be looked at.

    A folder stands for every picture in it and below, hidden ones too; by its name, or by its first bytes where the
    name says nothing. Films are listed with them: whoever cannot look at them says so. Links are followed once.

    Args:
        given: Files, folders, globs, and ``-`` for standard input.
        without: A folder of copies, which is passed over where it lies in another one.
    """
    skipped: Counter[str] = Counter()
    once: dict[str, Listed] = {}
    for text in dict.fromkeys(given):
        for file in _named(text, len(given) > 1, without, skipped):
            once.setdefault(file.name if file.path is None else os.path.abspath(file.path), file)
    return Listing(list(once.values()), +skipped)


def natural(parts: Sequence[str]) -> Order:
    """Return by what names are sorted as people do it: ``a2`` before ``a10``."""
    return tuple(
        tuple((not one.isdecimal(), int(one) if one.isdecimal() else 0, one) for one in re.split(r"(\d+)", name))
        for part in parts
        for name in (part.casefold(), part)
    )


def _named(text: str, several: bool, without: Path | None, skipped: Counter[str]) -> Iterator[Listed]:
    if text == STDIN:
        yield Listed(text)
    elif os.path.isdir(text):
        yield from _in_folder(text, several, without, skipped)
    elif os.path.lexists(text) or not (has_magic(text) or has_braces(text)):
        path = Path(text)
        yield Listed(path_to_text(text), path, PurePath(path.name))
    elif has_braces(text):
        for one in expand_braces(text):
            yield from _named(one, several, without, skipped)
    else:
        root, _ = fixed_part(text)
        found = sorted((_listed(entry, root, PurePath()) for entry in find(text, Choice())), key=_order)
        if not os.path.isabs(text):  # as it was typed
            found = [replace(file, name=path_to_text(os.path.relpath(text_to_path(file.name)))) for file in found]
        yield from found or [Listed(path_to_text(text), error="matches no picture")]


def _in_folder(root: str, several: bool, without: Path | None, skipped: Counter[str]) -> Iterator[Listed]:
    copies = None if without is None else os.path.realpath(without)
    choice = Choice()

    def enter(parts: Parts) -> bool:
        is_copies = copies is not None and os.path.realpath(os.path.join(root, *parts)) == copies
        choice.skipped["folder for copies"] += is_copies
        return not is_copies

    prefix = PurePath(Path(root).resolve().name) if several else PurePath()
    entries = walk(root, choice, enter=enter, pick=partial(_is_taken, root, choice))
    found = sorted((_listed(entry, root, prefix) for entry in entries), key=_order)
    skipped.update(choice.skipped)
    if not found:
        passed = ", ".join(f"{count} {why}" for why, count in (+choice.skipped).items())
        found = [Listed(path_to_text(root), error=f"holds no picture{f' ({passed})' if passed else ''}; expected one")]
    yield from found


def _is_taken(root: str, choice: Choice, parts: Parts) -> bool:
    """Whether a file in a folder is one to look at; what is neither file nor folder is the walk's."""
    name = parts[-1]
    path = os.path.join(root, *parts)
    if not os.path.isfile(path):
        return is_media_name(name) or os.path.exists(path)
    taken = _is_picture(path) if archive_kind(name) is None else False
    if not taken:
        choice.skipped["other type" if archive_kind(name) is None else "archive"] += 1
    return taken


def _is_picture(path: str) -> bool:
    from .images.sniff import HEAD, sniff

    name = os.path.basename(path)
    if is_media_name(name) and not name.startswith("._"):
        return True
    try:
        with open_file(path) as file:
            head = file.read(HEAD)
    except OSError:
        return True  # whoever opens it says why it cannot be
    if is_media_name(name):
        return head[:4] != b"\0\5\x16\7"  # what macOS keeps beside a file
    media, kind = sniff(head)
    return media == "picture" and kind != "TGA"  # which has no magic


def _order(file: Listed) -> Order:
    return natural(file.place.parts)


def _listed(entry: Entry, root: str, prefix: PurePath) -> Listed:
    path = Path(text_to_path(entry.path))
    place = prefix / os.path.relpath(path, root)
    return Listed(path_to_text(str(path)), path, place, entry.error)
