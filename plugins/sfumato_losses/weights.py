"""Weights on the loss: how much each time counts.

A weight is stated once, as the weight on the squared x0 error that results, and divided by what the
network's own kind of output already implies. So it means the same for every prediction type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge, gt

from sfumato import LossWeight, option, x0_weight

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato import Noised, PredictionType


@attrs.frozen(kw_only=True)
class P2(LossWeight):
    """1 / (k + SNR)^gamma on the epsilon loss: less for the times at which only details are left.

    References:
        Perception Prioritized Training of Diffusion Models, 2022, arXiv:2204.00227, Equation 8
    """

    name = "p2"

    k: float = option(1.0, "keeps the weight finite where there is no noise", gt(0))
    gamma: float = option(1.0, "0 weighs all times alike", ge(0))

    def __call__(self, noised: Noised, prediction: PredictionType) -> Tensor:
        """(B,) float64."""
        snr = (noised.alpha / noised.sigma) ** 2
        return (
            snr / (self.k + snr) ** self.gamma / x0_weight(prediction, noised.alpha, noised.sigma)
        )
