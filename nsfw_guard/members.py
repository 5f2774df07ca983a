"""What an object holds: its attributes and slots, and what its class adds to them."""

from __future__ import annotations

import functools
import struct
import sys
import types
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from torch import Tensor

# Whose classes keep all that their objects show in the objects themselves.
_KNOWN = frozenset([
    *sys.stdlib_module_names, "PIL", "accelerate", "diffusers", "huggingface_hub", "nsfw_guard", "numpy", "pandas",
    "pillow_heif", "pyarrow", "pydantic", "torch", "torchvision", "transformers",
])  # fmt: skip
_MOST_ITEMS = 1024
# What Pillow keeps of the files that it has read and written: the picture itself, and its frames.
_OF_FILES = ("fp", "_fp", "buf", "encoderinfo", "_default_encoderinfo")


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, in its dictionary or its slots; of a tensor its gradient, too."""
    found = dict(vars(value)) if isinstance(getattr(value, "__dict__", None), dict) else {}
    for name in slots_of(type(value)):
        with suppress(AttributeError):
            found[name] = object.__getattribute__(value, name)
    if isinstance(value, Tensor) and value.is_leaf and value.grad is not None:
        found["grad"] = value.grad
    if type(value).__module__.startswith("PIL."):
        found = {name: item for name, item in found.items() if name not in _OF_FILES}
    return found


def slots_of(kind: type) -> list[str]:
    """Return the names of a class's slots, as its objects have them."""
    found = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                private = name.startswith("__") and not name.endswith("__")
                found.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return found


def has_hidden_state(kind: type) -> bool:
    """Whether objects hold more than their attributes: whatever is not written in Python may."""
    pointers = len(slots_of(kind)) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__itemsize__ > 0 or kind.__basicsize__ > object.__basicsize__ + pointers * struct.calcsize("P")


def answers_anything(kind: type) -> bool:
    """Whether a class makes up attributes that nobody can list."""
    return any("__getattr__" in vars(base) or "__getattribute__" in vars(base) for base in _own(kind))


def added_by_class(value: Any) -> Iterator[tuple[str, Any]]:
    """Return what a class of a user's own adds to an object's attributes.

    Those are the class's own attributes, what its properties give now, what its methods were made with, and, if it can
    be iterated, its items. What its methods return when they are called is nobody's output.
    """
    for base in _own(type(value)):
        for name, member in vars(base).items():
            if isinstance(member, (property, functools.cached_property)):
                get = member.fget if isinstance(member, property) else member.func
                if get is not None:
                    yield from _made_with(name, get)
                    with suppress(Exception):  # whoever reads it gets no more
                        yield name, get(value)
            elif isinstance(member, (types.FunctionType, classmethod, staticmethod)):
                yield from _made_with(name, getattr(member, "__func__", member))
            elif not name.startswith("__"):
                yield name, member
        if {"__iter__", "__getitem__"} & vars(base).keys() and not isinstance(value, (dict, list, tuple, set)):
            with suppress(Exception):
                yield "items", list(islice(iter(value), _MOST_ITEMS))


def is_of_a_users_own(kind: type) -> bool:
    """Whether a class, or one that it descends from, is of no library that is known."""
    return bool(_own(kind))


def _own(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in _KNOWN]


def _made_with(name: str, function: Any) -> Iterator[tuple[str, Any]]:
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # it is empty
            yield name, cell.cell_contents
    for default in getattr(function, "__defaults__", None) or ():
        yield name, default
    for default in (getattr(function, "__kwdefaults__", None) or {}).values():
        yield name, default
