"""Time grids: the classical indices, their ends, and diffusers' timesteps for every number of steps."""

from fractions import Fraction

import attrs
import pytest
import torch

from sfumato import ConfigError, NoiseSchedule
from sfumato_schedules import Leading, LinearBeta, Linspace, SGMUniform, Trailing

SCHEDULE = LinearBeta()
GRIDS = [Leading(), Leading(offset=1), Trailing(), Linspace(), SGMUniform()]


@attrs.frozen(kw_only=True)
class Flow(NoiseSchedule):
    """alpha = 1 - t, sigma = t: continuous time."""

    name = "flow"

    def alpha_sigma(self, t):
        return 1 - t, t


def indices(grid, steps):
    """The classical indices that the steps start from."""
    times = grid.times(steps, SCHEDULE)
    assert times.dtype == torch.float64
    return (times[:-1] * 1000 - 1).round().long().tolist()


def test_indices_of_the_spacings():
    assert indices(Leading(), 50) == list(range(980, -1, -20))
    assert indices(Leading(offset=1), 50) == list(range(981, 0, -20))
    assert indices(Trailing(), 50) == list(range(999, 18, -20))
    assert indices(Trailing(), 7) == [999, 856, 713, 570, 428, 285, 142]
    assert indices(Linspace(), 50)[:3] == [999, 979, 958]
    assert indices(Linspace(), 50)[-2:] == [20, 0]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 64, 333, 1000])
def test_sgm_uniform_is_that_of_the_authors(steps, parity):
    numpy = pytest.importorskip("numpy")
    theirs = numpy.linspace(999, 0, steps, endpoint=False).astype(int)
    parity(SGMUniform(), "the authors' code", "indices", indices(SGMUniform(), steps), theirs)
    assert indices(SGMUniform(), steps) == theirs.tolist()


def test_twenty_steps_with_offset():
    assert indices(Leading(offset=1), 20) == list(range(951, 0, -50))


@pytest.mark.parametrize(
    ("grid", "start"),
    [(Leading(), 0), (Leading(offset=1), 1), (Trailing(), 999), (Linspace(), 999)],
    ids=repr,
)
def test_one_step(grid, start):
    assert indices(grid, 1) == [start]


