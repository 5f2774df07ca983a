"""Part files: rows on disk, as Parquet, JSONL or CSV. A part is there as a whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import SettingError
from .row import LABEL_PREFIX, Row

FORMATS = ("parquet", "jsonl", "csv")
FOLDER = "parts"
MANIFEST = "scan.json"
_NAME = re.compile(r"part-(\d{6,})\.(parquet|jsonl|csv)")
_INTEGERS = ("size", "width", "height", "frames", "frame", "views")
_NUMBERS = ("mtime", "score", "threshold", "decode_ms")


def part_files(out: Path) -> list[Path]:
    """Return the parts of a scan in the order in which they were written."""
    folder = out / FOLDER
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=number_of)


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
        SettingError: There is no scan in it.
    """
    out = Path(out)
    if not (out / MANIFEST).is_file():
        raise SettingError(f"{out} holds no scan: it has no {MANIFEST}. Make one: nsfw-guard scan SOURCE --out {out}")
    for part in part_files(out):
        yield from read_part(part)


def read_part(part: Path) -> Iterator[Row]:
    """Yield the rows of one part."""
    if part.suffix == ".parquet":
        with parquet().ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from map(Row.from_record, batch.to_pylist())
    elif part.suffix == ".jsonl":
        with part.open(encoding="utf-8") as lines:
            yield from (Row.from_record(json.loads(line)) for line in lines)
    else:
        with part.open(encoding="utf-8", newline="") as file:
            yield from (Row.from_record(_typed(record)) for record in csv.DictReader(file))


def write_part(part: Path, rows: Sequence[Row]) -> None:
    """Write a part; under its name it is there as a whole, and on the disk, or not at all.

    Raises:
        OSError: The disk is full, or not writable.
    """
    temporary = part.with_name(f".{part.name}.tmp")
    try:
        with temporary.open("wb") as file:
            if part.suffix == ".parquet":
                _write_parquet(file, rows)
            elif part.suffix == ".jsonl":
                for row in rows:
                    file.write(json.dumps(row.to_record()).encode() + b"\n")
            else:
                _write_csv(file, rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(part)
        sync_folder(part.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parquet() -> Any:
    """Return pyarrow's Parquet module.

    Raises:
        SettingError: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SettingError(
            f"Parquet needs pyarrow: pip install 'nsfw-guard[scan]' ({error}). Or choose --format jsonl or csv."
        ) from error
    return pyarrow.parquet


def _columns(rows: Iterable[Row]) -> list[str]:
    labels = list(dict.fromkeys(LABEL_PREFIX + label for row in rows for label in row.labels))
    names: list[str] = []
    for item in fields(Row):
        names += labels if item.name == "labels" else [item.name]
    return names


def _write_parquet(file: Any, rows: Sequence[Row]) -> None:
    pq = parquet()
    import pyarrow as pa

    kinds = {**dict.fromkeys(_INTEGERS, pa.int64()), **dict.fromkeys(_NUMBERS, pa.float64()), "flagged": pa.bool_()}
    schema = pa.schema(
        [
            (name, pa.float64() if name.startswith(LABEL_PREFIX) else kinds.get(name, pa.string()))
            for name in _columns(rows)
        ]
    )
    pq.write_table(pa.Table.from_pylist([row.to_record() for row in rows], schema=schema), file, compression="zstd")


def _write_csv(file: Any, rows: Sequence[Row]) -> None:
    import io

    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, _columns(rows), restval="")
    writer.writeheader()
    writer.writerows(row.to_record() for row in rows)
    text.detach()


def _typed(record: dict[str, str]) -> dict[str, Any]:
    """Give the texts of a CSV file their types again; what is empty is no value."""
    typed: dict[str, Any] = {}
    for name, text in record.items():
        if text == "":
            typed[name] = "" if name in ("model", "preprocessing", "policy", "scanned") else None
        elif name in _INTEGERS:
            typed[name] = int(text)
        elif name in _NUMBERS or name.startswith(LABEL_PREFIX):
            typed[name] = float(text)
        elif name == "flagged":
            typed[name] = text == "True"
        else:
            typed[name] = text
    return typed
