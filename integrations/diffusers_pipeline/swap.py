"""Guarding one object by a change of its class, to a subclass that is made here once for each class.

isinstance, names, signatures, saving, `components` and copies stay what they were, and no other object of the class
notices. Copies and pickles of a guarded object are guarded.
"""

from __future__ import annotations

import copyreg
import functools
from typing import Any


def guard_object(target: Any, mixins: tuple[type, ...], attachment: Any) -> None:
    """Make an object a guarded one."""
    cls: Any = type(target)
    target.__class__ = _guarded_class(cls, mixins)
    target.__dict__["_nsfw_guard"] = attachment


def can_be_guarded(target: Any, mixins: tuple[type, ...]) -> bool:
    """Whether an object's class can be changed: tried, and taken back at once."""
    cls: Any = type(target)
    try:
        target.__class__ = _guarded_class(cls, mixins)
    except TypeError:  # it keeps its attributes in a way of its own
        return False
    target.__class__ = cls
    return True


def release_object(target: Any) -> None:
    """Give an object its own class back."""
    if is_guarded_object(target):
        target.__class__ = type(target)._unguarded
        del target.__dict__["_nsfw_guard"]


def is_guarded_object(target: Any) -> bool:
    """Whether an object's class was changed."""
    return "_unguarded" in vars(type(target)) and "_nsfw_guard" in vars(target)


@functools.cache
def _guarded_class(cls: type, mixins: tuple[type, ...]) -> type:
    members: dict[str, Any] = {**_looks_of(cls), "__reduce_ex__": _reduce, "_mixins": mixins}
    if "__call__" in vars(mixins[0]):
        members["__call__"] = _with_signature_of(cls.__call__, mixins[0].__call__)
    return type(cls.__name__, (*mixins, cls), members)


def ordinary_copies(cls: type) -> dict[str, Any]:
    """The members of a subclass for one object, whose copies and pickles are of the class itself."""
    return {**_looks_of(cls), "__reduce_ex__": _reduce_to_unguarded}


def _looks_of(cls: type) -> dict[str, Any]:
    """What makes a subclass look like the class, and its calls make instances of that one."""
    return {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__new__": _unguarded_instance,
        "_unguarded": cls,
    }


def _with_signature_of(original: Any, method: Any) -> Any:
    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return __call__


def _unguarded_instance(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """What ``type(pipe)(...)`` and ``type(pipe).from_pretrained(...)`` make: nobody has attached to that one yet."""
    return cls._unguarded(*args, **kwargs)


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickle by the class that can be found by its name."""
    rebuild, arguments, *state = type(self)._unguarded.__reduce_ex__(self, protocol)
    if rebuild is not copyreg.__newobj__:  # type: ignore[attr-defined]
        raise TypeError(f"A guarded {type(self).__name__} cannot be pickled with protocol {protocol}.")
    return (_rebuild, (type(self)._unguarded, type(self)._mixins), *state)


def _reduce_to_unguarded(self: Any, protocol: Any) -> Any:
    """Copy and pickle what the object is an instance of to everybody else."""
    reduced = type(self)._unguarded.__reduce_ex__(self, protocol)
    if isinstance(reduced, str):
        return reduced
    swapped = type(self)
    rebuild, arguments, *state = (_unswapped(part, swapped) for part in reduced)
    arguments = tuple(_unswapped(part, swapped) for part in arguments)
    if rebuild is copyreg.__newobj__ and len(arguments) == 1:  # type: ignore[attr-defined]
        rebuild, arguments = copyreg._reconstructor, (*arguments, object, None)  # type: ignore[attr-defined]
    return (rebuild, arguments, *state)  # pickle refuses the first where an object's class is another


def _unswapped(part: Any, swapped: Any) -> Any:
    return swapped._unguarded if part is swapped else part


def _rebuild(cls: Any, mixins: tuple[type, ...]) -> Any:
    guarded: Any = _guarded_class(cls, mixins)
    return object.__new__(guarded)
