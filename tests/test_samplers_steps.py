"""What all samplers share: steps in z and r, weights of multistep methods, guidance that renoises otherwise,
starts from pure noise, and how many predictions and draws each takes.
"""

import math

import pytest
import torch
from numpy.polynomial import legendre

from sfumato import Guided, Pipeline
from sfumato.testing.mixture import QuarterCircle, Straight, clusters, flow_to, gaussian, point
from sfumato_samplers import (
    DDIM,
    DDPM,
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
    sfumato_components,
)
from sfumato_samplers.intervals import Level
from sfumato_samplers.multistep import phi, weights
from small import ROOT

DETERMINISTIC = [
    DDIM(),
    Euler(),
    EulerAncestral(eta=0.0),
    Heun(),
    EDM(churn=0.0),
    Restart(repeats=0),
    DPM2(),
    DPMPP2SAncestral(eta=0.0),
    DPMPPSDE(eta=0.0),
    LMS(),
    IPNDM(),
    PNDM(),
    PNDM(start="improved_euler"),
    DEIS(),
    DPMPP2M(),
    DPMPP2MSDE(eta=0.0),
    DPMPP2MSDE(eta=0.0, rule="heun"),
    DPMPP3MSDE(eta=0.0),
    *(UniPC(depth=depth) for depth in (1, 2, 3)),
]
STOCHASTIC = [
    DDPM(),
    EulerAncestral(),
    EDM(),
    Restart(),
    DPMPP2SAncestral(),
    DPMPPSDE(),
    DPMPP2MSDE(),
    DPMPP3MSDE(),
]
EVERY = pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC], ids=repr)


def normal(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64)


def even(steps, start=1.0, end=0.0):
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def test_none_is_left_out():
    assert {type(s) for s in [*DETERMINISTIC, *STOCHASTIC]} == set(sfumato_components())


# Steps


def test_two_halves_of_the_sde_are_the_whole():
    start, middle, end = Level(0.6, 0.9), Level(0.8, 0.5), Level(0.95, 0.2)
    for eta in (0.0, 0.3, 1.0):
        first, _ = start.diffused(middle, eta)
        _, early = start.diffused(middle, eta)
        second, late = middle.diffused(end, eta)
        whole, fresh = start.diffused(end, eta)
        assert whole.sigma == pytest.approx(first.sigma / middle.sigma * second.sigma, rel=1e-12)
        carried = early * second.sigma / middle.sigma
        assert fresh**2 == pytest.approx(carried**2 + late**2, abs=1e-15)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ancestral_and_sde_agree_at_the_ends(eta):
    start, end = Level(0.6, 0.9), Level(0.95, 0.2)
    ours, sde = start.ancestral(end, eta), start.diffused(end, eta)
    assert ours[0].sigma == pytest.approx(sde[0].sigma, rel=1e-12)
    assert ours[1] == pytest.approx(sde[1], rel=1e-12)


def test_the_posterior_is_the_split_at_eta_one():
    """q(x_s given x_t, x0) by multiplying the Gaussians q(x_t given x_s) and q(x_s given x0)."""
    start, end = Level(0.6, 0.9), Level(0.95, 0.2)
    step = start.alpha / end.alpha
    between = start.sigma**2 - (step * end.sigma) ** 2
    precision = 1 / end.sigma**2 + step**2 / between
    down, fresh = start.ancestral(end, 1.0)
    assert fresh**2 == pytest.approx(1 / precision, rel=1e-12)
    x0, eps = 0.3, -1.7
    mean = (
        end.alpha * x0 / end.sigma**2 + step * (start.alpha * x0 + start.sigma * eps) / between
    ) / precision
    assert end.alpha * x0 + down.sigma * eps == pytest.approx(mean, rel=1e-12)


# Weights


@pytest.mark.parametrize(
    ("count", "classical", "over"),
    [
        (2, [3, -1], 2),
        (3, [23, -16, 5], 12),
        (4, [55, -59, 37, -9], 24),
    ],
)
def test_equal_steps_give_adams_and_bashforth(count, classical, over):
    found = weights([-float(j) for j in range(count)], 0.0)
    assert found == pytest.approx([c / over for c in classical], rel=1e-12)


@pytest.mark.parametrize("x", [0.0, -0.004, 0.3, -0.999, -1.001, 1.001, -6.0, 6.0])
@pytest.mark.parametrize("nodes", [[0.0], [0.0, -0.7], [0.0, -1.1, -1.9], [0.0, -0.5, -2.0, 1.0]])
def test_weights_integrate_polynomials(nodes, x):
    """Against Gauss and Legendre's quadrature on 40 points."""
    places, masses = legendre.leggauss(40)
    u, found = (places + 1) / 2, weights(nodes, x)
    for degree in range(len(nodes)):
        exact = float((masses / 2 * math.e ** (x * (1 - u)) * u**degree).sum())
        assert sum(w * n**degree for w, n in zip(found, nodes, strict=True)) == pytest.approx(
            exact, rel=1e-10
        )


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize("sign", [1, -1])
def test_phi_is_one_function_where_its_formulas_meet(k, sign):
    assert phi(k, sign * (1 - 1e-9)) == pytest.approx(phi(k, sign * (1 + 1e-9)), rel=1e-8)


