"""One prediction at the start and one half-way in lambda = log(alpha / sigma): DPM-Solver's steps.

`dpm2` takes the second prediction's eps for the mean over the step, `dpmpp_2s_ancestral` and
`dpmpp_sde` its x0. The rest of the step starts from the first prediction's x0 and eps, so guidance
may renoise with another eps than that of x0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge, le

from sfumato import Denoise, Guided, NoiseSchedule, Sampler, SampleStep, option
from sfumato_samplers.intervals import Level, Noise, intervals, time_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def halfway(schedule: NoiseSchedule, start: Level, end: Level) -> tuple[Tensor, Level]:
    """The time and level half-way in lambda between two that are bounded."""
    return time_of(schedule, math.sqrt(start.ratio * end.ratio))


def midpoint(
    denoise: Denoise, schedule: NoiseSchedule, guided: Guided, start: Level, end: Level
) -> Guided:
    """The prediction half-way in lambda, where an Euler step leads."""
    t, middle = halfway(schedule, start, end)
    return denoise(middle.noised(guided), t)


@attrs.frozen(kw_only=True)
class DPM2(Sampler):
    """DPM-Solver-2: the midpoint method on dz / dr = eps, the midpoint being that of lambda.

    References:
        DPM-Solver, 2022, arXiv:2206.00927, Algorithm 1
    """

    name = "dpm2"

    @property
    def order(self) -> int:
        """2."""
        return 2

    def run(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, times: Tensor, noise: Noise
    ) -> Iterator[SampleStep]:
        """Two predictions a step, one at the last; draws no noise."""
        for interval in intervals(schedule, times):
            start, end = interval.start, interval.end
            guided = denoise(x, interval.t)
            x = end.noised(guided)
            if start.bounded(end):
                middle = midpoint(denoise, schedule, guided, start, end)
                x = start.eps_step(end, guided, middle.eps)
            yield interval.done(x, guided.x0)


@attrs.frozen(kw_only=True)
class DPMPP2SAncestral(Sampler):
    """DPM-Solver++(2S) down to less noise than s has, then fresh noise up to s.

    References:
        DPM-Solver++, 2022, arXiv:2211.01095, Algorithm 1 with r = 1/2
        k-diffusion, `sample_dpmpp_2s_ancestral`, 2022
    """

    name = "dpmpp_2s_ancestral"
    eta: float = option(1.0, "0 is DPM-Solver++(2S), deterministic", ge(0.0), le(1.0))

    @property
    def order(self) -> int | None:
        """2; none once noise is drawn."""
        return 2 if self.eta == 0 else None

    def run(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, times: Tensor, noise: Noise
    ) -> Iterator[SampleStep]:
        """Two predictions a step, one at the last."""
        for interval in intervals(schedule, times):
            guided = denoise(x, interval.t)
            down, fresh = interval.start.ancestral(interval.end, self.eta)
            x = down.noised(guided)
            if interval.start.bounded(down):
                middle = midpoint(denoise, schedule, guided, interval.start, down)
                x = interval.start.x0_step(down, guided, middle.x0)
            if fresh > 0:
                x = x + fresh * noise()
            yield interval.done(x, guided.x0)


@attrs.frozen(kw_only=True)
class DPMPPSDE(Sampler):
    """DPM-Solver++(2S) for the reverse SDE: the midpoint has the noise of the first half.

    The noise of the whole step is that of its halves, the first carried on to s as the SDE carries
    it. (k-diffusion draws both from one Brownian path in sigma, which correlates them otherwise.)

    References:
        DPM-Solver++, 2022, arXiv:2211.01095, Section 5
        k-diffusion, `sample_dpmpp_sde`, 2022
    """

    name = "dpmpp_sde"
    eta: float = option(1.0, "share of the SDE's noise: 0 is DPM-Solver++(2S)", ge(0.0), le(1.0))

    @property
    def order(self) -> int | None:
        """2; none once noise is drawn."""
        return 2 if self.eta == 0 else None

    def run(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, times: Tensor, noise: Noise
    ) -> Iterator[SampleStep]:
        """Two predictions and, with eta, two draws of noise a step; one each at a step to x0."""
        for interval in intervals(schedule, times):
            start, end = interval.start, interval.end
            guided = denoise(x, interval.t)
            down, fresh = start.diffused(end, self.eta)
            x = down.noised(guided)
            if start.bounded(end):
                t, middle = halfway(schedule, start, end)
                lower, first = start.diffused(middle, self.eta)
                carried, second = middle.diffused(end, self.eta)
                drawn = first * noise() if self.eta else 0.0
                ahead = denoise(lower.noised(guided) + drawn, t)
                x = start.x0_step(down, guided, ahead.x0) + carried.sigma / middle.sigma * drawn
                fresh = second
            if fresh > 0:
                x = x + fresh * noise()
            yield interval.done(x, guided.x0)
