"""What is still to be done, on disk: blocks of entries, so that no process holds a list of them all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..files import whole_file
from .entry import Entry

FOLDER = ".todo"
# A worker gets so many files at a time, or as many as have so much content with them. What is in work when a scan is
# killed is done again, so they are few; where there is much to do they are more, twice as many from one ``GROWTH`` of
# files to the next: Ray keeps a few kilobytes about every block.
ENTRIES_PER_BLOCK = 64
MOST_PER_BLOCK = 512
BYTES_PER_BLOCK = 2**25
BLOCKS_PER_FILE = 512
GROWTH = 4


class Todo:
    """A folder with blocks of entries; what an earlier scan has left there is removed.

    Args:
        out: The scan's folder.

    Attributes:
        files: Those that are written, in order.
        blocks: How many they hold.
        entries: How many these hold.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / FOLDER
        self.files: list[Path] = []
        self.blocks = 0
        self.entries = 0
        self.remove()

    def write(self, entries: Iterator[Entry]) -> None:
        """Write entries, a block at a time.

        Raises:
            OSError: The disk is full, or not writable.
        """
        import pyarrow as pa

        self.folder.mkdir()
        for first in entries:
            path = self.folder / f"todo-{len(self.files) + 1:06d}.arrow"
            most = min(MOST_PER_BLOCK, ENTRIES_PER_BLOCK * 2 ** (len(self.files) // GROWTH))
            with whole_file(path) as file, pa.ipc.new_file(file, _schema()) as writer:
                for block in islice(_blocks(chain([first], entries), most), BLOCKS_PER_FILE):
                    writer.write_table(entries_to_table(block))
                    self.blocks += 1
                    self.entries += len(block)
            self.files.append(path)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read_todo(path: Path) -> Iterator[Any]:
    """Yield the blocks of one file, each as a table of one row; see ``table_to_entries``."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])


def entries_to_table(entries: list[Entry]) -> Any:
    """Return a table of one row, which Ray does not divide: a list of entries."""
    import pyarrow as pa

    return pa.table({"entries": [[asdict(entry) for entry in entries]]}, schema=_schema())


def table_to_entries(table: Any) -> list[Entry]:
    """Return the entries of all rows."""
    return [Entry(**entry) for row in table["entries"].to_pylist() for entry in row]


def _schema() -> Any:
    import pyarrow as pa

    kinds = {"size": pa.int64(), "offset": pa.int64(), "mtime": pa.float64(), "data": pa.large_binary()}
    entry = pa.struct([(item.name, kinds.get(item.name, pa.string())) for item in fields(Entry)])
    return pa.schema([("entries", pa.list_(entry))])


def _blocks(entries: Iterator[Entry], most: int) -> Iterator[list[Entry]]:
    block: list[Entry] = []
    held = 0
    for entry in entries:
        block.append(entry)
        held += len(entry.data or b"")
        if len(block) >= most or held >= BYTES_PER_BLOCK:
            yield block
            block, held = [], 0
    if block:
        yield block
