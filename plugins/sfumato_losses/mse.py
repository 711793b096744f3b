"""The squared error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sfumato import Loss, Noised

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(kw_only=True)
class MSE(Loss):
    """The mean over C, H and W of (output - target)^2, L_simple of the paper.

    References:
        Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239
    """

    name = "mse"

    def __call__(self, output: Tensor, target: Tensor, noised: Noised) -> Tensor:
        """(B,) float32, computed in float32 whatever the network's dtype."""
        return (output.float() - target.float()).square().flatten(1).mean(1)