# Guidance that renoises with another eps than that of x0


@EVERY
@pytest.mark.parametrize("schedule", [QuarterCircle(), Straight()], ids=lambda s: s.name)
def test_x0_and_eps_that_differ_for_good_are_each_kept(sampler, schedule):
    """Where both are constant every step is alpha x0 + sigma eps and noise, whatever x says."""
    times, noise = even(7, 0.9), normal()
    two, minus_three = (
        torch.full((3, 1, 2, 2), 2.0).double(),
        torch.full((3, 1, 2, 2), -3.0).double(),
    )
    steps = list(
        sampler.run(lambda x, t: Guided(two, minus_three), schedule, noise(), times, noise)
    )
    torch.testing.assert_close(steps[-1].x, two)
    if sampler in DETERMINISTIC:
        for step in steps:
            alpha, sigma = schedule.alpha_sigma(torch.tensor(step.t, dtype=torch.float64))
            torch.testing.assert_close(step.x, alpha * two + sigma * minus_three)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=repr)
def test_each_renoises_with_the_eps_it_is_given(sampler):
    """Guidance that adds d to eps alone moves one step by sigma_s d: CFG++ reaches every sampler."""
    times, schedule, best = (
        even(6, 0.9, 0.3)[:2],
        QuarterCircle(),
        clusters().denoise(QuarterCircle()),
    )

    def moved(x, t):
        found = best(x, t)
        return Guided(found.x0, found.eps + 0.5 * (t == times[0]))

    x = normal()()
    plain, other = (next(sampler.run(f, schedule, x, times, normal(1))).x for f in (best, moved))
    shift = float((other - plain).mean()) / float(schedule.alpha_sigma(times[1])[1])
    assert 0.25 < shift < 0.75


# Pure noise


@EVERY
def test_from_pure_noise_on_a_schedule_that_ends_in_it(sampler):
    """At t = 1 alpha is 0 and sigma / alpha has no bound: the first step is Euler's."""
    for schedule in (QuarterCircle(), Straight()):
        for steps in (1, 2, 6):
            noise, times = normal(), even(steps)
            *_, last = sampler.run(point(0.4).denoise(schedule), schedule, noise(), times, noise)
            torch.testing.assert_close(last.x, torch.full_like(last.x, 0.4), rtol=0, atol=1e-9)
        found = list(sampler.run(clusters().denoise(schedule), schedule, noise(), even(40), noise))
        assert all(step.x.isfinite().all() for step in found)
        assert float(found[-1].x.abs().max()) < 1


def test_the_first_step_from_pure_noise_is_eulers():
    schedule, times, x = Straight(), even(5), normal()()
    euler = next(Euler().run(clusters().denoise(schedule), schedule, x, times, normal()))
    for sampler in DETERMINISTIC:
        step = next(sampler.run(clusters().denoise(schedule), schedule, x, times, normal()))
        torch.testing.assert_close(step.x, euler.x)


# With a network


@pytest.mark.parametrize("component", sfumato_components(), ids=lambda c: c.name)
def test_each_samples_from_a_trained_pipeline_with_guidance(small_run, component):
    """By its name, at times between those of the grid, too; the same pictures for the same seed."""
    pipeline = Pipeline.load(small_run, [f"sampler={component.name}", "guidance.scale=3"])
    pictures, again = (pipeline.sample(["a red circle"], steps=4, seed=0) for _ in range(2))
    assert pictures.isfinite().all()
    assert float(pictures.std()) > 0.01
    assert torch.equal(pictures, again)


# Costs: predictions and draws of noise over 10 steps, the last of them clean

COSTS = [
    (DDPM(), 10, 9),
    (DDIM(), 10, 0),
    (DDIM(eta=0.5), 10, 9),
    (Euler(), 10, 0),
    (EulerAncestral(), 10, 9),
    (Heun(), 19, 0),
    (EDM(churn=0.0), 19, 0),
    (EDM(low=0.0, high=1e9), 19, 10),
    (Restart(low=0.4, high=2.0, repeats=2), 19 + 2 * 2 * 5, 2),
    (DPM2(), 19, 0),
    (DPMPP2SAncestral(), 19, 9),
    (DPMPPSDE(), 19, 18),
    (LMS(), 10, 0),
    (IPNDM(), 10, 0),
    (PNDM(), 10 + 3 * 3, 0),
    (PNDM(start="improved_euler"), 10 + 1, 0),
    (DEIS(), 10, 0),
    (DPMPP2M(), 10, 0),
    (DPMPP2MSDE(), 10, 9),
    (DPMPP3MSDE(), 10, 9),
    (UniPC(), 10, 0),
]


