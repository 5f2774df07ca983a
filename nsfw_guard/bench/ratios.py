"""The ratios that are of interest, and what they were in each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .rounds import Spread, ratio
from .settings import Workload


class Key(NamedTuple):
    """What was timed: of which model, in which dtype, on which images. Empty where it makes no difference."""

    kind: str  # guard, bare, stock, pipeline, recipe or matmul
    model: str = ""
    dtype: str = ""
    runtime: str = ""
    width: int = 0
    height: int = 0
    batch: int = 0


GUARD_BARE = "guard / bare"
STOCK_FLOAT32 = "stock float32 / guard"
STOCK_SAME = "stock same dtype / guard"
PIPELINE = "pipeline / guard"
RECIPE = "recipe / guard"
FORWARD_RATE = "guard's forward, share of the matrix rate"
BARE_RATE = "bare, share of the matrix rate"
GUARD_RATE = "guard, share of the matrix rate"
CALL_MS = "guard, ms in all"


@dataclass(frozen=True)
class Facts:
    """What a run found, as far as ratios need it.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        workloads: What was run.
        models: Card → dtypes of its guards, as torch calls them.
        auto: Model → what ``dtype="auto"`` came to.
        seconds: What was timed → seconds of a call, one for each round.
        forward: Guard → seconds of its forward stage, one for each round.
        flop: Model → floating-point operations of one view.
        views: Guard → views that the model was shown in one call.
        matrix_flop: Of the matrix product.
    """

    device: str
    workloads: Sequence[Workload]
    models: Mapping[str, Sequence[str]]
    auto: Mapping[str, str]
    seconds: Mapping[Key, list[float]]
    forward: Mapping[Key, list[float]]
    flop: Mapping[str, int]
    views: Mapping[Key, int]
    matrix_flop: int


def find_ratios(facts: Facts) -> list[dict[str, Any]]:
    """Return every ratio that the run allows, with its interval over the rounds."""
    return [
        _row(facts, name, model, dtype, load, values)
        for model, dtypes in facts.models.items()
        for dtype in dtypes
        for load in facts.workloads
        for name, values in _of_guard(facts, model, dtype, load)
    ]


def _of_guard(facts: Facts, model: str, dtype: str, load: Workload) -> list[tuple[str, list[float]]]:
    """The ratios of one guard on one kind of batch, by name."""
    place = (load.width, load.height, load.batch)
    key = Key("guard", model, dtype, "auto", *place)
    guard = facts.seconds.get(key)
    if guard is None:
        return []
    bare_key, product = Key("bare", model, dtype, batch=load.batch), facts.seconds.get(Key("matmul", dtype=dtype))
    found: list[tuple[str, list[float]]] = []

    def over(name: str, other: Key, *, guard_above: bool = False) -> None:
        if (seconds := facts.seconds.get(other)) is not None:
            found.append((name, ratio(guard, seconds) if guard_above else ratio(seconds, guard)))

    if facts.device == "cuda":
        found.append((CALL_MS, [1000 * seconds for seconds in guard]))
    over(GUARD_BARE, bare_key, guard_above=True)
    over(STOCK_FLOAT32, Key("stock", "", "float32", "", *place))
    if dtype != "float32":
        over(STOCK_SAME, Key("stock", "", dtype, "", *place))
    for name, kind in ((PIPELINE, "pipeline"), (RECIPE, "recipe")):
        for other in facts.seconds:
            if (other.kind, other.model, *other[4:]) == (kind, model, *place):
                over(name, other)
    for other in facts.seconds:
        if (other.kind, other.model, *other[4:]) == ("guard", model, *place) and other.runtime != "auto":
            over(f"{other.runtime} / guard", other)
    if product is not None and model in facts.flop:
        rate = [facts.matrix_flop / seconds for seconds in product]
        one = facts.flop[model]
        for name, seconds, images in (
            (FORWARD_RATE, facts.forward.get(key), facts.views.get(key, load.batch)),
            (BARE_RATE, facts.seconds.get(bare_key), load.batch),
            (GUARD_RATE, guard, facts.views.get(key, load.batch)),
        ):
            if seconds is not None:
                found.append((name, ratio([images * one / s for s in seconds], rate)))
    return found


def _row(facts: Facts, name: str, model: str, dtype: str, load: Workload, values: list[float]) -> dict[str, Any]:
    return {
        "ratio": name,
        "model": model,
        "dtype": dtype,
        "auto": facts.auto.get(model) == dtype,
        "size": [load.width, load.height],
        "batch": load.batch,
        "flagged": load.flagged,
        **Spread.of(values)._asdict(),
        "per_round": values,
    }
