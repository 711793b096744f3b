"""Samplers against diffusers, the papers' formulas in float64, and laws with exact denoisers."""

import functools
import itertools
import math

import pytest
import torch

from sfumato import Guided, NoiseSchedule
from sfumato_samplers import DDIM, DDPM
from sfumato_schedules import Cosine, Leading, LinearBeta, Linspace, ScaledLinearBeta, Trailing

SD = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}


class Flow(NoiseSchedule):
    """alpha = 1 - t, sigma = t: continuous and not variance preserving."""

    name = "flow"

    def alpha_sigma(self, t):
        return 1 - t, t


def epsilon_denoiser(schedule, epsilon):
    """Denoise from a network that predicts epsilon."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha_sigma(t)
        eps = epsilon(x, t)
        return Guided((x - sigma * eps) / alpha, eps)

    return denoise


def some_network(x, t):
    """A stand-in for a network: near the epsilon of unit data, and different at each time and place."""
    return (float(t) ** 0.5 * x + 0.2 * torch.sin(3 * x + 10 * float(t))).to(x)


def gaussian_denoiser(schedule, mean, deviation):
    """The exact denoiser of data drawn from N(mean, deviation^2); a point at deviation 0."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha_sigma(t)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        x0 = mean + gain * (x - alpha * mean)
        return Guided(x0, (x - alpha * x0) / sigma)

    return denoise


def normal(seed):
    """A source of noise like x (2, 3, 8, 8) in float32."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(2, 3, 8, 8, generator=generator)


def no_noise():
    raise AssertionError("this sampler is deterministic")


def steps_beside(sampler, schedule, grid, scheduler, steps, **options):
    """Our steps and diffusers' from the same x, prediction and noise: pairs of (ours, theirs)."""
    scheduler.set_timesteps(steps)
    times = grid.times(steps, schedule)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    denoise = epsilon_denoiser(schedule, some_network)
    generator = torch.Generator().manual_seed(1)
    ours = sampler.run(denoise, schedule, x, times, normal(1))
    for step, timestep in zip(ours, scheduler.timesteps, strict=True):
        eps = denoise(x, times[step.index]).eps
        theirs = scheduler.step(eps, int(timestep), x, generator=generator, **options)
        yield step, theirs
        x = step.x


def assert_equal(a, b, tolerance):
    assert a.dtype == b.dtype == torch.float32
    assert (a - b).abs().max() <= tolerance * b.abs().max()


def assert_same_steps(pairs, exact, error_of):
    """Within 1e-5 as diffusers is, within 1e-6 once its table is float64 like ours, x0 then too.

    As it is, diffusers' float32 `1 - ab_t / ab_prev` errs by up to 2e-5 in the step from index 10 to 0.
    """
    pairs = list(pairs)
    for ours, theirs in pairs:
        error_of(ours.x, theirs.prev_sample)
        cancels = len(pairs) == 100 and ours.index == 98
        assert_equal(ours.x, theirs.prev_sample, 1e-6 if exact else 2e-5 if cancels else 1e-5)
        if exact:
            assert_equal(ours.x0, theirs.pred_original_sample, 1e-6)


def beside_peer(parity, sampler, exact):
    """Tells `parity` of two x after the same step."""
    table = ", its table in float64" if exact else ""
    return functools.partial(
        parity, sampler, "diffusers", f"a step from the same x, float32{table}"
    )


def give_float64_table(scheduler, schedule):
    """Takes the rounding of its float32 table out of the comparison."""
    betas = torch.tensor(schedule.betas(), dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    if not getattr(scheduler.config, "set_alpha_to_one", True):
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]


beside_diffusers = pytest.mark.parametrize(
    ("steps", "exact"),
    [(10, False), (50, False), (100, False), (10, True), (100, True)],
    ids=["10", "50", "100", "10-float64", "100-float64"],
)


@beside_diffusers
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("grid", [Leading(), Trailing(), Linspace()], ids=lambda grid: grid.name)
def test_ddpm_of_diffusers(grid, variance, clip, steps, exact, parity):
    schedule = LinearBeta()
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(
        timestep_spacing=grid.name, variance_type=f"fixed_{variance}", clip_sample=clip is not None
    )
    if exact:
        give_float64_table(scheduler, schedule)
    sampler = DDPM(variance=variance, clip_x0=clip)
    pairs = list(steps_beside(sampler, schedule, grid, scheduler, steps))
    if variance == "large" and grid.name == "trailing":
        # diffusers gives the last step noise, too, unless it starts at index 0.
        pairs.pop()
    assert_same_steps(pairs, exact, beside_peer(parity, sampler, exact))


