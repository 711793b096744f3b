"""Laws of the grids of times that inference visits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sfumato.errors import ConfigError
from sfumato.testing.laws import expect, expect_close, expect_equal, law
from sfumato.testing.mixture import QuarterCircle, ShortTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from sfumato.interfaces import NoiseSchedule, TimeGrid

SCHEDULES: tuple[NoiseSchedule, ...] = (ShortTable(), QuarterCircle())


def _grids(grid: TimeGrid) -> Iterator[tuple[int, NoiseSchedule, Tensor]]:
    """Its times for several numbers of steps, those left out that it refuses by a ConfigError."""
    for schedule in SCHEDULES:
        for steps in (1, 2, 3, 7, 20, 40):
            try:
                times = grid.times(steps, schedule)
            except ConfigError:
                continue
            yield steps, schedule, times


@law("time_grid")
def length_and_dtype(grid: TimeGrid) -> None:
    """N steps are n + 1 times, float64; at least one number of steps is possible."""
    found = list(_grids(grid))
    expect(len(found) > 0, "times for 1, 2, 3, 7, 20 or 40 steps", "a ConfigError for each")
    for steps, _, times in found:
        expect_equal(
            (tuple(times.shape), times.dtype), ((steps + 1,), torch.float64), f"times of {steps}"
        )


@law("time_grid")
def falls(grid: TimeGrid) -> None:
    """The times fall strictly, from at most 1 to at least 0."""
    for steps, _, times in _grids(grid):
        falling = bool((times[1:] < times[:-1]).all())
        inside = float(times[0]) <= 1 and float(times[-1]) >= 0
        expect(falling and inside, "times that fall within [0, 1]", f"{steps} steps: {times}")


@law("time_grid")
def ends_clean(grid: TimeGrid) -> None:
    """The last time is 0, or on the first entry of a table, 1 / T."""
    for _, schedule, times in _grids(grid):
        clean = (0.0, 1 / (schedule.points or 1000 * (len(times) - 1)))
        expect(float(times[-1]) in clean, "a last time of 0 or 1 / T", f"{float(times[-1]):g}")


@law("time_grid")
def repeatable(grid: TimeGrid) -> None:
    """The same steps and schedule give the same times, whatever was asked for in between."""
    for steps, schedule, times in [*_grids(grid)][::-1]:
        expect_close(grid.times(steps, schedule), times, "times asked for again", 0)


@law("time_grid")
def refuses_too_few_and_too_many(grid: TimeGrid) -> None:
    """No steps, and more steps than a table has, are a ConfigError."""
    table = SCHEDULES[0]
    for steps in (0, (table.points or 0) + 1):
        try:
            times = grid.times(steps, table)
        except ConfigError:
            continue
        expect(False, f"a ConfigError for {steps} steps", f"{len(times)} times")
