"""Prompts: text, JSONL and CSV files, or values in Python, into rows; what makes no row is said by line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from ..errors import SettingError

SUFFIXES = (".txt", ".jsonl", ".csv")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Names of devices, which Windows opens instead of files.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MOST_SEED = 2**63


@dataclass(frozen=True)
class PromptRow:
    """One image that is to be made.

    Attributes:
        id: Its name: the image is ``<id>.png``. By default from the content of the row and how many equal ones come
            before it, so that a line that is put in before changes no other.
        prompt: ``None`` for pipelines that take none.
        seed: Of its generator, in [0, 2**63). By default from the id.
        arguments: Others of the pipeline's call: name → value.
        line: Where it is in the file, from 1; in a list, its place.
        folder: What paths in the arguments are relative to.
    """

    id: str
    prompt: str | None
    seed: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0
    folder: Path = Path()

    @property
    def request(self) -> str:
        """The SHA-256, in hex, of what was asked for."""
        return _hash({"prompt": self.prompt, "seed": self.seed, "arguments": dict(self.arguments)})

    def copies(self, count: int) -> list[PromptRow]:
        """Return the rows of several images: ids with ``-0``, ``-1``, … and seeds one after the other."""
        if count == 1:
            return [self]
        return [replace(self, id=f"{self.id}-{i}", seed=(self.seed + i) % _MOST_SEED) for i in range(count)]


@dataclass(frozen=True)
class BadRow:
    """What stands in a prompt file and is no row, or a row of which there is no image.

    Attributes:
        line: Where, from 1.
        problem: What was given and what was expected.
    """

    line: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}"


def listed(bad_rows: Sequence[BadRow], most: int) -> list[str]:
    """Return what the first so many say, and how many more there are."""
    said = [str(bad) for bad in bad_rows[:most]]
    more = len(bad_rows) - most
    return [*said, f"and {more:,} more"] if more > 0 else said


class _Refused(ValueError):
    """Why something is no row."""


def read_rows(
    prompts: str | Path | Iterable[str | Mapping[str, Any]], *, seed: int = 0, num_images: int = 1
) -> tuple[list[PromptRow], list[BadRow]]:
    """Read prompts.

    Args:
        prompts: A file: ``.txt``, one prompt per line; ``.jsonl``, one object per line; ``.csv``, with a header. Or
            prompts and mappings themselves. The names of mappings, objects and columns: ``prompt``, ``id``, ``seed``,
            and arguments of the pipeline's call (``negative_prompt``, ``width``, …). Empty lines and cells are none.
        seed: What default seeds are derived from.
        num_images: How many images to make of each row.

    Returns:
        The rows, and what is none.

    Raises:
        SettingError: There is no such file, of no known kind, or it holds nothing; or a number is out of its range.
    """
    if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1:
        raise SettingError(f"num_images is {num_images!r}; expected a whole number of at least 1.")
    try:
        _seed(seed)
    except _Refused as error:
        raise SettingError(f"{error}.") from error
    if isinstance(prompts, (str, Path)):
        path = Path(prompts)
        where, folder, found = str(path), path.absolute().parent, _read_file(path)
    else:
        where, folder, found = "prompts", Path(), enumerate(prompts, start=1)
    rows: list[PromptRow] = []
    bad: list[BadRow] = []
    seen: dict[str, int] = {}
    equal: dict[str, int] = {}
    for line, content in found:
        try:
            made = _row(content, line, folder, seed, equal).copies(num_images)
            for row in made:
                # Two names that differ only in case are one file on some systems.
                if (other := seen.get(row.id.casefold())) is not None:
                    _refuse(f"the id {row.id!r} is that of line {other} already")
            seen.update((row.id.casefold(), line) for row in made)
            rows += made
        except _Refused as error:
            bad.append(BadRow(line, str(error)))
    if not rows and not bad:
        raise SettingError(f"{where} holds no prompts; expected at least one.")
    return rows, bad


def _row(content: Any, line: int, folder: Path, seed: int, equal: dict[str, int]) -> PromptRow:
    if isinstance(content, Exception):
        _refuse(str(content))
    if isinstance(content, str):
        content = {"prompt": content}
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        _refuse(f'it is {_short(content)}; expected a prompt, or an object such as {{"prompt": "a circle"}}')
    given = {name: value for name, value in content.items() if value is not None}
    try:
        hashed = _hash(given)
    except (TypeError, ValueError, RecursionError) as error:  # what JSON cannot hold, or UTF-8
        _refuse(f"it holds what cannot be written as JSON in UTF-8 ({error})")
    prompt, name, own_seed = given.pop("prompt", None), given.pop("id", None), given.pop("seed", None)
    if prompt is not None and (not isinstance(prompt, str) or "\0" in prompt):
        _refuse(f"prompt is {_short(prompt)}; expected text, in UTF-8, without zero characters")
    if name is None:
        count = equal[hashed] = equal.get(hashed, 0) + 1
        name = hashed[:16] + (f"-{count}" if count > 1 else "")
    elif isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not _ID.fullmatch(name) or _DEVICES.fullmatch(name):
        _refuse(f"id is {_short(name)}; expected up to 100 letters, digits, dots, dashes and underscores: a file name")
    if own_seed is None:
        own_seed = int(sha256(f"{seed}/{name}".encode()).hexdigest()[:8], 16)
    return PromptRow(name, prompt, _seed(own_seed), given, line, folder)


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST_SEED:
        _refuse(f"seed is {_short(value)}; expected a whole number in [0, 2**63)")
    return int(value)


def _read_file(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number of a line and what is there: text, a mapping, or why it is none."""
    if path.suffix.lower() not in SUFFIXES:
        raise SettingError(f"{path} is no prompt file; expected a name that ends with {', '.join(SUFFIXES)}.")
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise SettingError(f"{path} cannot be read ({error.strerror}); name a file of prompts.") from error
    if path.suffix.lower() == ".csv":
        return _read_csv(data, path)
    return _read_lines(data, _object if path.suffix.lower() == ".jsonl" else str)


def _read_lines(data: bytes, parse: Any) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            text = line.decode().strip()
            if text:
                yield number, parse(text)
        except UnicodeDecodeError as error:
            yield number, _Refused(f"it is not UTF-8 ({error.reason} at byte {error.start})")
        except (ValueError, RecursionError) as error:
            yield number, _Refused(f"it is not JSON ({error})")


def _read_csv(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    try:
        reader = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        header = [name.strip() for name in next(filter(any, reader), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingError(f"{path} cannot be read as CSV in UTF-8 ({error}).") from error
    if len(set(header)) < len(header) or "" in header:
        raise SettingError(f"{path} has the header {header}; expected names, each of them once.")
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # Whether what follows is rows or the rest of this one, nobody can tell.
            yield start, _Refused(f"it is not CSV ({error}); nothing from here on is read")
            return
        if len(cells) > len(header):
            yield start, _Refused(f"it has {len(cells)} cells; the header has {len(header)}. Quote what holds commas")
        elif any(cells):
            yield start, {name: value_of(name, cell) for name, cell in zip(header, cells, strict=False) if cell != ""}


def value_of(name: str, cell: str) -> Any:
    """Return what a cell means: a number, true or false where it is one; ids and prompts stay text."""
    if name == "id" or "prompt" in name:
        return cell
    try:
        return _object(cell)
    except (ValueError, RecursionError):
        return cell


def _object(text: str) -> Any:
    """Parse JSON, strictly: no name twice, no NaN."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name is there twice")
        return dict(pairs)

    def never(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=never)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse(why: str) -> NoReturn:
    raise _Refused(why)
