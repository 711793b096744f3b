"""The times of a reverse process, and what they are to a model trained on another schedule.

What a model has learnt belongs to noise levels, not to times. So a model trained on schedule A can
walk down another schedule B: at time t of B it is asked at the time t_A of A with the same SNR,
about x_t brought to the size that A gives it,

    SNR_A(t_A) = SNR_B(t)        x_A = x_t hypot(alpha_A, sigma_A) / hypot(alpha_B, sigma_B)

as x_A = alpha_A x0 + sigma_A eps with the x0 and eps of x_t. At equal SNR the factor is alpha_A /
alpha_B, and it is defined where alpha is 0 too (Kingma et al., "Variational Diffusion Models",
2021, arXiv:2107.00630, Section 5.1). Where A has no time of that SNR its nearest end stands in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sfumato.errors import PluginError
from sfumato.records import GuidanceStep

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.interfaces import NoiseSchedule, TimeGrid


def times_of(grid: TimeGrid, steps: int, schedule: NoiseSchedule) -> Tensor:
    """The times of a grid, (steps + 1,) float64 on the CPU.

    Raises:
        PluginError: the grid breaks its contract.
    """
    times = grid.times(steps, schedule).double().cpu()
    falling = (
        bool((times[1:] < times[:-1]).all()) and 0 <= float(times[-1]) and float(times[0]) <= 1
    )
    if times.shape != (steps + 1,) or not falling:
        raise PluginError(
            f"expected {steps + 1} falling times in [0, 1], got {times.tolist()}",
            place=f"time_grid {grid.name}",
        )
    return times


def last(times: Tensor, strength: float) -> Tensor:
    """The end of a walk along `times`: the share `strength` of its steps, at least one.

    Of n steps floor(strength n) are walked, as in diffusers' `get_timesteps`, which computes the
    product in floats (0.29 of 100 steps are 28 there) and may be left with none.
    """
    steps = len(times) - 1
    walked = max(1, math.floor(strength * steps + 1e-9))
    return times[steps - walked :]


def rising(times: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The way back up: `times` reversed, beginning above 0.

    At 0 a picture holds no noise to be told. The first time is 1/T in its place, T = 1000 where
    there is no table, or half of the next time where that is no lower.
    """
    found = times.flip(0)
    if found[0] == 0:
        found[0] = min(1 / (schedule.points or 1000), float(found[1]) / 2)
    return found


def guidance_step(
    t: Tensor, times: Tensor, schedule: NoiseSchedule, negatives: int, index: int
) -> GuidanceStep:
    """Where a walk along `times` stands at t, (), in the interval `index`; float64 on the CPU."""
    alpha, sigma = schedule.alpha_sigma(t)
    return GuidanceStep(
        t=float(t),
        alpha=float(alpha),
        sigma=float(sigma),
        index=index,
        steps=len(times) - 1,
        negatives=negatives,
    )


def matched(times: Tensor, schedule: NoiseSchedule, trained: NoiseSchedule) -> Tensor:
    """The times of `trained` at which its SNR is that of `schedule` at `times`, like these."""
    return times if schedule == trained else trained.time_at(_log_ratio(schedule, times))


def rescaling(t: Tensor, schedule: NoiseSchedule, trained: NoiseSchedule) -> float:
    """What x_t at t, (), of `schedule` is multiplied with to be one of `trained`."""
    if schedule == trained:
        return 1.0
    there = float(matched(t, schedule, trained))
    return trained.start_scale(there) / schedule.start_scale(float(t))


def mismatch(times: Tensor, schedule: NoiseSchedule, trained: NoiseSchedule) -> float:
    """The largest difference in log SNR between `times` and those that stand in for them."""
    wanted = _log_ratio(schedule, times)
    found = _log_ratio(trained, matched(times, schedule, trained))
    return float((2 * (found - wanted)).abs().where(found != wanted, 0).max())


def _log_ratio(schedule: NoiseSchedule, times: Tensor) -> Tensor:
    alpha, sigma = schedule.alpha_sigma(times)
    return sigma.log() - alpha.log()
