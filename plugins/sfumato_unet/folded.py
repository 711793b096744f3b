"""Matrices made of weights, kept until these change: what no sampling call need compute twice.

They are no parameters and stand in no state dict, so weights keep their names and shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        self._made_of: Any = None

    def refresh(self, *weights: Tensor) -> None:
        """Makes it anew where the weights are not those that it was made of."""
        made_of = [
            (w.data_ptr(), w.dtype, w.device, 0 if w.is_inference() else w._version)
            for w in weights
        ]
        if made_of == self._made_of and self.value is not None:
            return
        with torch.inference_mode(False), torch.no_grad():
            made, old = self.make(*weights), self.value
            if old is None or (old.dtype, old.device) != (made.dtype, made.device):
                self.value = made
            else:
                old.copy_(made)
        self._made_of = made_of
