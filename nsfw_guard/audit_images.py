"""The pictures of a folder against the audit logs of the runs that wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import NoneType
from typing import Any

from .check_files import Listed, list_files
from .errors import GuardError, SettingError, why
from .scan.entry import path_to_text

_TEXTS = ("run", "id", "action", "file", "sha256", "pixels")
# What a line of a log says has become of an image that has a file: in the folder of the run, or in its quarantine.
_SHOWN, _HIDDEN = ("keep", "redact"), ("quarantine",)


@dataclass(frozen=True)
class Difference:
    """A picture that is not what the log says.

    Attributes:
        file: Its name, or the one that it had.
        problem: What is wrong with it.
        unreadable: Whether it could not be looked at.
    """

    file: str
    problem: str
    unreadable: bool = False


@dataclass(frozen=True)
class Comparison:
    """What `compare_images` found.

    Attributes:
        folder: That was looked into.
        expected: How many pictures the logs say are in it.
        same: How many of them are there, byte for byte.
        differences: All others: missing, changed, not in the logs, flagged and not redacted.
    """

    folder: Path
    expected: int
    same: int
    differences: tuple[Difference, ...]


def compare_images(lines: Iterable[Mapping[str, Any]], folder: str | Path, *, quarantine: bool = False) -> Comparison:
    """Compare the pictures in a folder with what logs say of them.

    A flagged picture is recognised by its file, if it went to the quarantine, and by its pixels, if the log has their
    hash: a copy that was encoded with loss is only one that the logs do not know.

    Args:
        lines: Of the logs, in order; what is not about an image is passed over.
        folder: With the pictures, also in folders in it.
        quarantine: Whether it is where the originals of flagged images went.

    Raises:
        SettingError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SettingError(f"--images is {folder}, and there is no such folder; name the one with the pictures.")
    known = _Known(lines, _HIDDEN if quarantine else _SHOWN)
    found = [file for file in list_files([str(folder)]).files if file.place.name]  # else it holds none
    differences = [one for file in found if (one := known.difference(file)) is not None]
    there = {file.place.name for file in found}
    differences += [Difference(name, "is missing") for name in known.files if name not in there]
    return Comparison(folder, len(known.files), len(known.same), tuple(differences))


class _Known:
    """What logs say of images: by name, by the hash of the file, by the hash of the pixels."""

    def __init__(self, lines: Iterable[Mapping[str, Any]], actions: tuple[str, ...]) -> None:
        last: dict[tuple[Any, Any], Mapping[str, Any]] = {}
        self._flagged_pixels: dict[str, str] = {}
        self._flagged_files: set[str] = set()
        for line in lines:
            if line.get("event") != "image" or not all(isinstance(line.get(one), (str, NoneType)) for one in _TEXTS):
                continue  # not a line of ours, whoever has linked it into the chain
            last[line.get("run"), line.get("id")] = line
            verdict = line.get("verdict")
            if isinstance(verdict, Mapping) and verdict.get("flagged") and isinstance(line.get("pixels"), str):
                self._flagged_pixels[line["pixels"]] = str(line.get("id"))
            if line.get("action") in _HIDDEN and actions != _HIDDEN:
                self._flagged_files.add(str(line.get("sha256")))
        kept = [line for line in last.values() if line.get("action") in actions and isinstance(line.get("file"), str)]
        self.files = {line["file"]: line for line in kept}
        self.same: set[str] = set()
        self._by_content = {line.get("sha256"): line["file"] for line in kept}

    def difference(self, file: Listed) -> Difference | None:
        """Return what is wrong with a picture that is there; its own name counts, not the folder that it is in."""
        name = path_to_text(file.place.as_posix())
        if file.error is not None or file.path is None:
            return Difference(name, str(file.error), unreadable=True)
        try:
            data = file.path.read_bytes()
        except OSError as error:
            return Difference(name, f"cannot be read: {why(error)}", unreadable=True)
        content, line = sha256(data).hexdigest(), self.files.get(file.place.name)
        if line is not None and line.get("sha256") == content:
            verdict = line.get("verdict")
            if line.get("action") == "keep" and isinstance(verdict, Mapping) and verdict.get("flagged"):
                return Difference(name, "is flagged, and was kept as it is")
            self.same.add(file.place.name)
            return None
        if content in self._flagged_files:
            return Difference(name, "is the original of a flagged picture, which belongs into the quarantine only")
        if (flagged := self._flagged_pixels.get(_pixels(data) or "")) is not None:
            return Difference(name, f"shows the original of {flagged}, which is flagged: it is not redacted")
        if line is not None:
            return Difference(name, "was changed: its content is not the one in the log")
        if (other := self._by_content.get(content)) is not None:
            return Difference(name, f"is not in the log under this name; its content is that of {other}")
        return Difference(name, "is not in the log")


def _pixels(data: bytes) -> str | None:
    """Return the hash of a picture's pixels as a log has it; ``None`` if it cannot be decoded."""
    from .generation.entries import pixels_sha256
    from .images.sniff import open_picture, reading

    try:
        picture = open_picture(data, name="it")
        with reading("it", "decoded"):
            picture.load()
        return pixels_sha256(picture)
    except GuardError:
        return None
