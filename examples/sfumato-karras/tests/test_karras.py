"""The components keep the laws of their kinds, and give the numbers of the paper."""

import pytest
import torch
from sfumato_karras import KarrasNoise, KarrasSigmas

from sfumato import ConfigError, create
from sfumato.testing import conformance

PUBLISHED = (80, 42.4152, 21.1087, 9.7232, 4.0661, 1.5017, 0.4700, 0.1166, 0.0204, 0.0020, 0)
"""Equation 5 for N = 10, sigma from 0.002 to 80 and rho = 7, to four decimals."""


@pytest.mark.parametrize("component", [KarrasNoise, KarrasSigmas])
def test_the_laws_of_its_kind(component):
    """For options drawn within their bounds."""
    conformance.check(component)


def ratios(grid, steps, schedule):
    """Noise over signal at the times of a grid."""
    alpha, sigma = schedule.alpha_sigma(grid.times(steps, schedule))
    return sigma / alpha


@pytest.mark.parametrize("schedule", [KarrasNoise(), create("noise_schedule", "linear")])
def test_the_grid_visits_the_published_noise_levels(schedule):
    """On any schedule that spans them."""
    expected = torch.tensor(PUBLISHED, dtype=torch.float64)
    assert (ratios(KarrasSigmas(), 10, schedule) - expected).abs().max() < 5.1e-5


def test_on_its_own_schedule_the_grid_is_even_in_time():
    """Which is what the schedule is for."""
    times = KarrasSigmas().times(18, KarrasNoise())[:-1]
    steps = times[1:] - times[:-1]
    assert torch.allclose(steps, steps.mean().expand_as(steps), rtol=1e-9)


def test_the_grid_begins_where_the_noise_of_a_schedule_ends():
    """Instead of visiting t = 1 several times."""
    short = KarrasNoise(sigma_max=5.0)
    found = ratios(KarrasSigmas(), 10, short)
    assert float(found[0]) == pytest.approx(5.0)
    assert bool((found[1:] < found[:-1]).all())


def test_what_cannot_be_is_refused():
    """With place and remedy."""
    with pytest.raises(ConfigError) as error:
        KarrasSigmas(sigma_min=2.0, sigma_max=1.0)
    assert str(error.value) == "time_grid.karras_sigmas: sigma_min 2 is not below sigma_max 1"
    with pytest.raises(ConfigError) as error:
        KarrasSigmas().times(0, KarrasNoise())
    assert str(error.value) == "time_grid.karras_sigmas: 0 steps; ask for 1 to any number"
    with pytest.raises(ConfigError) as error:
        KarrasSigmas(sigma_min=6.0).times(4, KarrasNoise(sigma_max=5.0))
    assert str(error.value) == (
        "time_grid.karras_sigmas: the noise schedule ends at 5, below sigma_min 6"
    )
