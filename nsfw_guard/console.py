"""What the commands of the command line share: the process is theirs."""

from __future__ import annotations

import sys


def quiet() -> None:
    """Switch off the progress bars of the libraries, of diffusers if it is loaded."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if "diffusers" in sys.modules:
        sys.modules["diffusers"].utils.logging.disable_progress_bar()


def default_device() -> str | None:
    """Return the GPU, if there is one; ``None`` follows the images."""
    import torch

    return "cuda" if torch.cuda.is_available() else None
