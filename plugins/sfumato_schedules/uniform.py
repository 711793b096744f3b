"""The times that training draws when every time counts alike, and how evenly they are spread.

`Stratified` and `LowDiscrepancy` make the uniform numbers of a batch more even and hand them on, so
that they compose with every density: `{use: stratified, density: logit_normal}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sfumato import NoiseSchedule, TimeSampler, option

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(kw_only=True)
class Uniform(TimeSampler):
    """Every time alike: i / T with i = ceil(u T) on a table, u itself in continuous time.

    References:
        Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239
    """

    name = "uniform"

    def draw(self, u: Tensor, row: Tensor, rows: int, step: int, schedule: NoiseSchedule) -> Tensor:
        """Times (B,) float64 in (0, 1], from u alone."""
        if schedule.points is None:
            return u
        return (u * schedule.points).ceil() / schedule.points


@attrs.frozen(kw_only=True)
class Stratified(TimeSampler):
    """One of the `rows` intervals of equal probability for each row, (row + u) / rows, and a random
    place in it.

    References:
        Variational Diffusion Models, 2021, arXiv:2107.00630, Appendix I.1, which shares one u
    """

    name = "stratified"
    density: TimeSampler = option(attrs.Factory(Uniform), "of the times")

    def draw(self, u: Tensor, row: Tensor, rows: int, step: int, schedule: NoiseSchedule) -> Tensor:
        """Times (B,) float64 in (0, 1]."""
        return self.density.draw((row + u) / rows, row, rows, step, schedule)


@attrs.frozen(kw_only=True)
class LowDiscrepancy(TimeSampler):
    """The van der Corput sequence, which is Sobol's in one dimension, over rows and steps.

    Element n = step rows + row is the bits of n + 1 mirrored at the binary point, as the sequence
    begins with 0, a time without noise. So 2^k rows hit each of 2^k equal intervals once at every
    step, and 2^m steps of them each of 2^(k + m). Only what is below the last bit follows the seed.

    References:
        On the distribution of points in a cube and the approximate evaluation of integrals, Sobol,
        1967
    """

    name = "low_discrepancy"
    density: TimeSampler = option(attrs.Factory(Uniform), "of the times")

    BITS = 32

    def draw(self, u: Tensor, row: Tensor, rows: int, step: int, schedule: NoiseSchedule) -> Tensor:
        """Times (B,) float64 in (0, 1]; u fills in what is below the last bit."""
        mirrored = u
        number = step * rows + row + 1
        for bit in reversed(range(self.BITS)):
            mirrored = (mirrored + (number >> bit & 1)) / 2
        return self.density.draw(mirrored, row, rows, step, schedule)
