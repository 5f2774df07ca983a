"""NsfwGuard: from an image tensor to images that may be shown."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from .cards import ModelCard, policy_for
from .checkpoint import find_checkpoint
from .classifier import Classifier, stored_dtype
from .clips import redact_alike, refuse_no_clip
from .cosmos import say_prompts_unread
from .described import described
from .errors import ImageError
from .hosts import settings_in, upload_in
from .images import ImageBatch, read_images
from .placement import Placement, is_hooked, parse_device, parse_runtime
from .policy import Policy
from .preprocess import ViewBatch
from .redact import Redaction, denormalize_flagged, redact_flagged
from .saved import meant_by_host, save_guard, saved_settings, say_safetensors_only
from .settings import AS_SAVED, ASSIGNABLE, CHECKED, Setting, parse_batch_size, parse_views, refuse_attribute, settled
from .turns import PerThread
from .verdict import GuardResult, Scores, Verdict


class NsfwGuardConfig(PretrainedConfig):
    """Makes the guard a transformers model, the one kind of component that every diffusers pipeline call can handle."""

    model_type = "nsfw_guard"


class NsfwGuard(PreTrainedModel):
    """A drop-in safety checker: classifies images where they are, and redacts those that it flags.

    Args:
        model: A card or its name (default ``"freepik"``), a Hub id (``org/name``), or a checkpoint folder. A guard that
            was saved there keeps the settings that are not given here.
        policy: A preset of the card (``"strict"``, ``"balanced"``, ``"permissive"``, …), or a ``Policy`` of your own
            numbers; else ``"balanced"``.
        threshold: In [0, 1]: takes the place of the policy's.
        redaction: A ``Redaction`` or the name of a kind: ``"blur"`` (if nothing is said), ``"pixelate"``, ``"fill"``,
            ``"none"``.
        device: Where to classify; ``None`` follows the images.
        dtype: ``"auto"`` takes the checkpoint's own or a faster one that the device runs natively, and follows
            ``pipe.to(dtype)``; a dtype stays what it is.
        views: ``"auto"`` shows the model every part of an image; ``"card"`` only what the card's own preprocessing
            shows.
        revision: A Hub revision instead of the card's own.
        card: The card of a folder or Hub id that has none: a ``ModelCard`` or the name of one.
        batch_size: Most views in one forward pass, 16 if nothing is said; halved by itself when memory runs out.
        runtime: ``"auto"`` runs the network the fastest way that PyTorch has for the device; ``"torch"`` is its own
            eager forward; ``"onnx"`` is ONNX Runtime on the CPU, in float32 or with ``dtype="int8"``.
        variant: Which of several weights of a checkpoint: ``"fp16"`` reads ``model.fp16.safetensors``.
        subfolder: Where in the folder or repository the guard is: ``"safety_checker"`` in that of a pipeline.
        local_files_only: Never ask the Hub.

    ``policy``, ``threshold``, ``redaction``, ``views`` and ``batch_size`` can be assigned later; they are checked then.

    Raises:
        SettingError: An unknown card or preset, or a setting out of its range.
        CheckpointError: A checkpoint that cannot be found, read or trusted.
    """

    config_class = NsfwGuardConfig
    main_input_name = "images"

    policy = Setting[Policy](lambda guard, policy: policy_for(guard.card, policy))
    redaction = Setting[Redaction](lambda guard, redaction: Redaction.parse(redaction))
    views = Setting[str](lambda guard, views: parse_views(views))
    batch_size = Setting[int](lambda guard, size: parse_batch_size(size))

    def __init__(
        self,
        model: str | Path | ModelCard | None = None,
        *,
        policy: str | Policy | None = None,
        threshold: float | None = None,
        redaction: str | Redaction = AS_SAVED,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = AS_SAVED,
        views: str = AS_SAVED,
        revision: str | None = None,
        card: str | ModelCard | None = None,
        batch_size: int = AS_SAVED,
        runtime: str = AS_SAVED,
        variant: str | None = None,
        subfolder: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        super().__init__(NsfwGuardConfig())
        given = {
            "policy": policy, "redaction": redaction, "views": views, "batch_size": batch_size,
            "dtype": dtype, "runtime": runtime,
        }  # fmt: skip
        settings = settled(given, {})
        for name in CHECKED:  # what cannot be is refused before anything is fetched
            setattr(self, name, settings[name])
        parse_device(parse_runtime(settings["runtime"], device, settings["dtype"])[1])
        folder, card = find_checkpoint(
            model, card=card, revision=revision, variant=variant, subfolder=subfolder, local_files_only=local_files_only
        )
        settings = settled(given, saved_settings(folder))
        for name in CHECKED:
            setattr(self, name, settings[name])
        decided = policy_for(card, settings["policy"])
        decided = decided if threshold is None else replace(decided, threshold=threshold)
        precision, device, dtype = parse_runtime(settings["runtime"], device, settings["dtype"])
        self._placement = Placement(device, dtype, stored_dtype(folder, variant))
        self._this_thread = PerThread[list[Verdict]]()
        start, loaded_as = self._placement.start()
        self.classifier = Classifier.load(
            folder, card, dtype=loaded_as, runtime=settings["runtime"], onnx=precision, variant=variant
        )
        self.policy = decided
        self.requires_grad_(False)
        self.eval()
        self._place(start)
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Check what is assigned: a setting as at construction; a name that neither the guard nor a host knows."""
        if name in ASSIGNABLE:
            object.__setattr__(self, name, value)  # past nn.Module, which would keep a module under the name
            return
        if not name.startswith("_") and "_is_made" in vars(self):
            refuse_attribute(self, name, value)
        super().__setattr__(name, value)

    @property
    def card(self) -> ModelCard:
        """The card of the model."""
        return self.classifier.card

    @property
    def threshold(self) -> float:
        """The threshold of the policy; what is assigned takes its place there."""
        return self.policy.threshold

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        self.policy = replace(self.policy, threshold=threshold)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype as hosts read it, see ``Placement.read_dtype``; that of the weights is in ``describe()``."""
        return self._placement.read_dtype(self, self.classifier.dtype)

    @property
    def device(self) -> torch.device:
        """The device as hosts read it, see ``Placement.read_device``; that of the weights is in ``describe()``."""
        return self._placement.read_device(self, next(self.classifier.parameters()).device)

    @property
    def last_verdicts(self) -> list[Verdict] | None:
        """The verdicts of this thread's last call; ``None`` before the first one, and after one that failed."""
        return self._this_thread.value

    @torch.no_grad()
    def apply(self, images: Any, *, value_range: tuple[float, float] = (0, 1)) -> GuardResult:  # type: ignore[override]
        """Check images, and redact those that are flagged.

        Args:
            images: A tensor ``[B, C, H, W]`` or ``[C, H, W]``, a NumPy array ``[B, H, W, C]`` or ``[H, W, C]``, a PIL
                image, a file path, encoded bytes, or a list of single images; C is 1, 3 or 4; floating point or uint8.
            value_range: ``(0, 1)`` or ``(-1, 1)``: what floating-point values mean.

        Returns:
            The images, of the same kind as they came, the unflagged ones bit-identical; and the verdicts.

        Raises:
            ImageError: Images that cannot be checked. None is returned then.
        """
        self._remember(None)
        batch = read_images(images, value_range=value_range)
        verdicts = self.policy.decide(self._score(batch))
        redacted = redact_flagged(batch, verdicts, self.redaction, self.passes)
        result = GuardResult(batch.replace(redacted), verdicts)
        self._remember(verdicts)
        return result

    def check(self, images: Any, *, value_range: tuple[float, float] = (0, 1)) -> list[Verdict]:
        """Return one verdict per image and touch no pixel; arguments and errors as for ``apply``."""
        verdicts = self.policy.decide(self.classify(images, value_range=value_range))
        self._remember(verdicts)
        return verdicts

    @torch.no_grad()
    def classify(self, images: Any, *, value_range: tuple[float, float] = (0, 1)) -> Scores:
        """Return the label probabilities, on which any policy can decide; arguments and errors as for ``apply``."""
        self._remember(None)
        return self._score(read_images(images, value_range=value_range))

    def _score(self, batch: ImageBatch) -> Scores:
        views = ViewBatch(batch, self.classifier.preprocess, views=self.views)
        # A host's hooks move the weights within a call.
        turn = self.classifier.turns.alone if is_hooked(self) else self.classifier.turns.shared
        with turn(partial(self._place, batch.device)) as device:
            return self.classifier.score(views, device=device, batch_size=self.batch_size)

    @torch.no_grad()
    def passes(self, batch: ImageBatch) -> list[bool]:
        """Tell for each image whether it passes with room to spare, as redactions must."""
        return [not verdict.flagged for verdict in self.policy.with_room().decide(self._score(batch))]

    def forward(self, clip_input: Any = None, images: Any = None) -> tuple[Any, list[bool]]:
        """Check images as a diffusers pipeline hands them over: ``guard(images=decoded, clip_input=...)``.

        Args:
            clip_input: Ignored: what pipelines prepare for the CLIP model of the stock checker.
            images: The decoded tensor ``[B, C, H, W]`` in [-1, 1], clamped in a copy, whose channels beyond the third
                are depth; or an array ``[B, H, W, C]`` in [0, 1].

        Returns:
            The images and one plain bool each. Unflagged ones stay what they were; flagged ones are in [0, 1], because
            pipelines do not denormalise those (diffusers, ``VaeImageProcessor._denormalize_conditionally``).

        Raises:
            ImageError: Images that cannot be checked.
        """
        if images is None:
            raise ImageError("No images were given; pass guard(images=...), or call guard.apply(images).")
        span = (-1, 1) if isinstance(images, Tensor) else (0, 1)
        handed_on = not isinstance(images, Tensor)  # pipelines clamp tensors, and arrays go on as they are
        result = self.apply(
            read_images(images, value_range=span, clamp=True, stretch=handed_on, alpha=False, written_range=(0, 1))
        )
        if self.redaction.kind == "none":
            return denormalize_flagged(images, result.flags), result.flags
        return result.images, result.flags

    def check_text_safety(self, prompt: str) -> bool:
        """Pass every prompt unread, and say so once: Cosmos pipelines ask it of their slot; see ``CosmosChecker``."""
        say_prompts_unread(self)
        return True

    def check_video_safety(self, frames: Any) -> Any:
        """Check the frames of a clip, an array ``[F, H, W, C]``, uint8, as Cosmos pipelines ask of their checker.

        Returns:
            The frames, the flagged ones redacted, all of them alike: so nothing flickers.

        Raises:
            ImageError: Frames that cannot be checked.
        """
        refuse_no_clip(frames)
        verdicts = self.check(frames)
        flagged = [index for index, verdict in enumerate(verdicts) if verdict.flagged]
        return redact_alike(frames, flagged, self.redaction, self.passes)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network in place with ``torch.compile``; the rest of a call is no graph."""
        self.classifier.body.compile(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NsfwGuard:
        """Where every move and cast of a module ends: a pinned device or dtype stays what it is."""
        with self.classifier.turns.alone():
            super()._apply(self._placement.for_host(fn, next(self.classifier.parameters())), recurse)
        return self

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        *,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **host: Any,
    ) -> None:
        """Write the checkpoint, its card and the guard's settings to a folder; ``NsfwGuard(folder)`` reads it.

        A pinned device is not saved: the next machine may not have it. Weights are saved in the dtype that they have.
        transformers loads the model alone from the folder.

        Args:
            save_directory: Made if it is not there.
            safe_serialization: There is no other kind: without it, the log says so once.
            variant: ``"fp16"`` writes ``model.fp16.safetensors``.
            max_shard_size: Of one file, such as ``"2GB"``.
            is_main_process: Only this one writes.
            push_to_hub: Also upload it; with ``repo_id`` and what else ``push_to_hub`` takes.
            host: What hosts pass to every component; of no meaning here.

        Raises:
            SettingError: An argument is nearly one of these, and none of them.
        """
        upload = upload_in(host)
        if not safe_serialization:
            say_safetensors_only()
        if not is_main_process:
            return
        save_guard(Path(save_directory), self, self._placement, variant=variant, max_shard_size=max_shard_size)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **upload})

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: str | Path | ModelCard,
        *,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        **given: Any,
    ) -> NsfwGuard:
        """Load a guard that was saved, with its settings, or a new one of any model: as ``NsfwGuard(model, ...)`` does.

        Args:
            model: As there: a folder, a Hub id, a card or its name.
            dtype: A ``torch.dtype`` is what a host casts its components to, and no pinned dtype changes; a name is the
                setting. ``torch_dtype`` is its older name.
            torch_dtype: See ``dtype``.
            given: Other settings; and what hosts pass to every component (``device_map``, …), of no meaning here.

        Raises:
            SettingError: An argument is nearly a setting and none, or a setting is out of its range.
            CheckpointError: A checkpoint that cannot be found, read or trusted.
        """
        settings = settings_in(given, list(inspect.signature(cls).parameters)[1:])
        cast = dtype if dtype is not None else torch_dtype
        if not (cast is None or cast == "auto" or isinstance(cast, torch.dtype)):
            settings["dtype"] = cast
        where = {name: settings.get(name) for name in ("subfolder", "revision")}
        guard = cls(meant_by_host(model, **where), **settings)
        if isinstance(cast, torch.dtype):
            guard.to(cast)
        return guard

    def describe(self) -> dict[str, Any]:
        """Return what the guard is set to, as plain values.

        Model, labels, policy, redaction, views, batch size, what was pinned; the device and dtype of the weights;
        ``preprocess`` and ``forward``: which path each takes there, and why.
        """
        return described(self, self._placement)

    @torch.compiler.disable  # a compiled graph would lose what is written to a thread's own storage
    def _remember(self, verdicts: list[Verdict] | None) -> None:
        self._this_thread.value = verdicts

    def _place(self, images_device: torch.device | None) -> torch.device:
        """Bring the weights to the device of the images, unless it is pinned or a host's hooks decide; return it."""
        return self._placement.bring(self, self.classifier, images_device)


# diffusers records a component under the module that it is from, and a reload finds it only if that module is imported:
# so `import nsfw_guard` is enough.
NsfwGuard.__module__ = "nsfw_guard"
