"""Weights on the loss: how much each noise level counts.

A weight is stated once, as the weight w(S) on the squared x0 error that results, S being the SNR,
and divided by what the network's own kind of output already implies. So it means the same for every
prediction type and every schedule. What papers state on another loss is brought to x0 by

    epsilon  w = S w_eps        v  w = (S + 1) w_v        flow  w = (1 + sqrt(S))^2 w_flow

the latter two for v on variance-preserving schedules and flow on the rectified flow. Some are one
family: `sigmoid` is `soft_min_snr` with gamma = e^bias, and `p2` with gamma = 1 is proportional to
`soft_min_snr` with gamma = k.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge, gt

from sfumato import LossWeight, option, x0_weight

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato import Noised, PredictionType

LEAST_SIGNAL = 1e-12
"""Alpha is taken to be at least this: so what is 0 / 0 for epsilon at alpha = 0 has its limit."""


@attrs.frozen(kw_only=True)
class SNRWeight(LossWeight):
    """A weight that is a function of the SNR."""

    @abstractmethod
    def on_x0(self, snr: Tensor) -> Tensor:
        """The weight on the squared x0 error, like snr (B,) float64."""

    def __call__(self, noised: Noised, prediction: PredictionType) -> Tensor:
        """(B,) float64."""
        alpha, sigma = noised.alpha.clamp(min=LEAST_SIGNAL), noised.sigma
        return self.on_x0((alpha / sigma) ** 2) / x0_weight(prediction, alpha, sigma)


@attrs.frozen(kw_only=True)
class P2(SNRWeight):
    """1 / (k + S)^gamma on the epsilon loss: less for the times at which only details are left.

    References:
        Perception Prioritized Training of Diffusion Models, 2022, arXiv:2204.00227, Equation 8
    """

    name = "p2"

    k: float = option(1.0, "keeps the weight finite where there is no noise", gt(0))
    gamma: float = option(1.0, "0 weighs all times alike", ge(0))

    def on_x0(self, snr: Tensor) -> Tensor:
        """S / (k + S)^gamma."""
        return snr / (self.k + snr) ** self.gamma


@attrs.frozen(kw_only=True)
class MinSNR(SNRWeight):
    """min(S, gamma) on the x0 loss: the low noise levels do not outweigh the others.

    References:
        Efficient Diffusion Training via Min-SNR Weighting Strategy, 2023, arXiv:2303.09556
    """

    name = "min_snr"

    gamma: float = option(5.0, "the largest weight on the x0 loss", gt(0))

    def on_x0(self, snr: Tensor) -> Tensor:
        """min(S, gamma)."""
        return snr.clamp(max=self.gamma)


@attrs.frozen(kw_only=True)
class SoftMinSNR(SNRWeight):
    """S gamma / (S + gamma) on the x0 loss: `min_snr` without the corner.

    The default is 1 / sigma_data^2 of EDM's sigma_data = 0.5.

    References:
        Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers,
        2024, arXiv:2401.11605
    """

    name = "soft_min_snr"

    gamma: float = option(4.0, "the largest weight on the x0 loss", gt(0))

    def on_x0(self, snr: Tensor) -> Tensor:
        """S gamma / (S + gamma)."""
        return self.gamma * snr / (snr + self.gamma)


@attrs.frozen(kw_only=True)
class Debiased(SNRWeight):
    """1 / sqrt(S) on the epsilon loss: the noisy times count more.

    With epsilon prediction it grows without bound towards alpha = 0.

    References:
        Unmasking Bias in Diffusion Model Training, 2023, arXiv:2310.08442
    """

    name = "debiased"

    def on_x0(self, snr: Tensor) -> Tensor:
        """sqrt(S)."""
        return snr.sqrt()


@attrs.frozen(kw_only=True)
class EDM(SNRWeight):
    """(s^2 + d^2) / (s d)^2 on the x0 loss, s = sigma / alpha, d = sigma_data.

    That is S + 1 / d^2. With the preconditioned denoiser `edm` the network's own output has weight
    1 at every time.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364,
        Table 1
    """

    name = "edm"

    sigma_data: float = option(0.5, "the standard deviation of the data", gt(0))

    def on_x0(self, snr: Tensor) -> Tensor:
        """S + 1 / sigma_data^2."""
        return snr + self.sigma_data**-2


@attrs.frozen(kw_only=True)
class SigmaSqrt(SNRWeight):
    """1 / sigma^2 on the x0 loss, sigma that of the rectified flow at the same SNR.

    So all times count alike in the flow loss.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
        arXiv:2403.03206, as `sigma_sqrt` in diffusers' training scripts
    """

    name = "sigma_sqrt"

    def on_x0(self, snr: Tensor) -> Tensor:
        """(1 + sqrt(S))^2, as sigma = 1 / (1 + sqrt(S))."""
        return (1 + snr.sqrt()) ** 2


@attrs.frozen(kw_only=True)
class CosMap(SNRWeight):
    """2 / (pi (1 - 2 sigma + 2 sigma^2)) on the flow loss, sigma that of the rectified flow at the
    same SNR: what a cosine schedule makes of uniform times.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
        arXiv:2403.03206, Equation 21
    """

    name = "cosmap"

    def on_x0(self, snr: Tensor) -> Tensor:
        """2 / pi (1 + sqrt(S))^4 / (1 + S)."""
        return 2 / math.pi * (1 + snr.sqrt()) ** 4 / (1 + snr)


@attrs.frozen(kw_only=True)
class Sigmoid(SNRWeight):
    """sigmoid(bias - log S) on the epsilon loss: falling with the SNR, so that the loss is a bound
    on the likelihood of noisy data.

    The papers weigh log SNR, uniformly drawn; here times are drawn by the `time_sampler`, as in the
    practice of other weights.

    References:
        Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation, 2023,
        arXiv:2303.00848
        Simpler Diffusion (SiD2), 2024, arXiv:2410.19324
    """

    name = "sigmoid"

    bias: float = option(2.0, "the log SNR below which the weight is flat")

    def on_x0(self, snr: Tensor) -> Tensor:
        """S sigmoid(bias - log S)."""
        return snr * (self.bias - snr.log()).sigmoid()
