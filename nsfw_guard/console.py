"""What the commands of the command line share: the process is theirs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import SettingError

if TYPE_CHECKING:
    from .redact import Redaction

Kind = Annotated[str, typer.Option("--redaction", help="blur, pixelate, fill, replace or none.")]
Cells = Annotated[int, typer.Option(help="Of blur and pixelate: the most cells along the short side that are shown.")]
Color = Annotated[str, typer.Option(help="Of fill: a name such as gray, or #rrggbb.")]
Replacement = Annotated[Path | None, typer.Option(help="A picture that is shown instead of what is flagged.")]


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


def redaction_of(kind: str, cells: int, color: str, replacement: Path | None) -> Redaction:
    """Return the redaction that the options of a command say.

    Raises:
        SettingError: They say none.
        ImageError: The replacement cannot be read.
    """
    from PIL import ImageColor

    from .redact import Redaction

    if replacement is not None and kind == "blur":  # nobody asked for another kind
        kind = "replace"
    if kind == "replace" and replacement is None:
        raise SettingError("--redaction replace needs a picture: --replacement blocked.png.")
    try:
        red, green, blue, *_ = (level / 255 for level in ImageColor.getrgb(color))
        if max(red, green, blue) > 1:
            raise ValueError(color)
    except ValueError as error:
        raise SettingError(f"--color is {color!r}; expected a name such as gray, or #rrggbb.") from error
    return Redaction(kind, cells=cells, color=(red, green, blue), image=replacement)


ExitZero = Annotated[
    bool, typer.Option("--exit-zero", help="Exit with 0 when something is flagged; 2 is still for what could not run.")
]
