"""EDM's preconditioning as a module.

It is said in alpha and sigma, so that nothing is divided by alpha, which may be 0:

    n = sqrt(sigma^2 + alpha^2 d^2)
    D = alpha d^2 / n^2 x_t + sigma d / n F(x_t / n; log(sigma / alpha) / 4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch

from sfumato import DenoiserModule, NoiseSchedule, Space, like

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato import Opposed, TextEmbedding
    from sfumato_preconditioning import EDM

FURTHEST = 20.0
"""The largest |log(sigma / alpha)| that a network is told: at t = 0 it is infinite."""


@attrs.frozen(kw_only=True)
class NoiseLevelClock(NoiseSchedule):
    """A schedule that tells networks log(sigma / alpha) / 4 instead of an index."""

    name = "noise_level_clock"
    schedule: NoiseSchedule

    @property
    def points(self) -> int | None:
        """Those of the schedule."""
        return self.schedule.points

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the schedule."""
        return self.schedule.alpha_sigma(t)

    def time_at(self, log_sigma_over_alpha: Tensor) -> Tensor:
        """That of the schedule."""
        return self.schedule.time_at(log_sigma_over_alpha)

    def timestep(self, t: Tensor) -> Tensor:
        """c_noise."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return (sigma.log() - alpha.log()).clamp(-FURTHEST, FURTHEST) / 4


class EDMModule(DenoiserModule):
    """See `EDM`."""

    def __init__(self, edm: EDM, space: Space) -> None:
        super().__init__()
        self.schedule, self.sigma_data = space.schedule, edm.sigma_data
        clock = NoiseLevelClock(schedule=space.schedule)
        self.denoiser = edm.denoiser.build(attrs.evolve(space, schedule=clock))

    def precompute(self, text: TextEmbedding | Opposed, times: Tensor) -> Any:
        """That of the network inside."""
        return self.denoiser.precompute(text, times)

    def at(self, condition: Any, t: Tensor) -> Any:
        """That of the network inside."""
        return self.denoiser.at(condition, t)

    def forward(self, x_t: Tensor, t: Tensor, condition: Any, variant: str | None = None) -> Tensor:
        """x0; see `DenoiserModule.forward`."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        norm = torch.hypot(sigma, self.sigma_data * alpha)
        c_skip = self.sigma_data**2 * alpha / norm**2
        c_out = self.sigma_data * sigma / norm
        said: Tensor = self.denoiser(x_t * like(1 / norm, x_t), t, condition, variant)
        return like(c_skip, x_t) * x_t + like(c_out, x_t) * said
