"""A walk through whatever a host hands out: every place that may show something is visited, or it is an error.

Containers are walked, plain values pass, and these are leaves, which the caller's function looks at: PIL pictures, and
lists of nothing but those; arrays and tensors of more than 64 values, or of 8x8 and more in two dimensions; lists of
more than 4,096 numbers; encoded pictures and films as bytes; text that holds such in base64, hex or a data: URL, or is
the path of such a file. Anything else is an error: what cannot be seen into is not known to show nothing.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import fractions
import io
import math
import numbers
import re
import struct
import uuid
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Set, ValuesView
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .encoded import begins_like_a_picture, holds_pictures, is_path
from .errors import ImageError
from .images.sniff import HEAD
from .layouts import FEW, as_array, is_array, layout_count

# The last step to a key of a mapping.
KEY = object()
# Lists of more numbers are arrays.
MANY = 4096
# What numbers are, one by one.
_NUMBERS = (numbers.Number, np.number, np.bool_, np.datetime64, np.timedelta64)
_MOST_DIMENSIONS = 16
_DEEPEST = 64
_MOST = 1_000_000
_MOST_LAZY = 65_536  # of what comes out of a generator

_PLAIN = (
    type(None), enum.Enum, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator, np.dtype,
    np.random.Generator, decimal.Decimal, fractions.Fraction, uuid.UUID, slice, range, type(...), type(NotImplemented),
    datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, re.Pattern,
)  # fmt: skip
_EXPECTED = (
    "expected pictures (PIL, NumPy or tensors), plain values, or dicts, lists and objects of these. Return pictures as "
    "such, and leave the rest out"
)


@dataclass(frozen=True)
class Place:
    """Where something was found.

    Attributes:
        text: As messages say it: ``output.extra['k'][0]``.
        steps: The keys, indices and names of attributes that lead there.
    """

    text: str
    steps: tuple[Any, ...] = ()

    def item(self, key: Any) -> Place:
        """The place of an item."""
        shown = repr(key)
        return Place(f"{self.text}[{shown if len(shown) <= 40 else f'<{type(key).__name__}>'}]", (*self.steps, key))

    def attribute(self, name: str) -> Place:
        """The place of an attribute."""
        return Place(f"{self.text}.{name}", (*self.steps, name))

    def __str__(self) -> str:
        return self.text


def walk(
    value: Any,
    visit: Callable[[Any, Place], Any],
    *,
    name: str = "output",
    passes: Callable[[Any, Place], bool] = lambda value, place: False,
) -> Any:
    """Visit every leaf of a value that may show something; see the module.

    Args:
        value: Anything. Nothing in it is written to; iterators are used up, and come back as iterators of the same.
        visit: Called once with each leaf and its place. It returns the leaf itself, or what takes its place.
        name: What messages call the value.
        passes: Whether something, with all that is in it, is handed on unseen, because the caller knows what it is.

    Returns:
        The very same object if no leaf was replaced; otherwise a copy of the same type, down to what was.

    Raises:
        ImageError: Something that may show something and cannot be looked at, with its place.
    """
    return _Walk(visit, passes).at(value, Place(name), 0)


def is_leaf(value: Any) -> bool:
    """Whether the caller has to look at a value."""
    if isinstance(value, Image.Image):
        return True
    if isinstance(value, (str, PurePath)):
        return not _is_plain_text(value)
    if isinstance(value, io.BytesIO):
        return value.getbuffer().nbytes > FEW
    if _is_bytes(value):
        return memoryview(value).nbytes > FEW
    if isinstance(value, (list, tuple)):
        return is_pictures(value) or _numbers_in(value) > MANY or _are_bytes(value)
    if not is_array(value):
        return False
    array = as_array(value, "")
    if isinstance(array, np.ndarray) and array.dtype.kind in "OSUV":
        return False
    return math.prod(array.shape) > FEW or layout_count(tuple(array.shape)) > 0


def is_pictures(value: Any) -> bool:
    """Whether a value is a list or tuple of nothing but PIL pictures, or of such lists."""
    if type(value) not in (list, tuple) or not value:
        return False
    return all(isinstance(item, Image.Image) for item in value) or all(
        type(item) in (list, tuple) and item and all(isinstance(one, Image.Image) for one in item) for item in value
    )


class _Walk:
    def __init__(self, visit: Callable[[Any, Place], Any], passes: Callable[[Any, Place], bool]) -> None:
        self._visit, self._passes = visit, passes
        # By id, with the objects themselves, so that the ids stay theirs.
        self._done: dict[int, tuple[Any, Any]] = {}
        self._open: set[int] = set()
        self._looped: set[int] = set()
        self._steps = 0
        self._numbers = 0

    def at(self, value: Any, place: Place, depth: int) -> Any:
        """Walk one value; return it, or its copy."""
        self._steps += 1
        if depth > _DEEPEST or self._steps > _MOST:
            raise ImageError(f"{place} lies too deep, or among too much, to be looked at; {_EXPECTED}.")
        if self._passes(value, place) or isinstance(value, _PLAIN) or _is_plain_text(value):
            return value
        if isinstance(value, _NUMBERS):
            # The bytes of a file may be one number.
            self._count(1 if not isinstance(value, int) or value.bit_length() <= 64 * FEW else MANY + 1, place)
            return value
        key = id(value)
        if key in self._done:
            return self._done[key][1]
        if key in self._open:
            self._looped.add(key)
            return value
        self._open.add(key)
        try:
            made = self._made(value, place, depth + 1)
        finally:
            self._open.discard(key)
        if made is not value and key in self._looped:
            raise ImageError(f"{place} refers to itself, and something in it is flagged; {_EXPECTED}.")
        self._done[key] = (value, made)
        return made

    def _count(self, some: int, place: Place) -> None:
        self._numbers += some
        if self._numbers > MANY:
            raise ImageError(f"{place} is one of more than {MANY} loose numbers, which may be a picture; {_EXPECTED}.")

    def _made(self, value: Any, place: Place, depth: int) -> Any:
        if isinstance(value, Tensor) and value.is_nested:
            raise ImageError(f"{place} is a nested tensor; {_EXPECTED}.")
        if isinstance(value, (str, PurePath)) or is_leaf(value):  # plain text is out already
            made = self._visit(value, place)
            if isinstance(value, Image.Image) or is_pictures(value):
                self._beside(value, place, depth)
            return self._attributes(value, made, place, depth) if isinstance(value, (Tensor, np.ndarray)) else made
        if is_array(value) and not _is_bytes(value):
            return self._of_array(value, place, depth)
        if isinstance(value, (bytes, bytearray, memoryview, io.BytesIO)):
            return value  # so few that they show nothing
        if isinstance(value, io.StringIO):
            text = value.getvalue()
            return value if (made := self.at(text, place, depth)) is text else io.StringIO(made)
        if isinstance(value, Mapping):
            return self._of_mapping(value, place, depth)
        if isinstance(value, (list, tuple, Set, deque, KeysView, ValuesView, ItemsView)):
            return self._of_items(value, place, depth)
        if isinstance(value, io.IOBase):
            raise ImageError(f"{place} is an open file ({type(value).__name__}); {_EXPECTED}.")
        if isinstance(value, Iterator):
            items = list(islice(value, _MOST_LAZY + 1))
            if len(items) > _MOST_LAZY:
                raise ImageError(f"{place} is an iterator without a near end; {_EXPECTED}.")
            return iter(self.at(items, place, depth))
        return self._of_object(value, place, depth)

    def _beside(self, value: Any, place: Place, depth: int) -> None:
        """Walk the pictures and arrays that somebody has hung on a picture; what is in its file, ``visit`` knows."""
        if isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                self._beside(item, place.item(index), depth)
            return
        for name, item in {**value.info, **vars(value)}.items():
            if isinstance(item, (Image.Image, Tensor, np.ndarray)):
                beside = place.attribute(str(name))
                if self.at(item, beside, depth) is not item:
                    raise ImageError(f"{beside}, beside a picture, is flagged; {_EXPECTED}.")

    def _of_array(self, value: Any, place: Place, depth: int) -> Any:
        """An array of objects, text or fields is walked item by item; what is left is of few values."""
        array = as_array(value, str(place))
        if isinstance(array, Tensor) or array.dtype.kind not in "OSUV":
            self._count(math.prod(array.shape), place)
        else:
            items = {name: array[name] for name in array.dtype.names} if array.dtype.names else array.ravel().tolist()
            if self.at(items, place, depth) is not items:
                raise ImageError(f"{place} is an array of {array.dtype} that holds something flagged; {_EXPECTED}.")
        return self._attributes(value, value, place, depth)

    def _of_mapping(self, value: Any, place: Place, depth: int) -> Any:
        changed = {}
        for key, item in list(value.items()):
            inner = place.item(key)
            if isinstance(key, str) and key.isidentifier() and hasattr(value, "__dict__") and key in vars(value):
                inner = place.attribute(key)
            self._key(key, place, depth)
            if (made := self.at(item, inner, depth)) is not item:
                changed[key] = made
        if not changed:
            return self._attributes(value, value, place, depth)
        if not hasattr(value, "__setitem__"):  # a view of a dict
            return {**value, **changed}
        copied = _copy_of(value, place)
        for key, made in changed.items():
            copied[key] = made
        return self._attributes(value, copied, place, depth)

    def _key(self, key: Any, place: Place, depth: int) -> None:
        named = Place(f"a key of {place}", (*place.steps, KEY))
        if not isinstance(key, _NUMBERS) and self.at(key, named, depth) is not key:
            raise ImageError(f"{named} is flagged, and cannot be redacted; {_EXPECTED}.")

    def _of_items(self, value: Any, place: Place, depth: int) -> Any:
        items = list(value)
        fields = getattr(value, "_fields", None)
        places = [place.attribute(name) for name in fields] if fields else map(place.item, range(len(items)))
        made = [self.at(item, inner, depth) for item, inner in zip(items, places, strict=True)]
        if all(one is other for one, other in zip(made, items, strict=True)):
            return self._attributes(value, value, place, depth)
        if isinstance(value, (list, deque)):
            copied = _copy_of(value, place)
            for index, item in enumerate(made):
                copied[index] = item
        elif isinstance(value, tuple):
            copied = value._make(made) if hasattr(value, "_make") else type(value)(made)
        else:
            copied = type(value)(made) if isinstance(value, (set, frozenset)) else made
        return self._attributes(value, copied, place, depth)

    def _of_object(self, value: Any, place: Place, depth: int) -> Any:
        kind = type(value)
        if isinstance(value, type) and value.__module__.partition(".")[0] in ("builtins", "numpy", "torch"):
            return value
        if isinstance(value, torch.nn.Module) or _has_hidden_state(kind):
            named = f"{kind.__module__}.{kind.__qualname__}"
            raise ImageError(f"{place} is a {named}, which cannot be seen into; {_EXPECTED}.")
        return self._attributes(value, value, place, depth)

    def _attributes(self, value: Any, copied: Any, place: Place, depth: int) -> Any:
        """Walk the attributes of a value; return what was made of it so far, with those that changed."""
        changed = {}
        for name, attribute in _attributes_of(value).items():
            if (made := self.at(attribute, place.attribute(name), depth)) is not attribute:
                changed[name] = made
        if not changed:
            return copied
        copied = _copy_of(value, place) if copied is value else copied
        for name, made in changed.items():
            object.__setattr__(copied, name, made)
        return copied


def _is_plain_text(value: Any) -> bool:
    if isinstance(value, PurePath):
        return not is_path(str(value))
    return isinstance(value, str) and not holds_pictures(value)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, (bytes, bytearray, memoryview))


def _numbers_in(value: Any, depth: int = 0) -> int:
    """How many numbers a list of nothing but numbers, or of such lists, holds; 0 for any other list."""
    total = 0
    for item in value if depth < _MOST_DIMENSIONS else ():
        some = _numbers_in(item, depth + 1) if isinstance(item, (list, tuple)) else isinstance(item, _NUMBERS)
        if not some:
            return 0
        total += some
    return total


def _are_bytes(value: Any) -> bool:
    """Whether a list is the bytes of a file."""
    if not all(isinstance(item, (int, np.integer)) and 0 <= item <= 255 for item in value[:HEAD]):
        return False
    return begins_like_a_picture(bytes(map(int, value[:HEAD])))


def _attributes_of(value: Any) -> dict[str, Any]:
    found = dict(vars(value)) if isinstance(getattr(value, "__dict__", None), dict) else {}
    for name in _slots_of(type(value)):
        with suppress(AttributeError):
            found[name] = object.__getattribute__(value, name)
    return found


def _slots_of(kind: type) -> list[str]:
    found = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                private = name.startswith("__") and not name.endswith("__")
                found.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return found


def _has_hidden_state(kind: type) -> bool:
    """Whether objects hold more than their attributes: whatever is not written in Python may."""
    pointers = len(_slots_of(kind)) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__itemsize__ > 0 or kind.__basicsize__ > object.__basicsize__ + pointers * struct.calcsize("P")


def _copy_of(value: Any, place: Place) -> Any:
    try:
        copied = copy.copy(value)
    except Exception as error:
        raise ImageError(f"{place} holds something flagged, and cannot be copied ({error}); {_EXPECTED}.") from error
    if copied is value:
        raise ImageError(f"{place} holds something flagged, and cannot be changed; {_EXPECTED}.")
    return copied
