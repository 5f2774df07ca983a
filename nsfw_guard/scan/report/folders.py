"""How many files of each folder are flagged; of any number of folders, in bounded memory."""

from __future__ import annotations

import re
from functools import lru_cache

from ..entry import text_to_path
from ..places import is_local_file

# A counter is some hundred bytes: this many are some megabytes.
MOST = 20_000
# A rate among fewer files than this says little.
ENOUGH = 20
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")

Folder = tuple[str, ...]


def folder_of(path: str) -> Folder:
    """Return the folder that a file is in, from the outside in; an archive or a table is a folder too.

    ``/data/a.jpg`` is in ``("", "data")``, ``s3://bucket/x/a.jpg`` in ``("s3://bucket", "x")`` and
    ``zip://x/a.jpg::/data/z.zip`` in ``("", "data", "z.zip", "x")``.
    """
    if is_local_file(path):
        slash = max(path.rfind("/"), path.rfind("\\") if _DRIVE.match(path) else -1)
        return _split(path[:slash]) if slash >= 0 else ()
    inner, chained, outer = path.partition("::")
    match = _URL.match(inner)
    rest = match.group(2) if match else inner
    names = tuple(name for name in rest.split("/")[:-1] if name)
    if not chained:
        scheme = match.group(1) if match else ""
        return (f"{scheme}://{names[0]}", *names[1:]) if names else (f"{scheme}://",)
    return (*folder_of(outer), _name_in(outer), *names)


def name_of(folder: Folder) -> str:
    """Return a folder as text."""
    return "/".join(folder) or ("/" if folder else ".")


class Folders:
    """Counters of folders: how many files, flagged, not read.

    When there are too many folders, they are counted in those above them, down to a depth that is the same for all.

    Attributes:
        depth: Deeper folders are counted in the one of this depth; ``None`` if all have their own counter.
        counts: Folder → ``[files, flagged, failed]``, of what is directly in it.
    """

    def __init__(self, most: int = MOST) -> None:
        self.depth: int | None = None
        self.counts: dict[Folder, list[int]] = {}
        self._most = most

    def add(self, path: str, *, flagged: bool, failed: bool) -> None:
        """Count one file."""
        counter = self.counts.setdefault(self.place(path), [0, 0, 0])
        counter[0] += 1
        counter[1] += flagged
        counter[2] += failed
        while len(self.counts) > self._most:
            self._roll_up()

    def place(self, path: str) -> Folder:
        """Return the folder in which a file is counted."""
        return folder_of(path)[: self.depth]

    def worst(self, limit: int) -> list[tuple[Folder, list[int]]]:
        """Return the folders that a table shows: most flagged, highest rates among enough files, most files."""
        scored = list(self.counts.items())
        by_number = sorted(scored, key=lambda pair: (-pair[1][1], pair[0]))[:limit]
        enough = [pair for pair in scored if pair[1][0] >= ENOUGH and pair[1][1]]
        by_rate = sorted(enough, key=lambda pair: (-pair[1][1] / pair[1][0], pair[0]))[:limit]
        by_size = sorted(scored, key=lambda pair: (-pair[1][0], pair[0]))[:limit]
        return list({pair[0]: pair for pair in (*by_number, *by_rate, *by_size)}.values())

    def _roll_up(self) -> None:
        self.depth = max(map(len, self.counts)) - 1
        rolled: dict[Folder, list[int]] = {}
        for folder, counter in self.counts.items():
            into = rolled.setdefault(folder[: self.depth], [0, 0, 0])
            into[:] = [a + b for a, b in zip(into, counter, strict=True)]
        self.counts = rolled


@lru_cache(maxsize=4096)
def _split(directory: str) -> Folder:
    # Text that stands for undecodable bytes is shown with a mark where they are.
    directory = text_to_path(directory).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if _DRIVE.match(directory + "\\"):
        return tuple(directory.replace("\\", "/").split("/"))
    return tuple(directory.split("/"))


def _name_in(path: str) -> str:
    """The name of an archive or table in its own folder."""
    return re.split(r"[/\\]", path.partition("::")[0])[-1]
