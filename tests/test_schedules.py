"""Noise schedules against the published digits, the papers' formulas in float64, and diffusers."""

import math

import pytest
import torch

from k_diffusion_source import definition, float64
from sfumato import ConfigError, NoiseSchedule, TableSchedule, create, settings
from sfumato_schedules import (
    VE,
    VP,
    Betas,
    Cosine,
    Laplace,
    LinearBeta,
    RectifiedFlow,
    ScaledLinearBeta,
    Shifted,
    Sigmoid,
    ZeroTerminalSNR,
)

SCHEDULES = [LinearBeta(), ScaledLinearBeta(), Cosine(), Sigmoid()]
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
    "sigmoid": (
        (1.492052e-4, 0.0199507948),
        (0.9998507948, 0.9807492988, 0.9037446654, 0.3019310566, 0.005732198886, 3.968181991e-5),
        158.74337,
    ),
}


def by_name(schedule):
    return schedule.name


@pytest.mark.parametrize("schedule", SCHEDULES, ids=by_name)
def test_published_digits(schedule):
    ends, alpha_bars, sigma_max = DIGITS[schedule.name]
    betas = schedule.betas()
    assert len(betas) == schedule.points == 1000
    assert (betas[0], betas[-1]) == pytest.approx(ends, rel=1e-9, abs=5e-11)
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
        case "sigmoid":
            curve = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
            betas = curve * (0.02 - 1e-4) + 1e-4
        case "cosine":
            t = torch.arange(steps + 1, dtype=torch.float64) / steps
            f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, 0)


@pytest.mark.parametrize("steps", [2, 10, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=by_name)
def test_formula_in_float64(schedule, steps, parity):
    schedule = type(schedule)(steps=steps)
    expected = formula(schedule.name, steps)
    alpha, sigma = schedule.alpha_sigma(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    parity(schedule, "the paper's formula", "alpha^2, float64", alpha**2, expected)
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
        (Sigmoid(), {"beta_schedule": "sigmoid"}),
    ],
    ids=["linear", "scaled_linear", "cosine", "sigmoid"],
)
def test_betas_of_diffusers(schedule, peer, parity):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(**peer)
    betas = torch.tensor(schedule.betas(), dtype=torch.float64)
    parity(schedule, "diffusers", "betas, float32", betas.float(), scheduler.betas)
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
        (lambda: VP(beta_max=0.0), "'beta_max' must be > 0.0: 0.0"),
        (lambda: Shifted(schedule=VP(), shift=0.0), "'shift' must be > 0.0: 0.0"),
    ],
)
def test_options_out_of_bounds(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == words


T = torch.linspace(0, 1, 1001, dtype=torch.float64)


def close(found, expected, rtol=1e-9):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)


def test_vp_is_equation_33(parity):
    alpha, sigma = VP().alpha_sigma(T)
    log_alpha = -(T**2) * (20 - 0.1) / 4 - T * 0.1 / 2
    parity(VP(), "the paper's formula", "alpha, float64", alpha, log_alpha.exp())
    close(alpha, log_alpha.exp())
    close(sigma, (1 - (2 * log_alpha).exp()).sqrt())
    assert VP().timestep(T[-1]) == 999


def test_vp_is_the_noise_of_k_diffusion(parity):
    with float64():
        theirs = definition("sampling.py", "get_sigmas_vp")(50, 19.9, 0.1, 1e-3)
        alpha, sigma = VP().alpha_sigma(torch.linspace(1, 1e-3, 50))
    parity(VP(), "k-diffusion", "sigma / alpha, float64", sigma / alpha, theirs[:-1])
    close(sigma / alpha, theirs[:-1])


def test_vp_is_the_limit_of_linear():
    # The table's betas are those of the equation divided by T.
    coarse = [abs(bar_of(LinearBeta(beta_start=0.1 / n, beta_end=20 / n, steps=n)) - bar_of(VP()))
              for n in (250, 500, 1000)]  # fmt: skip
    assert coarse[0] / coarse[1] == pytest.approx(2, rel=0.05)
    assert coarse[1] / coarse[2] == pytest.approx(2, rel=0.05)


