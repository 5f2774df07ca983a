"""Links in archives: whatever an unpacker would show under their names is looked at, and what leads nowhere is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

LONGEST = 4096
# A chain may have so many steps, and an archive so many members of the name that it leads to.
_MOST_STEPS = 256
_MOST_CONTENTS = 16
_DEEPEST = 64

Steps = tuple[str, ...]


class Names(Generic[T]):
    """The names in an archive, and what is seen under each: files, and what links lead to.

    An archive may have a name several times, and unpackers differ in which they keep: all of them count.
    """

    def __init__(self) -> None:
        self._named: dict[str, list[T]] = {}
        self._links: dict[str, list[tuple[str, bool]]] = {}
        # The same by where an unpacker puts them.
        self._files: dict[Steps, list[T]] = {}
        self._ways: dict[Steps, list[tuple[str, bool]]] = {}
        self._folders: set[Steps] = {()}
        self._has_folders = False

    def add(self, name: str, place: T) -> None:
        """Add a file, and where its content is."""
        self._named.setdefault(name, []).append(place)
        self._files.setdefault(_clean(name), []).append(place)

    def add_folder(self, name: str) -> None:
        """Add a folder."""
        self._folders.add(_clean(name))

    def add_link(self, name: str, target: str, *, hard: bool) -> None:
        """Add a link: a hard one names another member, a symbolic one leads on from its own folder."""
        self._links.setdefault(name, []).append((target, hard))
        self._ways.setdefault(_clean(name), []).append((target, hard))

    def links(self) -> Iterator[tuple[str, int, T | str | None]]:
        """Yield what is seen under the names of links: the name, its number among those of this name, and the place.

        Instead of a place, why there is none; ``None`` for a link to a folder, whose files have names of their own.
        """
        for name, ways in self._links.items():
            number = len(self._named.get(name, ()))
            for target, hard in ways:
                behind = self._behind(name, target, hard)
                for place in behind:
                    number += 1
                    yield name, number, place
                if not behind:
                    yield name, number, None

    def of(self, name: str) -> list[T | str]:
        """Return everything that is seen under a name, in the order of its numbers."""
        found: list[T | str] = [*self._named.get(name, ())]
        for target, hard in self._links.get(name, ()):
            found += self._behind(name, target, hard)
        return found

    def _behind(self, name: str, target: str, hard: bool) -> list[T | str]:
        said = f"is a link to {target[:200]!r}"
        if len(target) > LONGEST:
            return [f"is a link with a target of {len(target)} characters; the limit is {LONGEST}"]
        if not hard and target.startswith("/"):
            return [f"{said}, outside of the archive"]
        places: dict[int, T] = {}
        circle = folder = False
        start: tuple[Steps, Steps] = ((), _steps(target) if hard else (*_clean(name)[:-1], *_steps(target)))
        pending, seen = [start], {start}
        while pending:
            if len(seen) > _MOST_STEPS:
                return [f"{said}, and from there through more than {_MOST_STEPS} others"]
            here, rest = pending.pop()
            if not rest:
                places.update((id(place), place) for place in self._files.get(here, ()))
                folder = folder or self._is_folder(here)
                continue
            step, rest = rest[0], rest[1:]
            if step == "..":
                if not here:
                    return [f"{said}, outside of the archive"]
                following = [(here[:-1], rest)]
            else:
                following = [((*here, step), rest)]
                for way, is_hard in self._ways.get((*here, step), ()):
                    if len(way) > LONGEST or (not is_hard and way.startswith("/")):
                        return [f"{said}, and from there outside of the archive"]
                    following.append(((() if is_hard else here), (*_steps(way), *rest)))
            for state in following:
                circle = circle or state in seen
                if state not in seen:
                    seen.add(state)
                    pending.append(state)
        if len(places) > _MOST_CONTENTS:
            return [f"{said}, of which the archive has {len(places)}; the limit is {_MOST_CONTENTS}"]
        if not places and not folder:
            return [f"{said}, which leads in a circle" if circle else f"{said}, which the archive does not have"]
        return list(places.values())

    def _is_folder(self, here: Steps) -> bool:
        if not self._has_folders:  # archives need not name the folders of their files
            deep = (file for file in self._files if len(file) <= _DEEPEST)
            self._folders.update(file[:end] for file in deep for end in range(len(file)))
            self._has_folders = True
        return here in self._folders


def _steps(path: str) -> Steps:
    return tuple(step for step in path.split("/") if step not in ("", "."))


def _clean(name: str) -> Steps:
    """Return where an unpacker puts a member: never above its folder."""
    steps: list[str] = []
    for step in _steps(name):
        if step != "..":
            steps.append(step)
        elif steps:
            steps.pop()
    return tuple(steps)
