"""Grids on the clock itself: quantiles of the beta distribution, linear-quadratic, given times."""

import pytest
import torch

from sfumato import ConfigError, create
from sfumato_schedules import BetaGrid, LinearBeta, LinearQuadratic, RectifiedFlow, Times


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("steps", [1, 2, 10, 50, 333])
def test_beta_is_the_quantile_function_over_the_indices(a, b, steps, parity):
    stats = pytest.importorskip("scipy.stats")
    shares = [k / steps for k in range(steps, 0, -1)]
    theirs = 999 * stats.beta.ppf(shares, a, b)  # ComfyUI rounds these
    found = BetaGrid(a=a, b=b).times(steps, LinearBeta())
    parity(BetaGrid(), "scipy", "indices, float64", found[:-1] * 1000 - 1, theirs)
    assert (found[:-1] * 1000 - 1).tolist() == pytest.approx(theirs.tolist(), rel=1e-9, abs=1e-9)
    assert found[-1] == 0


def test_diffusers_spaces_noise_levels_where_the_paper_spaces_times():
    """At ten steps its second level stands at index 994, where the paper's is 940."""
    pytest.importorskip("scipy")
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.EulerDiscreteScheduler(use_beta_sigmas=True, timestep_spacing="linspace")
    peer.set_timesteps(10)
    found = BetaGrid().times(10, LinearBeta())
    assert float(found[1]) * 1000 - 1 < 960 < float(peer.timesteps[1])


@pytest.mark.parametrize("threshold", [0.025, 0.3, 0.49])
@pytest.mark.parametrize("steps", [2, 3, 7, 25, 64])
def test_linear_quadratic_is_that_of_mochi(steps, threshold, parity):
    mochi = pytest.importorskip("diffusers.pipelines.mochi.pipeline_mochi")
    theirs = mochi.linear_quadratic_schedule(steps, threshold)
    found = LinearQuadratic(threshold=threshold).times(steps, RectifiedFlow())
    parity(LinearQuadratic(), "diffusers", "times, float64", found, [*theirs, 0.0])
    assert found.tolist() == pytest.approx([*theirs, 0.0], rel=1e-9)


def test_linear_quadratic_at_one_step():
    assert LinearQuadratic().times(1, RectifiedFlow()).tolist() == [1, 0]


def test_the_linear_half_is_that_of_many_more_steps():
    times = LinearQuadratic().times(50, RectifiedFlow())
    thousand = torch.arange(1000, 974, -1, dtype=torch.float64) / 1000
    torch.testing.assert_close(times[:26], thousand)
    assert (times.diff()[25:].diff() < 0).all()


def test_given_times(parity):
    grid = create("time_grid", "times", values=[1, 0.55, 0.1])
    assert grid == Times(values=(1.0, 0.55, 0.1))
    parity(
        grid, "the list itself", "times, float64", grid.times(3, LinearBeta()), [1, 0.55, 0.1, 0]
    )
    assert grid.times(3, LinearBeta()).tolist() == [1, 0.55, 0.1, 0]


def test_another_number_of_steps_than_given_times():
    with pytest.raises(ConfigError) as error:
        Times(values=(1.0, 0.5)).times(25, LinearBeta())
    assert str(error.value) == (
        "time_grid.times: 25 steps asked of a list of 2 times; ask for 2 steps"
    )


def test_given_times_that_do_not_fall():
    with pytest.raises(ConfigError) as error:
        Times(values=(1.0, 0.5, 0.5))
    assert str(error.value) == "time_grid.times: 0.5 follows 0.5; list falling times"


@pytest.mark.parametrize("grid", [BetaGrid(), LinearQuadratic(), Times(values=(1.0,))], ids=repr)
@pytest.mark.parametrize("steps", [0, 1001])
def test_numbers_of_steps_that_no_grid_takes(grid, steps):
    with pytest.raises(ConfigError, match=f"^time_grid.{grid.name}: {steps} steps"):
        grid.times(steps, LinearBeta())
