"""A report as a picture: time per image against batch size and resolution, or as bars where there is only one."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..files import write_whole
from .show import hardware, load_name, row_name

# In the order in which they are looked for: kind → colour and line.
_LOOKS = {
    "guard": ("#1a7f37", "-", 2.6),
    "bare": ("#8c959f", "--", 1.4),
    "recipe": ("#9a6700", "-", 1.4),
    "pipeline": ("#0969da", "-", 1.4),
    "stock": ("#cf222e", "-", 1.4),
}


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be written, before anything is measured.

    Raises:
        SettingError: No matplotlib, another kind of file, or no such folder.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise SettingError(f"--plot is {path}; expected a name that ends in .png, .svg or .pdf.")
    if not path.absolute().parent.is_dir():
        raise SettingError(f"--plot is {path}, and there is no folder {path.absolute().parent}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SettingError("--plot needs matplotlib: pip install 'nsfw-guard[bench]'.") from error


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Draw a report and write it."""
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    loads = [load for load in report["workloads"] if not load["large"]]
    main = loads[0]
    by_batch = sorted((load for load in loads if load["size"] == main["size"]), key=lambda load: load["batch"])
    by_size = sorted(
        (load for load in loads if load["batch"] == main["batch"]), key=lambda load: load["size"][0] * load["size"][1]
    )
    models = [model["model"] for model in report["models"]]
    lines = len(by_batch) > 1 or len(by_size) > 2
    panels = [some for some in (by_batch, by_size) if len(some) > 1] if lines else [loads]
    figure = Figure(figsize=(1.2 + 4.6 * (len(panels) if lines else len(models)), _height(report, lines)), dpi=150)
    shape = (len(models), len(panels)) if lines else (1, len(models))
    grid = figure.subplots(*shape, squeeze=False, sharey="row" if lines else False)
    for number, model in enumerate(models):
        for place, some in enumerate(panels):
            axes = grid[number][place] if lines else grid[0][number]
            rows = [row for row in report["results"] if row["model"] in ("", model)]
            (_lines if lines else _bars)(axes, rows, some)
            axes.set_title(model, loc="left", fontweight="bold", fontsize=10)
            if lines:
                size, batch = "x".join(map(str, main["size"])), main["batch"]
                axes.set_xlabel(f"batch size, at {size}" if some is by_batch else f"size, in batches of {batch}")
    for row_of_axes in grid if lines else []:
        row_of_axes[0].set_ylabel("ms per image")
        handles, labels = row_of_axes[0].get_legend_handles_labels()
        row_of_axes[-1].legend(handles, labels, fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
    what = "" if lines else f"{load_name(main)}, {main['flagged']} flagged, "
    figure.suptitle(
        f"Milliseconds per image, {what}median of {report['rounds']} rounds", x=0.01, ha="left", fontsize=12
    )
    versions = report["versions"]
    text = (
        f"{hardware(report)}; torch {versions['torch']}, transformers {versions['transformers']}; {report['date'][:10]}"
    )
    figure.text(0.01, 0.005, text, fontsize=7, color="#57606a")
    figure.tight_layout(rect=(0, 0.02, 1, 0.98))
    file = io.BytesIO()
    figure.savefig(file, format=path.suffix[1:].lower())
    write_whole(path, file.getvalue())


def _height(report: Mapping[str, Any], lines: bool) -> float:
    if lines:
        return 1.0 + 3.0 * len(report["models"])
    return 1.6 + 0.42 * max(
        sum(row["model"] in ("", model["model"]) and row["size"] is not None for row in report["results"])
        for model in report["models"]
    )


def _lines(axes: Any, rows: list[Any], loads: list[Any]) -> None:
    """One line for each way to check, over the kinds of batches, with the spread as a band."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for (_, _, name), series in _series(rows).items():
        found = [(place, row) for place, load in enumerate(loads) if (row := _at(series, load)) is not None]
        if not found:
            continue
        color, line, width = _LOOKS[series[0]["kind"]]
        line = ":" if series[0]["dtype"] == "float32" and series[0]["kind"] in ("guard", "bare") else line
        line = "-." if series[0]["dtype"] == "bfloat16" and series[0]["kind"] == "stock" else line
        places = [place for place, _ in found]
        spreads = [row["ms_per_image"] for _, row in found]
        axes.plot(places, [s["median"] for s in spreads], line, color=color, lw=width, marker="o", ms=3.5, label=name)
        axes.fill_between(
            places, [s["low"] for s in spreads], [s["high"] for s in spreads], color=color, alpha=0.15, lw=0
        )
    axes.set_yscale("log")
    same_size = len({tuple(load["size"]) for load in loads}) == 1
    names = [str(load["batch"]) if same_size else f"{load['size'][0]}x{load['size'][1]}" for load in loads]
    axes.set_xticks(range(len(loads)), names)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="both", axis="y", color="#d0d7de", lw=0.5)


def _bars(axes: Any, rows: list[Any], loads: list[Any]) -> None:
    """One bar for each way to check, the kinds of batches below each other."""
    names: list[str] = []
    for (_, _, name), series in reversed(list(_series(rows).items())):
        for load in reversed(loads):
            row = _at(series, load)
            if row is None or (row["size"] is None and load is not loads[0]):
                continue
            spread = row["ms_per_image"]
            color = _LOOKS[row["kind"]][0]
            error = [[spread["median"] - spread["low"]], [spread["high"] - spread["median"]]]
            faded = 1.0 if load is loads[0] else 0.55
            bar = axes.barh(len(names), spread["median"], xerr=error, color=color, alpha=faded, height=0.75)
            axes.bar_label(bar, labels=[f"{spread['median']:.4g}"], padding=4, fontsize=7.5)
            size = "" if row["size"] is None else f"\n{row['size'][0]}x{row['size'][1]}"
            names.append(name + (size if len(loads) > 1 else ""))
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.margins(x=0.15)
    axes.set_xlabel("ms per image")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _series(rows: list[Any]) -> dict[tuple[int, str, str], list[Any]]:
    """The results of each way to check, the guard first."""
    found: dict[tuple[int, str, str], list[Any]] = {}
    order = list(_LOOKS)
    for row in sorted(rows, key=lambda row: (order.index(row["kind"]), row["dtype"], row["runtime"])):
        name = row_name({**row, "model": ""})
        found.setdefault((order.index(row["kind"]), row["dtype"], name), []).append(row)
    return found


def _at(series: list[Any], load: Mapping[str, Any]) -> Any:
    for row in series:
        if row["batch"] == load["batch"] and row["size"] in (None, load["size"]):
            return row
    return None
