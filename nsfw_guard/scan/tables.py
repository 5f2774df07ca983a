"""Pictures in Parquet tables: binary columns, the picture columns of Hugging Face, columns of paths and URLs."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO
from urllib.parse import unquote

from ..errors import SettingError, one_line
from .entry import Entry, Member, Wanted, member_path, text_to_path
from .local import file_entry
from .opening import open_outer
from .places import is_local_file

# Rows that are decoded together: pictures are large.
_ROWS = 16


def table_entries(table: Entry, column: str | None, wanted: Wanted | None) -> Iterator[Entry]:
    """Yield the pictures in a Parquet file, column by column; if it is damaged, an entry with the error.

    A table is read a few rows at a time, and the content is handed on at once: it is read one way only.

    Args:
        table: The file.
        column: Which column; ``None``: all that hold binary values, or structs with ``bytes``, as ``datasets`` writes.
        wanted: Whether the content of an entry is needed.
    """
    try:
        with open_outer(table.path) as file:
            opened = _open(file)
            for name in _columns(opened.schema_arrow, column):
                row = 0
                for batch in opened.iter_batches(batch_size=_ROWS, columns=[name]):
                    for value in _values(batch, name):
                        yield from _entries(value, f"{_quoted(name)}/{row}", table, wanted)
                        row += 1
    except SettingError as error:  # it can be read, and has nothing that could be looked at
        yield Entry(table.path, table.size, table.mtime, table.etag, one_line(error, 1000))
    except Exception as error:
        text = f"is no Parquet table that can be read to its end: {one_line(error)}"
        yield Entry(table.path, table.size, table.mtime, table.etag, text)


def check_tables() -> None:
    """Refuse tables where they cannot be read.

    Raises:
        SettingError: pyarrow is not installed.
    """
    from .parts import parquet

    parquet()


def open_member(member: Member) -> BinaryIO:
    """Open one value; no more of the table is read than its row group, up to its row, of its column.

    Raises:
        OSError: There is no such value.
    """
    name, row, *inner = member.name.split("/")
    column = unquote(name)
    with open_outer(member.archive) as file:
        opened = _open(file)
        first = 0
        for group in range(opened.metadata.num_row_groups):
            count = opened.metadata.row_group(group).num_rows
            if int(row) < first + count:
                break
            first += count
        else:
            raise FileNotFoundError(2, "No such row", f"{member.name} in {member.archive}")
        for batch in opened.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[column]):
            if int(row) < first + batch.num_rows:
                value = _values(batch, column)[int(row) - first]
                break
            first += batch.num_rows
    for index in inner:
        value = value[int(index)]
    data = _bytes(value)
    if data is None:
        raise FileNotFoundError(2, "No value", f"{member.name} in {member.archive}")
    return io.BytesIO(data)


def _entries(value: Any, place: str, table: Entry, wanted: Wanted | None) -> Iterator[Entry]:
    """Yield the entry of a value, or of each in a list of them."""
    path = member_path("parquet", place, table.path)
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _entries(inner, f"{place}/{index}", table, wanted)
        return
    data = _bytes(value)
    where = value if isinstance(value, str) else value.get("path") if isinstance(value, dict) else None
    if data is not None:
        entry = Entry(path, len(data), table.mtime, table.version)
        yield replace(entry, data=data) if wanted is None or wanted(entry) else entry
    elif where:
        yield _elsewhere(where, table)
    else:
        given = "is null" if value is None or isinstance(value, dict) else f"is a {type(value).__name__}"
        error = f"{given}; expected bytes, a struct with bytes, a path or a URL"
        yield Entry(path, None, table.mtime, table.version, error)


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes")
    return bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else None


def _elsewhere(where: str, table: Entry) -> Entry:
    """Return the entry of a file that a table names: a URL, or a path from the table's own folder."""
    from .remote import protocol_of, url_entry

    if protocol_of(where):
        return url_entry(where)
    if is_local_file(table.path):
        return file_entry(os.path.abspath(os.path.join(os.path.dirname(text_to_path(table.path)), where)))
    return url_entry(f"{table.path.rpartition('/')[0]}/{where}")


def _columns(schema: Any, column: str | None) -> list[str]:
    if column is not None:
        if column not in schema.names:
            raise SettingError(f"is a table without a column {column}; there are: {', '.join(schema.names)}")
        return [column]
    names = [field.name for field in schema if _holds_bytes(field.type)]
    if not names:
        raise SettingError(
            "is a table in which no column holds pictures; name one of paths or URLs with --column: "
            f"{', '.join(schema.names)}"
        )
    return names


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _open(file: BinaryIO) -> Any:
    from .parts import parquet

    # Pages are read as they are needed; a whole column of a row group may be gigabytes.
    return parquet().ParquetFile(file, buffer_size=2**20, pre_buffer=False)


def _quoted(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def _values(batch: Any, name: str) -> list[Any]:
    values: list[Any] = batch.column(batch.schema.get_field_index(name)).to_pylist()
    return values