@beside_diffusers
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", [Leading(), Trailing()], ids=lambda grid: grid.name)
def test_ddim_of_diffusers(grid, eta, clip, steps, exact, parity):
    """On the grids where diffusers' DDIM goes to the next entry of its own grid."""
    schedule = LinearBeta()
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(
        timestep_spacing=grid.name, clip_sample=clip is not None
    )
    if exact:
        give_float64_table(scheduler, schedule)
    sampler = DDIM(eta=eta, clip_x0=clip)
    options = {"eta": eta, "use_clipped_model_output": True}
    pairs = steps_beside(sampler, schedule, grid, scheduler, steps, **options)
    assert_same_steps(pairs, exact, beside_peer(parity, sampler, exact))


@beside_diffusers
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_of_diffusers_with_the_settings_of_stable_diffusion(eta, steps, exact, parity):
    schedule = ScaledLinearBeta()
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(
        **SD, steps_offset=1, set_alpha_to_one=False, clip_sample=False
    )
    if exact:
        give_float64_table(scheduler, schedule)
    grid = Leading(offset=1, final="first")
    pairs = steps_beside(DDIM(eta=eta), schedule, grid, scheduler, steps, eta=eta)
    assert_same_steps(pairs, exact, beside_peer(parity, DDIM(), exact))


def alpha_bars(schedule, times):
    """The classical table at the times of a grid, from the betas, 1 at t = 0."""
    betas = torch.tensor([0.0, *schedule.betas()], dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)[(times * schedule.points).round().long()].tolist()


def ddpm_formula(x, eps, z, ab_t, ab_s, variance):
    """Ho et al., Equations 7, 11 and 15, with the betas of the sub-sampled chain."""
    beta = 1 - ab_t / ab_s
    x0 = (x - math.sqrt(1 - ab_t) * eps) / math.sqrt(ab_t)
    mean = (
        math.sqrt(ab_s) * beta / (1 - ab_t) * x0 + math.sqrt(1 - beta) * (1 - ab_s) / (1 - ab_t) * x
    )
    tilde = (1 - ab_s) / (1 - ab_t) * beta
    return mean + math.sqrt(tilde if variance == "small" else beta) * z


def ddim_formula(x, eps, z, ab_t, ab_s, eta):
    """Song et al., Equations 12 and 16."""
    deviation = eta * math.sqrt((1 - ab_s) / (1 - ab_t)) * math.sqrt(1 - ab_t / ab_s)
    x0 = (x - math.sqrt(1 - ab_t) * eps) / math.sqrt(ab_t)
    return math.sqrt(ab_s) * x0 + math.sqrt(1 - ab_s - deviation**2) * eps + deviation * z


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine()], ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("sampler", "formula", "option"),
    [
        (DDPM(), ddpm_formula, "small"),
        (DDPM(variance="large"), ddpm_formula, "large"),
        (DDIM(), ddim_formula, 0.0),
        (DDIM(eta=0.7), ddim_formula, 0.7),
    ],
    ids=["ddpm-small", "ddpm-large", "ddim", "ddim-eta"],
)
def test_formula_in_float64_at_a_thousand_steps(sampler, formula, option, schedule, parity):
    torch.manual_seed(0)
    noises = torch.randn(1000, 1, 1, 4, 4, dtype=torch.float64)
    times = Trailing().times(1000, schedule)
    table = alpha_bars(schedule, times)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    drawn = iter(noises)
    steps = sampler.run(
        epsilon_denoiser(schedule, some_network), schedule, x, times, lambda: next(drawn)
    )
    for step, z, (ab_t, ab_s) in zip(steps, noises, itertools.pairwise(table), strict=True):
        eps = some_network(x, times[step.index])
        z = z if step.index < 999 else torch.zeros_like(z)
        expected = formula(x, eps, z, ab_t, ab_s, option)
        parity(sampler, "the paper's formula", "a step from the same x, float64", step.x, expected)
        torch.testing.assert_close(step.x, expected, rtol=1e-9, atol=1e-9 * expected.abs().max())
        x = step.x


SAMPLERS = [
    DDPM(),
    DDPM(variance="large"),
    DDPM(clip_x0=1.0),
    DDIM(),
    DDIM(eta=0.5),
    DDIM(clip_x0=2.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), Flow()], ids=lambda s: s.name)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_data_at_one_point_is_found(sampler, schedule, dtype):
    generator = torch.Generator().manual_seed(3)
    x, point = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=dtype).unbind()
    point = point.clamp(-1, 1)
    times = Trailing().times(8, schedule)
    *_, last = sampler.run(
        gaussian_denoiser(schedule, point, 0.0),
        schedule,
        x,
        times,
        lambda: torch.randn(x.shape, generator=generator, dtype=dtype),
    )
    assert last.x.dtype == last.x0.dtype == dtype
    assert (last.index, last.t) == (7, 0.0)
    torch.testing.assert_close(
        last.x, point, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12
    )


