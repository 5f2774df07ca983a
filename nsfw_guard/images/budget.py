"""How much work a file may cause before anything of it is decoded."""

from __future__ import annotations

from typing import NoReturn

from ..errors import ImageError


class Budget:
    """Counts what is gone through, so that parts that overlap cannot cost more than the file's size suggests.

    Args:
        most: So much may be spent.
        name: What errors call the file.
    """

    def __init__(self, most: int, name: str) -> None:
        self._left = most
        self._name = name

    def spend(self, count: int) -> None:
        """Take something off.

        Raises:
            ImageError: There is not so much left.
        """
        self._left -= count
        if self._left < 0:
            self.refuse("its parts overlap, or are too many")

    def refuse(self, why: str) -> NoReturn:
        """Raise an ``ImageError``: the file's structure is not to be believed."""
        raise ImageError(f"{self._name} cannot be looked into: {why}.")


def for_bytes(size: int, name: str) -> Budget:
    """Return how many bytes of a file of so many may be searched and cut out."""
    return Budget(8 * size + 2**20, name)


def for_entries(name: str) -> Budget:
    """Return how many entries of directories may be read: those of thousands of ordinary pages."""
    return Budget(2**18, name)
