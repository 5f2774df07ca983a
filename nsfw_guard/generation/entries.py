"""What is written of one image: its file with its metadata, and its line in the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..errors import SettingError
from ..guard import NsfwGuard
from ..identity import model_identity
from ..images import to_picture
from ..verdict import Verdict
from .folder import Entry
from .metadata import VERDICT, encode_png
from .settings import PROMPT_IN_FILE

SCHEMA = 1


@dataclass(frozen=True)
class Made:
    """What became of one row.

    Attributes:
        id: Of the row; the file in the output folder is ``<id>.png``.
        action: ``"keep"``, ``"redact"``, ``"skip"``, ``"quarantine"``, ``"stop"`` or ``"error"``.
        file: Where the image is; ``None`` if there is none.
        verdict: On the image; ``None`` if there was an error.
        seed: That it was drawn with.
        attempt: Which attempt it is, from 0; higher after ``retry``.
        error: What went wrong.
        line: Where its row stands among the prompts, from 1; ``None`` for what came from a loop of one's own.
    """

    id: str
    action: str
    file: Path | None
    verdict: Verdict | None
    seed: int | None
    attempt: int = 0
    error: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Drawn:
    """One image, or why there is none.

    Attributes:
        id: Of its row.
        request: The SHA-256 of what was asked for.
        seed: That it was drawn with.
        attempt: From 0.
        action: What is to become of it.
        verdict: On it.
        shown: What may be written: redacted if it is flagged.
        checked: What was looked at, if that is another: the original of a flagged image.
        prompt: That it was drawn from.
        arguments: Others of the call, for its metadata.
        composite: Whether a part of it is an older picture.
        error: What went wrong, and the kind of error.
    """

    id: str
    request: str
    seed: int | None
    attempt: int
    action: str
    verdict: Verdict | None = None
    shown: Image.Image | None = None
    checked: Image.Image | None = None
    prompt: str | None = None
    arguments: Mapping[str, Any] | None = None
    composite: bool = False
    error: tuple[str, str] | None = None


class Entries:
    """Makes entries.

    Args:
        guard: Whose verdicts they are.
        pipeline: The name of what draws the images.
        prompt_in_file: ``"unflagged"`` writes prompt and arguments into images that are not flagged, ``"all"`` into
            all, ``"never"`` into none.
        prompt_in_log: Whether lines of the log have the prompt, and what errors say, which may quote it.

    Raises:
        SettingError: A setting is none of its choices, or the guard does not redact.
    """

    def __init__(self, guard: NsfwGuard, *, pipeline: str, prompt_in_file: str, prompt_in_log: bool) -> None:
        if prompt_in_file not in PROMPT_IN_FILE:
            raise SettingError(f"prompt_in_file is {prompt_in_file!r}; expected one of {', '.join(PROMPT_IN_FILE)}.")
        refuse_no_redaction(guard)
        try:
            pipeline.encode()
        except UnicodeEncodeError as error:
            raise SettingError(f"name is {pipeline!r}, which cannot be written as UTF-8; give another one.") from error
        self.pipeline = pipeline
        self.model = model_identity(guard)
        self.policy = guard.policy.to_dict()
        self._prompt_in_file, self._prompt_in_log = prompt_in_file, prompt_in_log

    def of(self, drawn: Drawn, *, original: bool = False) -> Entry:
        """Return what is written of an image.

        Args:
            drawn: The image.
            original: Whether the file is of what was checked, not of what may be shown.
        """
        record: dict[str, Any] = {
            "pixels": pixels_sha256(drawn.checked or (drawn.shown if drawn.action == "keep" else None)),
            "request": drawn.request,
            "seed": drawn.seed,
            "attempt": drawn.attempt,
            "pipeline": self.pipeline,
            "model": self.model,
            "policy": self.policy,
            "verdict": None if drawn.verdict is None else drawn.verdict.to_dict(),
        }
        if self._prompt_in_log:
            record["prompt"] = drawn.prompt
        if drawn.error is not None:
            kind, text = drawn.error
            record["error"] = f"{kind}: {text}" if self._prompt_in_log else kind
        picture = drawn.checked if original else drawn.shown
        data = None
        if picture is not None and drawn.verdict is not None and drawn.action in ("keep", "redact", "quarantine"):
            data = encode_png(picture, self._texts(drawn, drawn.verdict), composite=drawn.composite)
        return Entry(drawn.id, drawn.action, record, data)

    def _texts(self, drawn: Drawn, verdict: Verdict) -> dict[str, Any]:
        said = {
            "schema": SCHEMA,
            "id": drawn.id,
            "action": drawn.action,
            "attempt": drawn.attempt,
            "policy": self.policy,
            "verdict": {**verdict.to_dict(), "model": self.model},
        }
        texts: dict[str, Any] = {VERDICT: said, "model": self.pipeline}
        if drawn.seed is not None:
            texts["seed"] = str(drawn.seed)
        if self._prompt_in_file == "all" or (self._prompt_in_file == "unflagged" and not verdict.flagged):
            if drawn.prompt is not None:
                texts["prompt"] = drawn.prompt
            if drawn.arguments:
                texts["arguments"] = dict(drawn.arguments)
        return texts


def refuse_no_redaction(guard: NsfwGuard) -> None:
    """Refuse a guard that lets flagged images pass.

    Raises:
        SettingError: It does.
    """
    if guard.redaction.kind == "none":
        raise SettingError('redaction is "none", with which flagged images would be written as they are; choose blur.')


def pixels_sha256(picture: Image.Image | None) -> str | None:
    """Return the SHA-256, in hex, of ``<mode> <width>x<height>``, a line end and the bytes of the pixels."""
    if picture is None:
        return None
    head = f"{picture.mode} {picture.width}x{picture.height}\n".encode()
    return sha256(head + picture.tobytes()).hexdigest()


def picture_of(original: Tensor | None) -> Image.Image | None:
    """Return the picture of an original ``[3, H, W]`` in [0, 1], rounded as diffusers does; ``None`` if it is none."""
    if original is None or original.ndim != 3:
        return None
    return to_picture(original)
