"""DPM-Solver++ and UniPC: multistep methods on dz / dlambda = x0 - z, the -z solved exactly.

    z_s = exp(-h) z_t + integral of exp(lambda - lambda_s) x0(lambda) dlambda

over a step of length h in lambda, with x0(lambda) the polynomial through the last predictions (see
`multistep`), or by a simpler rule of second order. In the reverse SDE with eta times its noise the
exponential is that of (1 + eta) (lambda - lambda_s), and fresh noise is added.

References:
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022,
    arXiv:2211.01095
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
from attrs.validators import ge, le

from sfumato import Denoise, Guided, NoiseSchedule, Sampler, SampleStep, option
from sfumato_samplers.intervals import Interval, Level, intervals
from sfumato_samplers.multistep import (
    MultistepSampler,
    change,
    phi,
    positions,
    remembered,
    weights,
)
from sfumato_samplers.stepping import StochasticSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from sfumato_samplers.intervals import Noise
    from sfumato_samplers.multistep import Known


def x0_change(known: Sequence[Known], end: Level, down: Level, *, midpoint: bool) -> Tensor | float:
    """What the change of x0 adds to a step from the first of `known` to `end`; 0 if that is clean.

    Args:
        known: two predictions or more; one at `end` itself makes the step implicit.
        end: where the step ends.
        down: the level that it leads to before fresh noise.
        midpoint: of two predictions, takes the line through them half-way, weighted as a constant.
    """
    if end.sigma == 0:
        return 0.0  # lambda has no end
    start = known[0][0]
    nodes = positions([level.half_log_snr for level, _ in known], end.half_log_snr)
    h = down.half_log_snr - start.half_log_snr
    simple = midpoint and len(nodes) == 2
    w = [0.0, phi(1, -h) / (2 * nodes[1])] if simple else weights(nodes, -h)
    return end.alpha * h * change([guided.x0 for _, guided in known], w)


@attrs.frozen(kw_only=True)
class DPMPP2M(MultistepSampler):
    """DPM-Solver++(2M): x0 half-way, from the line through the last two predictions.

    References:
        DPM-Solver++, 2022, arXiv:2211.01095, Algorithm 2
    """

    name = "dpmpp_2m"
    depth = 2
    order = 2

    def correction(self, past: Sequence[Known], end: Level, down: Level) -> Tensor | float:
        """The midpoint rule."""
        return x0_change(past, end, down, midpoint=True)


@attrs.frozen(kw_only=True)
class SDESampler(MultistepSampler, StochasticSampler):
    """A multistep method for the reverse SDE."""

    def split(self, interval: Interval) -> tuple[Level, float]:
        """The exact solution where x0 is constant."""
        return interval.start.diffused(interval.end, self.eta)


@attrs.frozen(kw_only=True)
class DPMPP2MSDE(SDESampler):
    """SDE-DPM-Solver++(2M): the line through the last two predictions; dpmpp_2m at eta 0.

    References:
        DPM-Solver++, 2022, arXiv:2211.01095, SDE-DPM-Solver++(2M)
    """

    name = "dpmpp_2m_sde"
    depth = 2
    rule: Literal["midpoint", "heun"] = option(
        "midpoint", "x0 half-way, or the line integrated exactly"
    )

    def correction(self, past: Sequence[Known], end: Level, down: Level) -> Tensor | float:
        """By the rule."""
        return x0_change(past, end, down, midpoint=self.rule == "midpoint")


@attrs.frozen(kw_only=True)
class DPMPP3MSDE(SDESampler):
    """SDE-DPM-Solver++(3M): the parabola through the last three predictions, integrated exactly.

    Published code gives the parabola's second-order term half of this weight.

    References:
        DPM-Solver++, 2022, arXiv:2211.01095
        k-diffusion, `sample_dpmpp_3m_sde`, 2023
    """

    name = "dpmpp_3m_sde"
    depth = 3

    def correction(self, past: Sequence[Known], end: Level, down: Level) -> Tensor | float:
        """Exponential Adams-Bashforth."""
        return x0_change(past, end, down, midpoint=False)


@attrs.frozen(kw_only=True)
class UniPC(Sampler):
    """UniP predicts x_s; when x0 is known there, UniC takes the step again with it.

    The corrected x_s is what the next step starts from, but x0 is not estimated anew. Where the
    paper leaves B(h) open it is B_2(h) = exp(-h) - 1; from three predictions on it cancels out.
    Guidance that renoises with another eps does so: what the corrector moves in x, eps takes over.

    References:
        UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models, 2023,
        arXiv:2302.04867, Section 3, for the prediction of x0
    """

    name = "unipc"
    depth: int = option(2, "p: how many predictions UniP uses, UniC one more", ge(1), le(3))

    @property
    def order(self) -> int:
        """That of its steps is p + 1, but 2 for the first: 3 at most for the whole."""
        return min(self.depth + 1, 3)

    def run(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, times: Tensor, noise: Noise
    ) -> Iterator[SampleStep]:
        """One prediction a step; draws no noise."""
        past: list[Known] = []
        euler = x
        for interval in intervals(schedule, times):
            start, end = interval.start, interval.end
            guided = denoise(x, interval.t)
            if past and past[0][0].holds_signal:
                known = [*past, (start, guided)]
                shift = euler + x0_change(known, start, start, midpoint=True) - x
                guided = Guided(guided.x0, guided.eps + shift / start.sigma)
            past = remembered(past, (start, guided), self.depth)
            x = euler = end.noised(guided)
            if len(past) > 1:
                x = euler + x0_change(past, end, end, midpoint=True)
            yield interval.done(x, guided.x0)