@pytest.mark.parametrize(("sampler", "predictions", "draws"), COSTS, ids=lambda v: repr(v))
def test_predictions_and_draws(sampler, predictions, draws):
    schedule, count, noise = QuarterCircle(), [0, 0], normal()
    best = clusters().denoise(schedule)

    def denoise(x, t):
        assert t.shape == () and t.dtype == torch.float64 and 0 < float(t) <= 1
        count[0] += 1
        return best(x, t)

    def counted():
        count[1] += 1
        return noise()

    for _ in sampler.run(denoise, schedule, noise(), even(10, 0.95), counted):
        pass
    assert count == [predictions, draws]


def test_ddpm_takes_the_mean_at_the_last_step_wherever_that_ends():
    schedule, draws, noise = QuarterCircle(), [], normal()
    best = clusters().denoise(schedule)
    for sampler, expected in ((DDPM(), 4), (EulerAncestral(), 5)):
        draws.clear()
        for _ in sampler.run(
            best, schedule, noise(), even(5, 0.9, 0.1), lambda: draws.append(0) or noise()
        ):
            pass
        assert len(draws) == expected


def test_edm_churns_only_between_its_bounds_and_up_to_the_noisiest_time():
    """At r of 0.35 to 1.5 three of these times; at t = 1 of a flow the growth of r has nowhere to go."""
    schedule, seen = Straight(), []

    def denoise(x, t):
        seen.append(float(t))
        return point(0.4).denoise(schedule)(x, t)

    times = even(10)
    for _ in EDM(churn=4.0, low=0.35, high=1.6).run(denoise, schedule, normal()(), times, normal()):
        pass
    r = schedule.alpha_sigma(times)[1] / schedule.alpha_sigma(times)[0]
    grown = [float(schedule.time_at((1.4 * ratio).log())) for ratio in r if 0.35 <= ratio <= 1.6]
    off_grid = [t for t in seen if min(abs(t - float(time)) for time in times) > 1e-9]
    assert off_grid == pytest.approx(grown)
    assert len(grown) == 4


@pytest.mark.parametrize("sampler", [DPMPPSDE(), DPMPP2SAncestral(), DPMPP2MSDE()], ids=repr)
def test_noise_leaves_the_deviation_of_gaussian_data_of_second_order(sampler):
    """With unit vectors for start and draws the result holds their coefficients: no sampling error.

    If the halves of a step of dpmpp_sde had independent noise it would err like 1 / n.
    """
    schedule, errors = QuarterCircle(), []
    for steps in (40, 80):
        size = 2 * steps + 1
        draws = iter(torch.eye(size, dtype=torch.float64).reshape(size, 1, 1, 1, size))
        times = schedule.time_at(torch.linspace(1.8, -1.8, steps + 1, dtype=torch.float64))
        alpha, sigma = schedule.alpha_sigma(times)
        true = torch.hypot(0.5 * alpha, sigma)
        best = gaussian(0.0, 0.5, (1, 1, size)).denoise(schedule)
        start = true[0] * next(draws)
        *_, last = sampler.run(best, schedule, start, times, lambda: next(draws))  # noqa: B023
        errors.append(abs(float(last.x.norm() / true[-1]) - 1))
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.3


def test_the_page_of_orders_lists_every_sampler_with_what_it_claims():
    rows = [
        line.split(" | ")
        for line in (ROOT / "docs/sampler-orders.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    listed = {
        (name.strip("| "), order)
        for names, order, *_ in rows
        for name in names.split(" (")[0].split(", ")
    }
    assert {name for name, _ in listed} - {"sampler", "---"} == {
        c.name for c in sfumato_components()
    }
    claims = {
        (s.name, str(s.order).lower() if s.order is None else str(s.order))
        for s in [*DETERMINISTIC, *STOCHASTIC]
    }
    assert claims <= listed


# Editing: no sampler for inversion is needed, as a deterministic one walks rising times too


@pytest.mark.parametrize(
    ("sampler", "order"), [(Euler(), 1), (Heun(), 2), (DPMPP2M(), 2)], ids=repr
)
def test_a_deterministic_sampler_inverts_along_rising_times(sampler, order):
    schedule, errors = QuarterCircle(), []
    truth = normal()()
    x = flow_to(clusters(), schedule, truth, 0.9, 0.1)
    for steps in (40, 80):
        *_, last = sampler.run(
            clusters().denoise(schedule), schedule, x, even(steps, 0.1, 0.9), normal()
        )
        errors.append(float((last.x - truth).abs().max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.3
    assert errors[1] < 0.1
