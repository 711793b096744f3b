"""The times that inference visits, given on the clock itself, not rounded to entries of a table."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import attrs
from attrs.validators import deep_iterable, ge, gt, le, lt, min_len

from sfumato import NoiseSchedule, option, required
from sfumato_schedules.grids import CheckedGrid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@attrs.frozen(kw_only=True)
class BetaGrid(CheckedGrid):
    """Quantiles of a beta distribution: 1/T + (1 - 1/T) F^-1(k / N) for k = N ... 1, F = I(a, b).

    With a and b below 1 it is dense at both ends, where pictures change most. T is 1000 where there
    is no table.

    References:
        Beta Sampling is All You Need: Efficient Image Generation Strategy for Diffusion Models
        using Stepwise Spectral Analysis, 2024, arXiv:2407.12173
    """

    name = "beta"
    a: float = option(0.6, "below 1: dense where the picture is clean", ge(0.1), le(20.0))
    b: float = option(0.6, "below 1: dense where it is noise", ge(0.1), le(20.0))

    def visited(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        """Quantiles, from t = 1 to above 1/T."""
        first = 1 / (schedule.points or 1000)
        return [first + (1 - first) * place for place in beta_quantiles(steps, self.a, self.b)]


@functools.lru_cache(maxsize=64)
def beta_quantiles(count: int, a: float, b: float) -> tuple[float, ...]:
    """F^-1(k / count) for k = count ... 1: kept, as a sampler asks for the same ones every time."""
    import torch

    from sfumato_schedules import beta_distribution

    shares = torch.arange(count, 0, -1, dtype=torch.float64) / count
    return tuple(beta_distribution.quantile(shares, a, b).tolist())


@attrs.frozen(kw_only=True)
class LinearQuadratic(CheckedGrid):
    """Half of the steps evenly over the noisiest `threshold` of the clock, as finely as many more
    steps would go, the others over the rest, ever longer.

    With L = N // 2 and Q = N - L, 1 - t is k threshold / L for k <= L, and j = k - L further it is
    threshold + j threshold / L + j^2 (L - N threshold) / (L Q^2): 1 at j = Q, without a kink.

    References:
        Movie Gen: A Cast of Media Foundation Models, 2024, arXiv:2410.13720, Section 3.4.2
    """

    name = "linear_quadratic"
    threshold: float = option(0.025, "what the linear half covers", gt(0.0), lt(0.5))

    def visited(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        """Even, then ever further apart."""
        linear = max(steps // 2, 1)
        slope = self.threshold / linear
        bend = (linear - steps * self.threshold) / (linear * max(steps - linear, 1) ** 2)
        return [1 - slope * k - bend * max(k - linear, 0) ** 2 for k in range(steps)]


@attrs.frozen(kw_only=True)
class Times(CheckedGrid):
    """The times that are listed; the classical index i of a table of T is (i + 1) / T.

    Raises:
        ConfigError: they do not fall.
    """

    name = "times"
    values: tuple[float, ...] = required(
        "falling, in (0, 1]; the last step goes from the last of them to 0",
        min_len(1),
        deep_iterable([gt(0.0), le(1.0)]),
    )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Three of them."""
        return cls(values=(1.0, 0.7, 0.2))

    def __attrs_post_init__(self) -> None:
        for before, after in pairwise(self.values):
            if after >= before:
                raise self.refusal(f"{after:g} follows {before:g}", "list falling times")

    def visited(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        """Those listed.

        Raises:
            ConfigError: another number of steps is asked for.
        """
        if steps != len(self.values):
            raise self.refusal(
                f"{steps} steps asked of a list of {len(self.values)} times",
                f"ask for {len(self.values)} steps",
            )
        return self.values
