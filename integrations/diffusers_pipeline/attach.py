"""attach, detach, is_guarded."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
from .same import is_same
from .settings import Attachment, Settings
from .swap import can_be_guarded, guard_object, is_guarded_object, release_object

# Older releases have no modular pipelines.
_MODULAR: Any = getattr(diffusers, "ModularPipeline", ())


def attach(
    pipe: Any,
    guard: NsfwGuard | None = None,
    *,
    replace: bool = False,
    latents: str = "raise",
    every: int = 1,
    video: str = "frame",
    min_run: int = 8,
    on_verdicts: Callable[[list[Verdict], dict[int, Tensor]], Any] | None = None,
    early: EarlyExit | None = None,
) -> Any:
    """Guard a diffusers pipeline: whatever it returns has been looked at, on the decoded tensor where that is possible.

    It changes this one instance and no class; if it fails, nothing. Attaching again, with the same guard or with one
    that is loaded alike, changes the settings to those of the last call.

    Args:
        pipe: Any diffusers pipeline that makes images or videos, modular ones included.
        guard: What looks at the images; ``None`` takes the guard that the pipeline has, attached or in its slot, or
            else ``NsfwGuard()``.
        replace: Exchange the guard that is attached for another one. ``detach`` gives back what the slot held before
            the first of them.
        latents: ``"raise"``: asking for latents is an error before anything is generated, and those that come along
            are ``None``; ``"allow"``: for a pipeline whose latents another guarded one decodes.
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
    _refuse_what_is_no_guard(guard)
    before: Attachment | None = pipe._nsfw_guard if is_guarded_object(pipe) else None
    if before is not None and guard is not None and not replace and not is_same(guard, before.guard):
        raise SettingError(
            "The pipeline has another guard already. To exchange it, attach(pipe, guard, replace=True); to keep it, "
            "attach(pipe), whose other arguments change the settings."
        )
    if early is not None:
        early.validate_for(pipe)
    if before is None:
        in_slot = getattr(pipe, "safety_checker", None)
        in_slot = in_slot.guard if isinstance(in_slot, CosmosChecker) else in_slot
        attachment = Attachment(guard or (in_slot if isinstance(in_slot, NsfwGuard) else NsfwGuard()), settings)
    else:
        attachment = before
    copies = _copies_of_processors(pipe, attachment) if isinstance(pipe, _MODULAR) else {}
    to_guard = _to_guard(pipe)
    with ExitStack() as undo:
        for changed in (pipe, attachment):
            undo.callback(_taker_back(changed))
        attachment.settings, attachment.guard = settings, attachment.guard if guard is None else guard
        if not isinstance(pipe, _MODULAR) and "safety_checker" in pipe.components:
            _fill_slot(pipe, attachment)
        for target, mixins in to_guard:
            undo.callback(release_object, target)
            guard_object(target, mixins, attachment)
        if copies:
            attachment.replaced = {**attachment.replaced, **{name: (getattr(pipe, name), None) for name in copies}}
            pipe.update_components(**copies)
        undo.pop_all()
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
    """Whether everything that a pipeline returns is looked at: whether it, and not only a twin of it, was attached to.

    A guard that is in the slot alone, assigned or taken along by ``from_pipe``, looks at the pictures that the pipeline
    shows it, and sees no latents, nor what is changed afterwards: attach to such a pipeline too.
    """
    return is_guarded_object(pipe)


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


def _refuse_what_is_no_guard(guard: Any) -> None:
    if guard is not None and not isinstance(guard, NsfwGuard):
        raise SettingError(
            f"guard is {guard!r}; expected an NsfwGuard: attach(pipe, NsfwGuard({guard!r}))."
            if isinstance(guard, str)
            else f"guard is a {type(guard).__name__}; expected an NsfwGuard."
        )


def _to_guard(pipe: Any) -> list[tuple[Any, tuple[type, ...]]]:
    """The objects whose class is to be changed, each with its mixins; what is guarded already stays so.

    A pipeline, its processors, and its inner pipelines with theirs. Of a modular one only itself.

    Raises:
        SettingError: The class of one of them cannot be changed.
    """
    found: list[tuple[Any, tuple[type, ...]]] = []
    if isinstance(pipe, _MODULAR):
        found.append((pipe, (GuardedModularPipeline,)))
    else:
        for one in _with_inner_pipelines(pipe):
            has_slot = "safety_checker" in one.components and hasattr(one, "run_safety_checker")
            found.append((one, (GuardedPipeline, GuardedSlot) if has_slot else (GuardedPipeline,)))
            found += [(part, mixins_for(part)) for part in parts_of(one)]
    wanted = list({id(target): (target, mixins) for target, mixins in found if not is_guarded_object(target)}.values())
    for target, mixins in wanted:
        if not can_be_guarded(target, mixins):
            raise SettingError(
                f"{type(pipe).__name__} cannot be guarded: it has a {type(target).__name__} (of "
                f"{type(target).__module__}), an object that does not allow for a change of its class."
            )
    return wanted


def _release_pipeline(pipe: Any, attachment: Attachment) -> None:
    """Release what this attachment guards, and nothing that another one does."""
    for one in list(_with_inner_pipelines(pipe, all_of_them=True)):
        for part in (one, *parts_of(one)):
            if is_guarded_object(part) and part._nsfw_guard is attachment:
                release_object(part)


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
            first = {name: (getattr(pipe, name), pipe.config[name])}
            attachment.replaced = {**first, **attachment.replaced}
            pipe.register_modules(**{name: component})
    attachment.guard._placement.pipelines.remember(pipe)  # who reads the guard's dtype is told the pipeline's


def _with_inner_pipelines(pipe: Any, *, all_of_them: bool = False) -> Iterator[Any]:
    """A pipeline and those that it is made of, each once; without those that make no images, unless all are wanted."""
    seen, waiting = set(), [pipe]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = [value for value in vars(one).values() if isinstance(value, DiffusionPipeline)]
        waiting += [x for x in inner if all_of_them or table.mechanism_of(type(x)) not in ("no image", "refused")]


def _copies_of_processors(pipe: Any, attachment: Attachment) -> dict[str, Any]:
    """Guarded copies of the processors of a modular pipeline: its components may be shared with other pipelines."""
    copies = {}
    for name, component in pipe.components.items():
        if is_processor(component) and not is_guarded_object(funnel(component)):
            copies[name] = copy.deepcopy(component)
            part = funnel(copies[name])
            guard_object(part, mixins_for(part), attachment)
    return copies


def _taker_back(target: Any) -> Callable[[], None]:
    """What gives an object back the attributes that it has now, and their contents where they are dictionaries."""
    attributes = dict(vars(target))
    contents = {name: dict(value) for name, value in attributes.items() if type(value) in (dict, OrderedDict)}

    def take_back() -> None:
        for name in vars(target).keys() - attributes.keys():
            del vars(target)[name]
        vars(target).update(attributes)
        for name, content in contents.items():  # modular pipelines write into theirs
            attributes[name].clear()
            attributes[name].update(content)

    return take_back
