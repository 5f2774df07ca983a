"""Lists of sources: a path or URL per line, or between NUL bytes, as ``find -print0`` writes them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import SettingError

_BLOCK = 2**16


def check_list(path: str) -> None:
    """Refuse a list that is not there, or empty.

    Raises:
        SettingError: It is.
    """
    if path == "-":
        return
    if not os.path.isfile(path):
        raise SettingError(f"There is no list {path}. Give a file with a path per line, or - for standard input.")
    if os.path.getsize(path) == 0:
        raise SettingError(f"The list {path} is empty; expected a path per line.")


def read_list(path: str) -> Iterator[str]:
    """Yield the names in a list; names with bytes that are no UTF-8 as the file system has them.

    Args:
        path: Of the list, or ``-`` for standard input.
    """
    if path == "-":
        yield from _names(sys.stdin.buffer)
        return
    with open(path, "rb") as file:
        yield from _names(file)


def _names(file: BinaryIO) -> Iterator[str]:
    block = file.read(_BLOCK)
    # No path is as long as a block: if NUL bytes separate them, there is one in the first.
    end = b"\0" if b"\0" in block else b"\n"
    rest = block.removeprefix(b"\xef\xbb\xbf")
    while block:
        *names, rest = rest.split(end)
        for name in names:
            yield from _name(name, end)
        block = file.read(_BLOCK)
        rest += block
    yield from _name(rest, end)


def _name(name: bytes, end: bytes) -> Iterator[str]:
    if end == b"\n":
        name = name.removesuffix(b"\r")
    if name:
        yield os.fsdecode(name)
