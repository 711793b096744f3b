"""Grids of noise levels: facts, k-diffusion, diffusers, and what a schedule cannot give."""

import pytest
import torch

from k_diffusion_source import definition, float64
from sfumato import ConfigError
from sfumato_schedules import (
    VE,
    AlignYourSteps,
    Exponential,
    Karras,
    LinearBeta,
    PolyExponential,
    RectifiedFlow,
    ScaledLinearBeta,
    Trailing,
)

STEPS = (1, 2, 5, 10, 25, 100)


def sigmas(grid, steps, schedule):
    """sigma / alpha at the times of a grid, the last of which is 0."""
    times = grid.times(steps, schedule)
    assert times[-1] == 0
    alpha, sigma = schedule.alpha_sigma(times)
    return sigma / alpha


def test_karras_has_the_published_levels():
    found = sigmas(Karras(), 10, VE(sigma_min=0.002, sigma_max=80.0))
    assert [round(float(sigma), 4) for sigma in found] == [
        80, 42.4152, 21.1087, 9.7232, 4.0661, 1.5017, 0.4700, 0.1166, 0.0204, 0.0020, 0,
    ]  # fmt: skip


@pytest.mark.parametrize("schedule", [VE(), LinearBeta(), RectifiedFlow()], ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("grid", "peer", "rho"),
    [
        (Karras(sigma_min=0.03, sigma_max=70.0), "get_sigmas_karras", (7.0,)),
        (Karras(sigma_min=0.03, sigma_max=70.0, rho=3.0), "get_sigmas_karras", (3.0,)),
        (Exponential(sigma_min=0.03, sigma_max=70.0), "get_sigmas_exponential", ()),
        (PolyExponential(sigma_min=0.03, sigma_max=70.0), "get_sigmas_polyexponential", ()),
        (
            PolyExponential(sigma_min=0.03, sigma_max=70.0, rho=1.7),
            "get_sigmas_polyexponential",
            (1.7,),
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_levels_of_k_diffusion(grid, peer, rho, schedule, parity):
    for steps in STEPS:
        with float64():
            theirs = definition("sampling.py", peer)(steps, 0.03, 70.0, *rho)
        parity(grid, "k-diffusion", "sigma, float64", sigmas(grid, steps, schedule), theirs)
        torch.testing.assert_close(sigmas(grid, steps, schedule), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("grid", "option"),
    [(Karras(), "use_karras_sigmas"), (Exponential(), "use_exponential_sigmas")],
    ids=["karras", "exponential"],
)
def test_levels_and_timesteps_of_diffusers(grid, option, parity):
    diffusers = pytest.importorskip("diffusers")
    schedule = ScaledLinearBeta()
    peer = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=8.5e-4, beta_end=0.012,
        timestep_spacing="linspace", **{option: True},
    )  # fmt: skip
    for steps in STEPS[1:]:
        peer.set_timesteps(steps)
        found = sigmas(grid, steps, schedule).float()
        parity(grid, "diffusers", "sigma, float32, of its float32 table", found, peer.sigmas)
        # They take 1 - alpha_bar in float32, which errs by 1.3e-5 at the first entry.
        torch.testing.assert_close(found, peer.sigmas, rtol=2e-5, atol=0)
        timesteps = schedule.timestep(grid.times(steps, schedule)[:-1])
        torch.testing.assert_close(timesteps.float(), peer.timesteps.float(), rtol=0, atol=2e-2)


def test_ends_are_the_schedules_own_where_none_are_given():
    for schedule in (LinearBeta(), VE()):
        entries = torch.tensor([1.0, 1e-3], dtype=torch.float64)
        times = Karras().times(7, schedule)
        torch.testing.assert_close(times[[0, -2]], entries, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("model", "peer"),
    [
        ("sd15", "StableDiffusionSigmas"),
        ("sdxl", "StableDiffusionXLSigmas"),
        ("svd", "StableDiffusionVideoSigmas"),
    ],
)
def test_ten_aligned_steps_are_the_published_ones(model, peer, parity):
    pytest.importorskip("diffusers")
    from diffusers.schedulers import AysSchedules

    found = sigmas(AlignYourSteps(model=model), 10, VE(sigma_max=700.0))
    parity(AlignYourSteps(), "diffusers", "sigma, float64", found, AysSchedules[peer])
    assert found.tolist() == pytest.approx(AysSchedules[peer], rel=1e-9, abs=1e-12)


def test_aligned_timesteps_are_the_published_ones():
    pytest.importorskip("diffusers")
    from diffusers.schedulers import AysSchedules

    schedule = ScaledLinearBeta()
    for model, peer in (
        ("sd15", "StableDiffusionTimesteps"),
        ("sdxl", "StableDiffusionXLTimesteps"),
    ):
        times = AlignYourSteps(model=model).times(10, schedule)
        found = schedule.timestep(times[:-1]).tolist()
        assert found == pytest.approx(AysSchedules[peer], abs=1.0)


@pytest.mark.parametrize("steps", [1, 3, 20, 33])
def test_other_numbers_of_aligned_steps_interpolate_the_logarithm(steps, parity):
    numpy = pytest.importorskip("numpy")
    levels = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
    # The authors' loglinear_interp, and 0 in the place of the last level.
    places, wanted = numpy.linspace(0, 1, 11), numpy.linspace(0, 1, steps + 1)
    theirs = numpy.exp(numpy.interp(wanted, places, numpy.log(levels[::-1])))[::-1]
    found = sigmas(AlignYourSteps(), steps, VE())
    expected = [*theirs[:-1], 0]
    parity(AlignYourSteps(), "the authors' interpolation", "sigma, float64", found, expected)
    assert found.tolist() == pytest.approx([*theirs[:-1], 0], rel=1e-9)


@pytest.mark.parametrize(
    ("grid", "schedule", "words"),
    [
        (
            Karras(),
            RectifiedFlow(),
            "time_grid.karras: the noise_schedule 'rectified_flow' leaves no signal at t = 1; give "
            "sigma_max, such as 80",
        ),
        (
            Exponential(sigma_max=80.0),
            ScaledLinearBeta(),
            "time_grid.exponential: sigma / alpha starts at 80, and the noise_schedule "
            "'scaled_linear' ends at 14.6146; start lower, or use a noisier schedule",
        ),
        (
            AlignYourSteps(model="svd"),
            VE(),
            "time_grid.align_your_steps: sigma / alpha starts at 700, and the noise_schedule 've' "
            "ends at 80; start lower, or use a noisier schedule",
        ),
    ],
    ids=["no end", "beyond", "aligned"],
)
def test_levels_that_a_schedule_does_not_have(grid, schedule, words):
    with pytest.raises(ConfigError) as error:
        grid.times(10, schedule)
    assert str(error.value) == words


def test_levels_that_rise():
    with pytest.raises(ConfigError) as error:
        Karras(sigma_min=2.0, sigma_max=1.0)
    assert str(error.value) == (
        "time_grid.karras: sigma goes from 1 to 2; sigma_max must be above sigma_min"
    )


def test_levels_too_close_to_tell_apart():
    grid = Karras(sigma_min=1.0, sigma_max=1.0 + 1e-15)
    with pytest.raises(
        ConfigError, match=r"time_grid\.karras: 10 steps visit t = .* twice; use fewer"
    ):
        grid.times(10, LinearBeta())


def test_a_published_level_may_be_rounded_above_the_schedules_end():
    assert AlignYourSteps().times(10, ScaledLinearBeta())[0] == Trailing().times(1, VE())[0] == 1
