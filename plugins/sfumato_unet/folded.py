"""Matrices made of weights once for a sampling call, and not at each of its steps.

They are no parameters and stand in no state dict, so weights keep their names and shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable


class Folded(nn.Module):
    """`make(*weights)`, as of the last `refresh`.

    A change is written into the tensor that is there, whose address a recorded CUDA graph knows.

    Attributes:
        value: None before the first `refresh`.
    """

    value: Tensor | None

    def __init__(self, make: Callable[..., Tensor]) -> None:
        super().__init__()
        self.make = make
        self.register_buffer("value", None, persistent=False)

    def refresh(self, *weights: Tensor) -> None:
        """Makes it anew: nothing tells whether weights have changed, as a fused optimiser moves
        them without raising their version.
        """
        with torch.inference_mode(False), torch.no_grad():
            made, old = self.make(*weights), self.value
            if old is None or (old.dtype, old.device) != (made.dtype, made.device):
                self.value = made
            else:
                old.copy_(made)
