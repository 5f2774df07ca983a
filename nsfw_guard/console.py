"""What the commands of the command line share: the process is theirs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import SettingError

if TYPE_CHECKING:
    from .redact import Redaction

Model = Annotated[str, typer.Option(help="A model card, a Hub id (org/name), or a checkpoint folder (./folder).")]
PolicyName = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="A preset of the model card: strict, balanced, permissive, … Default: the guard's own, else balanced.",
    ),
]
Kind = Annotated[
    str | None,
    typer.Option("--redaction", help="blur, pixelate, fill, replace or none. Default: the guard's own, else blur."),
]
Cells = Annotated[
    int | None,
    typer.Option(help="Of blur and pixelate: the most cells along the short side that are shown. Default: 16."),
]
Color = Annotated[str | None, typer.Option(help="Of fill: a name such as gray, or #rrggbb. Default: black.")]
Replacement = Annotated[Path | None, typer.Option(help="A picture that is shown instead of what is flagged.")]
ExitZero = Annotated[
    bool, typer.Option("--exit-zero", help="Exit with 0 when something is flagged; 2 is still for what could not run.")
]


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


def stated(**options: Any) -> dict[str, Any]:
    """Return the options that were given; a saved guard keeps its own settings for the others."""
    return {name: value for name, value in options.items() if value is not None}


def redaction_of(kind: str | None, cells: int | None, color: str | None, replacement: Path | None) -> Redaction | None:
    """Return the redaction that the options of a command say; ``None`` if none of them is given.

    Raises:
        SettingError: They say none.
        ImageError: The replacement cannot be read.
    """
    from PIL import ImageColor

    from .redact import Redaction

    if kind is None and cells is None and color is None and replacement is None:
        return None
    kind = kind or ("blur" if replacement is None else "replace")
    if kind == "replace" and replacement is None:
        raise SettingError("--redaction replace needs a picture: --replacement blocked.png.")
    try:
        red, green, blue, *_ = (level / 255 for level in ImageColor.getrgb(color or "black"))
        if max(red, green, blue) > 1:
            raise ValueError(color)
    except ValueError as error:
        raise SettingError(f"--color is {color!r}; expected a name such as gray, or #rrggbb.") from error
    return Redaction(kind, color=(red, green, blue), image=replacement, **stated(cells=cells))
