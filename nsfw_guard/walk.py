"""A walk through whatever a host hands out: every place that may show something is visited, or it is an error.

Containers are walked, plain values pass, and these are leaves, which the caller's function looks at: PIL pictures, and
lists of nothing but those; arrays and tensors of more than 64 values, or of 8x8 and more in two dimensions; lists of
more than 4,096 numbers; encoded pictures and films as bytes; text that holds such in base64, hex or a data: URL, or is
the path of such a file. Anything else is an error: what cannot be seen into is not known to show nothing.
"""

from __future__ import annotations

import copy
import io
import math
from collections import Counter, deque
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Set, ValuesView
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
from .members import added_by_class, answers_anything, attributes_of, has_hidden_state
from .plain import NUMBERS, is_plain, parts_of, size_of

# The last step to a key of a mapping.
KEY = object()
# Lists of more numbers are arrays.
MANY = 4096
_MOST_DIMENSIONS = 16
_DEEPEST = 64
_MOST = 1_000_000
_MOST_LAZY = 65_536  # of what comes out of a generator

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
        shown = repr(key) if size_of(key) <= 1 else type(key).__name__
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
    if issubclass(type(value), (str, PurePath)):
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
        self._counted = Counter[str]()
        # Whether what cannot be looked at is passed over, and what was walked in this way.
        self._glancing = False
        self._glanced: dict[int, tuple[Any, Any]] = {}

    def at(self, value: Any, place: Place, depth: int) -> Any:
        """Walk one value; return it, or its copy."""
        self._steps += 1
        if depth > _DEEPEST or self._steps > _MOST:
            raise ImageError(f"{place} lies too deep, or among too much, to be looked at; {_EXPECTED}.")
        if self._passes(value, place):
            return value
        if is_plain(value) or _is_plain_text(value):
            self._count(size_of(value), place)
            self._unchanged(parts_of(value), place, depth + 1)
            return value
        key = id(value)
        for done in (self._done, self._glanced) if self._glancing else (self._done,):
            if key in done:
                return done[key][1]
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
        (self._glanced if self._glancing else self._done)[key] = (value, made)
        self._pass_over(made)
        return made

    def _pass_over(self, made: Any) -> None:
        """Glance at nothing that has been looked at: a property may hand out the first of the pictures."""
        self._glanced.setdefault(id(made), (made, made))
        for item in made if is_pictures(made) else ():
            self._pass_over(item)

    def _count(self, some: int, place: Place, what: str = "values") -> None:
        self._counted[what] += 0 if self._glancing else some
        if self._counted[what] > MANY:
            raise ImageError(f"{place} is one of more than {MANY} loose numbers, which may be a picture; {_EXPECTED}.")

    def _unchanged(self, parts: Mapping[str, Any], place: Place, depth: int) -> None:
        """Walk what nothing can be put back into."""
        for name, part in parts.items():
            inner = place.attribute(name)
            if self.at(part, inner, depth) is not part:
                raise ImageError(f"{inner} is flagged, and cannot be redacted there; {_EXPECTED}.")

    def _glance(self, parts: Iterable[tuple[str, Any]], place: Place, depth: int) -> None:
        """Look at what can be looked at in things that are no output by themselves, and pass over the rest."""
        outside, self._glancing = self._glancing, True
        try:
            for name, part in parts:
                self._unchanged({name: part}, place, depth)
        finally:
            self._glancing = outside

    def _made(self, value: Any, place: Place, depth: int) -> Any:
        if isinstance(value, Tensor) and value.is_nested and not self._glancing:
            raise ImageError(f"{place} is a nested tensor; {_EXPECTED}.")
        if issubclass(type(value), (str, PurePath)) or is_leaf(value):  # plain text is out already
            made = self._visited(value, place)
            if isinstance(value, Image.Image) or is_pictures(value):
                self._beside(value, made, place, depth)
                return made
            return self._attributes(value, made, place, depth)
        if is_array(value) and not _is_bytes(value):
            return self._of_array(value, place, depth)
        if isinstance(value, (bytes, bytearray, memoryview, io.BytesIO)):
            # So few that they show nothing by themselves.
            self._count(memoryview(value.getbuffer() if isinstance(value, io.BytesIO) else value).nbytes, place)
            return self._attributes(value, value, place, depth)
        if isinstance(value, io.StringIO):
            text = value.getvalue()
            made = value if (made := self.at(text, place, depth)) is text else io.StringIO(made)
            return self._attributes(value, made, place, depth)
        if isinstance(value, Mapping):
            return self._of_mapping(value, place, depth)
        if isinstance(value, (list, tuple, Set, deque, KeysView, ValuesView, ItemsView)):
            return self._of_items(value, place, depth)
        if self._glancing and isinstance(value, (io.IOBase, Iterator)):
            return value  # to read it would use it up
        if isinstance(value, io.IOBase):
            raise ImageError(f"{place} is an open file ({type(value).__name__}); {_EXPECTED}.")
        if isinstance(value, Iterator):
            items = list(islice(value, _MOST_LAZY + 1))
            if len(items) > _MOST_LAZY:
                raise ImageError(f"{place} is an iterator without a near end; {_EXPECTED}.")
            return iter(self.at(items, place, depth))
        return self._of_object(value, place, depth)

    def _visited(self, value: Any, place: Place) -> Any:
        try:
            return self._visit(value, place)
        except ImageError:
            if self._glancing:
                return value
            raise

    def _beside(self, value: Any, made: Any, place: Place, depth: int) -> None:
        """Glance at what somebody has hung on a picture; what is in its file, ``visit`` knows."""
        if isinstance(value, (list, tuple)):
            for index, (item, other) in enumerate(zip(value, made, strict=True)):
                self._beside(item, other, place.item(index), depth)
        elif made is value:
            self._glance({**value.info, **attributes_of(value)}.items(), place, depth)

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
        if type(key) in (bool, int, float):
            self._count(size_of(key), named, "keys")
        elif self.at(key, named, depth) is not key:
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
        if isinstance(value, torch.nn.Module) or has_hidden_state(kind) or answers_anything(kind):
            if self._glancing:
                return value
            named = f"{kind.__module__}.{kind.__qualname__}"
            raise ImageError(f"{place} is a {named}, which cannot be seen into; {_EXPECTED}.")
        return self._attributes(value, value, place, depth)

    def _attributes(self, value: Any, copied: Any, place: Place, depth: int) -> Any:
        """Walk the attributes of a value; return what was made of it so far, with those that changed."""
        changed = {}
        for name, attribute in attributes_of(value).items():
            if (made := self.at(attribute, place.attribute(name), depth)) is not attribute:
                changed[name] = made
        if changed and copied is value:
            copied = _copy_of(value, place)
        for name, made in changed.items():
            object.__setattr__(copied, name, made)
        self._glance(added_by_class(copied), place, depth)
        return copied


