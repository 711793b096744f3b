"""The noise levels of EDM: a grid of them for inference, and a schedule on which that grid is even.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
arXiv:2206.00364. The paper's sigma is the ratio of noise to signal, here sigma / alpha.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge, gt, le

from sfumato import Component, ConfigError, NoiseSchedule, TimeGrid, hookimpl, option

if TYPE_CHECKING:
    from torch import Tensor

SFUMATO_API = 1


@attrs.frozen(kw_only=True)
class KarrasNoise(NoiseSchedule):
    """sigma / alpha = sigma_max t^rho, with alpha^2 + sigma^2 = 1, in continuous time.

    Equation 5 of the paper with sigma_min = 0, so that t = 0 is clean: equal steps in time are the
    paper's steps in noise. The variance is preserved, where the paper has alpha = 1.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364
    """

    name = "karras_noise"

    sigma_max: float = option(80.0, "noise over signal at t = 1", gt(0), le(1e4))
    rho: float = option(7.0, "higher keeps pictures clean for longer", ge(1), le(10))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, shaped and typed as t."""
        ratio = self.sigma_max * t**self.rho
        alpha = (1 + ratio**2).rsqrt()
        return alpha, ratio * alpha

    def time_at(self, log_sigma_over_alpha: Tensor) -> Tensor:
        """The inverse in closed form, float64."""
        log_ratio = log_sigma_over_alpha.double() - math.log(self.sigma_max)
        return (log_ratio / self.rho).exp().clamp(max=1)


@attrs.frozen(kw_only=True)
class KarrasSigmas(TimeGrid):
    """sigma_i^(1/rho) even from sigma_max to sigma_min for i = 0 ... N - 1, and sigma_N = 0.

    A schedule whose own noise ends below sigma_max is visited from there.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364,
        Equation 5
    """

    name = "karras_sigmas"

    sigma_min: float = option(0.002, "noise over signal where the last step begins", gt(0))
    sigma_max: float = option(80.0, "noise over signal where the first step begins", gt(0))
    rho: float = option(7.0, "higher takes more of the steps at low noise", ge(1))

    def __attrs_post_init__(self) -> None:
        """Two options must agree."""
        if self.sigma_min >= self.sigma_max:
            raise ConfigError(
                f"sigma_min {self.sigma_min:g} is not below sigma_max {self.sigma_max:g}",
                place=f"time_grid.{self.name}",
            )

    def sigmas(self, steps: int, largest: float) -> list[float]:
        """sigma_0 ... sigma_{N - 1}, from `largest` where that is below sigma_max."""
        first, last = (
            sigma ** (1 / self.rho) for sigma in (min(self.sigma_max, largest), self.sigma_min)
        )
        return [(first + i / max(steps - 1, 1) * (last - first)) ** self.rho for i in range(steps)]

    def times(self, steps: int, schedule: NoiseSchedule) -> Tensor:
        """(steps + 1,) float64, strictly falling to 0; they may lie between entries of a table.

        Raises:
            ConfigError: `steps` is below 1 or above `schedule.points`, or the schedule's noise ends
                below sigma_min.
        """
        import torch

        place = f"time_grid.{self.name}"
        if not 1 <= steps <= (schedule.points or steps):
            most = schedule.points or "any number"
            raise ConfigError(f"{steps} steps", place=place, remedy=f"ask for 1 to {most}")
        alpha, sigma = schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
        largest = float(sigma / alpha)
        if largest <= self.sigma_min:
            raise ConfigError(
                f"the noise schedule ends at {largest:g}, below sigma_min {self.sigma_min:g}",
                place=place,
            )
        levels = torch.tensor(self.sigmas(steps, largest), dtype=torch.float64)
        return torch.cat((schedule.time_at(levels.log()), levels.new_zeros(1)))


@hookimpl
def sfumato_components() -> list[type[Component]]:
    """The components of this package."""
    return [KarrasNoise, KarrasSigmas]
