"""A guarded pipeline: its slot, its pictures made by hand, and the backstop behind everything that it returns."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsfw_guard.errors import SettingError

from . import table
from .checks import check_images, within_range
from .early import watching
from .finished import Finish
from .processors import funnel, is_processor
from .record import Passed, Record, current_record, record_of, recording
from .settings import Attachment


class GuardedPipeline:
    """Mixed into the class of a pipeline; nothing that the guard has not seen leaves a call."""

    _nsfw_guard: Attachment

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pipeline; see its own class for the arguments."""
        call = super().__call__  # type: ignore[misc]
        attachment = self._nsfw_guard
        outer = record_of(attachment)
        if outer is not None and outer.pipe is not self:
            return call(*args, **kwargs)  # an inner pipeline, in the call of the one that it is part of
        output_type = _output_type(call, args, kwargs)
        latents = output_type in ("latent", "latents") and not table.works_on_pixels(type(self))
        if latents and attachment.settings.latents == "raise":
            raise SettingError(
                f'output_type="latent" of {type(self).__name__} returns latents, which the guard cannot look at. '
                'Decode here: output_type="pil"; or, if the next pipeline decodes them and is guarded itself (base and '
                'refiner), attach(pipe, guard, latents="allow").'
            )
        mechanism = table.mechanism_of(type(self))
        record = Record(attachment, device_of(self), pipe=self, exact=output_type == "pt")
        try:
            with ExitStack() as stack:
                stack.enter_context(recording(record))
                if mechanism == "slot, inline":
                    stack.enter_context(attachment.guard.register_forward_hook(_note))
                if (early := attachment.settings.early) is not None and not latents:
                    args, kwargs = stack.enter_context(watching(self, call, record, early, args, kwargs))
                return finish(self, call(*args, **kwargs), record, latents=latents)
        except BaseException:
            # The call did not come to the line where it lets go of what it has on the device.
            with suppress(Exception):
                getattr(self, "maybe_free_model_hooks", lambda: None)()
            raise

    def __copy__(self) -> Any:
        """A copy with an attachment and processors of its own, so that to detach one does not touch the other."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._nsfw_guard = replace(self._nsfw_guard, replaced=dict(self._nsfw_guard.replaced))
        for name, value in self.__dict__.items():
            if is_processor(value):
                attachment = getattr(funnel(value), "_nsfw_guard", self._nsfw_guard)  # another's, if it is shared
                twin.__dict__[name] = copy.deepcopy(value, {id(attachment): twin._nsfw_guard})
        return twin

    def numpy_to_pil(self, images: Any) -> Any:
        """Make pictures of arrays ``[B, H, W, C]`` in [0, 1]: the last step of pipelines that finish images by hand."""
        make = super().numpy_to_pil  # type: ignore[misc]
        record = record_of(self._nsfw_guard)
        if record is None or not isinstance(images, np.ndarray):
            return make(images)
        if images.ndim == 3:
            images = images[None]
        passed = record.find(images)
        if passed is None:
            if table.mechanism_of(type(self)) == "slot, inline":
                return make(images)  # for the old checker's input; what is returned is looked at in the slot
            images, passed = check_images(images, record, value_range=(0, 1))
        pictures = make(images)
        # Where values leave the range they are other pictures, and looked at again at the end.
        record.add(pictures if within_range(images) else [], passed)
        return pictures


class GuardedSlot:
    """Mixed into the class of a pipeline that calls its own ``run_safety_checker``."""

    _nsfw_guard: Attachment

    def run_safety_checker(self, image: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Check the decoded tensor or array itself, with no PIL copy; the ranges are those of ``NsfwGuard.forward``.

        Returns:
            What the pipeline unpacks: images, flags, and ``None`` for the families of three values.
        """
        record = record_of(self._nsfw_guard) or Record(self._nsfw_guard, None)
        value_range = (-1, 1) if isinstance(image, Tensor) else (0, 1)
        image, passed = check_images(image, record, value_range=value_range, written_range=(0, 1), layers=False)
        record.add(image, passed)
        flags = [entry.verdict.flagged for entry in passed]
        return (image, flags, None)[: table.slot_values(type(self))]


