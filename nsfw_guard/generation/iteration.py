"""What `Generation.run` returns: rows are drawn as it is gone through, and not before."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator

from .entries import Made


class Iteration(Iterator[Made]):
    """Draws the next row when it is asked for it. One that nobody has begun says so, as a coroutine does."""

    def __init__(self, steps: Generator[Made, None, None]) -> None:
        self._steps = steps
        self._begun = False

    def __next__(self) -> Made:
        self._begun = True
        return next(self._steps)

    def close(self) -> None:
        """End the run: what is not drawn yet is left to the next one."""
        self._begun = True
        self._steps.close()

    def __del__(self) -> None:
        if not self._begun:  # also when the interpreter ends, as with one that a variable has held
            warnings.warn(
                "Generation.run() was called and nothing was drawn: it draws while it is gone through. Write "
                "`for made in generation.run(prompts): …`, or `list(generation.run(prompts))`.",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )
