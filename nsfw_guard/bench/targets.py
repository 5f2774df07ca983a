"""The ratios that are of interest, what they are hoped to be, and what they were in each round."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .rounds import Spread, ratio
from .settings import INT8, Workload


class Key(NamedTuple):
    """What was timed: of which model, in which dtype, on which images. Empty where it makes no difference."""

    kind: str  # guard, bare, stock, pipeline, recipe or matmul
    model: str = ""
    dtype: str = ""
    runtime: str = ""
    width: int = 0
    height: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Goal:
    """What a ratio is hoped to be.

    Attributes:
        target: Its number in the project's list.
        ratio: Such as ``"guard / bare"``.
        model: Card.
        dtype: Of the guard; ``"auto"`` is what it chooses by itself.
        sign: ``"≤"``, ``"≥"`` or ``">"``.
        limit: The number.
        size: Width and height for which it is meant.
        batch: Batch size for which it is meant.
        some_flagged: Whether some of the images are to be flagged, or none.
        device: ``"cpu"`` or ``"cuda"``.
    """

    target: int
    ratio: str
    model: str
    dtype: str
    sign: str
    limit: float
    size: tuple[int, int] = (1024, 1024)
    batch: int = 4
    some_flagged: bool = True
    device: str = "cpu"

    def met(self, value: float) -> bool:
        """Whether a value reaches the goal."""
        compare = {"≤": operator.le, "≥": operator.ge, ">": operator.gt}[self.sign]
        return bool(compare(value, self.limit))

    @property
    def text(self) -> str:
        """Sign and number, for people."""
        return f"{self.sign} {self.limit:g}"


GUARD_BARE = "guard / bare"
STOCK_FLOAT32 = "stock float32 / guard"
STOCK_SAME = "stock same dtype / guard"
PIPELINE = "pipeline / guard"
RECIPE = "recipe / guard"
RUNTIME = f"{INT8} / guard"
FORWARD_RATE = "guard's forward, share of the matrix rate"
BARE_RATE = "bare, share of the matrix rate"
GUARD_RATE = "guard, share of the matrix rate"
CALL_MS = "guard, ms in all"

GOALS = (
    Goal(1, GUARD_BARE, "falconsai", "float32", "≤", 1.05),
    Goal(1, GUARD_BARE, "falconsai", "bfloat16", "≤", 1.15),
    Goal(1, GUARD_BARE, "freepik", "auto", "≤", 1.05),
    Goal(1, GUARD_BARE, "marqo", "auto", "≤", 1.3),
    Goal(1, GUARD_BARE, "falconsai", "bfloat16", "≤", 2.5, size=(4096, 4096), batch=1, some_flagged=False),
    Goal(2, STOCK_FLOAT32, "falconsai", "auto", "≥", 16),
    Goal(2, STOCK_FLOAT32, "marqo", "auto", "≥", 25),
    Goal(2, STOCK_FLOAT32, "freepik", "auto", "≥", 2.5),
    Goal(2, STOCK_SAME, "falconsai", "bfloat16", "≥", 5),
    Goal(3, PIPELINE, "falconsai", "auto", "≥", 3),
    Goal(3, PIPELINE, "falconsai", "float32", ">", 1),
    Goal(4, RECIPE, "freepik", "auto", "≥", 2.2),
    Goal(4, FORWARD_RATE, "falconsai", "auto", "≥", 0.75),
    Goal(4, FORWARD_RATE, "freepik", "auto", "≥", 0.65),
    Goal(5, RUNTIME, "falconsai", "auto", "≤", 0.65),
    Goal(8, CALL_MS, "falconsai", "auto", "≤", 1.5, batch=1, device="cuda"),
    Goal(8, GUARD_BARE, "falconsai", "auto", "≤", 1.25, batch=16, device="cuda"),
    Goal(8, STOCK_FLOAT32, "falconsai", "auto", "≥", 20, batch=16, device="cuda"),
)


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
        missing: A kind, a kind and a model → why it was not measured.
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
    missing: Mapping[str, str]


def find_ratios(facts: Facts) -> list[dict[str, Any]]:
    """Return every ratio that the run allows, with its interval over the rounds; in words, the others with a goal."""
    rows: list[dict[str, Any]] = []
    reached: set[Goal] = set()
    for model, dtypes in facts.models.items():
        for dtype in dtypes:
            for load in facts.workloads:
                for name, values in _of_guard(facts, model, dtype, load):
                    goals = _goals(facts, name, model, dtype, load)
                    reached.update(goals)
                    rows.append(_row(facts, name, model, dtype, load, values, goals))
    for goal in GOALS:
        if goal not in reached:
            rows.append(
                {
                    "ratio": goal.ratio,
                    "model": goal.model,
                    "dtype": goal.dtype,
                    "goals": [{"target": goal.target, "goal": goal.text, "met": None}],
                    "missing": _why(facts, goal),
                }
            )
    return rows


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


def _goals(facts: Facts, name: str, model: str, dtype: str, load: Workload) -> list[Goal]:
    return [
        goal
        for goal in GOALS
        if (goal.ratio, goal.model) == (name, model)
        and dtype == (facts.auto.get(model) if goal.dtype == "auto" else goal.dtype)
        and (goal.size, goal.batch) == ((load.width, load.height), load.batch)
        and goal.some_flagged == (load.flagged > 0)
        and goal.device == facts.device
    ]


def _row(
    facts: Facts, name: str, model: str, dtype: str, load: Workload, values: list[float], goals: list[Goal]
) -> dict[str, Any]:
    spread = Spread.of(values)
    return {
        "ratio": name,
        "model": model,
        "dtype": dtype,
        "auto": facts.auto.get(model) == dtype,
        "size": [load.width, load.height],
        "batch": load.batch,
        "flagged": load.flagged,
        **spread._asdict(),
        "per_round": values,
        "goals": [{"target": goal.target, "goal": goal.text, "met": goal.met(spread.median)} for goal in goals],
    }


def _why(facts: Facts, goal: Goal) -> str:
    """Why a goal's ratio was not measured."""
    if goal.device != facts.device:
        return f"it is about {'a GPU' if goal.device == 'cuda' else 'a CPU'}, and this ran on {facts.device}"
    if goal.model not in facts.models:
        return f"{goal.model} was not among the models"
    kinds = {PIPELINE: "pipeline", RECIPE: "recipe", STOCK_FLOAT32: "stock float32", STOCK_SAME: f"stock {goal.dtype}"}
    kind = kinds.get(goal.ratio, "")
    for name in (f"{kind} {goal.model}", kind, kind.split(" ")[0]):
        if name and name in facts.missing:
            return facts.missing[name]
    if goal.ratio == RUNTIME:
        return f"it was not asked for: --runtime auto --runtime {INT8}"
    if goal.dtype not in ("auto", *facts.models[goal.model]):
        auto = facts.auto.get(goal.model)
        return f"{goal.dtype} was not measured: dtype auto is {auto} here, and no --dtype asked for another"
    size = f"{goal.size[0]}x{goal.size[1]}"
    flagged = "some flagged" if goal.some_flagged else "none flagged"
    return f"it is meant for {size}, batch {goal.batch}, {flagged}, which was not run"