def _is_plain_text(value: Any) -> bool:
    if isinstance(value, PurePath):
        return not is_path(str(value))
    return issubclass(type(value), str) and not holds_pictures(value)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, (bytes, bytearray, memoryview))


def _numbers_in(value: Any, depth: int = 0) -> int:
    """How many numbers a list of nothing but numbers, or of such lists, holds; 0 for any other list."""
    total = 0
    for item in value if depth < _MOST_DIMENSIONS else ():
        some = _numbers_in(item, depth + 1) if isinstance(item, (list, tuple)) else isinstance(item, NUMBERS)
        if not some:
            return 0
        total += some
    return total


def _are_bytes(value: Any) -> bool:
    """Whether a list is the bytes of a file."""
    if not all(isinstance(item, (int, np.integer)) and 0 <= item <= 255 for item in value[:HEAD]):
        return False
    return begins_like_a_picture(bytes(map(int, value[:HEAD])))


def _copy_of(value: Any, place: Place) -> Any:
    try:
        copied = copy.copy(value)
    except Exception as error:
        raise ImageError(f"{place} holds something flagged, and cannot be copied ({error}); {_EXPECTED}.") from error
    if copied is value:
        raise ImageError(f"{place} holds something flagged, and cannot be changed; {_EXPECTED}.")
    return copied
