"""The transparent colour of a picture whose mode has no alpha."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def alpha_of_key(frame: Image.Image) -> NDArray[Any] | None:
    """Return the alpha ``[H, W]``, uint8, that the transparent level of a gray picture makes; ``None``: it is opaque.

    Pillow keeps that level, but does not apply it to 16 bits.
    """
    key = frame.info.get("transparency")
    if not isinstance(key, int):
        return None
    alpha = np.where(np.asarray(frame) == key, 0, 255).astype(np.uint8)
    return None if alpha.min() == 255 else alpha
