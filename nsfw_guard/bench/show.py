"""A report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Report = Mapping[str, Any]

KINDS = {
    "guard": "nsfw-guard",
    "bare": "bare forward",
    "stock": "stock checker",
    "pipeline": "transformers.pipeline",
    "recipe": "Freepik's recipe",
}
SHORT_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_BAR = 24
_NARROW = 120


def show(report: Report, console: Console) -> None:
    """Print a report of the speed benchmark."""
    console.print()
    console.print(Panel(Group(*_headlines(report)), title="nsfw-guard bench", title_align="left", expand=False))
    console.print(times(report, wide=console.width >= _NARROW))
    console.print(ratios(report))
    for part in (stages(report), traffic(report)):
        if part is not None:
            console.print(part)
    console.print(Text("\n".join(footnotes(report)), style="dim"), soft_wrap=True)


def load_name(load: Mapping[str, Any]) -> str:
    """Name a kind of batch: width x height, and how many."""
    width, height = load["size"]
    return f"{width}x{height} ×{load['batch']}"


def _headlines(report: Report) -> list[Text]:
    main = report["workloads"][0]
    lines = [
        Text(
            f"{load_name(main)}, {_flagged(report)} flagged ({report['redaction']}), on {hardware(report)}",
            style="bold",
        )
    ]
    for model in report["models"]:
        guard = _find(report, "guard", model["model"], model["auto"] or model["dtypes"][0], main)
        if guard is None:
            continue
        words = [f"{guard['ms_per_image']['median']:.4g} ms per image ({guard['dtype']})"]
        for ratio, text in (
            ("guard / bare", "{:.2f}× the bare forward"),
            ("stock float32 / guard", "{:.1f}× as fast as the stock checker in float32"),
            ("pipeline / guard", "{:.1f}× as fast as transformers.pipeline"),
            ("recipe / guard", "{:.1f}× as fast as Freepik's recipe"),
        ):
            found = _ratio(report, ratio, model["model"], guard["dtype"], main)
            if found is not None:
                words.append(text.format(found["median"]))
        lines.append(Text.assemble((f"{model['model']:>9}  ", "bold green"), ", ".join(words)))
    return lines


def times(report: Report, *, wide: bool = True) -> Table:
    """Milliseconds per image of everything that was timed, the kinds of batches side by side."""
    loads = [load for load in report["workloads"] if not load["large"]]
    main, *others = loads
    table = Table(title="Milliseconds per image: median (least–most)", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column(load_name(main), justify="right", no_wrap=True)
    if wide:
        table.add_column("", width=_BAR, no_wrap=True)
        table.add_column("images/s", justify="right")
        table.add_column("first call", justify="right")
        table.add_column("peak MB" if report["device"].startswith("cuda") else "extra MB", justify="right")
    for load in others:
        table.add_column(load_name(load), justify="right", no_wrap=True)
    shown = [row for row in report["results"] if row["batch"] == main["batch"] and row["size"] in (None, main["size"])]
    longest = max((row["ms_per_image"]["median"] for row in shown), default=1)
    last = None
    for row in shown:
        if last is not None and row["model"] != last:
            table.add_section()
        last = row["model"]
        peak = row["peak_gpu_mb"] if row["peak_gpu_mb"] is not None else row["peak_host_mb"]
        cells: list[RenderableType] = [Text(row_name(row), style=_style(row)), _spread(row["ms_per_image"])]
        if wide:
            part = row["ms_per_image"]["median"] / longest
            cells.append(Text("█" * max(1, round(_BAR * part)), style=_style(row)))
            cells += [
                f"{row['images_per_second']:.3g}",
                f"{row['first_call_ms']:.4g} ms",
                "–" if peak is None else f"{peak:.0f}",
            ]
        for load in others:
            other = _same(report, row, load)
            cells.append("" if other is None else _spread(other["ms_per_image"]))
        table.add_row(*cells)
    for load in report["workloads"]:
        if load["large"]:
            table.add_section()
            for row in report["results"]:
                if (row["size"], row["batch"]) == (load["size"], load["batch"]):
                    what = Text(f"{row_name(row)}, {load_name(load)}, none flagged", style=_style(row))
                    table.add_row(what, _spread(row["ms_per_image"]))
    return table


def ratios(report: Report) -> Table:
    """Every ratio with its interval, the kinds of batches side by side."""
    loads = report["workloads"]
    table = Table(
        title=f"Ratios: median (least–most) over {report['rounds']} interleaved round{'s' * (report['rounds'] != 1)}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("ratio")
    for load in loads:
        table.add_column(load_name(load), justify="right")
    rows: dict[tuple[str, str, str], list[Any]] = {}
    for row in report["ratios"]:
        rows.setdefault((row["model"], row["ratio"], row["dtype"]), []).append(row)
    last = None
    for (model, name, dtype), found in rows.items():
        if last is not None and model != last:
            table.add_section()
        last = model
        cells: list[RenderableType] = [Text(f"{model} {SHORT_DTYPES.get(dtype, dtype)}: {name}")]
        for load in loads:
            cells.append(next((_cell(row) for row in found if _is_of(row, load)), Text("")))
        table.add_row(*cells)
    return table


def stages(report: Report) -> Table | None:
    """Each stage of a guarded call, in milliseconds per image and as a share."""
    if not report["stages"]:
        return None
    table = Table(title="Stage by stage: ms per image (share)", title_justify="left", title_style="bold")
    table.add_column("")
    for stage in report["stages"][0]["stages"]:
        table.add_column(stage["stage"], justify="right")
    table.add_column("sum", justify="right")
    table.add_column("the call", justify="right")
    for row in report["stages"]:
        cells = [f"{one['ms_per_image']:.3g} ({100 * one['share']:.0f} %)" for one in row["stages"]]
        name = f"{row['model']} {SHORT_DTYPES.get(row['dtype'], row['dtype'])}"
        table.add_row(name, *cells, f"{row['sum_ms_per_image']:.4g}", f"{row['call_ms_per_image']:.4g}")
    return table


def traffic(report: Report) -> Table | None:
    """What a guarded call costs the host of a GPU."""
    rows = [row for row in report["results"] if row["host_traffic"]]
    if not rows:
        return None
    table = Table("", "synchronisations", "bytes to the host", "largest copy", title="Host and GPU, one warm call")
    for row in rows:
        table.add_row(row["name"], *(str(value) for value in row["host_traffic"].values()))
    return table


def footnotes(report: Report) -> list[str]:
    """Say which path the guards took, what was not measured, and what else a reader should know."""
    lines = [
        *(
            f"Matrix product, {rate['dtype']}: {_spread(rate['gflop_per_second'])} GFLOP/s."
            for rate in report["matrix_rates"]
        ),
    ]
    for model in report["models"]:
        weights = "random weights at its architecture" if model["random_weights"] else "its own weights"
        guards = [row for row in report["results"] if row["kind"] == "guard" and row["model"] == model["model"]]
        paths = dict.fromkeys(
            f"{row['dtype']}: {path['path']} ({path['why']})"
            for row in guards
            if isinstance(path := (row["describe"] or {}).get("forward"), dict) and {"path", "why"} <= set(path)
        )
        views = {f"{row['views'] / row['batch']:g} at {row['size'][0]}x{row['size'][1]}" for row in guards}
        lines.append(
            f"{model['model']}: {model['architecture'] or model['card']}, {weights}, {model['gflop']:.3g} GFLOP a "
            f"view; views per image: {', '.join(sorted(views))}. " + "; ".join(paths)
        )
    lines += report["notes"]
    lines += [f"Not measured: {what}: {why}." for what, why in report["missing"].items()]
    lines.append(
        f"Memory above the level before one warm call, by {report['memory_by']}. The stock checker paints flagged "
        "images black; pipeline and recipe redact nothing, and their PIL copies of the decoded tensor are counted."
    )
    return [*lines, *footer(report)]


def footer(report: Report) -> list[str]:
    """Say the machine, the versions, the settings of the process, the date, the commit and the command."""
    process, commit = report["process"], report["commit"] or "unknown"
    set_outside = "".join(f", {name}={value}" for name, value in process["environment"].items())
    return [
        f"Machine: {hardware(report)}; Python {report['machine']['python']}; "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        f"Process: {process['threads']} threads, float32 matmul precision {process['float32_matmul_precision']} "
        f"(never changed here){set_outside}.",
        f"{report['date']}, commit {commit}, {report['seconds']:.0f} s in all: {report['command']}",
    ]


def hardware(report: Report) -> str:
    """Name the processor or the GPU."""
    machine = report["machine"]
    if machine["gpu"]:
        return f"{machine['gpu']['name']} (CUDA {machine['gpu']['cuda']})"
    threads = report["process"]["threads"]
    found = ", ".join(machine["instructions"])
    return f"{machine['cpu']}, {threads} of {machine['cores_in_all']} cores ({found})"


def row_name(row: Mapping[str, Any]) -> str:
    """Name what was timed: the peer or the guard with its model, and the dtype."""
    runtime = f" {row['runtime']}" if row["runtime"] not in ("", "auto") else ""
    words = (KINDS[row["kind"]] + runtime, row["model"], SHORT_DTYPES.get(row["dtype"], row["dtype"]))
    return " ".join(word for word in words if word)


def _flagged(report: Report) -> str:
    """How many images the guards flagged on the first kind of batch; all numbers, if they differ."""
    main = report["workloads"][0]
    found = sorted(
        {
            row["flagged"]
            for row in report["results"]
            if row["kind"] == "guard" and (row["size"], row["batch"]) == (main["size"], main["batch"])
        }
    )
    real = " or ".join(map(str, found))
    asked = "" if found == [main["flagged"]] else f" (asked: {main['flagged']})"
    return f"{real}{asked} of {main['batch']}"


def _spread(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.4g} ({spread['low']:.4g}–{spread['high']:.4g})"


def _cell(row: Mapping[str, Any]) -> Text:
    return Text(f"{row['median']:.3g} ({row['low']:.3g}–{row['high']:.3g})")


def _is_of(row: Mapping[str, Any], load: Mapping[str, Any]) -> bool:
    return bool((row["size"], row["batch"]) == (load["size"], load["batch"]))


def _style(row: Mapping[str, Any]) -> str:
    return {"guard": "bold green", "bare": "dim"}.get(row["kind"], "")


def _find(report: Report, kind: str, model: str, dtype: str, load: Mapping[str, Any]) -> Any:
    wanted = (kind, model, dtype, load["size"], load["batch"])
    for row in report["results"]:
        if (row["kind"], row["model"], row["dtype"], row["size"], row["batch"]) == wanted:
            return row
    return None


def _same(report: Report, row: Mapping[str, Any], load: Mapping[str, Any]) -> Any:
    """The same thing on another kind of batch; the bare forward does not depend on the size of the images."""
    for other in report["results"]:
        same = all(other[name] == row[name] for name in ("kind", "model", "dtype", "runtime"))
        if same and other["batch"] == load["batch"] and other["size"] in (None, load["size"]):
            return other
    return None


def _ratio(report: Report, name: str, model: str, dtype: str, load: Mapping[str, Any]) -> Any:
    for row in report["ratios"]:
        if (row["ratio"], row["model"], row["dtype"]) == (name, model, dtype) and _is_of(row, load):
            return row
    return None
