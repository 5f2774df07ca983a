"""For a loop of one's own: save what a guarded pipeline has returned, with metadata and a line in the log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ImageError, SettingError
from ..guard import NsfwGuard
from ..images.pictures import upright
from .entries import Drawn, Entries, Made
from .folder import RunFolder, is_done
from .launch import processes
from .prompts import PromptRow, read_rows
from .settings import KEEP, REDACT, SKIP

logger = logging.getLogger(__name__)


class GuardedFolder:
    """A folder of checked images with its log, to be used in a loop of one's own; a context manager.

    Threads may share it.

    Under ``accelerate launch`` each process opens the same folder, and has a log of its own.

    Args:
        out: The folder. It goes on where an earlier process has ended.
        guard: Whose verdicts they are.
        on_flag: ``"redact"`` saves flagged images as they come, redacted; ``"skip"`` saves none of them.
        name: Of what draws the images, for metadata and log.
        prompt_in_file: ``"unflagged"`` writes prompts into images that are not flagged; or ``"never"``, ``"all"``.
        prompt_in_log: Whether the log has prompts.

    Raises:
        SettingError: A setting is out of its range, or the folder holds another run.
        AuditError: Another process writes to the folder, or its log is not intact.
    """

    def __init__(
        self,
        out: str | Path,
        guard: NsfwGuard,
        *,
        on_flag: str = REDACT,
        name: str = "",
        prompt_in_file: str = "unflagged",
        prompt_in_log: bool = False,
    ) -> None:
        if on_flag not in (REDACT, SKIP):
            raise SettingError(f"on_flag is {on_flag!r}; expected redact or skip. For the others there is Generation.")
        self._guard, self._on_flag = guard, on_flag
        self._make_entries = partial(
            Entries, guard, pipeline=name, prompt_in_file=prompt_in_file, prompt_in_log=prompt_in_log
        )
        settings = {"pipeline": name, "model": self._make_entries().model, "on_flag": on_flag}
        self._folder = RunFolder(Path(out).absolute(), quarantine=None, settings=settings, processes=processes())
        self._done = {name for name, state in self._folder.states.items() if is_done(state)}
        self._thread = threading.Lock()

    @property
    def done(self) -> frozenset[str]:
        """The ids that are saved, or skipped."""
        with self._thread:
            return frozenset(self._done)

    def save(
        self, checked: Any, *, ids: Sequence[str], prompts: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> list[Made]:
        """Save checked images, each with a line in the log.

        Args:
            checked: What a pipeline returned that was attached to, or ``guard.apply(pictures)``: images and verdicts
                in one, so that none can have another's.
            ids: One for each image; it is saved as ``<id>.png``.
            prompts: One for each, or none.
            seeds: One for each, or none.

        Returns:
            One entry for each.

        Raises:
            ImageError: It holds no verdicts, those of another model or threshold, or no pictures; or not as many as
                ids.
            SettingError: An id, a prompt or a seed that cannot be, an id that is there already, or a guard that does
                not redact any more.
            OutputError: The folder cannot be written to.
        """
        with self._thread:  # from the look into what is done until it is
            return self._save(checked, ids, prompts, seeds)

    def _save(self, checked: Any, ids: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]) -> list[Made]:
        entries = self._make_entries()  # the guard may have been set otherwise since
        images, verdicts = getattr(checked, "images", None), getattr(checked, "verdicts", None)
        if verdicts is None:
            raise ImageError(
                f"checked is a {type(checked).__name__} without verdicts; expected the output of a pipeline after "
                "attach(pipe, guard), or guard.apply(pictures)."
            )
        images = [images] if isinstance(images, Image.Image) else images
        if not isinstance(images, list) or not all(isinstance(image, Image.Image) for image in images):
            raise ImageError(f'The images are {type(images).__name__}; expected pictures: output_type="pil".')
        if not len(images) == len(verdicts) == len(ids):
            raise ImageError(f"There are {len(images)} images, {len(verdicts)} verdicts and {len(ids)} ids.")
        model = self._guard.classifier.scored_as.identity
        if other := [one.model for one in verdicts if one.model != model]:
            raise ImageError(f"The verdicts are of {other[0]}, and this folder is of {model}.")
        threshold = self._guard.policy.threshold
        if lax := [one.threshold for one in verdicts if not one.flagged and one.threshold != threshold]:
            raise ImageError(f"The verdicts are of the threshold {lax[0]}, and the folder's guard has {threshold}.")
        rows = self._rows(ids, prompts, seeds)
        images = [upright(image) for image in images]  # as it was looked at: the file says nothing of turning
        drawn = [
            Drawn(
                row.id,
                row.request,
                row.seed if seeds else None,
                0,
                self._on_flag if verdict.flagged else KEEP,
                verdict,
                # What was looked at is not here: of a flagged image the log has no hash of pixels.
                shown=None if verdict.flagged and self._on_flag == SKIP else image,
                prompt=row.prompt,
            )
            for row, image, verdict in zip(rows, images, verdicts, strict=True)
        ]
        committed = self._folder.commit([entries.of(one) for one in drawn])
        made = [
            Made(one.id, action, file, one.verdict, one.seed, error=problem)
            for one, (action, file, problem) in zip(drawn, committed, strict=True)
        ]
        self._done |= {one.id for one in made if one.error is None}
        for one in made:
            if one.error is not None:
                logger.warning("%s is not saved: %s", one.id, one.error)
        return made

    def close(self) -> None:
        """Let another run write here."""
        self._folder.close()

    def __enter__(self) -> GuardedFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, ids: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]) -> list[PromptRow]:
        for name, values in (("prompts", prompts), ("seeds", seeds)):
            if isinstance(values, str) or (values and len(values) != len(ids)):
                raise SettingError(f"{name} is {values!r}; expected one for each of the {len(ids)} ids, or none.")
        given = [
            {"id": name, "prompt": prompts[i] if prompts else None, "seed": seeds[i] if seeds else None}
            for i, name in enumerate(ids)
        ]
        rows, bad = read_rows(given)
        if bad:
            raise SettingError(f"ids[{bad[0].line - 1}]: {bad[0].problem}.")
        if there := [row.id for row in rows if row.id in self._done]:
            raise SettingError(f"{there} are saved already; look into `done` before they are drawn.")
        return rows
