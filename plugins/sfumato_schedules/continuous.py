"""Noise schedules in continuous time, each with its inverse in closed form.

With r = sigma / alpha, a schedule is a family (what alpha and sigma are at a given r) and a speed
(which r stands at t). Variance preserving means alpha^2 + sigma^2 = 1, so that

    alpha^2 = sigmoid(-2 log r)        sigma^2 = sigmoid(2 log r)

variance exploding alpha = 1, and rectified flow alpha + sigma = 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge, gt

from sfumato import ConfigError, NoiseSchedule, option

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(kw_only=True)
class VP(NoiseSchedule):
    """log alpha = -1/4 t^2 (beta_max - beta_min) - 1/2 t beta_min, variance preserving.

    The limit of `linear` for ever more steps.

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations, 2020,
        arXiv:2011.13456, Equation 33
    """

    name = "vp"
    beta_min: float = option(0.1, "the rate of noise at t = 0", ge(0.0))
    beta_max: float = option(20.0, "the rate of noise at t = 1", gt(0.0))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, shaped and typed as t."""
        # The integral of beta up to t, which is -2 log alpha.
        noise = t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)
        return (-noise / 2).exp(), (-(-noise).expm1()).sqrt()

    def time_at(self, log_sigma_over_alpha: Tensor) -> Tensor:
        """The inverse: the root of a quadratic."""
        from torch.nn.functional import softplus

        noise = softplus(2 * log_sigma_over_alpha.double(), threshold=40)
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * noise).clamp(min=0).sqrt()
        return (2 * noise / (self.beta_min + root)).nan_to_num(nan=1.0).clamp(0, 1)

    def timestep(self, t: Tensor) -> Tensor:
        """999 t, as in the authors' code."""
        return 999 * t


@attrs.frozen(kw_only=True)
class VE(NoiseSchedule):
    """alpha = 1 and sigma^(1 / rho) in even steps: from sigma_min at t = 1/1000 to sigma_max at 1.

    Below t = 1/1000 sigma falls linearly to 0, as on a table of a thousand entries.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364,
        Equation 5

    Raises:
        ConfigError: sigma_max is not at least twice sigma_min.
    """

    name = "ve"
    sigma_min: float = option(0.002, "the first entry", gt(0.0))
    sigma_max: float = option(80.0, "the noise at t = 1", gt(0.0))
    rho: float = option(7.0, "large: more of the clock for little noise", ge(1.0))

    FIRST = 1e-3
    """The time of sigma_min."""

    def __attrs_post_init__(self) -> None:
        if self.sigma_max < 2 * self.sigma_min:
            raise ConfigError(
                f"sigma goes from {self.sigma_min:g} to {self.sigma_max:g}",
                place="noise_schedule ve",
                remedy="sigma_max must be at least twice sigma_min",
            )

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, shaped and typed as t."""
        low, high = self._roots
        share = (t - self.FIRST).clamp(min=0) / (1 - self.FIRST)
        sigma = (low + share * (high - low)) ** self.rho
        return t * 0 + 1, sigma * (t / self.FIRST).clamp(max=1)

    def time_at(self, log_sigma_over_alpha: Tensor) -> Tensor:
        """The inverse."""
        low, high = self._roots
        sigma = log_sigma_over_alpha.double().exp()
        share = (sigma ** (1 / self.rho) - low) / (high - low)
        above = self.FIRST + (1 - self.FIRST) * share.clamp(0, 1)
        return above * (sigma / self.sigma_min).clamp(max=1)


@attrs.frozen(kw_only=True)
class RectifiedFlow(NoiseSchedule):
    """alpha = 1 - t, sigma = t: straight paths between picture and noise.

    References:
        Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, 2022,
        arXiv:2209.03003
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
        arXiv:2403.03206
    """

    name = "rectified_flow"

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, shaped and typed as t."""
        return 1 - t, t

    def time_at(self, log_sigma_over_alpha: Tensor) -> Tensor:
        """The inverse."""
        return log_sigma_over_alpha.double().sigmoid()

    def timestep(self, t: Tensor) -> Tensor:
        """1000 t, as in Stable Diffusion 3."""
        return 1000 * t


@attrs.frozen(kw_only=True)
class Laplace(NoiseSchedule):
    """log SNR = mu - b sgn(1/2 - t) log(1 - 2 |t - 1/2|), variance preserving.

    Under uniform t, log SNR is Laplace distributed around mu: most of training happens there.

    References:
        Improved Noise Schedule for Diffusion Training, 2024, arXiv:2407.03297, Table 1
    """

    name = "laplace"
    mu: float = option(0.0, "log SNR at t = 1/2")
    b: float = option(0.5, "how far log SNR spreads", gt(0.0))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, shaped and typed as t."""
        # One of the two terms is 0 on each side of t = 1/2.
        log_snr = self.mu + self.b * ((2 - 2 * t).clamp(max=1).log() - (2 * t).clamp(max=1).log())
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()

    def time_at(self, log_sigma_over_alpha: Tensor) -> Tensor:
        """The inverse: the distribution function of Laplace."""
        z = (self.mu + 2 * log_sigma_over_alpha.double()) / self.b
        tail = (-z.abs()).exp() / 2
        return tail.where(z < 0, 1 - tail)
