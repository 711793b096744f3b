"""One step of the reverse process: where it starts, where it ends and what lies between.

With z = x / alpha, r = sigma / alpha and lambda = -log r the probability flow of every schedule,
whether it preserves variance, lets it explode or goes straight, is one equation:

    dz / dr = eps                (Song et al., 2020, arXiv:2010.02502, Equation 14)
    dz / dlambda = x0 - z        (Lu et al., 2022, arXiv:2211.01095, Proposition 4.1)

A step starts from z = x0 + r eps. That is x / alpha, unless guidance renoises with another eps than
that of x0 on purpose (CFG++); so a sampler hands x to `denoise` and goes on from what it answers.
With eps, or x0, taken as constant both equations lead to the same place, the step of Euler and of
DDIM, and a method of higher order moves that place by what it knows of the change in between:

    z_s = x0 + r_s eps + integral of (eps(r) - eps) dr
        = x0 + r_s eps + integral of exp(lambda - lambda_s) (x0(lambda) - x0) dlambda

Where there is no signal or no noise lambda has no bounds and nothing is known of the change, so
there a method takes the Euler step. (Methods in r, such as Heun's, want r to fall by a moderate
factor at each step: a grid like that of Karras et al. where it begins in the thousands.) All
coefficients are host floats (float64): a step waits for no device.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import attrs

from sfumato import Guided, NoiseSchedule, SampleStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor  # noqa: TC004 (nothing resolves the fields of Interval)

    Noise = Callable[[], Tensor]


@attrs.frozen
class Level:
    """How much signal and noise a state holds, whatever its time."""

    alpha: float
    sigma: float

    @classmethod
    def at(cls, schedule: NoiseSchedule, t: Tensor) -> Self:
        """That of the schedule at t, () float64."""
        alpha, sigma = schedule.alpha_sigma(t)
        return cls(float(alpha), float(sigma))

    @property
    def ratio(self) -> float:
        """The noise-to-signal ratio r = sigma / alpha; infinite where there is no signal."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def half_log_snr(self) -> float:
        """The paper's lambda = log(alpha / sigma); infinite where either is 0."""
        return -math.log(self.ratio) if self.sigma else math.inf

    @property
    def holds_signal(self) -> bool:
        """Whether x shows any: below the rounding of float32 it is pure noise, alpha 0 or not."""
        return self.alpha > 2**-24 * self.sigma

    def noised(self, guided: Guided) -> Tensor:
        """The Euler step to this level: alpha x0 + sigma eps, wherever these were estimated."""
        return self.alpha * guided.x0 + self.sigma * guided.eps

    def remaining(self, end: Level) -> float:
        """r_s / r_t = exp(-h) of a step to `end`."""
        return self.alpha * end.sigma / (end.alpha * self.sigma)

    def bounded(self, end: Level) -> bool:
        """Whether lambda is finite, and known, at both ends of a step to `end`."""
        return self.holds_signal and end.sigma > 0

    def eps_step(self, end: Level, guided: Guided, mean: Tensor) -> Tensor:
        """The step to `end` with `mean` in the place of eps, the mean over r; needs alpha > 0."""
        gain = end.sigma - end.alpha * self.ratio
        return end.noised(guided) + gain * (mean - guided.eps)

    def x0_step(self, end: Level, guided: Guided, mean: Tensor) -> Tensor:
        """The step to `end` with `mean` in the place of x0, the mean under exp(lambda)."""
        gain = end.alpha * (1 - self.remaining(end))
        return end.noised(guided) + gain * (mean - guided.x0)

    def ancestral(self, end: Level, eta: float) -> tuple[Level, float]:
        """A level below `end` to step down to, and the deviation of the fresh noise that leads up.

        At eta 1 the split is that of q(x_s given x_t, x0); eta scales the deviation.
        """
        share = eta**2 * (1 - self.remaining(end) ** 2)
        return Level(end.alpha, end.sigma * math.sqrt(1 - share)), end.sigma * math.sqrt(share)

    def diffused(self, end: Level, eta: float) -> tuple[Level, float]:
        """As `ancestral`, for the reverse SDE with eta times its noise: two halves make a whole.

        The same at eta 0 and 1.
        """
        kept = self.remaining(end) ** eta
        return Level(end.alpha, end.sigma * kept), end.sigma * math.sqrt(1 - kept**2)


@attrs.frozen(eq=False, kw_only=True)
class Interval:
    """A step from time t down to s, () float64 on the CPU, with the levels there.

    `index` counts the intervals behind, of `steps`.
    """

    schedule: NoiseSchedule
    index: int
    steps: int
    t: Tensor
    s: Tensor
    start: Level
    end: Level

    def done(self, x: Tensor, x0: Tensor) -> SampleStep:
        """The record of this step."""
        return SampleStep(index=self.index, t=float(self.s), x=x, x0=x0)


def intervals(schedule: NoiseSchedule, times: Tensor) -> Iterator[Interval]:
    """The steps between neighbouring times, (steps + 1,) float64 on the CPU."""
    levels = [Level(*pair) for pair in zip(*map(_floats, schedule.alpha_sigma(times)), strict=True)]
    for index, (start, end) in enumerate(pairwise(levels)):
        yield Interval(
            schedule=schedule,
            index=index,
            steps=len(times) - 1,
            t=times[index],
            s=times[index + 1],
            start=start,
            end=end,
        )


def _floats(values: Tensor) -> list[float]:
    found: list[float] = values.tolist()
    return found


def time_of(schedule: NoiseSchedule, ratio: float) -> tuple[Tensor, Level]:
    """When sigma / alpha is `ratio`, () float64, and the level there: the schedule's nearest."""
    import torch

    t = schedule.time_at(torch.tensor(math.log(ratio), dtype=torch.float64))
    return t, Level.at(schedule, t)
