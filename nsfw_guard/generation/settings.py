"""What becomes of a flagged image, and what is written about the prompt, as plain values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..errors import SettingError

# What a run is, in its folder; and the name under which it says that its logs have had head files from the beginning.
MANIFEST = "generation.json"
HEADS = "heads"
RETRIES = 3
PROMPT_IN_FILE = ("never", "unflagged", "all")
# What can become of an image, in the log and in the summary.
KEEP, REDACT, SKIP, RETRY, QUARANTINE, STOP, ERROR = (
    "keep",
    "redact",
    "skip",
    "retry",
    "quarantine",
    "stop",
    "error",
)
# With these a row is done; retry and error ask for more.
FINAL = (KEEP, REDACT, SKIP, QUARANTINE, STOP)
_RETRY = re.compile(r"retry(?:=(\d{1,4}))?")


@dataclass(frozen=True)
class OnFlag:
    """What becomes of a flagged image.

    Attributes:
        action: ``"redact"`` writes it redacted, ``"skip"`` nothing, ``"retry"`` draws it again with other seeds and
            then redacts, ``"quarantine"`` writes the original to a folder and nothing else anywhere, ``"stop"`` writes
            nothing and ends the run after the batch.
        tries: Of ``"retry"``: how many times at most.
        folder: Of ``"quarantine"``.
    """

    action: str = REDACT
    tries: int = 0
    folder: Path | None = None

    @classmethod
    def parse(cls, value: str | OnFlag) -> OnFlag:
        """Return the setting for ``redact``, ``skip``, ``retry``, ``retry=5``, ``quarantine=FOLDER`` or ``stop``.

        Raises:
            SettingError: It is none of these.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            if value in (REDACT, SKIP, STOP):
                return cls(value)
            match = _RETRY.fullmatch(value)
            if match and (tries := int(match.group(1) or RETRIES)):
                return cls(RETRY, tries)
            name, _, folder = value.partition("=")
            if name == QUARANTINE and folder.strip():
                return cls(QUARANTINE, folder=Path(folder))
        raise SettingError(
            f"on_flag is {value!r}; expected redact, skip, retry, retry=N (at least 1), quarantine=FOLDER or stop."
        )

    def __str__(self) -> str:
        if self.action == RETRY:
            return f"{RETRY}={self.tries}"
        return f"{QUARANTINE}={self.folder}" if self.folder is not None else self.action


def seed_of_attempt(seed: int, attempt: int) -> int:
    """Return the seed of an attempt: the row's own, then the first 4 bytes of the SHA-256 of ``<seed>/<attempt>``."""
    return seed if attempt == 0 else int.from_bytes(sha256(f"{seed}/{attempt}".encode()).digest()[:4], "big")
