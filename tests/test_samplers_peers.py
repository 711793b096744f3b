"""Every sampler's steps beside k-diffusion's, diffusers' and the papers' formulas.

Peers get their noise levels and their noise from here, so only the steps are compared: in float64, where
agreement to 1e-9 over a whole trajectory leaves no other formula, and in float32, to 1e-5, or 1e-4 where
noise is drawn.
"""

import functools
import itertools
import math

import pytest
import torch

import k_diffusion_source
from sfumato import Guided, NoiseSchedule
from sfumato_samplers import (
    DEIS,
    DPM2,
    DPMPP2M,
    DPMPP2MSDE,
    DPMPP3MSDE,
    DPMPPSDE,
    EDM,
    IPNDM,
    LMS,
    PNDM,
    DPMPP2SAncestral,
    Euler,
    EulerAncestral,
    Heun,
    Restart,
    UniPC,
)
from sfumato_schedules import Leading, LinearBeta, Trailing

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers on numpy 2

SHAPE = (2, 3, 4, 4)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
NOISY = {torch.float64: 1e-9, torch.float32: 1e-4}


class Exploding(NoiseSchedule):
    """EDM's: alpha is 1; sigma rises to 80, evenly in its seventh root."""

    name = "exploding"

    def alpha_sigma(self, t):
        return torch.ones_like(t), 80 * t**7

    def time_at(self, log_sigma_over_alpha):
        return ((log_sigma_over_alpha.double().exp() / 80) ** (1 / 7)).clamp(0, 1)


class Flow(NoiseSchedule):
    """alpha = 1 - t, sigma = t."""

    name = "flow"

    def alpha_sigma(self, t):
        return 1 - t, t

    def time_at(self, log_sigma_over_alpha):
        return log_sigma_over_alpha.double().sigmoid()


class FirstOfTwo(NoiseSchedule):
    """sigma = sin(pi t / 2)^2, alpha = sqrt(1 - sigma^2): the one that diffusers' IPNDM has built in."""

    name = "first_of_two"

    def alpha_sigma(self, t):
        sigma = (t * math.pi / 2).sin() ** 2
        return (1 - sigma**2).sqrt(), sigma


def x0_of(z, ratio):
    """A stand-in for a network, in z = x / alpha and r = sigma / alpha: bounded, different at each r."""
    return 0.8 * torch.tanh(z / (0.3 + ratio)) + 0.1 * torch.sin(2 * z / (1 + ratio) + ratio)


def denoiser(schedule):
    def denoise(x, t):
        alpha, sigma = (float(value) for value in schedule.alpha_sigma(t))
        x0 = x0_of(x / alpha, sigma / alpha)
        return Guided(x0, (x - alpha * x0) / sigma)

    return denoise


def drawn(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64).to(dtype)


def ratios_of(schedule, times):
    alpha, sigma = schedule.alpha_sigma(times)
    return sigma / alpha


