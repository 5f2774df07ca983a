"""A whole scan, from the sources to rows on the disk and a summary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..guard import NsfwGuard
from ..identity import model_identity
from .actions import Actions
from .engine import Scan
from .evidence import Decider, now
from .export import write_csv
from .settings import ScanSettings
from .sources import Sources
from .standing import loads, same_as
from .store import Store
from .summary import Summary

if TYPE_CHECKING:
    from .cluster import ClusterScan
    from .ray_session import RaySettings


def run_scan(
    guard: NsfwGuard,
    sources: Sources,
    out: str | Path,
    settings: ScanSettings | None = None,
    *,
    form: str = "parquet",
    given: list[str] | None = None,
    actions: Actions | None = None,
    ray: RaySettings | None = None,
    rejudge: bool = False,
    on_progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Look at every picture and video of some sources, and write a row about each.

    What is done already, in the same folder, and has not changed, is not looked at again. Other verdicts than those
    that somebody may have reviewed need ``rejudge``: then another model or preprocessing looks at everything again, and
    rows that another policy decided are decided again, without the model.

    Args:
        guard: Its model, views and policy count; each file is judged by itself.
        sources: See ``parse_sources``.
        out: The folder for the rows: ``parts/part-*.parquet`` and ``scan.json``.
        settings: How.
        form: ``"parquet"`` or ``"jsonl"``; with ``"csv"``, all rows are written as ``rows.csv`` when the scan has
            ended, too.
        given: What the sources were called, for ``scan.json``.
        actions: What to do with flagged files.
        ray: The workers that look at them instead of this process, which lists the files and writes the rows.
        rejudge: Whether a folder whose verdicts were made by another model, preprocessing or policy is judged anew.
        on_progress: Called several times a second while it runs.

    Returns:
        The counts of this run.

    Raises:
        SettingError: Another scan runs in the folder, or it holds something else, or verdicts that were made by
            something else without ``rejudge``.
        GuardError: The model cannot be run.
        OSError: The folder cannot be written; what is there stays.
    """
    settings = settings or ScanSettings()
    classifier = guard.classifier
    decider = Decider(
        guard.card,
        classifier.labels,
        guard.policy,
        model=model_identity(guard),
        preprocessing=settings.preprocessing(guard),
    )
    store = Store(
        Path(out),
        form,
        model=decider.model,
        preprocessing=decider.preprocessing,
        labels=classifier.labels,
        redecide=decider.again,
        retry_errors=settings.retry_errors,
        accept=(lambda manifest: None) if rejudge else same_as(decider, Path(out)),
    )
    before = store.manifest
    manifest: dict[str, Any] = {
        "created": before.get("created", now()),
        "updated": now(),
        "model": decider.model,
        "loads": loads(guard),
        "preprocessing": decider.preprocessing,
        "policy": decider.policy.to_dict(),
        "labels": list(classifier.labels),
        "format": form,
        "sources": given or [],
        "summary": None,
    }
    try:
        store.write_manifest(manifest)
        on_rows = actions.on_rows if actions else lambda rows: None
        on_flagged_before = actions.on_flagged if actions else lambda entry: None
        scan: Scan | ClusterScan
        if ray is None:
            scan = Scan(
                guard,
                sources,
                store,
                decider,
                settings,
                on_rows=on_rows,
                on_flagged_before=on_flagged_before,
                on_progress=on_progress,
            )
        else:
            from .cluster import ClusterScan
            from .worker import Orders

            orders = Orders(
                guard=dict(ray.guard),
                policy=guard.policy,
                settings=replace(settings, workers=settings.workers or ray.cpus),
                model=decider.model,
                preprocessing=decider.preprocessing,
            )
            scan = ClusterScan(
                orders,
                sources,
                store,
                ray,
                on_rows=on_rows,
                on_flagged_before=on_flagged_before,
                on_progress=on_progress,
            )
        summary = scan.run()
        store.tidy()
        if form == "csv":
            write_csv(store.out, store.rows())
        # Of the last run that did something: how fast it was is of interest, and that one found nothing new is not.
        told = summary.to_dict() if summary.done else before.get("summary") or summary.to_dict()
        store.write_manifest({**manifest, "summary": told})
    finally:
        store.close()
    return summary
