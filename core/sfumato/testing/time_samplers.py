"""Laws of the times that training draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sfumato.testing.laws import expect, expect_close, expect_equal, law
from sfumato.testing.mixture import QuarterCircle, ShortTable

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.interfaces import NoiseSchedule, TimeSampler

ROWS = 64
TABLE, CIRCLE = ShortTable(), QuarterCircle()


def _uniform() -> Tensor:
    """Uniform in (0, 1], both ends of it included."""
    generator = torch.Generator().manual_seed(0)
    u = 1 - torch.rand(ROWS, generator=generator, dtype=torch.float64)
    u[0], u[1] = 1.0, 2.0**-32
    return u


def _draw(sampler: TimeSampler, rows: Tensor, schedule: NoiseSchedule, step: int = 3) -> Tensor:
    return sampler.draw(_uniform()[rows], rows, ROWS, step, schedule)


@law("time_sampler")
def shape_and_range(sampler: TimeSampler) -> None:
    """Times are (B,) float64 in (0, 1], on a table i / T with a whole i."""
    for schedule in (TABLE, CIRCLE):
        t = _draw(sampler, torch.arange(ROWS), schedule)
        expect_equal((tuple(t.shape), t.dtype), ((ROWS,), torch.float64), "times")
        inside = bool(((t > 0) & (t <= 1)).all())
        expect(inside, "times in (0, 1]", f"from {float(t.min()):g} to {float(t.max()):g}")
        if schedule.points is not None:
            entries = t * schedule.points
            expect_close(entries, entries.round(), "t T on a table, a whole number,", 1e-9)


@law("time_sampler")
def the_same_on_every_rank(sampler: TimeSampler) -> None:
    """A row of the global batch gets the same time whichever rows a rank draws with it."""
    for schedule in (TABLE, CIRCLE):
        whole = _draw(sampler, torch.arange(ROWS), schedule)
        mine = torch.arange(1, ROWS, 2)
        expect_close(_draw(sampler, mine, schedule), whole[mine], "times of every other row", 0)


@law("time_sampler")
def repeatable(sampler: TimeSampler) -> None:
    """The same u, rows and step give the same times, and no random number is drawn beside u."""
    before = torch.random.get_rng_state()
    first, again = (_draw(sampler, torch.arange(ROWS), CIRCLE) for _ in range(2))
    expect_close(again, first, "times drawn again", 0)
    same = bool((torch.random.get_rng_state() == before).all())
    expect(same, "torch's random state left alone", "it moved")


@law("time_sampler")
def follows_u(sampler: TimeSampler) -> None:
    """Another u, as of the next step, gives other times."""
    rows = torch.arange(ROWS)
    first = sampler.draw(_uniform(), rows, ROWS, 3, CIRCLE)
    second = sampler.draw(1 - 0.9 * _uniform(), rows, ROWS, 3, CIRCLE)
    expect(bool((first != second).any()), "times that follow u", "the same for another u")


@law("time_sampler")
def times_differ(sampler: TimeSampler) -> None:
    """Not every row gets the same time."""
    t = _draw(sampler, torch.arange(ROWS), CIRCLE)
    expect(len(set(t.tolist())) > 1, "different times", f"{float(t[0]):g} for every row")
