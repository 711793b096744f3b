"""Laws of noise schedules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sfumato.testing.laws import expect, expect_close, expect_equal, expect_finite, law

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.interfaces import NoiseSchedule


def _times(schedule: NoiseSchedule) -> Tensor:
    """Entries of a table, or as many times of a continuous schedule, and times between them."""
    points = schedule.points or 1000
    count = min(points, 257)
    entries = torch.linspace(1, points, count, dtype=torch.float64).round()
    between = entries[:-1] + 0.37
    return torch.cat((entries, between)).sort().values / points


@law("noise_schedule")
def shapes_and_dtypes(schedule: NoiseSchedule) -> None:
    """Alpha and sigma have the shape and the dtype of t, whatever these are."""
    for dtype in (torch.float32, torch.float64):
        for shape in ((), (3,), (2, 3)):
            t = torch.full(shape, 0.4, dtype=dtype)
            for name, value in zip(("alpha", "sigma"), schedule.alpha_sigma(t), strict=True):
                expect_equal((tuple(value.shape), value.dtype), (shape, dtype), f"{name} of t")


@law("noise_schedule")
def finite(schedule: NoiseSchedule) -> None:
    """Alpha and sigma are finite at every time."""
    for value in schedule.alpha_sigma(_times(schedule)):
        expect_finite(value, "alpha and sigma")


@law("noise_schedule")
def in_range(schedule: NoiseSchedule) -> None:
    """Alpha is above 0, or 0 at t = 1 alone; sigma is above 0 wherever t is."""
    t = _times(schedule)
    alpha, sigma = schedule.alpha_sigma(t)
    wrong = ((alpha <= 0) & (t < 1)) | (alpha < 0) | (sigma <= 0)
    expect(
        not bool(wrong.any()),
        "alpha > 0 before t = 1, alpha >= 0 there, sigma > 0",
        f"alpha {alpha[wrong][:1].tolist()}, sigma {sigma[wrong][:1].tolist()} "
        f"at t = {t[wrong][:1].tolist()}",
    )


@law("noise_schedule")
def clean_at_zero(schedule: NoiseSchedule) -> None:
    """At t = 0 there is no noise and some signal."""
    alpha, sigma = schedule.alpha_sigma(torch.zeros((), dtype=torch.float64))
    expect(
        float(sigma) == 0 and float(alpha) > 0,
        "sigma(0) = 0 and alpha(0) > 0",
        f"sigma {float(sigma):g}, alpha {float(alpha):g}",
    )


@law("noise_schedule")
def snr_falls(schedule: NoiseSchedule) -> None:
    """The signal-to-noise ratio falls strictly with t."""
    t = _times(schedule)
    snr = schedule.snr(t)
    rising = (snr[1:] >= snr[:-1]).nonzero()
    if len(rising):
        i = int(rising[0])
        expect(
            False,
            "a falling ratio",
            f"{float(snr[i]):.6g} at t = {float(t[i]):.6g}, then {float(snr[i + 1]):.6g} at "
            f"t = {float(t[i + 1]):.6g}",
        )


@law("noise_schedule")
def time_at_inverts(schedule: NoiseSchedule) -> None:
    """time_at(log(sigma / alpha)) is t, and stays in [0, 1] beyond the schedule's range."""
    t = _times(schedule)
    alpha, sigma = schedule.alpha_sigma(t)
    t, ratio = t[alpha > 0], (sigma.log() - alpha.log())[alpha > 0]
    # Where the ratio hardly moves with t, rounding of alpha and sigma is all that t can be told by.
    slope = (ratio[1:] - ratio[:-1]) / (t[1:] - t[:-1])
    apart = 1e-7 + 1e-12 / slope.clamp(min=1e-12)
    error = (schedule.time_at(ratio) - t).abs()[1:]
    wrong = error[error > apart]
    expect(not len(wrong), "t again", f"another time, by {wrong[:1].tolist()}")
    far = schedule.time_at(torch.tensor([-200.0, 200.0], dtype=torch.float64))
    inside = bool(((far >= 0) & (far <= 1)).all())
    expect(inside, "a time in [0, 1] at any ratio", f"{far.tolist()} at -200 and 200")


@law("noise_schedule")
def gradients_finite(schedule: NoiseSchedule) -> None:
    """The derivatives of alpha and sigma by t are finite from t = 1 / T on, and before t = 1."""
    for index in range(2):
        t = _times(schedule)[:-1].requires_grad_()
        value = schedule.alpha_sigma(t)[index]
        if value.requires_grad:  # alpha of a variance-exploding schedule is a constant
            (gradient,) = torch.autograd.grad(value.sum(), t)
            expect_finite(gradient, "derivatives by t")


@law("noise_schedule")
def derived_facts_agree(schedule: NoiseSchedule) -> None:
    """Where it overrides `snr` or `start_scale`, they still are those of alpha and sigma."""
    t = _times(schedule)[:-1]
    alpha, sigma = schedule.alpha_sigma(t)
    relative = schedule.snr(t) / (alpha / sigma) ** 2
    expect_close(relative, torch.ones_like(t), "snr over (alpha / sigma)^2", 1e-6)
    for time in t[:: len(t) // 5 + 1].tolist():
        a, s = (float(value) for value in schedule.alpha_sigma(torch.tensor(time).double()))
        scale = torch.tensor(schedule.start_scale(time) / math.hypot(a, s))
        expect_close(scale, torch.ones(()), "start_scale over hypot(alpha, sigma)", 1e-6)


@law("noise_schedule")
def times_untouched(schedule: NoiseSchedule) -> None:
    """It does not write into the times that it is given."""
    t = _times(schedule)
    before = t.clone()
    schedule.alpha_sigma(t)
    schedule.time_at(t)
    expect_close(t, before, "the times afterwards", 0)


@law("noise_schedule")
def batch_independent(schedule: NoiseSchedule) -> None:
    """What holds at one time does not depend on the times beside it."""
    t = _times(schedule)
    together = torch.stack(schedule.alpha_sigma(t))
    for rows, of in ((slice(None, None, 2), "every other time"), (slice(1), "a time alone")):
        fewer = torch.stack(schedule.alpha_sigma(t[rows].flip(0))).flip(1)
        expect_close(fewer, together[:, rows], f"alpha and sigma of {of}", 1e-15)
