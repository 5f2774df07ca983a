"""Plain values: what is one number, one name or one date, however much somebody has put into it."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import logging
import numbers
import re
import uuid
from typing import Any

import numpy as np
import torch

from .members import is_of_a_users_own

# What numbers are, one by one.
NUMBERS = (numbers.Number, np.number, np.bool_, np.datetime64, np.timedelta64)
_PLAIN = (
    type(None), enum.Enum, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator, np.dtype,
    np.random.Generator, uuid.UUID, slice, range, type(...), type(NotImplemented), datetime.date, datetime.time,
    datetime.timedelta, datetime.tzinfo, re.Pattern, logging.Logger, *NUMBERS,
)  # fmt: skip
_BARE = frozenset([type(None), bool, int, float, complex, str])
# Bytes.
_WORD = 10
_LONG = 512
_ENDLESS = 1_000_000


def is_plain(value: Any) -> bool:
    """Whether a value is plain, but for ``parts_of`` it."""
    return isinstance(value, _PLAIN)


def size_of(value: Any) -> int:
    """Return how many numbers a plain value counts for: a long one for each of its bytes; the bytes of a file for all.

    Those are as long as no number is by itself.
    """
    some = 0
    if isinstance(value, int):
        some = value.bit_length() // 8
    elif isinstance(value, decimal.Decimal):
        some = len(value.as_tuple().digits) // 2
    if some > _WORD:
        return some if some <= _LONG else _ENDLESS
    return int(isinstance(value, NUMBERS))


def parts_of(value: Any) -> dict[str, Any]:
    """Return what a plain value or a text holds beside itself."""
    if type(value) in _BARE:
        return {}
    parts: dict[str, Any] = {}
    if isinstance(value, (slice, range)):
        parts = {name: getattr(value, name) for name in ("start", "stop", "step")}
    elif isinstance(value, fractions.Fraction):
        parts = {"numerator": value.numerator, "denominator": value.denominator}
    elif isinstance(value, re.Pattern):
        parts = {"pattern": value.pattern}
    elif isinstance(value, (datetime.datetime, datetime.time)):
        parts = {"tzinfo": value.tzinfo}
    elif isinstance(value, datetime.timezone):
        parts = {"name": value.tzname(None)}
    if is_of_a_users_own(type(value)) or isinstance(value, enum.Enum):
        names = {"_name_", "_sort_order_", "__objclass__"}
        parts |= {name: part for name, part in getattr(value, "__dict__", {}).items() if name not in names}
    return parts
