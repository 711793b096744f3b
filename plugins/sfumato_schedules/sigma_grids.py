"""The times that inference visits, by the noise levels sigma / alpha that it passes through.

Each level stands at the time that the schedule's `time_at` gives, which on a table lies between two
entries as a rule; 0 is added at the end. The formulas are those of k-diffusion (Crowson, 2022).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import attrs
from attrs.validators import ge, gt, optional

from sfumato import NoiseSchedule, option
from sfumato_schedules.grids import CheckedGrid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

BEYOND = 1e-3
"""How far above a schedule's noisiest level a grid may start, as a share of it: published levels
are rounded.
"""


@attrs.frozen(kw_only=True)
class SigmaGrid(CheckedGrid):
    """A grid that is given by noise levels."""

    @abstractmethod
    def sigmas(self, steps: int, schedule: NoiseSchedule) -> Tensor:
        """`steps` falling levels of sigma / alpha, (steps,) float64."""

    def visited(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        """The times of the levels.

        Raises:
            ConfigError: the first level is noisier than the schedule ever is.
        """
        wanted = self.sigmas(steps, schedule)
        noisiest = level(schedule, 1.0)
        if float(wanted[0]) > noisiest * (1 + BEYOND):
            raise self.refusal(
                f"sigma / alpha starts at {float(wanted[0]):g}, and the noise_schedule "
                f"{schedule.name!r} ends at {noisiest:g}",
                "start lower, or use a noisier schedule",
            )
        times: list[float] = schedule.time_at(wanted.log()).tolist()
        return times


def level(schedule: NoiseSchedule, t: float) -> float:
    """Sigma / alpha at t; infinite where there is no signal."""
    import torch

    alpha, sigma = schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    return float(sigma / alpha)


@attrs.frozen(kw_only=True)
class Ramp(SigmaGrid):
    """A grid from one noise level down to another.

    Raises:
        ConfigError: sigma_max is not above sigma_min.
    """

    sigma_min: float | None = option(
        None, "the last level; null: that of t = 1/T, T = 1000 where there is no table",
        optional(gt(0.0)),
    )  # fmt: skip
    sigma_max: float | None = option(
        None, "the first level; null: that of t = 1", optional(gt(0.0))
    )

    def __attrs_post_init__(self) -> None:
        if self.sigma_min and self.sigma_max and self.sigma_max <= self.sigma_min:
            raise self.refusal(
                f"sigma goes from {self.sigma_max:g} to {self.sigma_min:g}",
                "sigma_max must be above sigma_min",
            )

    @abstractmethod
    def between(self, high: float, low: float, share: Tensor) -> Tensor:
        """From high at share 0 to low at share 1, like share (steps,) float64."""

    def sigmas(self, steps: int, schedule: NoiseSchedule) -> Tensor:
        """`steps` levels at even shares of the way.

        Raises:
            ConfigError: sigma_max is null, and the schedule has no signal at t = 1.
        """
        import torch

        high = self.sigma_max or level(schedule, 1.0)
        if high * torch.finfo(torch.float32).eps > 1:
            raise self.refusal(
                f"the noise_schedule {schedule.name!r} leaves no signal at t = 1",
                "give sigma_max, such as 80",
            )
        low = self.sigma_min or level(schedule, 1 / (schedule.points or 1000))
        return self.between(high, low, torch.linspace(0, 1, steps, dtype=torch.float64))


@attrs.frozen(kw_only=True)
class Karras(Ramp):
    """sigma^(1 / rho) in even steps.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364,
        Equation 5
    """

    name = "karras"
    rho: float = option(7.0, "large: more of the steps at low noise", ge(1.0))

    def between(self, high: float, low: float, share: Tensor) -> Tensor:
        """Even in the rho-th root."""
        first, last = high ** (1 / self.rho), low ** (1 / self.rho)
        root: Tensor = first + share * (last - first)
        return root**self.rho


@attrs.frozen(kw_only=True)
class PolyExponential(Ramp):
    """log sigma falls like (1 - share)^rho.

    References:
        k-diffusion, Crowson, 2022, `get_sigmas_polyexponential`
    """

    name = "polyexponential"
    rho: float = option(1.0, "above 1: more of the steps at low noise", gt(0.0))

    def between(self, high: float, low: float, share: Tensor) -> Tensor:
        """A power in the logarithm."""
        return low * (high / low) ** ((1 - share) ** self.rho)


@attrs.frozen(kw_only=True)
class Exponential(Ramp):
    """log sigma in even steps: each level is the same share of the one before.

    References:
        k-diffusion, Crowson, 2022, `get_sigmas_exponential`
    """

    name = "exponential"

    def between(self, high: float, low: float, share: Tensor) -> Tensor:
        """Even in the logarithm."""
        return low * (high / low) ** (1 - share)


ALIGNED = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Noise levels of ten steps, as the authors publish them."""


@attrs.frozen(kw_only=True)
class AlignYourSteps(SigmaGrid):
    """Levels optimised for a model; for other numbers of steps log sigma is interpolated linearly.

    The last of the N + 1 levels is replaced by 0, as with every grid here.

    References:
        Align Your Steps: Optimizing Sampling Schedules in Diffusion Models, 2024, arXiv:2404.14507
    """

    name = "align_your_steps"
    model: Literal["sd15", "sdxl", "svd"] = option("sd15", "whose levels")

    def sigmas(self, steps: int, schedule: NoiseSchedule) -> Tensor:
        """The levels at even places of the list."""
        import torch

        logs = torch.tensor(ALIGNED[self.model], dtype=torch.float64).log()
        place = torch.arange(steps, dtype=torch.float64) * (len(logs) - 1) / steps
        low = place.long()
        return torch.lerp(logs[low], logs[low + 1], place - low).exp()