def falling(schedule, steps, start=0.95):
    """Times from `start` to 0, even but for a wave: no method may lean on equal steps."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return start * (1 - u + 0.08 * (1 - u) * torch.sin(9 * u) * u)


def start_at(schedule, times, dtype):
    return drawn(0, dtype)() * schedule.start_scale(float(times[0]))


def walk(sampler, schedule, times, dtype, noise=None):
    """Ours: z after each step."""
    noise = noise or drawn(1, dtype)
    x = start_at(schedule, times, dtype)
    steps = list(sampler.run(denoiser(schedule), schedule, x, times, noise))
    alphas = schedule.alpha_sigma(times)[0][1:].tolist()
    return [step.x / alpha for step, alpha in zip(steps, alphas, strict=True)]


def assert_same(ours, theirs, dtype, error_of, tolerance=TOLERANCE):
    for index, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        error = error_of(own, other)
        assert error < tolerance[dtype], f"step {index}: relative error {error:.2g}"


def beside_peer(parity, sampler, peer, dtype):
    """Tells `parity` of two x after the same step."""
    noise = "" if sampler.order else ", the same noise"
    half = ", their half of the second order" if isinstance(sampler, HalfAParabola) else ""
    what = f"x after each step, {str(dtype).removeprefix('torch.')}{noise}{half}"
    return functools.partial(parity, sampler, peer, what)


class HalfAParabola(DPMPP3MSDE):
    """What k-diffusion, diffusers and the authors' code compute for 3M: half of the second-order term.

    With x0(u) = D + d1 u + d2 u^2 over the step, u from 0 to 1, the integral of exp(-H (1 - u)) u^2 is
    2 phi_3(-H); they weight d2, a divided difference, as if it were the second derivative, with phi_3.
    """

    def correction(self, past, end, down):
        found = super().correction(past, end, down)
        if len(past) < 3 or end.sigma == 0:
            return found
        now, before, first = (level.half_log_snr for level, _ in past)
        h, total = end.half_log_snr - now, down.half_log_snr - now
        slopes = [
            (past[i][1].x0 - past[i + 1][1].x0) * h / gap
            for i, gap in enumerate((now - before, before - first))
        ]
        d2 = (slopes[0] - slopes[1]) * h / (now - first)
        phi_2 = (math.expm1(-total) / total + 1) / total
        return found - end.alpha * (0.5 - phi_2) * d2


# k-diffusion


@pytest.fixture(scope="module")
def peer():
    return k_diffusion_source.sampling()


def walk_of(function, schedule, times, dtype, **options):
    """Theirs: z after each step, in their coordinates, which are z and r."""
    sigmas = ratios_of(schedule, times).to(dtype)
    seen = []
    z = start_at(schedule, times, dtype) / float(schedule.alpha_sigma(times[0])[0])
    last = function(
        lambda z, sigma: x0_of(z, sigma[0]),
        z,
        sigmas,
        callback=lambda state: seen.append(state["x"]),
        disable=True,
        **options,
    )
    return [*seen[1:], last]


SCHEDULES = pytest.mark.parametrize(
    "schedule", [LinearBeta(), Exploding(), Flow()], ids=lambda s: s.name
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@SCHEDULES
@DTYPES
@pytest.mark.parametrize(
    ("sampler", "function", "options"),
    [
        (Euler(), "sample_euler", {}),
        (Heun(), "sample_heun", {}),
        (EDM(churn=0), "sample_heun", {}),
        (DPM2(), "sample_dpm_2", {}),
        (LMS(), "sample_lms", {}),
        (LMS(depth=2), "sample_lms", {"order": 2}),
        (DPMPP2M(), "sample_dpmpp_2m", {}),
        (DPMPP2SAncestral(eta=0.0), "sample_dpmpp_2s_ancestral", {"eta": 0.0}),
        (DPMPPSDE(eta=0.0), "sample_dpmpp_sde", {"eta": 0.0, "noise_sampler": lambda *_: 0.0}),
        (DPMPP2MSDE(eta=0.0), "sample_dpmpp_2m_sde", {"eta": 0.0}),
        (HalfAParabola(eta=0.0), "sample_dpmpp_3m_sde", {"eta": 0.0}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else repr(value),
)
def test_deterministic_samplers_of_k_diffusion(
    peer, sampler, function, options, schedule, dtype, parity
):
    times = falling(schedule, 12)
    ours = walk(sampler, schedule, times, dtype, noise=lambda: pytest.fail("drew noise"))
    theirs = walk_of(getattr(peer, function), schedule, times, dtype, **options)
    assert_same(ours, theirs, dtype, beside_peer(parity, sampler, "k-diffusion", dtype))


@SCHEDULES
@DTYPES
@pytest.mark.parametrize(
    ("sampler", "function", "options"),
    [
        (EulerAncestral(), "sample_euler_ancestral", {}),
        (EulerAncestral(eta=0.6), "sample_euler_ancestral", {"eta": 0.6}),
        (DPMPP2SAncestral(), "sample_dpmpp_2s_ancestral", {}),
        (DPMPP2SAncestral(eta=0.6), "sample_dpmpp_2s_ancestral", {"eta": 0.6}),
        (DPMPP2MSDE(), "sample_dpmpp_2m_sde", {}),
        (DPMPP2MSDE(eta=0.4, rule="heun"), "sample_dpmpp_2m_sde", {"eta": 0.4, "solver_type": "heun"}),
        (HalfAParabola(), "sample_dpmpp_3m_sde", {}),
        (HalfAParabola(eta=0.4), "sample_dpmpp_3m_sde", {"eta": 0.4}),
    ],
    ids=repr,
)  # fmt: skip
def test_stochastic_samplers_of_k_diffusion(
    peer, sampler, function, options, schedule, dtype, parity
):
    times, noise = falling(schedule, 12), drawn(1, dtype)
    options = {**options, "noise_sampler": lambda *_: noise()}
    theirs = walk_of(getattr(peer, function), schedule, times, dtype, **options)
    error_of = beside_peer(parity, sampler, "k-diffusion", dtype)
    assert_same(walk(sampler, schedule, times, dtype), theirs, dtype, error_of, NOISY)


@SCHEDULES
@DTYPES
@pytest.mark.parametrize("steps", range(1, 9))
def test_edm_of_k_diffusion(peer, steps, schedule, dtype, monkeypatch, parity):
    """Their callback sees x after the churn, so the ends of runs of every length are compared."""
    noise, times = drawn(1, dtype), falling(schedule, 8, start=0.8)[: steps + 1]
    monkeypatch.setattr(torch, "randn_like", lambda x: noise())
    options = {"s_churn": 0.3 * steps, "s_noise": 1.007}
    *_, theirs = walk_of(peer.sample_heun, schedule, times, dtype, **options)
    sampler = EDM(churn=0.3 * steps, low=0.0, high=1e6, noise_scale=1.007)
    error_of = beside_peer(parity, sampler, "k-diffusion", dtype)
    assert_same(walk(sampler, schedule, times, dtype)[-1:], [theirs], dtype, error_of, NOISY)


@SCHEDULES
@DTYPES
def test_dpmpp_sde_of_k_diffusion_given_the_noise_of_the_sde(peer, schedule, dtype, parity):
    """Of the noise over a step, exp(-h) / (1 + exp(-h)) of the variance is that of its first half."""
    noise, first = drawn(1, dtype), None

    def path(sigma, sigma_next):
        nonlocal first
        if first is None:
            first = noise()
            return first
        share = sigma_next / sigma / (1 + sigma_next / sigma)
        whole, first = share.sqrt() * first + (1 - share).sqrt() * noise(), None
        return whole

    times = falling(schedule, 12)
    theirs = walk_of(peer.sample_dpmpp_sde, schedule, times, dtype, noise_sampler=path)
    error_of = beside_peer(parity, DPMPPSDE(), "k-diffusion", dtype)
    assert_same(walk(DPMPPSDE(), schedule, times, dtype), theirs, dtype, error_of)


def test_half_a_parabola_is_of_second_order_and_ours_of_third(peer, parity):
    """x0 = lambda^2, known exactly: from the third step on nothing but rounding may be wrong."""
    schedule = Exploding()
    lambdas = torch.tensor([-1.0, -0.6, -0.3, 0.1], dtype=torch.float64)
    times = schedule.time_at(-lambdas)

    def parabola(ratio):
        return torch.ones(1, 1, 1, 1, dtype=torch.float64) * math.log(float(ratio)) ** 2

    def known(x, t):
        ratio = schedule.alpha_sigma(t)[1]
        return Guided(parabola(ratio), (x - parabola(ratio)) / ratio)

    def integral(first, last):
        """Of exp(lambda - last) lambda^2, by parts."""
        return (last**2 - 2 * last + 2) - math.exp(first - last) * (first**2 - 2 * first + 2)

    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    steps = list(DPMPP3MSDE(eta=0.0).run(known, schedule, x, times, drawn(0, x.dtype)))
    exact = math.exp(-0.4) * steps[1].x + integral(-0.3, 0.1)
    parity(
        DPMPP3MSDE(), "the integral in closed form", "third step, x0 a parabola", steps[2].x, exact
    )
    torch.testing.assert_close(steps[2].x, exact, rtol=1e-9, atol=0)

    seen = []
    theirs = peer.sample_dpmpp_3m_sde(
        lambda z, sigma: parabola(sigma[0]), x, (-lambdas).exp(), eta=0.0, disable=True,
        callback=lambda state: seen.append(state["x"]), noise_sampler=lambda *_: 0.0,
    )  # fmt: skip
    torch.testing.assert_close(seen[2], steps[1].x, rtol=1e-9, atol=0)
    phi_3 = (0.5 - (math.expm1(-0.4) / 0.4 + 1) / 0.4) / 0.4
    assert float(exact - theirs) == pytest.approx(0.4 * phi_3 * 0.4**2, rel=1e-6)


def test_k_diffusion_correlates_the_halves_of_a_step_otherwise_than_the_sde(peer):
    """Where x0 is always 0 the SDE is linear: cov(z_m, z_s) = (r_s / r_m)^2 var(z_m) given z_t."""
    seen = []

    def nothing(x, t):
        seen.append(x)
        return Guided(torch.zeros_like(x), torch.zeros_like(x))

    draws = iter(torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 1, 2))
    times = Exploding().time_at(torch.tensor([4.0, 0.25], dtype=torch.float64).log())
    start = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    (step,) = DPMPPSDE().run(nothing, Exploding(), start, times, lambda: next(draws))
    covariance, variance = float((seen[1] * step.x).sum()), float((seen[1] ** 2).sum())
    assert covariance / variance == pytest.approx((0.25 / 1.0) ** 2, rel=1e-9)
    correlation = covariance / math.sqrt(variance * float((step.x**2).sum()))

    wide = torch.zeros(1, 1, 200, 200, dtype=torch.float64)
    tree = peer.BrownianTreeNoiseSampler(wide, 0.25, 4.0, seed=1)
    theirs = torch.corrcoef(torch.stack([tree(4.0, 1.0).flatten(), tree(4.0, 0.25).flatten()]))[
        0, 1
    ]
    assert correlation == pytest.approx(math.sqrt(1 / 17), rel=1e-9)
    assert float(theirs) == pytest.approx(math.sqrt(3 / 3.75), abs=0.02)


# diffusers


def schedulers():
    return pytest.importorskip("diffusers")


def beside(scheduler, sampler, schedule, times, dtype, noise=None):
    """z after each step of ours, and of a scheduler that is given our noise levels.

    It is asked for x at each time and told eps there. The predictions that corrected it come from its own x.
    """
    steps = len(times) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = ratios_of(schedule, times).to(dtype)
    scheduler.timesteps = torch.arange(steps, 0, -1)
    denoise, theirs = denoiser(schedule), []
    options = {"variance_noise": None} if noise else {}
    x = start_at(schedule, times, dtype)
    for index, timestep in enumerate(scheduler.timesteps):
        eps = denoise(x, times[index]).eps
        if noise:
            options["variance_noise"] = noise() if times[index + 1] > 0 else torch.zeros_like(x)
        x = scheduler.step(eps, timestep, x, **options).prev_sample
        theirs.append(x / float(schedule.alpha_sigma(times[index + 1])[0]))
    return walk(sampler, schedule, times, dtype), theirs


@DTYPES
@pytest.mark.parametrize(
    ("depth", "clean"), [(1, True), (2, True), (1, False), (2, False), (3, False)]
)
def test_unipc_of_diffusers(depth, clean, dtype, parity):
    """Before a clean end theirs lowers the order, where p = 2 only of the very last step, as ours does."""
    scheduler = schedulers().UniPCMultistepScheduler(solver_order=depth, lower_order_final=clean)
    times = Trailing().times(12, LinearBeta())[: None if clean else -1]
    pairs = beside(scheduler, UniPC(depth=depth), LinearBeta(), times, dtype)
    assert_same(*pairs, dtype, beside_peer(parity, UniPC(), "diffusers", dtype))


@DTYPES
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_deis_of_diffusers(depth, dtype, parity):
    scheduler = schedulers().DEISMultistepScheduler(solver_order=depth, lower_order_final=False)
    times = Trailing().times(12, LinearBeta())[:-1]
    pairs = beside(scheduler, DEIS(depth=depth), LinearBeta(), times, dtype)
    assert_same(*pairs, dtype, beside_peer(parity, DEIS(), "diffusers", dtype))


@DTYPES
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (DPMPP2M(), {}),
        (DPMPP2MSDE(eta=0.0, rule="heun"), {"solver_type": "heun"}),
        (HalfAParabola(eta=0.0), {"solver_order": 3, "solver_type": "heun"}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("clean", [True, False])
def test_dpm_solver_plus_plus_of_diffusers(sampler, options, clean, dtype, parity):
    """Theirs computes in float32 whatever it is given."""
    scheduler = schedulers().DPMSolverMultistepScheduler(
        **options, lower_order_final=False, final_sigmas_type="zero" if clean else "sigma_min"
    )
    times = Trailing().times(12, LinearBeta())[: None if clean else -1]
    pairs = beside(scheduler, sampler, LinearBeta(), times, dtype)
    dtype = torch.float32
    assert_same(*pairs, dtype, beside_peer(parity, sampler, "diffusers", dtype))


@DTYPES
@pytest.mark.parametrize("rule", ["midpoint", "heun"])
def test_sde_dpm_solver_plus_plus_of_diffusers(rule, dtype, parity):
    scheduler = schedulers().DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_type=rule
    )
    times, noise = Trailing().times(16, LinearBeta()), drawn(1, dtype)
    pairs = beside(scheduler, DPMPP2MSDE(rule=rule), LinearBeta(), times, dtype, noise)
    dtype = torch.float32
    assert_same(*pairs, dtype, beside_peer(parity, DPMPP2MSDE(), "diffusers", dtype))


def test_sde_dpm_solver_plus_plus_of_diffusers_at_order_3_errs_by_a_sign(parity):
    """It adds -1/2 d2 for +1/2 d2, so its third step is off by d2 whole, however short the steps."""
    scheduler = schedulers().DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_type="heun", solver_order=3
    )
    schedule, times, noise = (
        LinearBeta(),
        Trailing().times(16, LinearBeta()),
        drawn(1, torch.float64),
    )
    ours, theirs = beside(scheduler, HalfAParabola(), schedule, times, torch.float64, noise)
    dtype = torch.float32
    error_of = beside_peer(parity, HalfAParabola(), "diffusers, before its wrong third step", dtype)
    assert_same(ours[:2], theirs[:2], dtype, error_of)

    log_r = ratios_of(schedule, times).log()
    alpha, _ = schedule.alpha_sigma(times)
    starts = [start_at(schedule, times, torch.float64) / alpha[0], *ours]
    x0 = [x0_of(starts[i], float(log_r[i].exp())) for i in range(3)]
    h, late, early = (float(log_r[i] - log_r[i + 1]) for i in (2, 1, 0))
    d2 = ((x0[2] - x0[1]) * h / late - (x0[1] - x0[0]) * h / early) * h / (late + early)
    torch.testing.assert_close(
        theirs[2] - ours[2], -d2, rtol=0, atol=1e-4 * float(ours[2].abs().max())
    )
    assert float(d2.abs().max()) > 1e-2


def give_float64_table(scheduler, schedule):
    betas = torch.tensor(schedule.betas(), dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)


@DTYPES
def test_pndm_of_diffusers(dtype, parity):
    """Twelve predictions for the first three steps; the x after the fourth of each is compared."""
    schedule, times = LinearBeta(), Leading().times(20, LinearBeta())
    scheduler = schedulers().PNDMScheduler(skip_prk_steps=False, set_alpha_to_one=True)
    give_float64_table(scheduler, schedule)
    scheduler.set_timesteps(20)
    x, theirs, denoise = start_at(schedule, times, dtype), [], denoiser(schedule)
    for count, timestep in enumerate(scheduler.timesteps, start=1):
        t = (timestep.double() + 1) / 1000
        x = scheduler.step(denoise(x, t).eps, timestep, x).prev_sample
        if count > 12 or count % 4 == 0:
            alpha = float(schedule.alpha_sigma(times[len(theirs) + 1])[0])
            theirs.append(x / alpha)
    error_of = beside_peer(parity, PNDM(), "diffusers", dtype)
    assert_same(walk(PNDM(), schedule, times, dtype), theirs, dtype, error_of)


@DTYPES
def test_plms_of_diffusers(dtype, parity):
    """Two predictions for the first step, one for each other."""
    schedule, times = LinearBeta(), Leading(offset=1).times(20, LinearBeta())
    scheduler = schedulers().PNDMScheduler(
        skip_prk_steps=True, set_alpha_to_one=True, steps_offset=1
    )
    give_float64_table(scheduler, schedule)
    scheduler.set_timesteps(20)
    x, theirs, denoise = start_at(schedule, times, dtype), [], denoiser(schedule)
    for count, timestep in enumerate(scheduler.timesteps):
        t = (timestep.double() + 1) / 1000
        x = scheduler.step(denoise(x, t).eps, timestep, x).prev_sample
        if count > 0:
            theirs.append(x / float(schedule.alpha_sigma(times[len(theirs) + 1])[0]))
    sampler = PNDM(start="improved_euler")
    error_of = beside_peer(parity, sampler, "diffusers, PLMS", dtype)
    assert_same(walk(sampler, schedule, times, dtype), theirs, dtype, error_of)


@DTYPES
def test_ipndm_of_diffusers(dtype, parity):
    """Theirs reads v; its own tables are float32."""
    schedule = FirstOfTwo()
    scheduler = schedulers().IPNDMScheduler()
    times = torch.linspace(1, 0, 17, dtype=torch.float64)[1:]
    scheduler.set_timesteps(15)
    alphas, sigmas = schedule.alpha_sigma(times)
    scheduler.alphas, scheduler.betas = alphas, sigmas
    scheduler.timesteps = torch.arange(15, 0, -1)
    x, theirs, denoise = start_at(schedule, times, dtype), [], denoiser(schedule)
    for index, timestep in enumerate(scheduler.timesteps):
        eps = denoise(x, times[index]).eps
        v = (eps - float(sigmas[index]) * x) / float(alphas[index])
        x = scheduler.step(v, timestep, x).prev_sample
        theirs.append(x / float(alphas[index + 1]))
    error_of = beside_peer(parity, IPNDM(), "diffusers", dtype)
    assert_same(walk(IPNDM(), schedule, times, dtype), theirs, dtype, error_of)


@pytest.mark.parametrize("steps", [20, 30])
def test_euler_of_diffusers_errs_by_its_float32_table(steps):
    """At its cleanest entry by 8.3e-5: 1 - 0.9999 in float32. Closed form: sigma^2 / alpha^2 = beta / (1 - beta).

    Its `linspace` is fractional; between entries it makes sigma linear, where here log(sigma / alpha) is.
    """
    scheduler = schedulers().EulerDiscreteScheduler(
        timestep_spacing="linspace", beta_end=0.02, beta_start=1e-4
    )
    scheduler.set_timesteps(steps)
    times = (scheduler.timesteps.double() + 1) / 1000
    wrong = (scheduler.sigmas[:-1].double() / ratios_of(LinearBeta(), times) - 1).abs()
    assert float(ratios_of(LinearBeta(), times[-1:])) == pytest.approx(
        math.sqrt(1e-4 / (1 - 1e-4)), rel=1e-12
    )
    assert float(wrong[-1]) == pytest.approx(8.3e-5, rel=0.01)
    assert float(times[1] * 1000 - 1) == pytest.approx(999 - 999 / (steps - 1), abs=1e-4)
    assert float(wrong[:-1].max()) < 1e-4


# The authors' formulas


def restart_formula(z, ratios, low, high, repeats, noise):
    """Xu et al., Section 3.1, in z and r; the ways down visit the same levels."""

    def heun(z, r, s):
        slope = (z - x0_of(z, r)) / r
        euler = z + (s - r) * slope
        if s == 0:
            return euler
        return z + (s - r) * (slope + (euler - x0_of(euler, s)) / s) / 2

    inside = [r for r in ratios if r <= high]
    for r, s in itertools.pairwise(ratios):
        z = heun(z, r, s)
        if s <= low < r:
            path = [level for level in inside if level >= s]
            for _ in range(repeats):
                z = z + math.sqrt(path[0] ** 2 - s**2) * noise()
                for up, down in itertools.pairwise(path):
                    z = heun(z, up, down)
        yield z


@SCHEDULES
def test_restart_of_the_paper(schedule, parity):
    dtype, times = torch.float64, falling(schedule, 20)
    ratios = ratios_of(schedule, times).tolist()
    z = start_at(schedule, times, dtype) / float(schedule.alpha_sigma(times[0])[0])
    theirs = list(restart_formula(z, ratios, 0.3, 1.5, 3, drawn(1, dtype)))
    ours = walk(Restart(low=0.3, high=1.5, repeats=3), schedule, times, dtype)
    assert_same(ours, theirs, dtype, beside_peer(parity, Restart(), "the paper's formula", dtype))
    plain = walk(Heun(), schedule, times, dtype)
    assert float((ours[-1] - plain[-1]).abs().max()) > 0.01, "it restarted nowhere"