def bar_of(schedule, t=0.5):
    return float(schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))[0]) ** 2


def test_ve_is_the_grid_of_edm(parity):
    with float64():
        theirs = definition("sampling.py", "get_sigmas_karras")(1000, 0.002, 80.0, 7.0)
        alpha, sigma = VE().alpha_sigma(torch.arange(1000, 0, -1) / 1000)
    parity(VE(), "k-diffusion", "sigma, float64", sigma, theirs[:-1])
    close(sigma, theirs[:-1])
    assert (alpha == 1).all()


def test_ve_falls_to_zero_below_its_first_entry():
    schedule = VE()
    sigma = schedule.alpha_sigma(torch.tensor([0, 2.5e-4, 1e-3, 1], dtype=torch.float64))[1]
    assert sigma.tolist() == pytest.approx([0, 0.0005, 0.002, 80], rel=1e-12)
    assert schedule.time_at(torch.tensor(0.0005).log()) == pytest.approx(2.5e-4, rel=1e-6)
    assert schedule.start_scale(1.0) == pytest.approx(math.hypot(1, 80))


def test_rectified_flow(parity):
    alpha, sigma = RectifiedFlow().alpha_sigma(T)
    parity(RectifiedFlow(), "the paper's formula", "alpha, float64", alpha, 1 - T)
    assert alpha.equal(1 - T)
    assert sigma.equal(T)
    assert RectifiedFlow().timestep(T).equal(1000 * T)


def test_laplace_is_its_quantile_function(parity):
    schedule, t = Laplace(mu=1.5, b=0.7), T[1:-1]
    alpha, sigma = schedule.alpha_sigma(t)
    log_snr = 1.5 - 0.7 * (0.5 - t).sign() * (1 - 2 * (t - 0.5).abs()).log()
    snr = (alpha / sigma) ** 2
    parity(schedule, "the paper's formula", "SNR, float64", snr, log_snr.exp())
    torch.testing.assert_close(2 * (alpha.log() - sigma.log()), log_snr, rtol=0, atol=1e-12)
    close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14)
    median = schedule.snr(torch.tensor(0.5, dtype=torch.float64))
    assert float(median) == pytest.approx(math.exp(1.5), rel=1e-12)


def test_diffusers_takes_alpha_for_alpha_bar_in_laplace():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_schedule="laplace").alphas_cumprod.double()
    alpha, _ = Laplace().alpha_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(theirs[99:900], alpha[99:900], rtol=2e-3, atol=0)
    assert float(alpha[499] ** 2) == pytest.approx(0.5, rel=1e-12)
    assert float(theirs[499]) == pytest.approx(0.5**0.5, rel=1e-3)  # SNR 2.4 where it should be 1


CONTINUOUS = [VP(), VE(), RectifiedFlow(), Laplace(), Laplace(mu=-2.0, b=1.5)]


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=repr)
def test_time_at_in_closed_form_is_the_bisection(schedule):
    wanted = torch.linspace(-5, 5, 301, dtype=torch.float64)
    expected = NoiseSchedule.time_at(schedule, wanted)
    torch.testing.assert_close(schedule.time_at(wanted), expected, rtol=1e-9, atol=1e-12)
    ends = schedule.time_at(torch.tensor([-math.inf, math.inf]))
    assert ends.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("shift", [3.0, 0.5])
@pytest.mark.parametrize(
    "schedule", [LinearBeta(), VP(), VE(), RectifiedFlow(), Laplace()], ids=repr
)
def test_shift_lowers_log_snr_by_twice_its_logarithm(schedule, shift):
    t = T[1:-1]
    shifted = Shifted(schedule=schedule, shift=shift)
    gap = shifted.snr(t).log() - schedule.snr(t).log()
    expected = torch.full_like(t, -2 * math.log(shift))
    torch.testing.assert_close(gap, expected, rtol=0, atol=1e-9)
    assert shifted.points == schedule.points


