"""What a run of the benchmark found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .gpu import HostTraffic
from .memory import Peak
from .ratios import Facts, Key
from .settings import BenchSettings, Workload
from .work import Source

# The part of a sample that is the whole call.
CALL = "call"


@dataclass
class Run:
    """Figures, and what is needed to read them.

    Attributes:
        settings: What was asked for.
        workloads: The kinds of batches.
        samples: What was timed → for each round, part → seconds; a plain call has the one part ``"call"``.
        first: What was timed → seconds of its first call on such a batch.
        memory: What was timed → peak memory of one warm call.
        flagged: What was timed → how many images it flagged.
        views: Guard → how many views the model was shown in one call.
        described: Guard → ``guard.describe()``.
        traffic: Guard → what its call costs a GPU's host.
        sources: Model → its checkpoint.
        models: Model → dtypes of its guards, as torch calls them.
        auto: Model → what ``dtype="auto"`` came to.
        flop: Model → floating-point operations of the forward pass of one view.
        matrix_flop: Of the matrix product.
        missing: What could not be measured → why.
        notes: What a reader should know.
        seconds: From start to end.
    """

    settings: BenchSettings
    workloads: list[Workload]
    samples: dict[Key, list[dict[str, float]]] = field(default_factory=dict)
    first: dict[Key, float] = field(default_factory=dict)
    memory: dict[Key, Peak] = field(default_factory=dict)
    flagged: dict[Key, int] = field(default_factory=dict)
    views: dict[Key, int] = field(default_factory=dict)
    described: dict[Key, dict[str, Any]] = field(default_factory=dict)
    traffic: dict[Key, HostTraffic] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    models: dict[str, list[str]] = field(default_factory=dict)
    auto: dict[str, str] = field(default_factory=dict)
    flop: dict[str, int] = field(default_factory=dict)
    matrix_flop: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rounds(self) -> int:
        """How many rounds were made."""
        return max(map(len, self.samples.values()), default=0)

    def facts(self) -> Facts:
        """Return what the ratios are computed from."""
        whole = {key: samples for key, samples in self.samples.items() if key.kind != "stages"}
        staged = {key: samples for key, samples in self.samples.items() if key.kind == "stages"}
        return Facts(
            device=self.settings.torch_device.type,
            workloads=self.workloads,
            models=self.models,
            auto=self.auto,
            seconds={key: [sample[CALL] for sample in samples] for key, samples in whole.items()},
            forward={
                key._replace(kind="guard"): [sample["forward"] for sample in samples] for key, samples in staged.items()
            },
            flop=self.flop,
            views=self.views,
            matrix_flop=self.matrix_flop,
        )
