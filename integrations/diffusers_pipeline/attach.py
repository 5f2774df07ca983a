"""attach, detach, is_guarded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import CLIPImageProcessor

from nsfw_guard.cosmos import CosmosChecker
from nsfw_guard.errors import SettingError
from nsfw_guard.guard import NsfwGuard
from nsfw_guard.verdict import Verdict

from . import table
from .early import EarlyExit
from .modular import GuardedModularPipeline
from .pipeline import GuardedPipeline, GuardedSlot
from .processors import funnel, is_processor, mixins_for, parts_of
from .settings import Attachment, Settings
from .swap import guard_object, is_guarded_object, release_object

# Older releases have no modular pipelines.
_MODULAR: Any = getattr(diffusers, "ModularPipeline", ())


def attach(
    pipe: Any,
    guard: NsfwGuard | None = None,
    *,
    latents: str = "raise",
    every: int = 1,
    video: str = "frame",
    min_run: int = 8,
    on_verdicts: Callable[[list[Verdict], dict[int, Tensor]], Any] | None = None,
    early: EarlyExit | None = None,
) -> Any:
    """Guard a diffusers pipeline: whatever it returns has been looked at, on the decoded tensor where that is possible.

    It changes this one instance and no class. Attaching again changes the settings.

    Args:
        pipe: Any diffusers pipeline that makes images or videos, modular ones included.
        guard: What looks at the images; ``None`` takes the guard in the pipeline's slot, or else ``NsfwGuard()``.
        latents: What ``output_type="latent"`` does: ``"raise"`` an error before anything is generated, or ``"allow"``,
            for a pipeline whose latents another guarded one decodes.
        every: Videos: how many frames apart the frames are that are looked at; those around a flagged one always are.
        video: ``"frame"`` redacts runs of frames, ``"clip"`` the whole clip in which a frame is flagged.
        min_run: Videos: the shortest run of redacted frames, and the shortest gap between two, in frames.
        on_verdicts: Called before anything is returned, with the verdicts and the flagged originals: index → a tensor
            ``[3, H, W]`` in [0, 1], or ``[N, 3, H, W]``, the flagged frames of a clip. What it raises is raised.
        early: Stop generations that are going to be flagged; see ``EarlyExit``.

    Returns:
        The pipeline. Its outputs get ``nsfw_content_detected``, ``verdicts``, and for clips ``frame_verdicts``.

    Raises:
        SettingError: It is no such pipeline, has another guard already, or a setting is out of its range.
        CheckpointError: ``NsfwGuard()`` cannot be loaded.
    """
    settings = Settings(latents, every, video, min_run, on_verdicts, early)
    _refuse_what_makes_no_image(pipe)
    before: Attachment | None = pipe._nsfw_guard if is_guarded_object(pipe) else None
    if guard is not None and not isinstance(guard, NsfwGuard):
        raise SettingError(
            f"guard is {guard!r}; expected an NsfwGuard: attach(pipe, NsfwGuard({guard!r}))."
            if isinstance(guard, str)
            else f"guard is a {type(guard).__name__}; expected an NsfwGuard."
        )
    if before is not None and guard is not None and guard is not before.guard:
        raise SettingError("The pipeline has another guard already; call detach(pipe) first.")
    if early is not None:
        early.validate_for(pipe)
    attachment = before
    if attachment is None:
        in_slot = getattr(pipe, "safety_checker", None)
        in_slot = in_slot.guard if isinstance(in_slot, CosmosChecker) else in_slot
        attachment = Attachment(guard or (in_slot if isinstance(in_slot, NsfwGuard) else NsfwGuard()), settings)
    attachment.settings = settings
    if isinstance(pipe, _MODULAR):
        _guard_modular(pipe, attachment)
        return pipe
    if before is None and "safety_checker" in pipe.components:
        _fill_slot(pipe, attachment)
    _guard_pipeline(pipe, attachment)
    return pipe


def detach(pipe: Any) -> Any:
    """Give a pipeline back everything that ``attach`` changed; one that is not guarded stays as it is.

    Returns:
        The pipeline.
    """
    if not is_guarded_object(pipe):
        return pipe
    attachment: Attachment = pipe._nsfw_guard
    if isinstance(pipe, _MODULAR):
        pipe.update_components(**{name: component for name, (component, _) in attachment.replaced.items()})
        release_object(pipe)
        return pipe
    _release_pipeline(pipe, attachment)
    for name, (component, entry) in attachment.replaced.items():
        if name == "feature_extractor" and _has_ip_adapter(pipe):
            continue  # the adapter took it for the pipeline's own
        setattr(pipe, name, component)
        pipe.register_to_config(**{name: entry})
    return pipe


def is_guarded(pipe: Any) -> bool:
    """Whether everything that a pipeline returns is looked at: attached, or a guard in a slot that its class uses.

    ``from_pipe`` makes a new pipeline: one with a slot takes the guard along, any other has to be attached to again.
    """
    if is_guarded_object(pipe):
        return True
    # A class of a user's own may do as it likes with its slot.
    slot_works = type(pipe).__module__.startswith("diffusers.") and table.mechanism_of(type(pipe)) in (
        "slot",
        "slot, inline",
    )
    return slot_works and isinstance(getattr(pipe, "safety_checker", None), NsfwGuard)


def _has_ip_adapter(pipe: Any) -> bool:
    projection = getattr(getattr(pipe, "unet", None), "encoder_hid_proj", None)
    return hasattr(projection, "image_projection_layers")


def _refuse_what_makes_no_image(pipe: Any) -> None:
    if not isinstance(pipe, (DiffusionPipeline, _MODULAR)):
        kind = f"the class {pipe.__name__}" if isinstance(pipe, type) else f"a {type(pipe).__name__}"
        raise SettingError(f"pipe is {kind}; expected a diffusers pipeline: DiffusionPipeline.from_pretrained(…).")
    mechanism = table.mechanism_of(type(pipe))
    if mechanism == "no image":
        raise SettingError(f"{type(pipe).__name__} makes no images; there is nothing for a guard to look at.")
    if mechanism == "refused" or not callable(pipe):
        raise SettingError(
            f"{type(pipe).__name__} cannot be guarded: its methods make other pipelines of its parts. Attach to one of "
            f"those instead, made with its class: attach(ThatPipeline(**pipe.components))."
        )


def _guard_pipeline(pipe: Any, attachment: Attachment) -> None:
    """Guard a pipeline with its processors and inner pipelines; what is guarded already stays so."""
    if not is_guarded_object(pipe):
        has_slot = "safety_checker" in pipe.components and hasattr(pipe, "run_safety_checker")
        slot = (GuardedSlot,) if has_slot else ()
        guard_object(pipe, (GuardedPipeline, *slot), attachment)
    for part in parts_of(pipe):
        if not is_guarded_object(part):
            guard_object(part, mixins_for(part), attachment)
    for inner in _inner_pipelines(pipe):
        if table.mechanism_of(type(inner)) not in ("no image", "refused"):
            _guard_pipeline(inner, attachment)


def _release_pipeline(pipe: Any, attachment: Attachment) -> None:
    """Release what this attachment guards, and nothing that another one does."""
    for part in (pipe, *parts_of(pipe)):
        if is_guarded_object(part) and part._nsfw_guard is attachment:
            release_object(part)
    for inner in _inner_pipelines(pipe):
        _release_pipeline(inner, attachment)


def _fill_slot(pipe: Any, attachment: Attachment) -> None:
    """Register the guard as the pipeline's checker, as diffusers does, so that it is moved, cast, saved and copied."""
    wanted: dict[str, Any] = {"safety_checker": attachment.guard}
    if table.mechanism_of(type(pipe)) == "cosmos" and pipe.safety_checker is not None:
        del wanted["safety_checker"]  # it reads prompts too, which no image classifier can stand in for
    elif "feature_extractor" in pipe.components and pipe.feature_extractor is None:
        tower = getattr(pipe, "image_encoder", None)  # an IP-Adapter will use it too
        side = tower.config.image_size if tower is not None else 224
        # Constructors insist on one beside a checker.
        wanted["feature_extractor"] = CLIPImageProcessor(size=side, crop_size=side)
    for name, component in wanted.items():
        if getattr(pipe, name) is not component:
            attachment.replaced[name] = (getattr(pipe, name), pipe.config[name])
            pipe.register_modules(**{name: component})
    attachment.guard._placement.pipelines.remember(pipe)  # who reads the guard's dtype is told the pipeline's


def _inner_pipelines(pipe: Any) -> Iterator[Any]:
    yield from (value for value in list(vars(pipe).values()) if isinstance(value, DiffusionPipeline))


def _guard_modular(pipe: Any, attachment: Attachment) -> None:
    """Give a modular pipeline guarded copies of its processors: components may be shared with other pipelines."""
    if not is_guarded_object(pipe):
        guard_object(pipe, (GuardedModularPipeline,), attachment)
    copies = {}
    for name, component in pipe.components.items():
        if not is_processor(component) or is_guarded_object(funnel(component)):
            continue
        attachment.replaced[name] = (component, None)
        copies[name] = copy.deepcopy(component)
        part = funnel(copies[name])
        guard_object(part, mixins_for(part), attachment)
    pipe.update_components(**copies)