def test_shift_keeps_the_family():
    for schedule, kept in (
        (LinearBeta(), lambda a, s: a**2 + s**2),
        (VP(), lambda a, s: a**2 + s**2),
        (RectifiedFlow(), lambda a, s: a + s),
        (VE(), lambda a, s: a),
    ):
        found = kept(*Shifted(schedule=schedule, shift=3.0).alpha_sigma(T))
        close(found, torch.ones_like(T), rtol=1e-14)


def test_shift_on_a_flow_is_that_of_stable_diffusion_3(parity):
    schedule = Shifted(schedule=RectifiedFlow(), shift=3.0)
    close(schedule.alpha_sigma(T)[1], 3 * T / (1 + 2 * T))
    peer = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler(shift=3.0)
    entries = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    sigmas = schedule.alpha_sigma(entries)[1].float()
    parity(schedule, "diffusers", "sigmas of a flow, float32", sigmas, peer.sigmas[: len(sigmas)])
    close(schedule.alpha_sigma(entries)[1].float(), peer.sigmas, rtol=1e-6)
    close(schedule.timestep(entries).float(), peer.timesteps, rtol=1e-6)


def test_shift_on_the_cosine_is_that_of_simple_diffusion(parity):
    class Tangent(NoiseSchedule):
        name = "tangent"

        def alpha_sigma(self, t):
            return (t * math.pi / 2).cos(), (t * math.pi / 2).sin()

    t = T[1:-1]
    log_snr = -2 * (t * math.pi / 2).tan().log() + 2 * math.log(64 / 256)
    alpha, _ = Shifted(schedule=Tangent(), shift=256 / 64).alpha_sigma(t)
    schedule = Shifted(schedule=Tangent(), shift=256 / 64)
    parity(
        schedule, "the paper's formula", "alpha^2 of a cosine, float64", alpha**2, log_snr.sigmoid()
    )
    close(alpha**2, log_snr.sigmoid())


def test_what_cannot_be_shifted():
    class Odd(NoiseSchedule):
        name = "odd"

        def alpha_sigma(self, t):
            return 1 - t / 2, t

    with pytest.raises(ConfigError) as error:
        Shifted(schedule=Odd(), shift=2.0)
    assert str(error.value) == (
        "noise_schedule shifted: odd neither preserves variance nor is a rectified flow, nor is "
        "alpha 1 on it; shift another schedule"
    )


@pytest.mark.parametrize(
    ("schedule", "digits"),
    [
        (ScaledLinearBeta(), {499: 0.2423591666, 998: 1.96789e-7}),
        (LinearBeta(), {499: 0.07602875055}),
    ],
    ids=["scaled_linear", "linear"],
)
def test_zero_terminal_snr(schedule, digits):
    found = ZeroTerminalSNR(schedule=schedule)
    for index, alpha_bar in digits.items():
        assert found.alpha_bars[index] == pytest.approx(
            alpha_bar, rel=3e-6 if index > 900 else 1e-9
        )
    root = torch.tensor(schedule.alpha_bars, dtype=torch.float64).sqrt()
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    alpha_bars = torch.tensor(found.alpha_bars, dtype=torch.float64)
    torch.testing.assert_close(alpha_bars, expected, rtol=1e-9, atol=0)
    assert alpha_bars[-1] == 0
    assert alpha_bars[0] == pytest.approx(schedule.alpha_bars[0], rel=1e-15)
    assert [float(value) for value in found.alpha_sigma(T[-1])] == [0, 1]


def test_zero_terminal_snr_of_diffusers(parity):
    pytest.importorskip("diffusers")
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.tensor(ScaledLinearBeta().betas(), dtype=torch.float64)
    found = torch.tensor(ZeroTerminalSNR(schedule=ScaledLinearBeta()).betas(), dtype=torch.float64)
    theirs = rescale_zero_terminal_snr(betas)
    parity(
        ZeroTerminalSNR(schedule=ScaledLinearBeta()), "diffusers", "betas, float64", found, theirs
    )
    torch.testing.assert_close(found, rescale_zero_terminal_snr(betas), rtol=1e-7, atol=0)


