"""A checkpoint, loaded: model input in, probabilities out."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .cards import ModelCard
from .checkpoint import SAVED, labels_of, read_config
from .errors import CheckpointError
from .forward import Forward, body_of, logits_of
from .placement import out_of_memory
from .preprocess import ViewBatch
from .turns import Turns
from .verdict import Scores
from .weights import find_weights

if TYPE_CHECKING:
    from .images import ImageBatch
    from .onnx_runtime import OnnxForward

# transformers renamed the argument in 4.56.
_DTYPE = "dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype"


class Classifier(nn.Module):
    """An image classifier with its card.

    Attributes:
        network: The model as transformers loaded it.
        forward_path: How the network is run.
        card: Its card; every label of the model is in ``card.levels`` and the other way round.
        scored_as: The card that scores carry, for verdicts: without a commit where the weights need not be its.
        preprocess: The card's preprocessing, which is there once a checkpoint is found.
        labels: Label names in the order of the outputs.
        folder: Where the checkpoint is; ``None`` if the network is from somewhere else.
        onnx: What computes the logits instead of the network; ``None``: the network does.
        turns: Who may use the weights: calls at once, a move or cast alone.
    """

    def __init__(
        self, network: transformers.PreTrainedModel, card: ModelCard, labels: tuple[str, ...], *, runtime: str = "auto"
    ) -> None:
        super().__init__()
        if set(labels) != set(card.levels):
            raise CheckpointError(
                f"The checkpoint has the labels {list(labels)}, and the card {card.name!r} is about "
                f"{list(card.levels)}; expected the same names. Take another card, or write one: "
                "ModelCard(name=..., levels={label: level, ...})."
            )
        if card.preprocess is None:
            raise CheckpointError(f"The card {card.name!r} does not say how its model wants its pictures.")
        self.network = network.eval()
        self.forward_path = Forward(runtime)
        self.preprocess = card.preprocess
        self.card = self.scored_as = card
        self.labels = labels
        self.folder: Path | None = None
        self.onnx: OnnxForward | None = None
        self.turns = Turns()

    def __deepcopy__(self, memo: dict[int, Any]) -> Classifier:
        """Copy it between moves and casts: during one, some weights have the new dtype and others the old one."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        with self.turns.shared(lambda: None):
            copied.__setstate__({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return it for a pickle, which is written after this returns, with the weights as they are now."""
        with self.turns.shared(lambda: None):
            held: dict[int, Any] = {id(one): nn.Parameter(one.detach(), one.requires_grad) for one in self.parameters()}
            held.update((id(one), one.detach()) for one in self.buffers())
            return vars(copy.deepcopy(self, held))

    @classmethod
    def load(
        cls,
        folder: Path,
        card: ModelCard,
        *,
        dtype: torch.dtype,
        runtime: str = "auto",
        onnx: str | None = None,
        variant: str | None = None,
    ) -> Classifier:
        """Load a checkpoint folder in any of its three formats: transformers, transformers' timm wrapper, plain timm.

        Args:
            folder: With ``config.json`` and safetensors.
            card: The card of the model, preprocessing included.
            dtype: Of the weights in memory.
            runtime: See ``Forward``.
            onnx: ``"float32"`` or ``"int8"``, to compute on ONNX Runtime in that precision; the dtype is float32 then.
            variant: Which of several weights; see ``find_weights``.

        Raises:
            CheckpointError: Weights that are broken, non-finite, missing, surplus or of another shape than the config
                says; a config that transformers cannot read; labels that are not the card's; an export to ONNX that
                fails or computes something else.
        """
        weights = find_weights(folder, variant)
        labels = labels_of(read_config(folder), folder)
        try:
            # Older releases of transformers draw random weights first; the process's random numbers are the user's.
            with torch.random.fork_rng(devices=[]), _NothingToInitialise():
                # All three formats are read by this one call; it maps the file and converts older tensor names.
                network, report = transformers.AutoModelForImageClassification.from_pretrained(
                    folder,
                    output_loading_info=True,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    variant=weights.variant,
                    **{_DTYPE: dtype},
                )
        except Exception as error:
            raise CheckpointError(f"The checkpoint in {folder} cannot be loaded: {error}") from error
        wrong = {
            "missing": report["missing_keys"],
            "surplus": report["unexpected_keys"],
            "misshapen": report["mismatched_keys"],
            "unreadable": report.get("error_msgs", ()),
        }
        found = "; ".join(f"{kind}: {', '.join(sorted(map(str, keys)))[:300]}" for kind, keys in wrong.items() if keys)
        if found:
            raise CheckpointError(
                f"The weights in {folder} do not fit its config.json: {found}. A classifier with such weights would "
                "decide at random; fetch the checkpoint again, or save it with save_pretrained of the model that it is."
            )
        for name, weights in network.named_parameters():
            if not torch.isfinite(torch.stack(weights.detach().aminmax())).all():
                raise CheckpointError(f"The weights in {folder} are broken: {name} holds NaN or infinite values.")
        vars(network.config).pop(SAVED, None)  # the settings of a guard are not the network's
        classifier = cls(network, card, labels, runtime=runtime)
        classifier.folder = folder
        if card.revision not in folder.parts:  # no snapshot in the Hub's cache: a folder that anybody may have changed
            classifier.scored_as = replace(card, revision=None)
        if onnx is not None:
            from .onnx_runtime import OnnxForward

            classifier.onnx = OnnxForward(network, labels, classifier.preprocess, precision=onnx)
        return classifier

    @property
    def body(self) -> nn.Module:
        """What is called of the network; see ``forward.body_of``."""
        return body_of(self.network)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits ``[V, labels]`` of model inputs ``[V, 3, size, size]`` of the weights' device and dtype."""
        logits = logits_of(self.network, inputs) if self.onnx is None else self.onnx(inputs)
        if logits.shape != (len(inputs), len(self.labels)):
            raise CheckpointError(
                f"The model gave logits of the shape {tuple(logits.shape)}; "
                f"expected one for each of {list(self.labels)}."
            )
        return logits

    def probabilities(self, inputs: Tensor) -> Tensor:
        """Return ``[V, labels]`` in float32: the softmax, over the labels, of the logits of ``[V, 3, size, size]``.

        By the fastest path that there is; see ``forward``.
        """
        return self.forward_path(self.body, self._softmax, inputs.to(self.dtype))

    def _softmax(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            logits: Tensor = self(inputs)
        return logits.to(torch.float32).softmax(dim=-1)

    def _apply(self, fn: Any, recurse: bool = True) -> Classifier:
        """Where every move and cast of a module ends: it waits for the calls of other threads."""
        with self.turns.alone():
            super()._apply(fn, recurse)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        dtype: torch.dtype = next(p.dtype for p in self.network.parameters() if p.is_floating_point())
        return dtype

    def score(self, views: ViewBatch, *, device: torch.device, batch_size: int) -> Scores:
        """Classify all views, at most ``batch_size`` at a time; half as many, and again, when memory runs out.

        Args:
            views: What to look at.
            device: Where the weights compute.
            batch_size: Most views in one forward pass.

        Raises:
            ImageError: An image has values outside its declared range, or cannot be decoded.
        """
        total, start = len(views.images.owners), 0
        probabilities: list[Tensor] = []
        extents: list[Tensor] = []
        counts: list[int] = []
        while start < total:
            stop = min(start + batch_size, total)
            try:
                inputs, extent, count = views.load(start, stop)
                if self.onnx is not None:
                    self.onnx.say_copying(inputs.device)
                scored = [self.probabilities(part.to(device)) for part in inputs.split(batch_size) if len(part)]
            except RuntimeError as error:
                if batch_size == 1 or not out_of_memory(error):
                    raise
                batch_size //= 2
                continue
            probabilities += scored
            extents.append(extent.to(device))
            counts += count
            start = stop
        return self.to_scores(views.images, probabilities, extents, counts)

    def to_scores(
        self, images: ImageBatch, probabilities: list[Tensor], extents: list[Tensor], counts: list[int]
    ) -> Scores:
        """Bring the numbers to the host, in one transfer, and put them together.

        Args:
            images: What was looked at.
            probabilities: Of the views of the frames, in order, each ``[V, labels]``, on one device.
            extents: Of the frames, each ``[N, 2]``, there too.
            counts: How many views each frame has.

        Raises:
            ImageError: An image has values outside its declared range.
        """
        total = len(counts)
        # One transfer for everything: on a GPU each one waits for the device.
        flat = torch.cat([tensor.flatten() for tensor in (*extents, *probabilities)]).tolist() if total else []
        extent_rows = [flat[2 * frame : 2 * frame + 2] for frame in range(total)]
        images.refuse_out_of_range(extent_rows)
        width, at = len(self.labels), 2 * total
        rows = [tuple(flat[at + width * view : at + width * (view + 1)]) for view in range(sum(counts))]
        return self._scores(images, rows, counts, extent_rows)

    def _scores(
        self, batch: ImageBatch, rows: list[tuple[float, ...]], counts: list[int], extents: list[list[float]]
    ) -> Scores:
        """Put the views of each frame, and the frames of each image, together."""
        images: list[list[tuple[float, ...]]] = [[] for _ in range(len(batch))]
        problems: list[str | None] = [None] * len(images)
        remaining = iter(rows)
        for owner, count, extent in zip(batch.owners, counts, extents, strict=True):
            images[owner] += islice(remaining, count)
            if not all(map(math.isfinite, extent)):
                problems[owner] = "non_finite"
            elif not count:
                problems[owner] = problems[owner] or "too_long"
        return Scores(self.scored_as, self.labels, tuple(map(tuple, images)), tuple(problems))


class _NothingToInitialise(TorchFunctionMode):
    """Within it, nothing is done to values of tensors on the meta device, which have none.

    Libraries build a network there before the checkpoint's weights take the place of its own, and initialising those
    takes longer than everything else.
    """

    _INITIALISING = frozenset(
        ["uniform_", "normal_", "erfinv_", "mul_", "add_", "sub_", "div_", "clamp_", "zero_", "fill_"]
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch.nn.init's own functions are looked at as a whole: within them this mode is off.
        home, name = getattr(func, "__module__", ""), getattr(func, "__name__", "")
        tensor = args[0] if args else (kwargs or {}).get("tensor")
        if (name in self._INITIALISING or home == "torch.nn.init") and getattr(tensor, "is_meta", False):
            return tensor
        return func(*args, **(kwargs or {}))


def stored_dtype(folder: Path, variant: str | None = None) -> torch.dtype:
    """Return the dtype of the weights on disk, from the file's header.

    Raises:
        CheckpointError: The file is no safetensors file.
    """
    path = find_weights(folder, variant).files[0]
    try:
        with safe_open(path, framework="pt") as file:
            names = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: {error}. Fetch it again: it may be truncated, or a pickle "
            "by another name."
        ) from error
    return torch.bfloat16 if names == {"BF16"} else torch.float16 if names == {"F16"} else torch.float32
