"""Part files: rows on disk, as Parquet or JSONL. A part is there as a whole or not at all."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from ..errors import SettingError, one_line
from ..files import whole_file
from .row import INTEGERS, LABEL_PREFIX, NUMBERS, SCHEMA_VERSION, Row
from .sheet import ended, labels_of, rows_of

FORMATS = ("parquet", "jsonl")
FOLDER = "parts"
MANIFEST = "scan.json"
# How many rows are held at a time.
_ROWS = 2048
_COMPRESSION = "zstd"
# Earlier versions wrote CSV, too; a scan that goes on converts it.
_NAME = re.compile(r"part-(\d{6,})\.(parquet|jsonl|csv)")


def part_files(out: Path) -> list[Path]:
    """Return the parts of a scan in the order in which they were written."""
    folder = out / FOLDER
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    # Of two with one number, one is what the CSV was converted to.
    found.sort(key=lambda path: path.suffix != ".csv")
    return [part for _, part in sorted({number_of(path): path for path in found}.items())]


def old_parts(out: Path) -> list[Path]:
    """Return the parts that an earlier version wrote as CSV."""
    return sorted(path for path in (out / FOLDER).glob("part-*.csv") if _NAME.fullmatch(path.name))


def number_of(part: Path) -> int:
    """Return the number in a part's name."""
    match = _NAME.fullmatch(part.name)
    if match is None:
        raise ValueError(f"{part} is no part")
    return int(match.group(1))


def read_rows(out: str | Path) -> Iterator[Row]:
    """Yield the rows of a scan, part by part.

    Args:
        out: The folder that ``nsfw-guard scan --out`` wrote.

    Raises:
        SettingError: There is no scan in it, or one of another version of the schema.
    """
    out = Path(out)
    read_manifest(out)
    for part in part_files(out):
        yield from read_part(part)


