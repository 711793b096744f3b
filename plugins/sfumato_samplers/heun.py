"""Heun's method in r = sigma / alpha: an Euler step, then again with the mean of both slopes.

`heun` is the method itself; `edm` adds noise before each step, `restart` adds much of it once, and
walks down again. The slope dz / dr is eps, so guidance that renoises with another eps than that of
x0 moves only the slope.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge, gt, le

from sfumato import ConfigError, Denoise, NoiseSchedule, Sampler, SampleStep, option
from sfumato_samplers.intervals import Interval, Level, intervals, time_of
from sfumato_samplers.stepping import SingleStepSampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from sfumato_samplers.intervals import Noise


def heun_step(denoise: Denoise, x: Tensor, interval: Interval) -> SampleStep:
    """Lines 4 to 8 of Algorithm 1: two predictions, or one where the second is not to be had."""
    guided = denoise(x, interval.t)
    x = interval.end.noised(guided)
    if interval.start.bounded(interval.end):
        mean = (guided.eps + denoise(x, interval.s).eps) / 2
        x = interval.start.eps_step(interval.end, guided, mean)
    return interval.done(x, guided.x0)


def lifted(x: Tensor, level: Level, above: Level, noise: Noise, scale: float = 1.0) -> Tensor:
    """Noise added to x until it has that of the level above, its deviation times `scale`."""
    added = max(above.sigma**2 - (above.alpha * level.ratio) ** 2, 0.0)
    return above.alpha / level.alpha * x + scale * math.sqrt(added) * noise()


@attrs.frozen(kw_only=True)
class Heun(SingleStepSampler):
    """Second order with two predictions a step, one at the last.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364
    """

    name = "heun"
    order = 2

    def step(self, denoise: Denoise, x: Tensor, interval: Interval, noise: Noise) -> SampleStep:
        """Algorithm 1 of the paper; draws no noise."""
        return heun_step(denoise, x, interval)


@attrs.frozen(kw_only=True)
class EDM(SingleStepSampler):
    """Before each Heun step r grows by a factor 1 + g, g = min(churn / steps, sqrt(2) - 1).

    Noise levels are in units of r, the paper's sigma; the noisiest time of the schedule bounds
    them. The defaults are the paper's for ImageNet at 64 pixels.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364
    """

    name = "edm"
    churn: float = option(40.0, "S_churn: 0 is heun", ge(0.0))
    low: float = option(0.05, "S_tmin: no noise is added where r is below", ge(0.0))
    high: float = option(50.0, "S_tmax: no noise is added where r is above", ge(0.0))
    noise_scale: float = option(
        1.003, "S_noise: deviation of the added noise, against lost detail", ge(1.0), le(1.02)
    )

    @property
    def order(self) -> int | None:
        """2, of Heun's method, where nothing is churned."""
        return 2 if self.churn == 0 else None

    def step(self, denoise: Denoise, x: Tensor, interval: Interval, noise: Noise) -> SampleStep:
        """Algorithm 2 of the paper."""
        start = interval.start
        growth = 1 + min(self.churn / interval.steps, math.sqrt(2) - 1)
        if growth > 1 and start.holds_signal and self.low <= start.ratio <= self.high:
            t, above = time_of(interval.schedule, growth * start.ratio)
            x = lifted(x, start, above, noise, self.noise_scale)
            interval = attrs.evolve(interval, t=t, start=above)
        return heun_step(denoise, x, interval)


@attrs.frozen(kw_only=True)
class Restart(Sampler):
    """Heun's method; once r has fallen to `low`, noise up to `high`, and down again.

    What the noise forgets includes the errors that were made so far. The paper gives the ways down
    a number of steps of their own; here they visit the grid's times from the first that is not
    above `high`, so that their errors, too, fall with the steps. They belong to the step that
    arrives at `low`. Noise levels are in units of r = sigma / alpha.

    References:
        Restart Sampling for Improving Generative Processes, 2023, arXiv:2306.14878
    """

    name = "restart"
    low: float = option(0.1, "t_min: it restarts at the first time that is not above", gt(0.0))
    high: float = option(2.0, "t_max: how far up the noise leads, at most", gt(0.0))
    repeats: int = option(2, "K: how often", ge(0), le(100))

    def __attrs_post_init__(self) -> None:
        if self.low >= self.high:
            raise ConfigError(
                f"it restarts at {self.low} and rises to {self.high} only",
                place="sampler restart",
                remedy="choose low below high",
            )

    @property
    def order(self) -> int | None:
        """2, of Heun's method, where it never restarts."""
        return 2 if self.repeats == 0 else None

    def run(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, times: Tensor, noise: Noise
    ) -> Iterator[SampleStep]:
        """Section 3.1 of the paper, with one restart interval."""
        passed: list[Interval] = []
        for interval in intervals(schedule, times):
            if interval.start.ratio <= self.high:
                passed.append(interval)
            step = heun_step(denoise, x, interval)
            if passed and interval.end.ratio <= self.low < interval.start.ratio:
                for _ in range(self.repeats):
                    x = lifted(step.x, interval.end, passed[0].start, noise)
                    for again in passed:
                        step = heun_step(denoise, x, again)
                        x = step.x
            x = step.x
            yield step
