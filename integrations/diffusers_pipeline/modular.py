"""Modular pipelines: the guarded call, and what it leaves in the state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nsfw_guard.errors import ImageError, SettingError
from nsfw_guard.walk import walk

from . import table
from .finished import Finish, may_be_pictures
from .pipeline import device_of, report
from .record import Record, digest, recording
from .settings import Attachment

logger = logging.getLogger(__name__)

# Where the blocks of diffusers leave what they have drawn. Whatever else is asked for, these are looked at.
PICTURES = ("images", "videos")


class GuardedModularPipeline:
    """Mixed into the class of a modular pipeline; nothing that the guard has not seen leaves a call."""

    _nsfw_guard: Attachment

    def __call__(self, state: Any = None, output: str | list[str] | None = None, **kwargs: Any) -> Any:
        """Run the pipeline; ``nsfw_content_detected`` and ``verdicts`` are outputs that can be asked for too.

        With ``output``, everything that is asked for is looked at. Without it the whole state is returned: what the
        caller put in is in it as it was; latents, masks and embeddings (``table.is_intermediate``), and pictures of the
        caller's that were prepared for the models, are ``None`` unless latents are allowed; everything else is looked
        at, and ``None`` where that cannot be done.
        """
        call = super().__call__  # type: ignore[misc]
        attachment = self._nsfw_guard
        wanted = [output] if isinstance(output, str) else list(output or [])
        given = kwargs.get("output_type", getattr(state, "values", {}).get("output_type"))
        refused = attachment.settings.latents == "raise"
        if refused and (given == "latent" or any(map(table.is_intermediate, wanted))):
            raise SettingError(
                f"{type(self).__name__} is asked for latents, which the guard cannot look at; masks and embeddings "
                "count as such. Ask for its images or videos; or, if another guarded pipeline decodes them, "
                'attach(pipe, guard, latents="allow").'
            )
        record = Record(attachment, device_of(self), pipe=self, exact=given == "pt")
        own = {name: (value, _digest(value)) for name, value in _inputs_of(kwargs)}
        with recording(record):
            state = call(state, None, **kwargs)
            finishing = Finish(record, type(self), latents=given == "latent")
            unchanged = [name for name, (value, before) in own.items() if _is_still(state, name, value, before)]
            names = [name for name in state.values if output is None or name in (*PICTURES, *wanted)]
            look_through_state(state, names, finishing, passed=unchanged, strict=wanted)
            said = report(finishing.found, record)
        for name, value in said.items():
            state.set(name, value)
        return state if output is None else state.get(output)


def look_through_state(
    state: Any, names: Iterable[str], finishing: Finish, *, passed: Iterable[str] = (), strict: Iterable[str] = ()
) -> None:
    """Look at values of a state, and put back what is redacted.

    Args:
        state: Written to.
        names: Of the values.
        finishing: Looks, and keeps what it found.
        passed: Names of what is not looked at.
        strict: Names of what must not be ``None`` because it cannot be looked at.

    Raises:
        ImageError: Pictures, or something in ``strict``, that cannot be looked at.
    """
    for name in names:
        if name in passed:
            continue
        value = state.values[name]
        if name in table.HELD_IN_STATES and not may_be_pictures(value):
            continue
        intermediate = table.is_intermediate(name)
        if finishing.hides_latents and name not in strict and (intermediate or table.is_prepared(name)):
            if not _is_plain(value):
                state.values[name] = None
            continue
        if intermediate:
            continue
        try:
            state.values[name] = finishing.look_at_field(name, value)
        except ImageError as error:
            if name in (*PICTURES, *strict):
                raise
            state.values[name] = None
            logger.info("%s is left out of the state: %s", name, error)


def _inputs_of(kwargs: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The arguments of a call by the names that they have in its state."""
    for name, value in kwargs.items():
        yield name, value
        if isinstance(value, dict):  # of arguments of one kind, each of which is a value of its own
            yield from value.items()


def _is_still(state: Any, name: str, value: Any, before: Any) -> bool:
    """Whether a value of the state is what the caller put in, and nobody has written to it."""
    return before is not None and state.values.get(name) is value and _digest(value) == before


def _digest(value: Any) -> list[Any] | None:
    """Of everything in a value that may show something; ``None`` if that is not known."""
    return _of_leaves(value, digest)


def _is_plain(value: Any) -> bool:
    return _of_leaves(value, lambda leaf: leaf) == []


def _of_leaves(value: Any, of: Callable[[Any], Any]) -> list[Any] | None:
    found: list[Any] = []

    def note(leaf: Any, place: Any) -> Any:
        found.append((str(place), of(leaf)))
        return leaf

    try:
        return found if walk(value, note) is value else None
    except ImageError:
        return None
