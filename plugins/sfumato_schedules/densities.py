"""Densities of the times that training draws, each by its quantile function: t = F^-1(u).

On a table the times of ((i - 1) / T, i / T] are i / T.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge, gt, le

from sfumato import NoiseSchedule, TimeSampler, option
from sfumato_schedules.uniform import Uniform

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(kw_only=True)
class Density(TimeSampler):
    """A time sampler that is given by its quantile function."""

    @abstractmethod
    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Times (B,) float64 in (0, 1] that do not fall as u (B,) in (0, 1] rises."""

    def draw(self, u: Tensor, row: Tensor, rows: int, step: int, schedule: NoiseSchedule) -> Tensor:
        """Times (B,) float64 in (0, 1], from u alone."""
        t = self.quantile(u, schedule).clamp(max=1)  # rounding may leave it a bit above
        return Uniform().draw(t, row, rows, step, schedule)


@attrs.frozen(kw_only=True)
class LogitNormal(Density):
    """log(t / (1 - t)) is normal: t = sigmoid(mean + deviation z).

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
        arXiv:2403.03206, Equation 19
    """

    name = "logit_normal"
    mean: float = option(0.0, "below 0: more of the clean times", ge(-10.0), le(10.0))
    deviation: float = option(1.0, "small: more of the middle", gt(0.0), le(10.0))

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Sigmoid of the normal quantile."""
        import torch

        normal: Tensor = torch.special.ndtri(u)
        return (self.mean + self.deviation * normal).sigmoid()


@attrs.frozen(kw_only=True)
class Mode(Density):
    """t = 1 - v - s (cos^2(pi v / 2) - 1 + v) with v = 1 - u: a hump in the middle, heavy tails.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
        arXiv:2403.03206, Equation 20
    """

    name = "mode"
    scale: float = option(
        1.29, "s: above 0 more of the middle, below of the ends", ge(-1.0), le(2 / (math.pi - 2))
    )

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Equation 20, with its terms gathered so that none cancels where u is small."""
        return (1 + self.scale) * u - self.scale * (math.pi / 2 * u).sin() ** 2


@attrs.frozen(kw_only=True)
class LogNormal(Density):
    """log(sigma / alpha) is normal, whatever the schedule.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364,
        Table 1
    """

    name = "lognormal"
    mean: float = option(-1.2, "P_mean, of log(sigma / alpha)", ge(-10.0), le(10.0))
    deviation: float = option(1.2, "P_std", gt(0.0), le(10.0))

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Where the schedule has that noise level, or the end of it that is nearest."""
        import torch

        return schedule.time_at(self.mean + self.deviation * torch.special.ndtri(u))


@attrs.frozen(kw_only=True)
class BetaTimes(Density):
    """t is Beta(a, b): towards noise where a > b.

    References:
        pi0: A Vision-Language-Action Flow Model for General Robot Control, 2024, arXiv:2410.24164,
        Appendix B
    """

    name = "beta"
    a: float = option(1.5, "below 1: a pole at t = 0", ge(0.1), le(20.0))
    b: float = option(1.0, "below 1: a pole at t = 1", ge(0.1), le(20.0))

    def quantile(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The inverse of the incomplete beta function."""
        from sfumato_schedules import beta_distribution

        return beta_distribution.quantile(u, self.a, self.b)
