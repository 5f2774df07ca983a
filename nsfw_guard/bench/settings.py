"""What to measure: models, sizes, batches, dtypes, peers, and how long."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import SettingError
from ..placement import parse_device, parse_dtype
from ..redact import KINDS, Redaction

MODELS = ("falconsai", "marqo", "freepik")
SIZES = ("1024x1024", "1344x768")
ONNX, INT8 = "onnx", "onnx-int8"
RUNTIMES = ("auto", "torch", ONNX, INT8)
PEERS = ("stock", "pipeline", "recipe")
WEIGHTS = ("random", "real")
# The ViT-B whose float32 is measured too, and which gets the one large image, when no option says otherwise.
VIT_B = "falconsai"
LARGE = (4096, 4096)
_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class Workload:
    """One kind of batch.

    Attributes:
        width: Of the images, in pixels.
        height: Of the images, in pixels.
        batch: How many images there are.
        flagged: How many of them are to be flagged.
        large: Whether this is the one large image on which only the guard and the bare forward of one model run.
    """

    width: int
    height: int
    batch: int
    flagged: int
    large: bool = False

    @property
    def label(self) -> str:
        """Width, height and batch, for people."""
        return f"{self.width}x{self.height}, {self.batch} {'image' if self.batch == 1 else 'images'}"


@dataclass(frozen=True)
class BenchSettings:
    """The options of the benchmark; an empty one stands for its default.

    Attributes:
        models: Cards, checkpoint folders or Hub ids.
        sizes: Width and height of the images, such as ``"1344x768"``; the first one is measured at every batch size.
        batches: Batch sizes; the first one is measured at every size.
        dtypes: ``"auto"``, ``"float32"``, ``"bfloat16"``, ``"float16"``. By default ``auto``, and float32 for the
            ViT-B.
        device: Where everything runs; by default the GPU if there is one.
        flagged: Share of the images that are flagged, in [0, 1].
        redaction: What becomes of those.
        rounds: Most rounds over all cases.
        minutes: When no further round is begun.
        peers: Of ``PEERS``, or ``"none"``; by default all that are installed.
        runtimes: What ``NsfwGuard(runtime=...)`` is given, or ``"onnx-int8"`` for the dtype int8 of ``"onnx"``.
        weights: ``"random"`` weights at the architectures of the cards, or the ``"real"`` ones from the Hub.
        cache: Where random checkpoints are written and found again; by default a temporary folder.

    Raises:
        SettingError: A value is none of its choices, or out of its range.
    """

    models: Sequence[str] = ()
    sizes: Sequence[str] = ()
    batches: Sequence[int] = ()
    dtypes: Sequence[str] = ()
    device: str | None = None
    flagged: float = 0.25
    redaction: str = "blur"
    rounds: int = 5
    minutes: float = 4.0
    peers: Sequence[str] = ()
    runtimes: Sequence[str] = ()
    weights: str = "random"
    cache: Path | None = None

    def __post_init__(self) -> None:
        for size in self.sizes:
            parse_size(size)
        for dtype in self.dtypes:
            parse_dtype(dtype)
        for batch in self.batches:
            if batch < 1:
                raise SettingError(f"batch is {batch}; expected a whole number of at least 1.")
        if not 0 <= self.flagged <= 1:
            raise SettingError(f"flagged is {self.flagged!r}; expected a share in [0, 1], such as 0.25.")
        if self.redaction not in KINDS or self.redaction == "replace":
            raise SettingError(f"redaction is {self.redaction!r}; expected blur, pixelate, fill or none.")
        Redaction.parse(self.redaction)
        if self.rounds < 1 or not (math.isfinite(self.minutes) and self.minutes > 0):
            raise SettingError(
                f"rounds is {self.rounds} and minutes {self.minutes}; expected at least 1 and more than 0."
            )
        unknown = [peer for peer in self.peers if peer not in (*PEERS, "none")]
        if unknown:
            raise SettingError(f"peer is {unknown[0]!r}; expected one of {', '.join(PEERS)}, or none.")
        if "none" in self.peers and len(set(self.peers)) > 1:
            raise SettingError(f"peers are {list(self.peers)}; none goes with no other.")
        unknown = [runtime for runtime in self.runtimes if runtime not in RUNTIMES]
        if unknown:
            raise SettingError(f"runtime is {unknown[0]!r}; expected one of {', '.join(RUNTIMES)}.")
        if self.weights not in WEIGHTS:
            raise SettingError(f'weights is {self.weights!r}; expected "random" or "real".')
        parse_device(self.device)

    @property
    def torch_device(self) -> torch.device:
        """The device, the GPU if nothing was said and there is one."""
        return parse_device(self.device or ("cuda" if torch.cuda.is_available() else "cpu")) or torch.device("cpu")

    @property
    def wanted_models(self) -> tuple[str, ...]:
        """The models, each once."""
        return tuple(dict.fromkeys(self.models or MODELS))

    @property
    def wanted_peers(self) -> tuple[str, ...]:
        """The peers, each once."""
        return tuple(peer for peer in dict.fromkeys(self.peers or PEERS) if peer != "none")

    def wanted_dtypes(self, model: str, runtime: str = "auto") -> tuple[str, ...]:
        """The dtypes of one model; the ONNX runtimes have one each."""
        if runtime in (ONNX, INT8):
            return ("auto",)
        return tuple(dict.fromkeys(self.dtypes or (("auto", "float32") if model == VIT_B else ("auto",))))

    def variants(self, model: str = "") -> tuple[tuple[str, str], ...]:
        """Each runtime with each dtype of a model; without one, of those that have one dtype by default."""
        return tuple(
            (runtime, dtype)
            for runtime in dict.fromkeys(self.runtimes or ("auto",))
            for dtype in self.wanted_dtypes(model, runtime)
        )

    def workloads(self) -> list[Workload]:
        """Every size at the first batch size, every batch size at the first size; by default a large image too."""
        sizes = [parse_size(size) for size in dict.fromkeys(self.sizes or SIZES)]
        gpu = self.torch_device.type == "cuda"
        batches = list(dict.fromkeys(self.batches or ((4, 1, 16) if gpu else (4,))))
        grid = [(size, batches[0]) for size in sizes] + [(sizes[0], batch) for batch in batches[1:]]
        loads = [Workload(*size, batch, flagged_of(self.flagged, batch)) for size, batch in grid]
        if not self.sizes and not self.batches and VIT_B in self.wanted_models:
            loads.append(Workload(*LARGE, 1, 0, large=True))
        return loads


def parse_size(size: str) -> tuple[int, int]:
    """Return width and height.

    Raises:
        SettingError: It is not of the form ``1344x768``.
    """
    found = _SIZE.fullmatch(size.strip().lower())
    if found is None or min(int(side) for side in found.groups()) < 1:
        raise SettingError(f"size is {size!r}; expected width x height in pixels, such as 1344x768.")
    return int(found[1]), int(found[2])


def flagged_of(share: float, batch: int) -> int:
    """How many images of a batch a share is: the nearest number, at least one unless the share is zero."""
    return max(1, min(batch, math.floor(share * batch + 0.5))) if share > 0 else 0
