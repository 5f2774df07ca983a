"""The limit: how fast the machine multiplies matrices, and how much of that a forward pass needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Large enough that reaching memory costs little beside the arithmetic.
SIDE = {"cpu": 2048, "cuda": 8192}


class MatrixProduct:
    """A product of two square matrices.

    Attributes:
        flop: Of one call; a multiplication and an addition are two.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        side = SIDE.get(device.type, 2048)
        generator = torch.Generator().manual_seed(0)
        self._a, self._b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
        self.flop = 2 * side**3

    def __call__(self, _: object = None) -> Tensor:
        """Multiply once."""
        return self._a @ self._b


def flop_of(forward: Callable[[], object]) -> int:
    """Count the floating-point operations of a forward pass: matrix products, convolutions and attention."""
    # The plain form of attention, of which the counter knows every product on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops())
