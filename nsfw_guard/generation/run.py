"""Generation: rows into images, batch by batch, each checked before it is written, each written before it is said."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from nsfw_guard.integrations.diffusers_pipeline import attach

from ..errors import GuardError, SettingError, one_line
from ..guard import NsfwGuard
from .arguments import CallArguments
from .entries import Drawn, Entries, Made, picture_of, refuse_no_redaction
from .folder import RunFolder, is_done, next_attempt
from .iteration import Iteration
from .launch import Processes, processes
from .plan import Job, batches_of, why_changed
from .prompts import BadRow, PromptRow, listed, read_rows
from .settings import ERROR, KEEP, QUARANTINE, REDACT, RETRY, STOP, OnFlag
from .summary import Summary

logger = logging.getLogger(__name__)


class Generation:
    """Batch generation with a guarded pipeline, into a folder, with a log; goes on where an earlier run has ended.

    Under ``accelerate launch`` the processes share the rows, and each of them yields its own.

    Args:
        pipe: Any diffusers pipeline that makes images. It is attached to if it is not yet.
        out: The folder: images as ``<id>.png``, logs as ``audit-00000.jsonl`` for each process, settings.
        guard: What looks at the images; ``None`` takes the pipeline's own, or else ``NsfwGuard()``.
        on_flag: ``"redact"``, ``"skip"``, ``"retry"``, ``"retry=N"``, ``"quarantine=FOLDER"``, ``"stop"``; see
            ``OnFlag``.
        batch_size: Most rows that are drawn at once; only such with equal arguments are, and none with pictures.
        num_images: How many images to make of each row.
        seed: What the seeds of rows without one are derived from.
        arguments: Of every call, such as ``{"num_inference_steps": 30}``; those of a row come before.
        name: Of the pipeline, for metadata and log; by default its repository or the name of its folder.
        prompt_in_file: ``"unflagged"`` writes prompts into images that are not flagged; or ``"never"``, ``"all"``.
        prompt_in_log: Whether the log has prompts.
        strict: Whether one bad row is enough to draw nothing.

    Attributes:
        summary: Of the last run; complete when it has ended.

    Raises:
        SettingError: A pipeline that makes no images, an unknown argument, a setting out of its range.
        CheckpointError: ``NsfwGuard()`` cannot be loaded.
    """

    def __init__(
        self,
        pipe: Any,
        out: str | Path,
        *,
        guard: NsfwGuard | None = None,
        on_flag: str | OnFlag = REDACT,
        batch_size: int = 1,
        num_images: int = 1,
        seed: int = 0,
        arguments: Mapping[str, Any] | None = None,
        name: str | None = None,
        prompt_in_file: str = "unflagged",
        prompt_in_log: bool = False,
        strict: bool = False,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise SettingError(f"batch_size is {batch_size!r}; expected a whole number of at least 1.")
        self.out = Path(out).absolute()
        self.on_flag = OnFlag.parse(on_flag)
        self._quarantine = None if self.on_flag.folder is None else self.on_flag.folder.absolute()
        if self._quarantine is not None and self._quarantine.resolve().is_relative_to(self.out.resolve()):
            raise SettingError(f"The quarantine {self._quarantine} is inside the output folder; name another one.")
        self._call = CallArguments(pipe, arguments or {})
        if guard is not None:
            refuse_no_redaction(guard)
        attachment = getattr(pipe, "_nsfw_guard", None)
        if attachment is None:
            attach(pipe, guard)
        elif guard is not None and guard is not attachment.guard:
            attach(pipe, guard, **vars(attachment.settings))  # refused, unless it is the same one, loaded anew
        self.pipe = pipe
        self.guard: NsfwGuard = pipe._nsfw_guard.guard
        self.name = name or _name_of(pipe)
        self._prompt_in_file, self._prompt_in_log = prompt_in_file, prompt_in_log
        self._entries = self._make_entries()
        self._batch_size, self._num_images, self._seed, self._strict = batch_size, num_images, seed, strict
        self._caught: tuple[list[Any], dict[int, Any]] | None = None
        self.summary = Summary()

    @property
    def settings(self) -> dict[str, Any]:
        """What the images and the log depend on, as plain values; a folder holds one such set."""
        redaction = self.guard.redaction
        on_flag = self.on_flag if self._quarantine is None else replace(self.on_flag, folder=self._quarantine)
        kept = {
            name: f"sha256:{sha256(str(value).encode()).hexdigest()}" if "prompt" in name else value
            for name, value in self._call.arguments.items()
        }
        return {
            "pipeline": self.name,
            "class": self._call.name,
            "dtype": str(getattr(self.pipe, "dtype", None)),
            "arguments": kept,
            "seed": self._seed,
            "model": self._entries.model,
            "policy": self._entries.policy,
            "redaction": [redaction.kind, redaction.cells, list(redaction.color), redaction.fit],
            "views": self.guard.views,
            "on_flag": str(on_flag),
        }

    def run(
        self,
        prompts: str | Path | Iterable[str | Mapping[str, Any]],
        *,
        on_ready: Callable[[Summary], Any] = lambda summary: None,
    ) -> Iteration:
        """Draw what is not done yet, row by row as the result is gone through: ``for made in generation.run(…):``.

        Bad rows are logged as warnings, and are in the summary.

        Args:
            prompts: A ``.txt``, ``.jsonl`` or ``.csv`` file, or prompts and mappings; see ``read_rows``.
            on_ready: Called once before the first batch, with the summary as far as it is known.

        Returns:
            An iterator over entries, one for each row, when its image and its line in the log are on the disk. One
            that nobody goes through draws nothing, and warns.

        Raises:
            SettingError: No prompts, bad rows with ``strict``, or the folder holds another run.
            AuditError: Another run writes to the folder, or its log is not intact.
            OutputError: The folder cannot be written to; what is there stays, and the next run goes on.
            GuardError: Another process of the same launch has failed.
        """
        return Iteration(self._run(prompts, on_ready))

    def _run(
        self, prompts: str | Path | Iterable[str | Mapping[str, Any]], on_ready: Callable[[Summary], Any]
    ) -> Generator[Made, None, None]:
        self._entries = self._make_entries()  # the guard may have been set otherwise since
        self._decides = self._how_it_decides()
        group = processes()
        summary = self.summary = Summary(processes=group.count)
        rows, summary.bad_rows = read_rows(prompts, seed=self._seed, num_images=self._num_images)
        rows = self._good(rows, lambda row: self._call.problem(row))
        if self._strict and summary.bad_rows:
            raise SettingError(f"{len(summary.bad_rows)} bad rows: " + "; ".join(listed(summary.bad_rows, 10)))
        folder = RunFolder(self.out, quarantine=self._quarantine, settings=self.settings, processes=group)
        attachment = self.pipe._nsfw_guard
        settings_before = attachment.settings
        start = time.perf_counter()
        try:
            rows = self._good(rows, lambda row: why_changed(row, folder.states.get(row.id)))
            done = {row.id for row in rows if is_done(folder.states.get(row.id))}
            summary.rows, summary.before = len(rows), len(done)
            if group.index == 0:
                summary.counts.update(folder.states[name].action for name in done)
            # Batches are of all rows, so that those that are left keep their company: rounding depends on it.
            batches = batches_of(rows, self._call.key, self._batch_size)
            left = [some for batch in batches if (some := [row for row in batch if row.id not in done])]
            mine = left[group.index :: group.count]
            summary.share = sum(map(len, mine))
            where = str(prompts) if isinstance(prompts, (str, Path)) else "prompts"
            for bad in listed(summary.bad_rows, 20) if group.index == 0 else ():
                logger.warning("bad row: %s, %s", where, bad)
            attachment.settings = replace(settings_before, on_verdicts=self._catch(settings_before.on_verdicts))
            on_ready(summary)
            for batch in mine:
                if folder.stop_file.exists():
                    break
                jobs = [Job(row, next_attempt(folder.states.get(row.id), row.request)) for row in batch]
                yield from self._batch(jobs, folder)
        except (Exception, KeyboardInterrupt) as error:
            summary.failed = f"{type(error).__name__}: {one_line(error)}"
            with suppress(OSError):
                folder.stop_file.touch()
            raise
        finally:
            attachment.settings = settings_before
            summary.seconds = time.perf_counter() - start
            folder.close()
            self._add_up(group, folder)

    def _batch(self, jobs: list[Job], folder: RunFolder) -> Generator[Made, None, None]:
        """Draw a batch, and again what is to be; yield what became of each row."""
        while jobs:
            drawn = self._draw_apart(jobs)
            entries = [self._entries.of(one, original=one.action == QUARANTINE) for one in drawn]
            again = []
            made = []
            for job, one, (action, file, problem) in zip(jobs, drawn, folder.commit(entries), strict=True):
                self.summary.counts[action] += 1
                if action == RETRY:
                    again.append(replace(job, attempt=job.attempt + 1))
                    continue
                error = problem or (one.error and f"{one.error[0]}: {one.error[1]}")
                made.append(Made(one.id, action, file, one.verdict, one.seed, one.attempt, error, job.row.line))
                if error:
                    self.summary.errors.append(BadRow(job.row.line, f"{one.id}: {error}"))
            if any(one.action == STOP for one in made):
                folder.stop_file.touch()
            yield from made
            jobs = again

    def _draw_apart(self, jobs: Sequence[Job]) -> list[Drawn]:
        """Draw a batch; if that fails, each row alone, so that one does not take the others along."""
        try:
            return self._draw(jobs)
        except Exception as error:
            if len(jobs) > 1:
                return [one for job in jobs for one in self._draw_apart([job])]
            said = (type(error).__name__, one_line(error, 500))
            job = jobs[0]
            return [Drawn(job.row.id, job.row.request, job.seed, job.attempt, ERROR, prompt=job.row.prompt, error=said)]

    def _draw(self, jobs: Sequence[Job]) -> list[Drawn]:
        rows = [job.row for job in jobs]
        given = self._call.of(rows)
        # Of the CPU on any device: the same seed gives the same noise everywhere, whatever the batch.
        generators = [torch.Generator().manual_seed(job.seed) for job in jobs]
        self._caught = None
        output = self.pipe(**given, generator=generators if len(jobs) > 1 else generators[0])
        if self._how_it_decides() != self._decides:
            raise GuardError("The guard was set otherwise while the run was at work; nothing of this is written.")
        if self._caught is None:
            raise GuardError("The guard was not asked about what the pipeline returned; nothing of it is written.")
        (verdicts, originals), self._caught = self._caught, None
        images = getattr(output, "images", None)
        if not isinstance(images, list) or not all(isinstance(image, Image.Image) for image in images):
            raise GuardError(f"The pipeline returned no list of pictures in .images but {type(images).__name__}.")
        if not len(images) == len(verdicts) == len(jobs):
            raise GuardError(f"The pipeline made {len(images)} pictures of {len(jobs)} rows; expected one of each.")
        drawn = []
        for index, (job, image, verdict) in enumerate(zip(jobs, images, verdicts, strict=True)):
            action = KEEP
            if verdict.flagged:
                action = self.on_flag.action
                if action == RETRY and job.attempt >= self.on_flag.tries:
                    action = REDACT
            original = picture_of(originals.get(index)) if verdict.flagged else None
            error = None
            if action == QUARANTINE and original is None:
                action, error = ERROR, ("GuardError", "the pipeline handed on no original for the quarantine")
            drawn.append(
                Drawn(
                    job.row.id,
                    job.row.request,
                    job.seed,
                    job.attempt,
                    action,
                    verdict,
                    shown=image,
                    checked=original,
                    prompt=job.row.prompt,
                    arguments={**self._call.arguments, **job.row.arguments},
                    composite="mask_image" in given or "Inpaint" in self._call.name,
                    error=error,
                )
            )
        return drawn

    def _how_it_decides(self) -> tuple[Any, ...]:
        return self.guard.card, self.guard.policy, self.guard.views, self.guard.redaction

    def _make_entries(self) -> Entries:
        return Entries(
            self.guard,
            pipeline=self.name,
            prompt_in_file=self._prompt_in_file,
            prompt_in_log=self._prompt_in_log,
        )

    def _good(self, rows: list[PromptRow], problem: Callable[[PromptRow], str | None]) -> list[PromptRow]:
        """Return the rows without a problem; the others are reported."""
        found = [(row, problem(row)) for row in rows]
        self.summary.bad_rows += [BadRow(row.line, text) for row, text in found if text is not None]
        self.summary.bad_rows.sort(key=lambda bad: bad.line)
        return [row for row, text in found if text is None]

    def _catch(self, before: Any) -> Callable[[list[Any], dict[int, Any]], None]:
        def catch(verdicts: list[Any], originals: dict[int, Any]) -> None:
            if before is not None:
                before(verdicts, originals)
            self._caught = (verdicts, originals)

        return catch

    def _add_up(self, group: Processes, folder: RunFolder) -> None:
        """Make the summary that of all processes, when the last of them has ended."""
        summary = self.summary
        try:
            found = group.gather((summary.counts, summary.failed, summary.errors))
            summary.counts = sum((counts for counts, _, _ in found), Counter())
            summary.failed = next((failed for _, failed, _ in found if failed is not None), None)
            summary.errors = sorted((one for _, _, errors in found for one in errors), key=lambda bad: bad.line)
            if group.index == 0:
                folder.stop_file.unlink(missing_ok=True)
                if summary.errors:
                    rows = "1 row" if len(summary.errors) == 1 else f"{len(summary.errors)} rows"
                    logger.warning("%s not drawn; the summary's errors say why", rows)
            summary.audit = folder.heads()
        except (GuardError, OSError) as error:
            if summary.failed is None:  # else that is on its way already
                summary.failed = f"{type(error).__name__}: {one_line(error)}"
                raise


def _name_of(pipe: Any) -> str:
    """The pipeline's repository, or the name of its folder: a path would say whose machine it was."""
    given = str(getattr(pipe, "name_or_path", None) or getattr(pipe.config, "_name_or_path", "") or "")
    if not given or Path(given).is_absolute() or Path(given).exists():
        return Path(given).name or type(pipe).__name__.removeprefix("Guarded")
    return given
