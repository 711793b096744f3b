"""Linear multistep methods: predictions at earlier times say how the present one will change.

A polynomial p through the predictions at u_0 = 0 (now), u_1, u_2, ... < 0 (before), in units of the
step that goes to u = 1, is integrated exactly against an exponential:

    integral_0^1 exp(x (1 - u)) p(u) du = sum_j w_j p(u_j)

x = 0 are Adams's methods, `lms` with u in r = sigma / alpha and `ipndm` with u in steps; with u in
lambda = log(alpha / sigma), x = h gives `deis`, from eps, and x = -h the DPM-Solver++ family, from
x0 (see `exponential`). The moments of the exponential are the phi functions of exponential
integrators (Hochbruck & Ostermann, "Exponential Integrators", 2010, Equation 2.10).

Earlier predictions give differences only; the step starts from the present x0 and eps, so guidance
may renoise with another eps than that of x0.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import attrs
from attrs.validators import ge, le

from sfumato import Denoise, Guided, NoiseSchedule, Sampler, SampleStep, option
from sfumato_samplers.intervals import Interval, Level, intervals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from sfumato_samplers.intervals import Noise

    Known = tuple[Level, Guided]
    """A prediction and the level that it was made at."""


def phi(k: int, x: float) -> float:
    """integral_0^1 exp(x (1 - u)) u^(k - 1) / (k - 1)! du for k >= 1, exp(x) for k = 0."""
    if abs(x) < 1:
        return sum(x**j / math.factorial(j + k) for j in range(18))
    return math.exp(x) if k == 0 else (phi(k - 1, x) - 1 / math.factorial(k - 1)) / x


def weights(nodes: Sequence[float], x: float) -> list[float]:
    """w_j at nodes u_j, all different: exact for polynomials of degree below their number."""
    import numpy as np

    moments = [math.factorial(k) * phi(k + 1, x) for k in range(len(nodes))]
    found: list[float] = np.linalg.solve(np.vander(nodes, increasing=True).T, moments).tolist()
    return found


def change(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_j w_j (v_j - v_0), of at least two values."""
    terms = [w * (v - values[0]) for w, v in zip(weights[1:], values[1:], strict=True)]
    return sum(terms[1:], start=terms[0])


def positions(levels: Sequence[float], end: float) -> list[float]:
    """Levels in units of the step from the first of them to `end`."""
    return [(level - levels[0]) / (end - levels[0]) for level in levels]


@attrs.frozen(kw_only=True)
class MultistepSampler(Sampler):
    """The Euler step, moved by what earlier predictions tell; the first step has none."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """How many predictions are used, the present one among them."""

    @abstractmethod
    def correction(self, past: Sequence[Known], end: Level, down: Level) -> Tensor | float:
        """What the change of the prediction adds to x_s.

        Args:
            past: 2 to `depth` predictions, the present one first; all from where there is signal.
            end: the level at s.
            down: where the step leads before fresh noise leads up to `end`.
        """

    def split(self, interval: Interval) -> tuple[Level, float]:
        """The level to step down to, and the deviation of the fresh noise; by default none."""
        return interval.end, 0.0

    def run(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, times: Tensor, noise: Noise
    ) -> Iterator[SampleStep]:
        """One prediction a step; noise where `split` wants it."""
        past: list[Known] = []
        for interval in intervals(schedule, times):
            guided = denoise(x, interval.t)
            past = remembered(past, (interval.start, guided), self.depth)
            down, fresh = self.split(interval)
            x = down.noised(guided)
            if len(past) > 1:
                x = x + self.correction(past, interval.end, down)
            if fresh > 0:
                x = x + fresh * noise()
            yield interval.done(x, guided.x0)


def remembered(past: Sequence[Known], now: Known, depth: int) -> list[Known]:
    """The last `depth` predictions, the newest first; none from pure noise, where r is infinite."""
    return [now, *(known for known in past if known[0].holds_signal)][:depth]


@attrs.frozen(kw_only=True)
class AdamsSampler(MultistepSampler):
    """z_s = z_t + (r_s - r_t) sum_j w_j eps_j, w of the polynomial through `nodes`."""

    depth: int = option(4, "how many predictions are used", ge(1), le(4))

    @property
    def order(self) -> int:
        """2 at most, as the first step is Euler's; in its paper the start is taken for granted."""
        return min(self.depth, 2)

    @abstractmethod
    def nodes(self, levels: Sequence[Level], end: Level) -> list[float]:
        """The places u_j of the predictions, the present one at 0, the end of the step at 1."""

    def correction(self, past: Sequence[Known], end: Level, down: Level) -> Tensor:
        """Adams-Bashforth."""
        levels = [level for level, _ in past]
        moved = change([guided.eps for _, guided in past], weights(self.nodes(levels, end), 0.0))
        return (end.sigma - end.alpha * levels[0].ratio) * moved


