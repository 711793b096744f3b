"""What samplers share beside the step: walking without memory, and noise in a measure eta."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge, le

from sfumato import Denoise, NoiseSchedule, Sampler, SampleStep, option
from sfumato_samplers.intervals import Interval, intervals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from sfumato_samplers.intervals import Noise


@attrs.frozen(kw_only=True)
class SingleStepSampler(Sampler):
    """Each step depends on x alone, not on earlier predictions."""

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, interval: Interval, noise: Noise) -> SampleStep:
        """From x at interval.t to interval.s; the rest as in `run`."""

    def run(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, times: Tensor, noise: Noise
    ) -> Iterator[SampleStep]:
        """Walks x down the times."""
        for interval in intervals(schedule, times):
            step = self.step(denoise, x, interval, noise)
            x = step.x
            yield step


@attrs.frozen(kw_only=True)
class StochasticSampler(Sampler):
    """Of second order where it draws no noise."""

    eta: float = option(1.0, "share of the noise: 0 is deterministic", ge(0.0), le(1.0))

    @property
    def order(self) -> int | None:
        """2; none once noise is drawn."""
        return 2 if self.eta == 0 else None