@pytest.mark.parametrize("schedule", [LinearBeta(), Flow()], ids=lambda s: s.name)
def test_ddim_transports_a_gaussian_with_error_of_first_order(schedule):
    """The flow of the probabilities maps quantiles to quantiles: alpha m + sqrt(V_t) q to m + s q."""
    mean, deviation = 0.7, 0.5
    quantile = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 1, 9)
    errors = []
    for steps in (100, 200):
        times = Trailing().times(steps, schedule)
        alpha, sigma = schedule.alpha_sigma(times[0])
        x = alpha * mean + torch.sqrt(alpha**2 * deviation**2 + sigma**2) * quantile
        *_, last = DDIM().run(
            gaussian_denoiser(schedule, mean, deviation), schedule, x, times, no_noise
        )
        errors.append(float((last.x - (mean + deviation * quantile)).abs().max()))
    assert errors[1] < 0.02
    assert 1.7 < errors[0] / errors[1] < 2.3


def deviation_of_samples(sampler, schedule, deviation, steps):
    """Of the samples of data N(0, deviation^2), exactly.

    With the exact denoiser the result is linear in the start and in each draw of noise. Start and draws are
    unit vectors here, so that the result holds their coefficients, and its norm is the deviation.
    """
    drawn = iter(torch.eye(steps + 1, dtype=torch.float64).reshape(steps + 1, 1, 1, 1, -1))
    times = Trailing().times(steps, schedule)
    alpha, sigma = schedule.alpha_sigma(times[0])
    x = torch.sqrt(alpha**2 * deviation**2 + sigma**2) * next(drawn)
    denoise = gaussian_denoiser(schedule, 0.0, deviation)
    *_, last = sampler.run(denoise, schedule, x, times, lambda: next(drawn))
    return float(last.x.norm())


@pytest.mark.parametrize("schedule", [LinearBeta(), Flow()], ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("sampler", "sign"), [(DDPM(), -1), (DDIM(eta=1.0), -1), (DDPM(variance="large"), 1)], ids=repr
)
def test_stochastic_samplers_draw_a_gaussian_with_error_of_first_order(sampler, sign, schedule):
    """beta_tilde and beta are a lower and an upper bound (Ho et al., Section 3.2)."""
    coarse, fine = (
        deviation_of_samples(sampler, schedule, 0.5, steps) - 0.5 for steps in (200, 400)
    )
    assert 0 < sign * fine < 0.02
    assert 1.6 < coarse / fine < 2.4


def test_ddim_at_eta_one_is_ddpm():
    schedule = LinearBeta()
    times = Linspace().times(30, schedule)
    x = normal(7)()
    denoise = epsilon_denoiser(schedule, some_network)
    runs = [s.run(denoise, schedule, x, times, normal(8)) for s in (DDPM(), DDIM(eta=1.0))]
    for ddpm, ddim in zip(*runs, strict=True):
        torch.testing.assert_close(ddpm.x, ddim.x)


def test_x0_and_eps_may_differ():
    """CFG++ renoises with another eps than that of x0: one step is alpha_s x0 + sigma_s eps."""
    schedule = LinearBeta()
    times = Trailing().times(10, schedule)
    alpha, sigma = schedule.alpha_sigma(times[1])
    step = next(
        DDIM().run(
            lambda x, t: Guided(x * 0 + 2, x * 0 - 3), schedule, normal(0)(), times, no_noise
        )
    )
    torch.testing.assert_close(step.x, torch.full_like(step.x, float(2 * alpha - 3 * sigma)))


def test_clipping_x0_moves_eps_so_that_x_t_stays():
    schedule = LinearBeta()
    times = Trailing().times(10, schedule)
    (alpha, alpha_s), (sigma, sigma_s) = (v[:2] for v in schedule.alpha_sigma(times))
    x = normal(0)().double()
    denoise = epsilon_denoiser(schedule, lambda x, t: 0.5 * x)
    step = next(DDIM(clip_x0=1.0).run(denoise, schedule, x, times, no_noise))
    x0 = denoise(x, times[0]).x0.clamp(-1, 1)
    torch.testing.assert_close(step.x0, x0)
    torch.testing.assert_close(step.x, alpha_s * x0 + sigma_s * (x - alpha * x0) / sigma)


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(eta=1.0)], ids=repr)
def test_no_draw_of_noise_is_wasted(sampler):
    """The last step to the clean picture takes none, so 10 steps are 9 draws."""
    schedule = LinearBeta()
    draws = []
    denoise = epsilon_denoiser(schedule, some_network)
    x = normal(0)()
    for _ in sampler.run(
        denoise, schedule, x, Trailing().times(10, schedule), lambda: draws.append(1) or x
    ):
        pass
    assert len(draws) == 9


def test_steps_say_where_they_are():
    schedule = LinearBeta()
    times = Leading(offset=1, final="first").times(4, schedule)
    denoise = epsilon_denoiser(schedule, some_network)
    steps = list(DDIM().run(denoise, schedule, normal(0)(), times, no_noise))
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert [step.t for step in steps] == [0.502, 0.252, 0.002, 0.001]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DDIM(eta=1.5), "'eta' must be <= 1.0: 1.5"),
        (lambda: DDPM(clip_x0=0.5), "'clip_x0' must be >= 1.0: 0.5"),
    ],
)
def test_options_out_of_bounds(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == words
