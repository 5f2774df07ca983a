"""NsfwGuard: from an image tensor to images that may be shown."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from .cards import ModelCard, policy_for
from .checkpoint import SAVED_FILE, find_checkpoint, read_saved
from .classifier import Classifier, stored_dtype
from .clips import redact_alike
from .cosmos import say_prompts_unread
from .errors import ImageError, SettingError
from .images import ImageBatch, read_images
from .placement import execution_device, fastest_dtype, fire_hook, is_hooked, parse_device, parse_dtype, parse_runtime
from .policy import Policy
from .preprocess import VIEWS, ViewBatch, kernels
from .redact import Redaction, denormalize_flagged, redact_flagged
from .verdict import GuardResult, Scores, Verdict

logger = logging.getLogger(__name__)

_REPLACEMENT_FILE = "replacement.png"
# Moving the weights of a guard that threads share: one at a time. Of the module, so that guards can be copied and
# pickled.
_MOVING = threading.RLock()


class _PerThread(threading.local):
    """Values of one thread. A copy of it, or what comes out of a pickle, is empty."""

    verdicts: list[Verdict] | None = None

    def __reduce__(self) -> tuple[type[_PerThread], tuple[()]]:
        return _PerThread, ()


class NsfwGuardConfig(PretrainedConfig):
    """Makes the guard a transformers model, the one kind of component that every diffusers pipeline call can handle."""

    model_type = "nsfw_guard"


class NsfwGuard(PreTrainedModel):
    """A drop-in safety checker: classifies images where they are, and redacts those that it flags.

    Args:
        model: A card or its name (default ``"freepik"``), a Hub id (``org/name``), or a checkpoint folder.
        policy: A preset of the card (``"strict"``, ``"balanced"``, ``"permissive"``, …), a ``Policy`` of your own
            numbers, or ``None`` for ``"balanced"``.
        redaction: A ``Redaction`` or the name of a kind: ``"blur"``, ``"pixelate"``, ``"fill"``, ``"none"``.
        device: Where to classify; ``None`` follows the images.
        dtype: ``"auto"`` takes the checkpoint's own or a faster one that the device runs natively, and follows
            ``pipe.to(dtype)``; a dtype stays what it is.
        views: ``"auto"`` shows the model every part of an image; ``"card"`` only what the card's own preprocessing
            shows.
        revision: A Hub revision instead of the card's own.
        card: The card of a folder or Hub id that has none: a ``ModelCard`` or the name of one.
        batch_size: Most views in one forward pass; halved by itself when memory runs out.
        runtime: ``"auto"`` runs the network the fastest way that PyTorch has for the device; ``"torch"`` is its own
            eager forward; ``"onnx"`` is ONNX Runtime on the CPU, in float32 or with ``dtype="int8"``.
        local_files_only: Never ask the Hub.

    Raises:
        SettingError: An unknown card or preset, or a setting out of its range.
        CheckpointError: A checkpoint that cannot be found, read or trusted.
    """

    config_class = NsfwGuardConfig
    main_input_name = "images"

    def __init__(
        self,
        model: str | Path | ModelCard | None = None,
        *,
        policy: str | Policy | None = None,
        redaction: str | Redaction = "blur",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        views: str = "auto",
        revision: str | None = None,
        card: str | ModelCard | None = None,
        batch_size: int = 16,
        runtime: str = "auto",
        local_files_only: bool = False,
    ) -> None:
        super().__init__(NsfwGuardConfig())
        if views not in VIEWS:
            raise SettingError(f'views is {views!r}; expected "auto" or "card".')
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise SettingError(f"batch_size is {batch_size!r}; expected a whole number of at least 1.")
        self.redaction = Redaction.parse(redaction)
        self.views = views
        self.batch_size = batch_size
        self._precision, device, dtype = parse_runtime(runtime, device, dtype)
        self._pinned_device = parse_device(device)
        self._pinned_dtype = parse_dtype(dtype)
        self._this_thread = _PerThread()
        folder, card = find_checkpoint(model, card=card, revision=revision, local_files_only=local_files_only)
        self.policy = policy_for(card, policy)
        self._stored_dtype = stored_dtype(folder)
        # Whether the dtype may still follow the device: until a host casts the guard.
        self._dtype_follows_device = self._pinned_dtype is None
        start = self._pinned_device or torch.device("cpu")
        loaded_as = self._pinned_dtype or fastest_dtype(start, self._stored_dtype)
        self.classifier = Classifier.load(folder, card, dtype=loaded_as, runtime=runtime, onnx=self._precision)
        self.requires_grad_(False)
        self.eval()
        self._place(start)

    @property
    def card(self) -> ModelCard:
        """The card of the model."""
        return self.classifier.card

    @property
    def last_verdicts(self) -> list[Verdict] | None:
        """The verdicts of this thread's last call; ``None`` before the first one, and after one that failed."""
        return self._this_thread.verdicts

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
        return self.classifier.score(views, device=self._place(batch.device), batch_size=self.batch_size)

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
        verdicts = self.check(frames)
        flagged = [index for index, verdict in enumerate(verdicts) if verdict.flagged]
        return redact_alike(frames, flagged, self.redaction, self.passes)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network in place with ``torch.compile``; the rest of a call is no graph."""
        self.classifier.body.compile(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> NsfwGuard:
        """Where every move and cast of a module ends: a pinned device or dtype stays what it is."""
        if fn(torch.empty(0, dtype=torch.float64)).dtype != torch.float64:
            self._dtype_follows_device = False

        def unless_pinned(tensor: Tensor) -> Tensor:
            new = fn(tensor.new_empty(0))
            device = new.device if self._pinned_device is None else tensor.device
            dtype = new.dtype if self._pinned_dtype is None or not tensor.is_floating_point() else tensor.dtype
            unchanged = (new.device, new.dtype) == (device, dtype)
            return fn(tensor) if unchanged else tensor.to(device, dtype)

        super()._apply(unless_pinned, recurse)
        return self

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True) -> None:
        """Write the checkpoint, its card and the guard's settings to a folder; ``NsfwGuard.from_pretrained`` reads it.

        A pinned device is not saved: the next machine may not have it. Weights are saved in the dtype that they are in.
        The folder is also an ordinary checkpoint: transformers and ``NsfwGuard(folder)`` load the model alone.

        Args:
            save_directory: Made if it is not there.
            safe_serialization: There is no other kind.

        Raises:
            SettingError: ``safe_serialization`` is off.
        """
        if not safe_serialization:
            raise SettingError("safe_serialization is off; a guard is saved as safetensors only.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.classifier.network.save_pretrained(folder)
        redaction = {name: getattr(self.redaction, name) for name in ("kind", "cells", "verify", "color", "fit")}
        if self.redaction.image is not None:
            self.redaction.image.save(folder / _REPLACEMENT_FILE)
            redaction["image"] = _REPLACEMENT_FILE
        settings = {
            "policy": self.policy.to_dict(),
            "redaction": redaction,
            "views": self.views,
            "batch_size": self.batch_size,
            "dtype": self._precision or ("auto" if self._pinned_dtype is None else str(self._pinned_dtype)),
            "runtime": self.classifier.forward_path.runtime,
        }
        saved = {"card": self.card.to_dict(), "guard": settings}
        (folder / SAVED_FILE).write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        **host: Any,
    ) -> NsfwGuard:
        """Load a guard that ``save_pretrained`` wrote, with its settings.

        Args:
            folder: Where it was written.
            dtype: What a host casts its components to; a guard with a pinned dtype keeps that.
            torch_dtype: The same, by its older name.
            host: What diffusers passes to every component (``device_map``, ``variant``, …); of no meaning here.

        Raises:
            CheckpointError: The folder holds no saved guard.
        """
        folder = Path(folder)
        saved = read_saved(folder)
        settings = dict(saved["guard"])
        redaction = dict(settings.pop("redaction"))
        if "image" in redaction:
            redaction["image"] = folder / redaction["image"]
        guard = cls(
            folder,
            card=ModelCard.from_dict(saved["card"], source=str(folder / SAVED_FILE)),
            policy=Policy(**settings.pop("policy")),
            redaction=Redaction(**redaction),
            **settings,
        )
        cast = dtype if dtype is not None else torch_dtype
        if isinstance(cast, torch.dtype):
            guard.to(cast)
        return guard

    def describe(self) -> dict[str, Any]:
        """Return what the guard is set to, as plain values.

        Model, labels, policy, redaction, views, device, dtype; ``preprocess`` and ``forward``: which path each takes
        there, and why.
        """
        weights = next(self.parameters())
        device, dtype = execution_device(self), self.classifier.dtype
        path, why = self.classifier.forward_path.describe(self.classifier.body, device, dtype)
        return {
            "model": self.classifier.scored_as.identity,
            "labels": {label: self.card.levels[label].name.lower() for label in self.classifier.labels},
            "policy": {"level": self.policy.level.name.lower(), "threshold": self.policy.threshold},
            "redaction": self.redaction.kind,
            "views": self.views,
            "device": str(weights.device),
            "dtype": str(weights.dtype),
            "preprocess": kernels(device)[1],
            "forward": {"path": path, "why": why},
            **(self.classifier.onnx.describe() if self.classifier.onnx else {}),
        }

    @torch.compiler.disable  # a compiled graph would lose what is written to a thread's own storage
    def _remember(self, verdicts: list[Verdict] | None) -> None:
        self._this_thread.verdicts = verdicts

    def _place(self, images_device: torch.device | None) -> torch.device:
        """Bring the weights to the device of the images, unless it is pinned or a host's hooks decide; return it."""
        if is_hooked(self):
            fire_hook(self)
            return self._pinned_device or images_device or execution_device(self)
        device = self._pinned_device or images_device
        if device is None:
            return execution_device(self)
        with _MOVING:
            dtype = fastest_dtype(device, self._stored_dtype) if self._dtype_follows_device else None
            weights = next(self.classifier.parameters())
            if weights.device != device or (dtype is not None and weights.dtype != dtype):
                self.classifier.to(device=device, dtype=dtype)  # past the guard's own _apply: this is no host's wish
        return device


# diffusers records a component under the module that it is from, and a reload finds it only if that module is imported:
# so `import nsfw_guard` is enough.
NsfwGuard.__module__ = "nsfw_guard"
