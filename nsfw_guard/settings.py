"""The settings of a guard: checked by the same code when they are given at construction and when they are assigned."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Generic, NoReturn, TypeVar

from torch import nn

from .errors import SettingError
from .hosts import SET_BY_HOSTS, refuse_unknown
from .policy import Policy
from .preprocess import VIEWS
from .redact import Redaction

T = TypeVar("T")


class _AsSaved:
    """What stands for a setting that is not given: it is as the guard was saved, else the default."""

    def __repr__(self) -> str:
        return "AS_SAVED"


AS_SAVED: Any = _AsSaved()
# What a guard takes if nothing is said.
DEFAULTS: Mapping[str, Any] = {
    "policy": "balanced", "redaction": "blur", "views": "auto", "batch_size": 16, "dtype": "auto", "runtime": "auto"
}  # fmt: skip
CHECKED = ("redaction", "views", "batch_size")
ASSIGNABLE = ("policy", "threshold", *CHECKED)
# What is given at construction and cannot change afterwards, because another model would have to be loaded.
_FIXED = ("model", "card", "revision", "variant", "runtime", "local_files_only")


def settled(given: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a guard: what was said, else what it was saved with, else the defaults.

    Args:
        given: All settings, ``AS_SAVED`` where nothing was said; for the policy ``None`` is the same.
        saved: See ``saved_settings``; the dtype of another runtime than the given one says nothing.
    """
    other_runtime = given["runtime"] not in (AS_SAVED, saved.get("runtime"))
    known = {name: value for name, value in saved.items() if not (other_runtime and name in ("runtime", "dtype"))}
    said = {name: value for name, value in given.items() if value is not AS_SAVED}
    if said.get("policy", known) is None:
        del said["policy"]
    return {**DEFAULTS, **known, **said}


class Setting(Generic[T]):
    """An attribute of a guard that holds only what its check returns; what the check refuses changes nothing.

    Args:
        check: The guard and what was given → what is kept.
    """

    def __init__(self, check: Callable[[Any, Any], T]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._kept = f"_{name}"

    def __get__(self, guard: Any, owner: type | None = None) -> T:
        if guard is None:
            return self  # type: ignore[return-value]  # as properties do
        value: T = vars(guard)[self._kept]
        return value

    def __set__(self, guard: Any, value: Any) -> None:
        vars(guard)[self._kept] = self._check(guard, value)


def parse_views(views: Any) -> str:
    """Return the name of the views.

    Raises:
        SettingError: There are no such views.
    """
    if not isinstance(views, str) or views not in VIEWS:
        raise SettingError(f'views is {views!r}; expected "auto" or "card".')
    return views


def parse_batch_size(size: Any) -> int:
    """Return the number of views in one forward pass.

    Raises:
        SettingError: It is no whole number of at least 1.
    """
    if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1:
        raise SettingError(f"batch_size is {size!r}; expected a whole number of at least 1.")
    return int(size)


def redaction_values(redaction: Redaction) -> dict[str, Any]:
    """Return a redaction as plain values; of a replacement only its size."""
    values = {name: getattr(redaction, name) for name in ("kind", "cells", "verify", "color", "fit")}
    return values if redaction.image is None else {**values, "image": "{}x{}".format(*redaction.image.size)}


def refuse_attribute(guard: nn.Module, name: str, value: Any) -> None:
    """Refuse a public attribute that neither the guard nor a host knows: to set it would change nothing.

    Raises:
        SettingError: With the setting that was meant, as far as that can be told.
    """
    cls = type(guard)
    known = getattr(cls, name, None)
    if isinstance(known, property) and known.fset is None:
        _refuse_fixed(name)
    registered = isinstance(value, (nn.Module, nn.Parameter)) or any(
        name in vars(guard).get(table, ()) for table in ("_parameters", "_buffers", "_modules")
    )
    if registered or name in SET_BY_HOSTS or name in vars(guard) or hasattr(cls, name):
        return
    if name in _FIXED:
        _refuse_fixed(name)
    for attribute, kind in (("policy", Policy), ("redaction", Redaction)):
        if name in {field.name for field in fields(kind)}:
            raise SettingError(
                f"A guard has no {name!r} of its own; its {attribute} has: "
                f"guard.{attribute} = dataclasses.replace(guard.{attribute}, {name}={value!r})."
            )
    refuse_unknown(f"guard.{name}", name, ASSIGNABLE, "A guard's settings are")


def _refuse_fixed(name: str) -> NoReturn:
    if name in ("device", "dtype"):
        raise SettingError(
            f"guard.{name} cannot be assigned. To move or cast a guard: guard.to(...); to keep it where it is, "
            f"whatever its pipeline does: NsfwGuard({name}=...)."
        )
    raise SettingError(
        f"guard.{name} cannot be assigned: it goes with the loaded model. Make another guard: NsfwGuard(…)."
    )