@attrs.frozen(kw_only=True)
class LMS(AdamsSampler):
    """Adams-Bashforth in r, for steps of any lengths.

    References:
        k-diffusion, `sample_lms`, 2022
        Fast Sampling of Diffusion Models with Exponential Integrator, 2022, arXiv:2204.13902 (there
        rho AB-DEIS)
    """

    name = "lms"

    def nodes(self, levels: Sequence[Level], end: Level) -> list[float]:
        """In r."""
        return positions([level.ratio for level in levels], end.ratio)


@attrs.frozen(kw_only=True)
class IPNDM(AdamsSampler):
    """Adams-Bashforth with the weights of equal steps, such as (55, -59, 37, -9) / 24.

    References:
        Pseudo Numerical Methods for Diffusion Models on Manifolds, 2022, arXiv:2202.09778,
        Equation 12
        Fast Sampling of Diffusion Models with Exponential Integrator, 2022, arXiv:2204.13902 (the
        start by lower orders: "improved PNDM")
    """

    name = "ipndm"

    def nodes(self, levels: Sequence[Level], end: Level) -> list[float]:
        """0, -1, -2, ..., whatever the levels."""
        return [-float(j) for j in range(len(levels))]


@attrs.frozen(kw_only=True)
class DEIS(MultistepSampler):
    """z_s = z_t + integral p(lambda) dr, with p a polynomial in lambda through the last eps.

    References:
        Fast Sampling of Diffusion Models with Exponential Integrator, 2022, arXiv:2204.13902, with
        log rho for the variable of the polynomial, as in diffusers
    """

    name = "deis"
    depth: int = option(3, "how many predictions are used", ge(1), le(4))

    @property
    def order(self) -> int:
        """2 at most, as the first step is Euler's."""
        return min(self.depth, 2)

    def correction(self, past: Sequence[Known], end: Level, down: Level) -> Tensor | float:
        """As dr = -r dlambda, the integral is -r_s h sum_j w_j eps_j at x = h."""
        if end.sigma == 0:
            return 0.0  # lambda has no end
        nodes = positions([level.half_log_snr for level, _ in past], end.half_log_snr)
        h = end.half_log_snr - past[0][0].half_log_snr
        return -end.sigma * h * change([guided.eps for _, guided in past], weights(nodes, h))


@attrs.frozen(kw_only=True)
class PNDM(Sampler):
    """A start that needs no past, then `ipndm`: three steps of a pseudo Runge-Kutta method, with
    four predictions each, or one of a pseudo improved Euler method, with two.

    "Pseudo", as a step from x_t is always DDIM's, with a mean of eps in the place of eps. Stable
    Diffusion's PLMS is that with the start of improved Euler (`skip_prk_steps` in its folders).

    References:
        Pseudo Numerical Methods for Diffusion Models on Manifolds, 2022, arXiv:2202.09778
    """

    name = "pndm"
    order = 2

    start: Literal["runge_kutta", "improved_euler"] = option(
        "runge_kutta", "the first steps: F-PNDM's, or PLMS's"
    )

    def run(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, times: Tensor, noise: Noise
    ) -> Iterator[SampleStep]:
        """Algorithm 2 of the paper; draws no noise."""
        past: list[Known] = []
        first, mean = (3, _four_eps) if self.start == "runge_kutta" else (1, _two_eps)
        for interval in intervals(schedule, times):
            start, end = interval.start, interval.end
            guided = denoise(x, interval.t)
            past = remembered(past, (start, guided), 4)
            x = end.noised(guided)
            if interval.index < first and start.bounded(end):
                x = start.eps_step(end, guided, mean(denoise, guided, interval))
            elif len(past) > 1:
                x = x + IPNDM().correction(past, end, end)
            yield interval.done(x, guided.x0)


def _four_eps(denoise: Denoise, guided: Guided, interval: Interval) -> Tensor:
    """The mean of eps over an interval by Equation 13 of PNDM's paper."""
    start, end, half = interval.start, interval.end, (interval.t + interval.s) / 2
    middle = Level.at(interval.schedule, half)
    second = denoise(middle.noised(guided), half).eps
    third = denoise(start.eps_step(middle, guided, second), half).eps
    fourth = denoise(start.eps_step(end, guided, third), interval.s).eps
    return (guided.eps + 2 * second + 2 * third + fourth) / 6


def _two_eps(denoise: Denoise, guided: Guided, interval: Interval) -> Tensor:
    """The mean of eps at both ends of an interval, the second after a step with the first."""
    return (guided.eps + denoise(interval.end.noised(guided), interval.s).eps) / 2
