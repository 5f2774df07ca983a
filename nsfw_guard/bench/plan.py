"""What will be timed: guards, peers and limits, loaded, each with the call to make and what to hand it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError, one_line
from ..guard import NsfwGuard
from ..placement import DTYPES
from .limits import MatrixProduct, flop_of
from .peers import RECIPE_MODEL, BareForward, FreepikRecipe, StockPath, TransformersPipeline
from .ratios import Key
from .results import Run
from .rounds import Timer
from .settings import VIT_B, Workload
from .stages import StagedCall
from .work import VALUE_RANGE, Source, find_source, load_guard, make_images, policy_that_flags

STOCK_DTYPES = ("float32", "bfloat16")


@dataclass
class Timed:
    """A call to be timed.

    Attributes:
        call: Made with what ``prepare`` returns. Its result tells what was flagged, or is of no interest.
        prepare: Makes the argument, outside of the timing.
        warm_up: The first call; by default like any other.
        guard: The guard that is called, if it is one.
    """

    call: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    warm_up: Callable[[], object] | None = None
    guard: NsfwGuard | None = None

    def once(self) -> Any:
        """Prepare and call, untimed."""
        return self.call(self.prepare())


class Plan:
    """Loads everything that a run's settings ask for.

    Args:
        run: Where checkpoints, dtypes and what is missing are written down.
        cache: Where checkpoints with random weights are written.
        timer: For the guards' stages.
        on_step: Called with a few words on what is being done.
    """

    def __init__(self, run: Run, cache: Path, timer: Timer, on_step: Callable[[str], None]) -> None:
        self._run = run
        self._cache = cache
        self._timer = timer
        self._on_step = on_step
        self._device = run.settings.torch_device
        self._images: dict[Workload, Tensor] = {}

    def load(self) -> dict[Key, Timed]:
        """Return what to time, in the order of a round: what is compared with each other stands side by side.

        Raises:
            SettingError: A setting that cannot be met here, such as a peer that is not installed.
            CheckpointError: A checkpoint that is not there.
        """
        run = self._run
        self._images = {load: make_images(load, self._device) for load in run.workloads}
        models: dict[Key, Timed] = {}
        for model in run.settings.wanted_models:
            self._on_step(f"loading {model}")
            source = find_source(model, weights=run.settings.weights, cache=self._cache)
            if source.name in run.sources:
                raise SettingError(f"Two models have the name {source.name!r}; give one of the folders another name.")
            run.sources[source.name] = source
            models.update(self._model(source))
        dtypes = list(dict.fromkeys(dtype for some in run.models.values() for dtype in some))
        return {**dict(self._limits(dtypes)), **dict(self._stock(dtypes)), **models}

    def _limits(self, dtypes: list[str]) -> Iterator[tuple[Key, Timed]]:
        for dtype in dtypes:
            product = MatrixProduct(DTYPES[dtype], self._device)
            self._run.matrix_flop = product.flop
            yield Key("matmul", dtype=dtype), Timed(product)

    def _stock(self, dtypes: list[str]) -> Iterator[tuple[Key, Timed]]:
        if not self._wanted("stock"):
            return
        self._on_step("loading the stock checker")
        try:
            first = StockPath(self._device)
        except SettingError as error:
            self._cannot("stock", error)
            return
        for dtype in STOCK_DTYPES:
            # In a half precision it is compared with a guard in the same one, where there is any.
            if dtype != "float32" and dtype not in dtypes:
                self._run.missing[f"stock {dtype}"] = f"no guard runs in {dtype} here"
                continue
            path = first if dtype == "float32" else first.to(DTYPES[dtype])
            for load in self._run.workloads:
                if not load.large:
                    images = self._images[load]
                    # The first call is also looked at, to find out with which threshold it flags so many.
                    aim = partial(path.aim, images, load.flagged) if load == self._run.workloads[0] else None
                    # It paints flagged images black in place, so it is handed a copy.
                    yield self._key("stock", "", dtype, load), Timed(path, images.clone, aim)

    def _model(self, source: Source) -> Iterator[tuple[Key, Timed]]:
        run, settings = self._run, self._run.settings
        guards: dict[tuple[str, str], NsfwGuard] = {}
        for runtime, wanted in settings.variants(source.name):
            guard = load_guard(source, self._device, wanted, redaction=settings.redaction, runtime=runtime)
            dtype = _name(guard.describe()["dtype"])
            if wanted == "auto" and runtime == "auto":
                run.auto.setdefault(source.name, dtype)
            guards.setdefault((dtype, runtime), guard)
        run.models[source.name] = list(dict.fromkeys(dtype for dtype, _ in guards if dtype in DTYPES))
        bare = {dtype: BareForward(source, self._device, DTYPES[dtype]) for dtype in run.models[source.name]}
        one = next(iter(bare.values()), None) or BareForward(source, self._device, torch.float32)
        run.flop[source.name] = flop_of(lambda: one(one.inputs(1)))
        peers = dict(self._pil_peers(source))
        measured: set[Key] = set()
        for load in run.workloads:
            if load.large and source.name != VIT_B:
                continue
            images = self._images[load]
            for (dtype, runtime), guard in guards.items():
                key = Key("bare", source.name, dtype, batch=load.batch)
                if key not in measured and dtype in bare:
                    measured.add(key)
                    inputs = bare[dtype].inputs(load.batch)
                    yield key, Timed(bare[dtype], _always(inputs))
                yield from self._guard(self._key("guard", source.name, dtype, load, runtime), guard, load)
            for kind, peer in peers.items():
                if not load.large:
                    key = self._key(kind, source.name, _name(peer.dtype), load)
                    yield key, Timed(peer, _always(images))

    def _guard(self, key: Key, guard: NsfwGuard, load: Workload) -> Iterator[tuple[Key, Timed]]:
        images = self._images[load]
        policies: list[Any] = []

        def warm_up() -> None:
            policies.append(policy_that_flags(guard, images, load.flagged))

        def prepare() -> Tensor:
            guard.policy = policies[0]
            return images

        yield key, Timed(lambda given: guard.apply(given, value_range=VALUE_RANGE), prepare, warm_up, guard)
        if load == self._run.workloads[0] and key.runtime == "auto":
            staged = StagedCall(guard, images, self._timer)
            yield key._replace(kind="stages"), Timed(lambda _: staged(), prepare)

    def _pil_peers(self, source: Source) -> Iterator[tuple[str, Any]]:
        if self._wanted("pipeline"):
            try:
                yield "pipeline", TransformersPipeline(source, self._device)
            except (ValueError, OSError, ImportError) as error:
                self._cannot("pipeline", error, source.name)
        if self._wanted("recipe") and source.name == RECIPE_MODEL:
            recipe = FreepikRecipe(source, self._device)
            self._run.notes.append(f"recipe: {recipe.name}.")
            yield "recipe", recipe

    def _wanted(self, peer: str) -> bool:
        wanted = peer in self._run.settings.wanted_peers
        if not wanted:
            self._run.missing[peer] = f"--peer left {peer} out"
        return wanted

    def _cannot(self, peer: str, error: Exception, model: str = "") -> None:
        """Write down why a peer is missing; it is an error if somebody asked for it by name."""
        if self._run.settings.peers:
            raise SettingError(f"The peer {peer!r} cannot be measured. {error}") from error
        self._run.missing[f"{peer} {model}".strip()] = one_line(error)

    @staticmethod
    def _key(kind: str, model: str, dtype: str, load: Workload, runtime: str = "") -> Key:
        return Key(kind, model, dtype, runtime, load.width, load.height, load.batch)


def _always(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
