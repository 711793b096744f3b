"""One prediction at the start and one half-way in lambda = log(alpha / sigma): DPM-Solver's steps.

`dpm2` takes the second prediction's eps for the mean over the step, `dpmpp_2s_ancestral` and
`dpmpp_sde` its x0. The rest of the step starts from the first prediction's x0 and eps, so guidance
may renoise with another eps than that of x0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from sfumato_samplers.intervals import Interval, Level, time_of
from sfumato_samplers.stepping import SingleStepSampler, StochasticSampler

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato import Denoise, Guided, SampleStep
    from sfumato_samplers.intervals import Noise


def halfway(interval: Interval, end: Level) -> tuple[Tensor, Level]:
    """The time and level half-way in lambda from the start to `end`, which are bounded."""
    return time_of(interval.schedule, math.sqrt(interval.start.ratio * end.ratio))


def ahead(denoise: Denoise, guided: Guided, interval: Interval, end: Level) -> Guided:
    """The prediction half-way to `end`, where an Euler step leads."""
    t, middle = halfway(interval, end)
    return denoise(middle.noised(guided), t)


@attrs.frozen(kw_only=True)
class DPM2(SingleStepSampler):
    """DPM-Solver-2: the midpoint method on dz / dr = eps, the midpoint being that of lambda.

    References:
        DPM-Solver, 2022, arXiv:2206.00927, Algorithm 1
    """

    name = "dpm2"
    order = 2

    def step(self, denoise: Denoise, x: Tensor, interval: Interval, noise: Noise) -> SampleStep:
        """Two predictions, one at the step to x0; draws no noise."""
        guided = denoise(x, interval.t)
        x = interval.end.noised(guided)
        if interval.start.bounded(interval.end):
            mean = ahead(denoise, guided, interval, interval.end).eps
            x = interval.start.eps_step(interval.end, guided, mean)
        return interval.done(x, guided.x0)


@attrs.frozen(kw_only=True)
class DPMPP2SAncestral(SingleStepSampler, StochasticSampler):
    """DPM-Solver++(2S) down to less noise than s has, then fresh noise up to s.

    References:
        DPM-Solver++, 2022, arXiv:2211.01095, Algorithm 1 with r = 1/2
        k-diffusion, `sample_dpmpp_2s_ancestral`, 2022
    """

    name = "dpmpp_2s_ancestral"

    def step(self, denoise: Denoise, x: Tensor, interval: Interval, noise: Noise) -> SampleStep:
        """Two predictions, one where it steps down to x0."""
        guided = denoise(x, interval.t)
        down, fresh = interval.start.ancestral(interval.end, self.eta)
        x = down.noised(guided)
        if interval.start.bounded(down):
            mean = ahead(denoise, guided, interval, down).x0
            x = interval.start.x0_step(down, guided, mean)
        if fresh > 0:
            x = x + fresh * noise()
        return interval.done(x, guided.x0)


@attrs.frozen(kw_only=True)
class DPMPPSDE(SingleStepSampler, StochasticSampler):
    """DPM-Solver++(2S) for the reverse SDE: the midpoint has the noise of the first half.

    The noise of the whole step is that of its halves, the first carried on to s as the SDE carries
    it; independent draws would leave a method of first order. (k-diffusion takes both from one
    Brownian path in sigma, whose correlation is that of the SDE for short steps only.)

    References:
        DPM-Solver++, 2022, arXiv:2211.01095
        k-diffusion, `sample_dpmpp_sde`, 2022
    """

    name = "dpmpp_sde"

    def step(self, denoise: Denoise, x: Tensor, interval: Interval, noise: Noise) -> SampleStep:
        """Two predictions and, with eta, two draws of noise; one and none at the step to x0."""
        start, end = interval.start, interval.end
        guided = denoise(x, interval.t)
        down, fresh = start.diffused(end, self.eta)
        x = down.noised(guided)
        if start.bounded(end):
            t, middle = halfway(interval, end)
            lower, first = start.diffused(middle, self.eta)
            carried, fresh = middle.diffused(end, self.eta)
            drawn = first * noise() if first > 0 else 0.0
            mean = denoise(lower.noised(guided) + drawn, t).x0
            x = start.x0_step(down, guided, mean) + carried.sigma / middle.sigma * drawn
        if fresh > 0:
            x = x + fresh * noise()
        return interval.done(x, guided.x0)
