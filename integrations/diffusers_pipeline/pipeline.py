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
from PIL import Image
from torch import Tensor

from nsfw_guard.errors import SettingError

from . import table
from .checks import check_images, within_range
from .early import watching
from .finished import check_any
from .processors import funnel, is_processor
from .record import Passed, Record, current_record, record_of, recording
from .settings import Attachment

# Where outputs keep their pictures. What else there is (sound, text, embeddings, cameras) is none.
_IMAGE_FIELDS = ("images", "image", "rgb", "depth")
_CLIP_FIELDS = ("frames", "video", "videos")
# Latents that come along with pictures would show what was redacted to anybody who has the VAE.
_LATENT_FIELDS = ("latent", "latents", "keyframes")


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
        latents = _asks_for_latents(call, args, kwargs) and not table.works_on_pixels(type(self))
        if latents and attachment.settings.latents == "raise":
            raise SettingError(
                f'output_type="latent" of {type(self).__name__} returns latents, which the guard cannot look at. '
                'Decode here: output_type="pil"; or, if the next pipeline decodes them and is guarded itself (base and '
                'refiner), attach(pipe, guard, latents="allow").'
            )
        mechanism = table.mechanism_of(type(self))
        record = Record(attachment, device_of(self), pipe=self, quantises=mechanism == "cosmos")
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

    Args:
        pipe: The pipeline, which says how its output is to be read.
        output: What its call returned.
        record: Of the call.
        latents: Whether latents were asked for, and may be returned: tensors are these, anything else is images.

    Returns:
        The output; a tuple of the same length.

    Raises:
        ImageError: Something that cannot be checked.
    """
    cls = type(pipe)
    known = table.mechanism(cls.__name__) is not None
    found: list[Passed] = []

    def seen(images: Any, *, clips: bool) -> Any:
        if images is None or (latents and isinstance(images, Tensor)):
            return images
        if isinstance(images, tuple):  # LDM3D: pictures and their depth
            return tuple(seen(part, clips=clips) for part in images)
        decoded = isinstance(images, Tensor) and images.ndim == 5 and table.returns_decoded(cls)
        shown = images.movedim(1, 2) if decoded else images
        signed = decoded or table.returns_signed(cls)
        checked, passed = look(shown, record, clips=clips, signed=signed, sure=known)
        if checked is not shown:
            images = checked.movedim(1, 2) if decoded else checked
        if not clips:  # an image that a video pipeline made as a clip of one frame
            passed = [replace(entry, frames=None) if len(entry.frames or ()) == 1 else entry for entry in passed]
        if not all(any(entry is other for other in found) for entry in passed):
            found.extend(passed)
        return images

    if isinstance(output, OrderedDict):
        for name in list(output):
            given = output[name]
            if name in (*_IMAGE_FIELDS, *_CLIP_FIELDS) or _shows_something(given, arrays=not known):
                checked = seen(given, clips=name in _CLIP_FIELDS)
                if checked is not given:
                    output[name] = checked
    elif isinstance(output, tuple):
        first = seen(output[0], clips=table.makes_clips(cls))
        rest = (seen(part, clips=False) if _shows_something(part, arrays=not known) else part for part in output[1:])
        output = (first, *rest)
    else:
        output = seen(output, clips=table.makes_clips(cls))
    if latents and not found:
        return output
    return _with_verdicts(cls, output, report(found, record), record.attachment)


def _shows_something(value: Any, *, arrays: bool) -> bool:
    """Whether a part of an output that is not known to hold images does: pictures, or arrays that look like some."""
    if isinstance(value, Image.Image):
        return True
    if isinstance(value, (list, tuple)):
        return bool(value) and _shows_something(value[0], arrays=arrays)
    if not arrays or not isinstance(value, (Tensor, np.ndarray)) or value.ndim not in (3, 4, 5):
        return False
    channels, *sides = value.shape[-3:] if isinstance(value, Tensor) else (value.shape[-1], *value.shape[-3:-1])
    return channels == 3 and min(sides) >= 8


def look(
    images: Any, record: Record, *, clips: bool, signed: bool = False, sure: bool = True
) -> tuple[Any, list[Passed]]:
    """Find images among what has passed, or check them; ``signed`` and ``sure`` are about tensors in [-1, 1].

    What is new although something was flagged is taken for a composite of it, and goes with it: in-painting pastes the
    original picture back over the crop that was checked.
    """
    passed = record.find(images, clips=clips)
    if passed is not None:
        return images, passed
    before = [entry.verdict for entry in record.passed]
    value_range = (-1, 1) if signed and isinstance(images, Tensor) else (0, 1)
    return check_any(images, record, clips=clips, value_range=value_range, sure=sure, before=before)


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
    hide = any(flags) and attachment.settings.latents == "raise"
    if isinstance(output, OrderedDict):
        for name in ("nsfw_content_detected", *(["nsfw_detected"] if "nsfw_detected" in vars(output) else [])):
            output[name] = flags
        for name in _LATENT_FIELDS if hide else ():
            if output.get(name) is not None:
                output[name] = None
        for name in said.keys() - {"nsfw_content_detected"}:  # attributes, so that to_tuple keeps its length
            setattr(output, name, said[name])
    elif isinstance(output, tuple):
        items = list(output)
        in_place = len(items) > 1 and (items[1] is None or all(isinstance(flag, bool) for flag in items[1]))
        if in_place and (table.mechanism_of(cls) or "").startswith("slot"):
            items[1] = flags
        if hide and (place := table.latents_in_tuple(cls)) is not None:
            items[place] = None
        output = tuple(items)
    return output


def _note(guard: Any, _: Any, result: tuple[Any, list[bool]]) -> None:
    """Note what the guard lets out of a slot that the pipeline calls itself."""
    record = current_record()
    if record is not None and record.attachment.guard is guard:
        record.add(result[0], [Passed(verdict) for verdict in guard.last_verdicts or []])


def _asks_for_latents(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        bound = inspect.signature(call).bind(*args, **kwargs)
    except TypeError:
        return False  # the call itself will say what is wrong with its arguments
    bound.apply_defaults()
    # In the arguments, or among those that a class of a user's own hands on.
    return bound.arguments.get("output_type", kwargs.get("output_type")) in ("latent", "latents")
