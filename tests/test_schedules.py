"""Noise schedules against the published digits, the papers' formulas in float64, and diffusers."""

import math

import pytest
import torch

from sfumato import NoiseSchedule
from sfumato_schedules import Cosine, LinearBeta, ScaledLinearBeta, Uniform

SCHEDULES = [LinearBeta(), ScaledLinearBeta(), Cosine()]
INDICES = (0, 99, 249, 499, 749, 999)

# beta_0, beta_999, alpha_bar at INDICES, sigma_max: ten digits, float64.
DIGITS = {
    "linear": (
        (1e-4, 0.02),
        (0.9999, 0.8970181457, 0.5240853738, 0.07858724288, 0.003350550439, 4.035829765e-5),
        157.40728,
    ),
    "scaled_linear": (
        (8.5e-4, 0.012),
        (0.99915, 0.8954627735, 0.6754324137, 0.2776696505, 0.0566234916, 0.004660098513),
        14.614641,
    ),
    "cosine": (
        (4.128422482e-5, 0.999),
        (0.9999587158, 0.9720927371, 0.8470121613, 0.4938435904, 0.1442721024, 2.428766907e-9),
        20291.17,
    ),
}


def by_name(schedule):
    return schedule.name


@pytest.mark.parametrize("schedule", SCHEDULES, ids=by_name)
def test_published_digits(schedule):
    ends, alpha_bars, sigma_max = DIGITS[schedule.name]
    betas = schedule.betas()
    assert len(betas) == schedule.points == 1000
    assert (betas[0], betas[-1]) == pytest.approx(ends, rel=1e-9)
    assert [schedule.alpha_bars[i] for i in INDICES] == pytest.approx(alpha_bars, rel=1e-9)
    last = schedule.alpha_bars[-1]
    assert math.sqrt((1 - last) / last) == pytest.approx(sigma_max, rel=1e-7)


def formula(name: str, steps: int) -> torch.Tensor:
    """alpha_bar of the papers, written with torch in float64."""
    match name:
        case "linear":
            betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
        case "scaled_linear":
            betas = torch.linspace(8.5e-4**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
        case "cosine":
            t = torch.arange(steps + 1, dtype=torch.float64) / steps
            f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, 0)


@pytest.mark.parametrize("steps", [2, 10, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=by_name)
def test_formula_in_float64(schedule, steps):
    schedule = type(schedule)(steps=steps)
    expected = formula(schedule.name, steps)
    alpha, sigma = schedule.alpha_sigma(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    torch.testing.assert_close(alpha**2, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(sigma**2, 1 - expected, rtol=1e-9, atol=0)


def test_cosine_follows_its_function_until_the_cap():
    def f(t):
        return math.cos((t + 0.1) / 1.1 * math.pi / 2) ** 2

    schedule = Cosine(offset=0.1, beta_max=0.5, steps=100)
    assert schedule.alpha_bars[89] == pytest.approx(f(0.9) / f(0), rel=1e-12)
    assert max(schedule.betas()) == schedule.betas()[-1] == 0.5


@pytest.mark.parametrize(
    ("schedule", "peer"),
    [
        (LinearBeta(), {"beta_schedule": "linear"}),
        (
            ScaledLinearBeta(),
            {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
        ),
        (Cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=["linear", "scaled_linear", "cosine"],
)
def test_betas_of_diffusers(schedule, peer):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(**peer)
    betas = torch.tensor(schedule.betas(), dtype=torch.float64)
    torch.testing.assert_close(betas.float(), scheduler.betas, rtol=2e-6, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=by_name)
def test_noise_rises_and_variance_is_preserved(schedule):
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert ((sigma / alpha).diff() > 0).all()
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
    assert schedule.start_scale(1.0) == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearBeta(beta_start=0.0), "'beta_start' must be > 0.0: 0.0"),
        (lambda: ScaledLinearBeta(beta_end=1.0), "'beta_end' must be < 1.0: 1.0"),
        (lambda: LinearBeta(steps=1), "'steps' must be >= 2: 1"),
        (lambda: Cosine(offset=-0.1), "'offset' must be >= 0.0: -0.1"),
    ],
)
def test_options_out_of_bounds(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == words


class Flow(NoiseSchedule):
    """alpha = 1 - t, sigma = t."""

    name = "flow"

    def alpha_sigma(self, t):
        return 1 - t, t


def draw(u, schedule):
    return Uniform().draw(u, torch.arange(len(u)), len(u), step=0, schedule=schedule)


def test_uniform_draws_every_entry_of_a_table_alike():
    schedule = LinearBeta(steps=10)
    u = torch.arange(1, 2**12 * 10 + 1, dtype=torch.float64) / (2**12 * 10)
    times, counts = draw(u, schedule).unique(return_counts=True)
    torch.testing.assert_close(times, torch.arange(1, 11, dtype=torch.float64) / 10)
    assert counts.tolist() == [2**12] * 10


def test_uniform_ends_of_the_range():
    u = torch.tensor([2.0**-32, 1e-3, 1e-3 + 2**-32, 1.0], dtype=torch.float64)
    assert draw(u, LinearBeta()).tolist() == [0.001, 0.001, 0.002, 1.0]
    assert draw(u, Flow()).equal(u)
