"""The times that training draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sfumato import NoiseSchedule, TimeSampler

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