def finish(pipe: Any, output: Any, record: Record, *, latents: bool = False) -> Any:
    """The backstop: find every image of an output among what has passed, check what is not there, add the verdicts.

    The flags are those of the images in the field that is known to hold them, in their order; after these come those of
    whatever else was looked at, field by field. Latents that come along are ``None`` unless they are allowed.

    Args:
        pipe: The pipeline, which says how its output is to be read.
        output: What its call returned.
        record: Of the call.
        latents: Whether latents were asked for, and may be returned: tensors are these, anything else is images.

    Returns:
        The output, or a copy of it if something is redacted.

    Raises:
        ImageError: Something that cannot be checked.
    """
    cls = type(pipe)
    finishing = Finish(record, cls, latents=latents)
    output = finishing.look_through(output)
    if latents and not finishing.found:
        return output
    return _with_verdicts(cls, output, report(finishing.found, record), record.attachment)


def report(found: list[Passed], record: Record) -> dict[str, list[Any]]:
    """Tell the guard and the caller's own function what was decided, before anything is returned.

    Returns:
        What an output says of it: ``nsfw_content_detected``, ``verdicts`` and, if there are clips, ``frame_verdicts``.
    """
    verdicts = [entry.verdict for entry in found]
    record.attachment.guard._remember(verdicts)
    if record.attachment.settings.on_verdicts is not None:
        originals = {i: entry.original for i, entry in enumerate(found) if entry.original is not None}
        record.attachment.settings.on_verdicts(verdicts, originals)
    said: dict[str, list[Any]] = {
        "nsfw_content_detected": [verdict.flagged for verdict in verdicts],
        "verdicts": verdicts,
    }
    if any(entry.frames is not None for entry in found):
        said["frame_verdicts"] = [list(entry.frames or ()) for entry in found]
    return said


def device_of(pipe: Any) -> torch.device | None:
    """Where a pipeline computes."""
    device = getattr(pipe, "_execution_device", None) or getattr(pipe, "device", None)
    return torch.device(device) if device is not None and torch.device(device).type != "meta" else None


def _with_verdicts(cls: type, output: Any, said: dict[str, list[Any]], attachment: Attachment) -> Any:
    flags = said["nsfw_content_detected"]
    hide = attachment.settings.latents == "raise"
    if isinstance(output, OrderedDict):
        for name in list(output) if hide else ():
            if table.held_in(cls, name) == "latents" and output[name] is not None:
                output[name] = None
        for name in ("nsfw_content_detected", *(["nsfw_detected"] if "nsfw_detected" in vars(output) else [])):
            output[name] = flags
        for name in said.keys() - {"nsfw_content_detected"}:  # attributes, so that to_tuple keeps its length
            setattr(output, name, said[name])
    elif isinstance(output, tuple):
        items = [None if hide and table.held_in(cls, i) == "latents" else item for i, item in enumerate(output)]
        if (table.mechanism_of(cls) or "").startswith("slot") and len(items) > 1 and _are_flags(items[1]):
            items[1] = flags
        if any(one is not other for one, other in zip(items, output, strict=True)):
            output = output._make(items) if hasattr(output, "_make") else tuple(items)
    return output


def _are_flags(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and all(isinstance(flag, bool) for flag in value))


def _note(guard: Any, _: Any, result: tuple[Any, list[bool]]) -> None:
    """Note what the guard lets out of a slot that the pipeline calls itself."""
    record = current_record()
    if record is not None and record.attachment.guard is guard:
        record.add(result[0], [Passed(verdict) for verdict in guard.last_verdicts or []])


def _output_type(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call asks for, in its arguments, or among those that a class of a user's own hands on."""
    try:
        bound = inspect.signature(call).bind(*args, **kwargs)
    except TypeError:
        return None  # the call itself will say what is wrong with its arguments
    bound.apply_defaults()
    return bound.arguments.get("output_type", kwargs.get("output_type"))