def read_manifest(out: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """Return what a scan wrote about itself.

    Args:
        out: Its folder.
        missing_ok: Whether a folder without any is one in which nothing was scanned yet.

    Raises:
        SettingError: There is none, it is no JSON, or of another version of the schema.
    """
    file = out / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        if isinstance(version, bool) or not isinstance(version, int):
            raise TypeError(f"its schema_version is {version!r}; expected {SCHEMA_VERSION}")
    except FileNotFoundError:
        if missing_ok and not part_files(out):
            return {}
        raise SettingError(
            f"{out} holds no scan: it has no {MANIFEST}. Make one: nsfw-guard scan SOURCE --out {out}"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise SettingError(f"{file} is damaged: {said}. Scan again into another folder.") from error
    if version > SCHEMA_VERSION:
        raise SettingError(
            f"{out} was written by a newer nsfw_guard: schema {version}, and this one knows {SCHEMA_VERSION}. "
            "Update it: pip install --upgrade nsfw-guard"
        )
    if version < SCHEMA_VERSION:
        raise SettingError(
            f"{out} was written by an older nsfw_guard: schema {version}, and this one writes {SCHEMA_VERSION}. "
            "Scan into another folder."
        )
    return manifest  # type: ignore[no-any-return]


def read_part(part: Path) -> Iterator[Row]:
    """Yield the rows of one part.

    Raises:
        SettingError: It is damaged.
    """
    count = 0
    with _intact(part):
        for row in _rows_of(part):
            if not row.path or not isinstance(row.path, str):
                raise ValueError("a row has no path")
            count += 1
            yield row
        if not count:
            raise ValueError("it holds no row")


@contextmanager
def _intact(part: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's; Arrow has none
        raise SettingError(
            f"{part} cannot be read ({one_line(error)}). Delete it and run the same scan again: what it held is "
            "looked at anew."
        ) from error


def _rows_of(part: Path) -> Iterator[Row]:
    if part.suffix == ".parquet":
        for batch in _batches_of(part):
            yield from map(Row.from_record, batch.to_pylist())
    elif part.suffix == ".jsonl":
        with part.open(encoding="utf-8") as lines:
            yield from (Row.from_record(json.loads(line)) for line in ended(lines))
    else:
        with part.open(encoding="utf-8", newline="\n") as lines:
            yield from rows_of(lines)


def paths_in(part: Path) -> Iterator[str]:
    """Yield the paths in one part, in order."""
    if part.suffix == ".parquet":
        for batch in _batches_of(part, columns=["path"]):
            yield from batch.column(0).to_pylist()
    else:
        yield from (row.path for row in read_part(part))


def count_rows(part: Path) -> int:
    """Return how many rows a part has."""
    if part.suffix != ".parquet":
        return sum(1 for _ in read_part(part))
    with parquet().ParquetFile(part) as file:
        return int(file.metadata.num_rows)


def labels_in(part: Path) -> list[str]:
    """Return the labels that a part has columns for; of a JSONL part, those of all its rows."""
    if part.suffix == ".jsonl":
        return list(dict.fromkeys(label for row in read_part(part) for label in row.labels))
    if part.suffix == ".parquet":
        with parquet().ParquetFile(part) as file:
            names = file.schema_arrow.names
        return [name[len(LABEL_PREFIX) :] for name in names if name.startswith(LABEL_PREFIX)]
    with _intact(part), part.open(encoding="utf-8", newline="\n") as lines:
        return labels_of(lines)


def write_part(part: Path, rows: Iterable[Row], labels: Sequence[str]) -> int:
    """Write a part; under its name it is there as a whole, and on the disk, or not at all.

    Args:
        part: Its suffix is the format, one of ``FORMATS``.
        rows: Taken a few thousand at a time.
        labels: Which label columns there are: all that the rows have.

    Returns:
        How many rows it has. Without any, nothing is written.

    Raises:
        OSError: The disk is full, or not writable.
    """
    if part.suffix[1:] not in FORMATS:
        raise ValueError(f"{part} is no part in one of the formats {FORMATS}")
    batches = _batches(rows)
    first = next(batches, None)
    if first is None:
        return 0
    count = 0
    with whole_file(part) as file, _writer(part.suffix, file, columns_of(labels)) as write:
        for batch in chain([first], batches):
            write([row.to_record() for row in batch])
            count += len(batch)
    return count


def join_parts(parts: Sequence[Path], target: Path) -> None:
    """Write the rows of some parts, in order, as one; see ``write_part``."""
    labels = list(dict.fromkeys(label for part in parts for label in labels_in(part)))
    if target.suffix != ".parquet":
        write_part(target, (row for part in parts for row in read_part(part)), labels)
        return
    schema = _schema(columns_of(labels))
    with whole_file(target) as file, parquet().ParquetWriter(file, schema, compression=_COMPRESSION) as writer:
        for part in parts:
            for batch in _batches_of(part):
                writer.write_batch(_with_columns(batch, schema))


def parquet() -> Any:
    """Return pyarrow's Parquet module.

    Raises:
        SettingError: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SettingError(
            f"Parquet needs pyarrow: pip install 'nsfw-guard[scan]' ({error}). Or choose --format jsonl."
        ) from error
    return pyarrow.parquet


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, _ROWS)):
        yield batch


def _batches_of(part: Path, columns: list[str] | None = None) -> Iterator[Any]:
    """Yield Arrow's record batches of a Parquet part; without threads, whose memory would stay."""
    with parquet().ParquetFile(part, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=_ROWS, columns=columns, use_threads=False)


def _with_columns(batch: Any, schema: Any) -> Any:
    import pyarrow as pa

    names = batch.schema.names
    columns = [
        batch.column(name) if name in names else pa.nulls(len(batch), schema.field(name).type) for name in schema.names
    ]
    return pa.record_batch(columns, schema=schema)


def _schema(columns: list[str]) -> Any:
    import pyarrow as pa

    kinds = {**dict.fromkeys(INTEGERS, pa.int64()), **dict.fromkeys(NUMBERS, pa.float64()), "flagged": pa.bool_()}
    return pa.schema(
        [(name, pa.float64() if name.startswith(LABEL_PREFIX) else kinds.get(name, pa.string())) for name in columns]
    )


def columns_of(labels: Sequence[str]) -> list[str]:
    """Return the columns of rows, with one for each label."""
    names: list[str] = []
    for item in fields(Row):
        names += [LABEL_PREFIX + label for label in labels] if item.name == "labels" else [item.name]
    return names


@contextmanager
def _writer(suffix: str, file: IO[bytes], columns: list[str]) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Yield what writes records to a file of a format."""
    if suffix == ".parquet":
        import pyarrow as pa

        schema = _schema(columns)
        with parquet().ParquetWriter(file, schema, compression=_COMPRESSION) as writer:
            yield lambda records: writer.write_table(pa.Table.from_pylist(records, schema=schema))
    else:
        yield lambda records: file.writelines(json.dumps(record).encode() + b"\n" for record in records)
