"""Laws of samplers, held against the closed-form oracle of `mixture`."""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING

import torch

from sfumato.testing.laws import expect, expect_close, expect_equal, expect_finite, law
from sfumato.testing.mixture import (
    Mixture,
    QuarterCircle,
    Straight,
    clusters,
    flow_to,
    gaussian,
    point,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from sfumato.interfaces import NoiseSchedule, Sampler
    from sfumato.records import SampleStep

CIRCLE = QuarterCircle()
START, END = 0.9, 0.1
"""Between these times the order is measured."""


def _normal(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _fresh(like: Tensor, seed: int = 1) -> Callable[[], Tensor]:
    """A source of noise that gives example k the same values whatever the batch."""
    calls = itertools.count()
    return lambda: _normal((64, *like.shape[1:]), seed + next(calls), like.dtype)[: len(like)]


def _walk(
    sampler: Sampler,
    mixture: Mixture,
    x: Tensor,
    times: Tensor,
    schedule: NoiseSchedule = CIRCLE,
) -> list[SampleStep]:
    """All steps; a sampler that never ends is stopped."""
    most = len(times) + 1
    steps = sampler.run(mixture.denoise(schedule), schedule, x, times, _fresh(x))
    return list(itertools.islice(steps, most))


def _even(steps: int) -> Tensor:
    """Times from just below 1 to 0."""
    return torch.linspace(0.98, 0, steps + 1, dtype=torch.float64)


@law("sampler")
def a_step_for_each_interval(sampler: Sampler) -> None:
    """It yields one step for each interval of the grid, at the time where that ends, with x and x0
    of the shape and dtype of the start.
    """
    for dtype in (torch.float32, torch.float64):
        for count in (1, 2, 5):
            times, x = _even(count), _normal((3, 1, 2, 2), dtype=dtype)
            steps = _walk(sampler, clusters(), x, times)
            expect_equal(len(steps), count, "number of steps")
            expect_equal([s.index for s in steps], list(range(count)), "indices")
            expect_equal([s.t for s in steps], times[1:].tolist(), "times")
            for step in steps:
                for value in (step.x, step.x0):
                    expect_equal((value.shape, value.dtype), (x.shape, x.dtype), "x and x0 of")
                    expect_finite(value, "x and x0")


@law("sampler")
def start_untouched(sampler: Sampler) -> None:
    """It does not write into the tensors that it is given."""
    x, times = _normal((2, 1, 2, 2)), _even(4)
    before, before_times = x.clone(), times.clone()
    _walk(sampler, clusters(), x, times)
    expect_close(x, before, "the start afterwards", 0)
    expect_close(times, before_times, "the times afterwards", 0)


@law("sampler")
def repeatable(sampler: Sampler) -> None:
    """The same start, times and noise lead to the same picture: nothing is remembered."""
    x, times = _normal((2, 1, 2, 2)), _even(6)
    first = _walk(sampler, clusters(), x, times)[-1].x
    _walk(sampler, point(0.3), x, times)
    expect_close(_walk(sampler, clusters(), x, times)[-1].x, first, "the second run", 0)


@law("sampler")
def batch_independent(sampler: Sampler) -> None:
    """A picture does not depend on those beside it."""
    x, times = _normal((4, 1, 2, 2)), _even(6)
    together = _walk(sampler, clusters(), x, times)[-1].x
    fewer = _walk(sampler, clusters(), x[:2], times)[-1].x
    expect_close(fewer, together[:2], "the first two of four pictures, alone", 1e-10)


@law("sampler")
def exact_on_a_point(sampler: Sampler) -> None:
    """Where all data are one picture, it ends in it, whatever the steps and the schedule."""
    for schedule in (CIRCLE, Straight()):
        for count in (1, 2, 7):
            x = _normal((3, 1, 2, 2))
            end = _walk(sampler, point(0.4), x, _even(count), schedule)[-1].x
            expect_close(
                end, torch.full_like(x, 0.4), f"the picture after {count} steps of {schedule}", 1e-9
            )


@law("sampler")
def ends_in_the_data(sampler: Sampler) -> None:
    """Of Gaussian data it draws pictures with the data's mean and deviation."""
    mean, deviation, times = 0.2, 0.15, _even(150)
    alpha, sigma = (float(value[0]) for value in CIRCLE.alpha_sigma(times))
    spread = math.hypot(alpha * deviation, sigma)
    x = alpha * mean + spread * _normal((64, 1, 8, 8))
    end = _walk(sampler, gaussian(mean, deviation, (1, 8, 8)), x, times)[-1].x
    expect(abs(float(end.mean()) - mean) < 0.02, f"mean {mean}", f"{float(end.mean()):.3f}")
    expect(
        abs(float(end.std()) / deviation - 1) < 0.1,
        f"deviation {deviation}",
        f"{float(end.std()):.3f}",
    )


@functools.cache
def _truth() -> tuple[Tensor, Tensor]:
    """A start at time START and where the probability flow takes it."""
    x = _normal((4, 1, 2, 2))
    return x, flow_to(clusters(), CIRCLE, x, START, END)


def even_levels(steps: int) -> Tensor:
    """Times from START to END, even in log(sigma / alpha)."""
    alpha, sigma = CIRCLE.alpha_sigma(torch.tensor([START, END], dtype=torch.float64))
    first, last = (sigma / alpha).log().tolist()
    return CIRCLE.time_at(torch.linspace(first, last, steps + 1, dtype=torch.float64))


def errors(sampler: Sampler, counts: tuple[int, ...]) -> list[float]:
    """The largest errors against the probability flow, for each number of steps, which are even."""
    x, truth = _truth()
    walks = (_walk(sampler, clusters(), x.clone(), even_levels(count)) for count in counts)
    return [float((steps[-1].x - truth).abs().max()) for steps in walks]


@law("sampler")
def of_its_order(sampler: Sampler) -> None:
    """With n steps the error falls like n^-order, where it claims an order."""
    if sampler.order is None:
        return
    few, many = errors(sampler, (48, 96))
    slope = math.log2(few / many) if many > 1e-12 else math.inf
    expect(
        slope > sampler.order - 0.3,
        f"errors that fall like n^-{sampler.order}",
        f"n^-{slope:.2f} ({few:.3g} with 48 steps, {many:.3g} with 96)",
    )


@law("sampler")
def walks_back_up(sampler: Sampler) -> None:
    """Where it claims an order, rising times lead it from the end of the flow to its start: that is
    inversion.
    """
    if sampler.order is None:
        return
    x, truth = _truth()
    steps = _walk(sampler, clusters(), truth.clone(), even_levels(96).flip(0))
    error = float((steps[-1].x - x).abs().max())
    expect(error < 0.2, "the start of the flow within 0.2, after 96 steps", f"{error:.3g}")
