"""A classifier in ComfyUI's hands: its memory management, progress and interruption."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from nsfw_guard.classifier import Classifier, stored_dtype
from nsfw_guard.errors import ImageError, SettingError
from nsfw_guard.images import ImageBatch, read_images
from nsfw_guard.placement import fastest_dtype
from nsfw_guard.policy import Policy
from nsfw_guard.preprocess import ViewBatch
from nsfw_guard.redact import Judge
from nsfw_guard.verdict import Scores

from . import checkpoints

DEVICES = ("auto", "cpu")
PRECISIONS = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Images between two looks at the interrupt button.
CHUNK = 16
# What a view needs while it is classified, in times the size of its input: at most 28 with the architectures of the
# public models, in float32 on a CPU.
_ACTIVATIONS = 32


@dataclass(frozen=True)
class WireScores(Scores):
    """Scores that say what loads their classifier: the value of the wire type ``NSFWG_SCORES``, plain data.

    Attributes:
        checkpoint: As ``checkpoints.installed()`` names it.
        device: One of ``DEVICES``.
        precision: One of ``PRECISIONS``.
    """

    checkpoint: str
    device: str
    precision: str

    def judge(self, policy: Policy) -> Judge:
        """Return what looks at a redaction by the same classifier, loaded when it is asked."""
        return lambda batch: load(self.checkpoint, device=self.device, precision=self.precision).passes(batch, policy)


class LoadedClassifier:
    """A classifier and its model patcher, the value of the wire type ``NSFWG_CLASSIFIER``.

    Args:
        name: A checkpoint, as ``checkpoints.installed()`` names it.
        device: ``"auto"``, ComfyUI's own, or ``"cpu"``.
        precision: One of ``PRECISIONS``.

    Raises:
        CheckpointError: A checkpoint that cannot be found, read or trusted.
        SettingError: Labels that no card maps, or a setting that there is not.
    """

    def __init__(self, name: str, *, device: str = "auto", precision: str = "auto") -> None:
        if device not in DEVICES or precision not in PRECISIONS:
            raise SettingError(
                f"device is {device!r} and precision {precision!r}; expected one of {DEVICES}, and one of "
                f"{list(PRECISIONS)}."
            )
        cpu = torch.device("cpu")
        on_cpu = device == "cpu"
        load_device = cpu if on_cpu else comfy.model_management.get_torch_device()
        offload_device = cpu if on_cpu else comfy.model_management.unet_offload_device()
        folder, card = checkpoints.find(name)
        self.name, self.device, self.precision = name, device, precision
        self._serial = next(_SERIALS)
        # No CUDA graphs: they would read weights that ComfyUI's memory management has moved away underneath.
        runtime = "auto" if load_device.type == "cpu" else "torch"
        with checkpoints.naming(name, folder):
            dtype = PRECISIONS[precision] or fastest_dtype(load_device, stored_dtype(folder))
            self.classifier = Classifier.load(folder, card, dtype=dtype, runtime=runtime)
        self.classifier.requires_grad_(False)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.classifier, load_device=load_device, offload_device=offload_device
        )

    @property
    def card(self) -> Any:
        """The card of the model."""
        return self.classifier.card

    def score(self, images: Tensor, indices: list[int] | None = None, *, node_id: str | None = None) -> WireScores:
        """Classify a batch, in chunks, with a progress bar, until the user interrupts.

        What was classified before is remembered: another threshold or action runs no classifier again. By its content,
        for other nodes are known to write into images that they were given.

        Args:
            images: ComfyUI's ``[B, H, W, C]``. Values outside of [0, 1] are looked at clamped, as ComfyUI does when it
                saves, and from the least to the greatest one; so are images that span little of it.
            indices: Of the images to look at; ``None`` for all.
            node_id: Whose progress it is.

        Raises:
            ImageError: It is no such batch.
        """
        check_images(images)
        count = len(images) if indices is None else len(indices)
        progress = None
        parts = []
        for start in range(0, count, CHUNK):
            comfy.model_management.throw_exception_if_processing_interrupted()
            some = slice(start, start + CHUNK)
            chunk = images[some if indices is None else indices[some]]
            key = (self._serial, tuple(chunk.shape), chunk.dtype, _digest(chunk))
            if key not in _SCORED:
                if progress is None:
                    self._begin()
                    progress = comfy.utils.ProgressBar(count, node_id=node_id)
                shown = chunk.float() if chunk.dtype == torch.bool else chunk
                _SCORED[key] = self._score(read_images(shown.movedim(-1, 1), clamp=True, stretch=True))
                while len(_SCORED) > _MOST_SCORED:
                    del _SCORED[next(iter(_SCORED))]
            parts.append(_SCORED[key])
            if progress is not None:
                progress.update_absolute(min(start + CHUNK, count))
        return self._wired(parts)

    def look(self, batch: ImageBatch) -> WireScores:
        """Classify images of any kind that the core reads, in chunks, until the user interrupts."""
        self._begin()
        parts = []
        for start in range(0, len(batch.items), CHUNK):
            comfy.model_management.throw_exception_if_processing_interrupted()
            parts.append(self._score(ImageBatch(None, batch.items[start : start + CHUNK])))
        return self._wired(parts)

    def passes(self, batch: ImageBatch, policy: Policy) -> list[bool]:
        """Tell for each image of a batch whether it is not flagged, with room to spare; see ``Policy.with_room``."""
        if not len(batch):
            return []
        self._begin()
        passed, stricter = [], policy.with_room()
        for start in range(0, len(batch.items), CHUNK):
            comfy.model_management.throw_exception_if_processing_interrupted()
            part = ImageBatch(None, batch.items[start : start + CHUNK])
            passed += [not verdict.flagged for verdict in stricter.decide(self._score(part))]
        return passed

    def _wired(self, parts: list[Scores]) -> WireScores:
        return WireScores(
            self.classifier.scored_as,
            self.classifier.labels,
            tuple(image for part in parts for image in part.probabilities),
            tuple(problem for part in parts for problem in part.problems),
            self.name,
            self.device,
            self.precision,
        )

    def _begin(self) -> None:
        """Have ComfyUI bring the weights to where they compute."""
        size = self.classifier.preprocess.size
        needed = CHUNK * 3 * size * size * 4 * _ACTIVATIONS
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)

    def _score(self, batch: ImageBatch) -> Scores:
        with torch.no_grad():
            views = ViewBatch(batch, self.classifier.preprocess)
            return self.classifier.score(views, device=self.patcher.load_device, batch_size=CHUNK)


def check_images(images: Any) -> None:
    """Refuse what is no batch of images.

    Raises:
        ImageError: With what it is.
    """
    if not isinstance(images, Tensor):
        raise ImageError(f"The input is a {type(images).__name__}; expected an IMAGE.")
    if images.ndim == 3:
        raise ImageError(
            f"The input has the shape {tuple(images.shape)}, which is a MASK; expected an IMAGE [B, H, W, C]. "
            'Put "Convert Mask to Image" between.'
        )
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or not images.numel():
        raise ImageError(
            f"The input has the shape {tuple(images.shape)}; expected an IMAGE [B, H, W, C] of at least one image, "
            "with 1, 3 or 4 channels."
        )
    if not (images.is_floating_point() or images.dtype == torch.bool):  # nodes disagree whether 1 is white, or 255 is
        raise ImageError(f"The input has the dtype {images.dtype}; expected floating point, in [0, 1].")


def _digest(images: Tensor) -> bytes:
    flat = images.detach().cpu().reshape(-1).contiguous()
    return hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).digest()


# Of this process: a node may be asked again and again for what it has loaded. A class's own attributes are locked.
_LOADED: dict[tuple[Any, ...], LoadedClassifier] = {}
_MOST_LOADED = 2
# By classifier and content of a chunk; a few hundred bytes each.
_SCORED: dict[tuple[Any, ...], Scores] = {}
_MOST_SCORED = 4096
_SERIALS = itertools.count()


def load(name: str | None = None, *, device: str = "auto", precision: str = "auto") -> LoadedClassifier:
    """Return a classifier, loaded once for as long as its file stays the same.

    Args:
        name: A checkpoint; ``None`` for the default one.
        device: As for ``LoadedClassifier``.
        precision: Likewise.
    """
    name = name or checkpoints.default()
    key = (checkpoints.stamp(name), device, precision)
    if key not in _LOADED:
        loaded = LoadedClassifier(name, device=device, precision=precision)
        while len(_LOADED) >= _MOST_LOADED:
            del _LOADED[next(iter(_LOADED))]
        _LOADED[key] = loaded
    return _LOADED[key]


def given_or_default(given: Any) -> LoadedClassifier:
    """Return the classifier that is linked, or without one the default one; see ``checkpoints.default``.

    Raises:
        SettingError: What is linked is none.
        CheckpointError: There is no default one.
    """
    if given is None:
        return load()
    if not isinstance(given, LoadedClassifier):
        raise SettingError(f"classifier is a {type(given).__name__}; expected what Load NSFW Classifier puts out.")
    return given
