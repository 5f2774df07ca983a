"""What a test needs to know of a tiny pipeline to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """One tiny pipeline.

    Attributes:
        build: Makes it; the same weights each time. Takes no argument.
        call: Makes the arguments of its call, without generator, output_type and return_dict; it draws several items
            where the pipeline can.
        field: Where its output has the images or clips.
        output_types: Those that it can return.
    """

    build: Callable[[], Any]
    call: Callable[[], dict[str, Any]]
    field: str = "images"
    output_types: tuple[str, ...] = ("pil", "np", "pt")

    def run(self, pipe: Any, output_type: str = "pil", *, seed: int = 0, **more: Any) -> Any:
        """Run the pipeline, the same way each time."""
        generator = torch.Generator().manual_seed(seed)
        return pipe(**{**self.call(), "generator": generator, "output_type": output_type, **more})
