"""What a scan is told, and what of it a score depends on."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..errors import SettingError
from ..images.settings import DecodeSettings
from ..placement import usable_cores

if TYPE_CHECKING:
    from ..guard import NsfwGuard

# Counted up when the code of preprocessing or decoding changes scores.
PREPROCESSING_VERSION = 2


@dataclass(frozen=True)
class ScanSettings:
    """How a scan runs.

    Attributes:
        exact: Decode JPEGs in full, not at a size that leaves twice what the model sees.
        every: Animations and videos: frames from one look to the next; the last one is always looked at.
        workers: Threads that read and decode; ``None``: as many as there are CPU cores, 2 to 16.
        queue_bytes: How much decoded data may wait for the model.
        max_pixels: Of a frame; larger ones are refused.
        max_bytes: Of a picture's file; larger ones are refused.
        retry_errors: Whether what could not be decoded is tried again.

    Raises:
        SettingError: A number is out of its range.
    """

    exact: bool = False
    every: int = 1
    workers: int | None = None
    queue_bytes: int = 2**28
    max_pixels: int = DecodeSettings.max_pixels
    max_bytes: int = DecodeSettings.max_bytes
    retry_errors: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "workers", "queue_bytes", "max_pixels", "max_bytes"):
            value = getattr(self, name)
            if not (name == "workers" and value is None) and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise SettingError(f"{name} is {value!r}; expected a whole number of at least 1.")

    @property
    def threads(self) -> int:
        """How many threads read and decode."""
        return self.workers or min(16, max(2, cores()))

    def decoding(self, guard: NsfwGuard) -> DecodeSettings:
        """Return how pictures are decoded for a guard's model."""
        spec = guard.classifier.preprocess
        return DecodeSettings(
            size=None if self.exact else math.floor(spec.size / spec.crop_pct),
            exact=self.exact,
            every=self.every,
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
        )

    def preprocessing(self, guard: NsfwGuard) -> str:
        """Return what a score depends on beside model and file, such as ``squash224-auto-dct2-every1-6f1c04ab``."""
        spec = guard.classifier.preprocess
        values = {name: value for name, value in asdict(spec).items() if name != "source"}
        # What the outputs mean is no weight, and whoever corrects it expects other rows.
        labels = [(label, guard.card.levels[label].name) for label in guard.classifier.labels]
        told = repr((sorted(values.items()), labels, PREPROCESSING_VERSION))
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        decoding = "exact" if self.exact else "dct2"
        return f"{spec.resize}{spec.size}-{guard.views}-{decoding}-every{self.every}-{digest}"


def cores() -> int:
    """How many CPU cores this process may use."""
    return usable_cores() or 2