def fractions(grid, steps):
    """The indices before they are rounded."""
    match grid:
        case Leading():
            return [Fraction(k * (1000 // steps) + grid.offset) for k in reversed(range(steps))]
        case Trailing():
            return [Fraction(k * 1000, steps) - 1 for k in range(steps, 0, -1)]
        case Linspace():
            return [Fraction(999 * k, steps - 1) for k in reversed(range(steps))]


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        (Leading(), {"timestep_spacing": "leading"}),
        (Leading(offset=1), {"timestep_spacing": "leading", "steps_offset": 1}),
        (Trailing(), {"timestep_spacing": "trailing"}),
        (Linspace(), {"timestep_spacing": "linspace"}),
    ],
    ids=repr,
)
def test_timesteps_of_diffusers(grid, options, parity):
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(**options)
    for steps in {*range(2, 103), 125, 250, 300, 333, 500, 501, 750, 999}:
        scheduler.set_timesteps(steps)
        # In diffusers rounding noise decides where a fraction is exactly a half, and gives the trailing
        # grid an index -1 at some N.
        theirs = scheduler.timesteps.tolist()[:steps]
        if steps in (10, 20, 25, 50, 100, 125, 250, 500):
            parity(grid, "diffusers", "indices, 10 to 500 steps", indices(grid, steps), theirs)
        for a, b, exact in zip(indices(grid, steps), theirs, fractions(grid, steps), strict=True):
            assert a == b or (exact.denominator == 2 and abs(a - b) == 1)


@pytest.mark.parametrize(
    ("grid", "spacing"),
    [
        (Leading(skip_last=True), {"timestep_spacing": "leading"}),
        (Leading(skip_last=True, offset=1), {"timestep_spacing": "leading", "steps_offset": 1}),
        (Linspace(skip_last=True), {"timestep_spacing": "linspace"}),
        (Trailing(), {"timestep_spacing": "trailing"}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_timesteps_of_diffusers_solvers(grid, spacing, name, parity):
    scheduler = getattr(pytest.importorskip("diffusers"), name)(**spacing)
    for steps in (1, 2, 7, 10, 20, 25, 30, 50, 100):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        for k, (a, b) in enumerate(zip(indices(grid, steps), theirs, strict=True)):
            # Where 999 k / N is exactly a half, rounding noise decides in diffusers.
            half = isinstance(grid, Linspace) and 2 * 999 * (steps - k) % steps == 0
            assert a == b or (half and abs(a - b) == 1)
        if steps != 30:
            assert indices(grid, steps) == theirs
            parity(grid, "diffusers, DPM-Solver++", "indices", indices(grid, steps), theirs)


def test_timesteps_and_levels_of_diffusers_euler_that_fall_between_entries(parity):
    """Its sigma is linear between entries and ours its logarithm: they differ by (step)^2 / 8."""
    from sfumato_schedules import ScaledLinearBeta

    scheduler = pytest.importorskip("diffusers").EulerDiscreteScheduler(
        beta_start=8.5e-4, beta_end=0.012, beta_schedule="scaled_linear"
    )
    grid, schedule = Linspace(rounded=False), ScaledLinearBeta()
    for steps in (2, 7, 20, 30, 50):
        scheduler.set_timesteps(steps)
        times = grid.times(steps, schedule)
        error = parity(
            grid, "diffusers, Euler", "indices", times[:-1] * 1000 - 1, scheduler.timesteps.double()
        )
        assert error < 1e-6
        alpha, sigma = schedule.alpha_sigma(times[:-1])
        torch.testing.assert_close(
            (sigma / alpha).float(), scheduler.sigmas[:-1], rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("final", ["clean", "first"])
@pytest.mark.parametrize("schedule", [SCHEDULE, LinearBeta(steps=7), Flow()], ids=repr)
def test_times_fall_within_the_table_to_the_final(schedule, final):
    points = schedule.points or 1000
    for grid in (Leading(offset=1, final=final), Trailing(final=final), Linspace(final=final)):
        for steps in {1, 2, 3, 30, 64, 333, 500} & set(range(points // 2 + 1)):
            times = grid.times(steps, schedule)
            assert times.shape == (steps + 1,)
            assert (times.diff() < 0).all()
            assert times[0] <= 1
            if schedule.points:
                assert times[-1] == (1 / points if final == "first" else 0)
                torch.testing.assert_close(times * points, (times * points).round())


@pytest.mark.parametrize("grid", [Leading(), Trailing(), Linspace()], ids=repr)
def test_as_many_steps_as_points_visit_every_entry(grid):
    assert indices(grid, 1000) == list(range(999, -1, -1))


def test_stable_diffusion_ends_on_the_first_entry():
    times = Leading(offset=1, final="first").times(50, SCHEDULE)
    assert times[-2:].tolist() == [0.002, 0.001]


def test_linspace_that_ends_on_the_first_entry_keeps_both_ends():
    times = Linspace(final="first").times(9, SCHEDULE)
    expected = torch.arange(999, -1, -111, dtype=torch.float64)
    torch.testing.assert_close(times * 1000 - 1, expected)


def test_continuous_time_is_not_rounded():
    sevenths = torch.arange(7, -1, -1, dtype=torch.float64) / 7
    torch.testing.assert_close(Trailing().times(7, Flow()), sevenths, rtol=1e-15, atol=0)
    leading = Leading().times(7, Flow())
    torch.testing.assert_close(leading[:-1], sevenths[1:] + 1 / 7000)
    linspace = Linspace().times(8, Flow())
    torch.testing.assert_close(linspace[:-1], sevenths, rtol=0, atol=2 / 8000)
    assert linspace[0] == 1
    assert Trailing().times(5000, Flow()).shape == (5001,)


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("schedule", [SCHEDULE, Flow()], ids=repr)
def test_no_steps(grid, schedule):
    with pytest.raises(ConfigError) as error:
        grid.times(0, schedule)
    assert str(error.value) == f"time_grid.{grid.name}: 0 steps; ask for at least 1"


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_more_steps_than_points(grid):
    with pytest.raises(ConfigError) as error:
        grid.times(1001, SCHEDULE)
    assert str(error.value) == (
        f"time_grid.{grid.name}: 1001 steps on a noise schedule of 1000 points; "
        "ask for at most 1000"
    )


def test_steps_that_leave_the_table():
    with pytest.raises(ConfigError) as error:
        Leading(offset=1).times(1000, SCHEDULE)
    assert str(error.value) == (
        "time_grid.leading: 1000 steps start at index 1000 of 1000 points; "
        "ask for fewer steps or use offset: 0"
    )


def test_leading_cannot_end_on_the_entry_that_it_visits():
    with pytest.raises(ConfigError) as error:
        Leading(final="first")
    assert str(error.value) == (
        "time_grid leading: it visits the first entry already and cannot end on it; "
        "use offset: 1, or final: clean"
    )


@pytest.mark.parametrize(("grid", "twice"), [(Trailing, 0.001), (Linspace, 0.501)])
def test_a_step_that_would_stand_still(grid, twice):
    with pytest.raises(ConfigError) as error:
        grid(final="first").times(1000, SCHEDULE)
    assert str(error.value) == (
        f"time_grid.{grid.name}: 1000 steps visit t = {twice} twice; "
        "use final: clean or fewer steps"
    )
