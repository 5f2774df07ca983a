"""The forward pass on ONNX Runtime: a CPU backend for those who ask for it, in float32 or in int8.

The graph is exported here, from the torch network as it was loaded, compared with it, and kept in a cache.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import platform
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from numpy import isfinite
from torch import Tensor

from .errors import CheckpointError, SettingError
from .onnx_cache import load_or_build
from .onnx_export import INPUT, OUTPUT, adds_up_int8_exactly, export, quantise, torch_logits
from .preprocess import PreprocessSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# How far the logits may be from those of torch in float32: this share of their standard deviation over the check
# images, or as much as the second number, whichever is more. Float32 differs by rounding only. For int8 the share is
# that of bfloat16 in our tests, and twice 0.1 moves a probability by 0.05 at most: a network whose logits hardly differ
# between our check images would otherwise be refused for nothing.
BOUNDS = {"float32": (0.02, 0.001), "int8": (0.25, 0.1)}
SCHEMA = 1
_CHECKED_AT_LOADING = 2
_VERSIONS = ("torch", "onnx", "onnxruntime", "transformers", "timm")
# One export at a time in a process. Of the module, so that guards can be copied and pickled.
_OPENING = threading.RLock()


def parse_settings(device: Any, dtype: Any) -> str:
    """Return the precision of the graph, ``"float32"`` or ``"int8"``, for the guard's settings.

    Raises:
        SettingError: Another dtype, a device that is not the CPU, or the extra is not installed.
    """
    if device is not None and str(device).split(":")[0] != "cpu":
        raise SettingError(
            f'device is {str(device)!r}, and runtime="onnx" computes on the CPU. Leave device out, or take '
            'runtime="torch".'
        )
    precision = "float32" if dtype == "auto" else str(dtype).removeprefix("torch.")
    if precision not in BOUNDS:
        raise SettingError(
            f'dtype is {dtype!r}, which runtime="onnx" does not have; expected "auto" or "float32", or "int8" for '
            'speed. Half precision goes with runtime="torch".'
        )
    _import_extra()
    return precision


def _import_extra() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise SettingError(
            f'runtime is "onnx", and what it needs is not installed ({error}): pip install "nsfw-guard[onnx]". '
            'Without it, leave runtime out or take runtime="torch".'
        ) from error
    return onnxruntime


class _Session:
    """The open graph of this process. Copies share it; what comes out of a pickle is closed and opens itself again."""

    inference: Any = None
    process: int = 0

    def __copy__(self) -> _Session:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _Session:
        return self

    def __reduce__(self) -> tuple[type[_Session], tuple[()]]:
        return _Session, ()


class OnnxForward:
    """Model input to logits, on ONNX Runtime.

    What was exported decides: changing the weights of the torch network afterwards has no effect.

    Args:
        network: As it was loaded, in float32 on the CPU.
        labels: Label names in the order of its outputs.
        spec: Its preprocessing.
        precision: ``"float32"`` or ``"int8"``.

    Raises:
        SettingError: The extra is not installed.
        CheckpointError: The network cannot be exported, or the graph computes something else.
    """

    def __init__(
        self, network: PreTrainedModel, labels: tuple[str, ...], spec: PreprocessSpec, *, precision: str
    ) -> None:
        self.precision = precision
        self._network = network
        self._labels = labels
        self._spec = spec
        self._signed = adds_up_int8_exactly()
        self._weights = _digest(network)
        self._session = _Session()
        self._said_copying = False
        self._open()

    def describe(self) -> dict[str, Any]:
        """Return the precision as ``dtype``, and as ``forward`` which path computes the logits, and why."""
        why = f"runtime='onnx', dtype='{self.precision}'"
        return {"dtype": self.precision, "forward": {"path": f"ONNX Runtime {self.precision}", "why": why}}

    @torch.compiler.disable
    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits ``[V, labels]``, float32, of model inputs ``[V, 3, size, size]``; NaN for non-finite ones.

        Images go through one at a time in int8, because the scales of the activations are those of a whole tensor: no
        image has an influence on another one.

        Raises:
            RuntimeError: ONNX Runtime failed; "not enough memory" where that is why.
        """
        pixels = inputs.detach().to("cpu", torch.float32).contiguous()
        if not len(pixels):
            return inputs.new_empty(0, len(self._labels), dtype=torch.float32)
        logits = self._run(self._opened(), pixels)
        # Rounding to int8 may make numbers of them.
        logits[[not isfinite(image).all() for image in pixels.numpy()]] = torch.nan
        return logits.to(inputs.device)

    def say_copying(self, device: torch.device) -> None:
        """Say once that the model input is on another device than the CPU."""
        if device.type != "cpu" and not self._said_copying:
            self._said_copying = True
            logger.warning(
                'The images are on %s, and runtime="onnx" computes on the CPU: what the model is shown is copied there '
                'at each call. runtime="torch" stays on the device.',
                device,
            )

    def _opened(self) -> Any:
        # The threads of a session do not live on in a forked process.
        if self._session.inference is None or self._session.process != os.getpid():
            self._open()
        return self._session.inference

    def _open(self) -> None:
        with _OPENING:
            if self._session.inference is None or self._session.process != os.getpid():
                self._session.inference = load_or_build(self._key(), build=self._build, load=self._load)
                self._session.process = os.getpid()

    def _key(self) -> str:
        made_of = {
            "weights": self._weights,
            "expected": self._expected(),
            "versions": {name: importlib.import_module(name).__version__ for name in _VERSIONS},
            "machine": platform.machine(),
        }
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:40]

    def _expected(self) -> dict[str, str]:
        """What the graph's own metadata must say: what one has to know to use the file elsewhere."""
        return {
            "nsfw_guard.schema": str(SCHEMA),
            "nsfw_guard.precision": self.precision,
            "nsfw_guard.weights": "float32" if self.precision == "float32" else "int8" if self._signed else "uint8",
            "labels": json.dumps(self._labels),
            "preprocess": json.dumps(_preprocessing(self._spec)),
        }

    def _build(self, path: Path) -> dict[str, Any]:
        """Export to a path, compare with torch, and return the logits of the check images for the next loading."""
        import onnx

        if _digest(self._network) != self._weights:
            # The cache is everybody's: under the key of the checkpoint there must be nothing else.
            raise CheckpointError(
                "The weights of the network were changed after it was loaded, and its graph on ONNX Runtime has to be "
                "exported again. Save the network and make a new guard of the folder."
            )
        logger.info("Exporting the network to ONNX, %s; this is done once.", self.precision)
        inputs = check_inputs(self._spec)
        try:
            reference = torch_logits(self._network, inputs)
            export(self._network, self._spec.size, path)
            model = onnx.load(str(path))
            steps = ["float32"] if self.precision == "float32" else ["float32", "int8"]
            for precision in steps:
                if precision == "int8":
                    quantise(model.graph, signed=self._signed)
                onnx.helper.set_model_props(model, self._expected())
                onnx.save(model, str(path))
                session = self._start(path)
                self._compare(session, inputs, reference, precision, reference)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f'The network cannot be exported to ONNX: {error}\nTake runtime="torch" for this checkpoint.'
            ) from error
        return {"reference": reference.tolist()}

    def _load(self, path: Path, record: dict[str, Any]) -> Any:
        """Open a graph that was exported before, and look at it: what it says of itself and what it computes here."""
        session = self._start(path)
        said = session.get_modelmeta().custom_metadata_map
        if said != self._expected():
            raise ValueError(f"{path} is of another model: it says {said}.")
        reference = torch.tensor(record["reference"])
        inputs = check_inputs(self._spec)[:_CHECKED_AT_LOADING]
        self._compare(session, inputs, reference[:_CHECKED_AT_LOADING], self.precision, reference)
        return session

    def _start(self, path: Path) -> Any:
        onnxruntime = _import_extra()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; of this session only
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        size, labels = self._spec.size, len(self._labels)
        shapes = [[*end.shape[1:]] for end in (*session.get_inputs(), *session.get_outputs())]
        if shapes != [[3, size, size], [labels]]:
            raise ValueError(f"{path} maps {shapes[:1]} to {shapes[1:]}; expected {[3, size, size]} to {[labels]}.")
        return session

    def _run(self, session: Any, pixels: Tensor) -> Tensor:
        parts = pixels.split(1 if self.precision == "int8" else len(pixels))
        try:
            return torch.cat([torch.from_numpy(session.run([OUTPUT], {INPUT: part.numpy()})[0]) for part in parts])
        except Exception as error:
            # ONNX Runtime's own errors are no RuntimeErrors, and the guard halves its batches at these words.
            words = "not enough memory for" if "alloc" in str(error).lower() else "failed in"
            raise RuntimeError(f"{words} the forward pass on ONNX Runtime: {error}") from error

    def _compare(self, session: Any, inputs: Tensor, expected: Tensor, precision: str, spread_of: Tensor) -> None:
        """Refuse a graph whose logits are not those of torch, for a batch and for a single image."""
        share, least = BOUNDS[precision]
        limit = (share * spread_of.std(dim=0)).clamp(min=least)
        got = torch.cat([self._run(session, inputs), self._run(session, inputs[:1])])
        off = (got - torch.cat([expected, expected[:1]])).abs()
        if not (off <= limit).all():  # NaN is not
            raise CheckpointError(
                f"The {precision} graph on ONNX Runtime does not compute what the checkpoint does: its logits are off "
                f"by up to {(off / limit).max():.2f} times the bound, which is {share:.0%} of their standard deviation "
                f"over {len(spread_of)} check images, or {least} where that is more. "
                + ('Take dtype="float32", or runtime="torch".' if precision == "int8" else 'Take runtime="torch".')
            )


def check_inputs(spec: PreprocessSpec) -> Tensor:
    """Return the model input of eight check images, ``[8, 3, size, size]``: fields of colours, from one to noise."""
    generator = torch.Generator().manual_seed(0)
    fields = []
    for side in (1, 2, 3, 5, 8, 16, 48, spec.size):
        colors = torch.rand(1, 3, side, side, generator=generator, dtype=torch.float32, device="cpu")
        fields.append(F.interpolate(colors, size=(spec.size, spec.size), mode="bilinear"))
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1) for values in (spec.mean, spec.std)
    )
    return (torch.cat(fields) - mean) / std


def _preprocessing(spec: PreprocessSpec) -> dict[str, Any]:
    names = ("size", "resize", "interpolation", "crop_pct", "mean", "std")
    return {name: getattr(spec, name) for name in names}


def _digest(network: PreTrainedModel) -> str:
    """Hash of the weights and of the config that says what to compute with them."""
    config = network.config.to_dict()
    config.pop("_name_or_path", None)  # the same checkpoint elsewhere is the same checkpoint
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weights in sorted(network.state_dict().items()):
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