def test_wrappers_nest():
    shifted = Shifted(schedule=ScaledLinearBeta(), shift=2.0)
    found = ZeroTerminalSNR(schedule=shifted)
    alpha, _ = shifted.alpha_sigma(T[1:])
    root = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    close(found.alpha_sigma(T[1:])[0], root)
    assert Shifted(schedule=found, shift=2.0).alpha_sigma(T[-1])[0] == 0


@pytest.mark.parametrize("schedule", [VP(), Betas(values=(0.5,))], ids=["continuous", "one entry"])
def test_zero_terminal_snr_needs_a_table(schedule):
    with pytest.raises(ConfigError) as error:
        ZeroTerminalSNR(schedule=schedule)
    assert str(error.value) == (
        f"noise_schedule zero_terminal_snr: {schedule.name} is no variance-preserving table of two "
        "or more entries; wrap one that is, such as scaled_linear"
    )


def test_wrappers_from_options():
    schedule = create(
        "noise_schedule",
        "zero_terminal_snr",
        schedule={"use": "shifted", "schedule": "scaled_linear", "shift": 2},
    )
    assert schedule == ZeroTerminalSNR(schedule=Shifted(schedule=ScaledLinearBeta(), shift=2.0))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("betas.json", "[0.1, 2e-1, 0.4]"),
        ("betas.txt", "0.1, 2e-1\n0.4\n"),
        ("b.txt", "0.1 0.2 0.4"),
    ],
)
def test_betas_of_a_file_are_recorded_as_numbers(tmp_path, file, text, parity):
    (tmp_path / file).write_text(text)
    schedule = Betas(file=str(tmp_path / file))
    assert schedule == Betas(values=(0.1, 0.2, 0.4))
    parity(
        schedule,
        "the product in closed form",
        "alpha_bar, float64",
        schedule.alpha_bars,
        (0.9, 0.72, 0.432),
    )
    assert schedule.alpha_bars == pytest.approx((0.9, 0.72, 0.432), rel=1e-15)
    assert settings.plain(schedule) == {"use": "betas", "values": [0.1, 0.2, 0.4], "file": None}


def test_betas_are_any_table():
    assert Betas(values=tuple(Cosine().betas())).alpha_bars == Cosine().alpha_bars
    assert isinstance(Betas(values=(0.5, 1.0)), TableSchedule)  # no signal, at the end alone


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "noise_schedule betas: expected either values or a file; give `values: [...]`, or "
         "`file: PATH`"),
        ({"values": (0.5,), "file": "x.txt"}, "noise_schedule betas: expected either values or a "
         "file; give `values: [...]`, or `file: PATH`"),
        ({"values": (0.5, 1.0, 0.5)}, "noise_schedule betas: no signal is left at step 2 of 3 "
         "(alpha_bar 0); every beta must lie in (0, 1), and their product of 1 - beta above 0; only "
         "the last may be 1"),
    ],
    ids=["none", "both", "one in the middle"],
)  # fmt: skip
def test_betas_refused(options, words):
    with pytest.raises(ConfigError) as error:
        Betas(**options)
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("missing.txt", None, "No such file"),
        ("words.txt", "0.1 beta", "could not convert string to float: 'beta'"),
        ("broken.json", "[0.1", "Expecting ',' delimiter"),
        ("mapping.json", '{"betas": [0.1]}', "could not convert string to float: 'betas'"),
        ("number.json", "3", "'int' object is not iterable"),
    ],
)
def test_files_that_hold_no_numbers(tmp_path, name, text, cause):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as error:
        Betas(file=str(path))
    assert str(error.value).startswith(f"{path}: no numbers can be read from it (")
    assert cause in str(error.value)


def test_ve_needs_a_range():
    with pytest.raises(ConfigError) as error:
        VE(sigma_min=1.0, sigma_max=1.5)
    assert str(error.value) == (
        "noise_schedule ve: sigma goes from 1 to 1.5; sigma_max must be at least twice sigma_min"
    )
