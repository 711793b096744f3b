"""Times of training: densities by their quantile functions, and how evenly batches cover them."""

import math

import pytest
import torch

from sfumato import create
from sfumato_schedules import (
    VE,
    BetaTimes,
    LinearBeta,
    LogitNormal,
    LogNormal,
    LowDiscrepancy,
    Mode,
    RectifiedFlow,
    Stratified,
    Uniform,
)
from sfumato_schedules.beta_distribution import distribution, quantile

FLOW = RectifiedFlow()
U = torch.arange(1, 2**14, dtype=torch.float64) / 2**14


def draw(sampler, u, schedule=FLOW, step=0):
    return sampler.draw(u, torch.arange(len(u)), len(u), step, schedule)


def random(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1 - torch.rand(rows, generator=generator, dtype=torch.float64)


def test_uniform_draws_every_entry_of_a_table_alike():
    schedule = LinearBeta(steps=10)
    u = torch.arange(1, 2**12 * 10 + 1, dtype=torch.float64) / (2**12 * 10)
    times, counts = draw(Uniform(), u, schedule).unique(return_counts=True)
    torch.testing.assert_close(times, torch.arange(1, 11, dtype=torch.float64) / 10)
    assert counts.tolist() == [2**12] * 10


def test_uniform_ends_of_the_range(parity):
    u = torch.tensor([2.0**-32, 1e-3, 1e-3 + 2**-32, 1.0], dtype=torch.float64)
    assert draw(Uniform(), u, LinearBeta()).tolist() == [0.001, 0.001, 0.002, 1.0]
    parity(Uniform(), "u itself", "quantiles, float64", draw(Uniform(), u), u)
    assert draw(Uniform(), u).equal(u)


def shares(times, edges):
    """The share of times up to each edge."""
    return [float((times <= edge).double().mean()) for edge in edges]


EDGES = (0.05, 0.2, 0.5, 0.7, 0.95)


def normal(z):
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def test_logit_normal_has_the_distribution_of_equation_19():
    found = shares(draw(LogitNormal(mean=-0.3, deviation=1.4), U), EDGES)
    expected = [normal((math.log(t / (1 - t)) + 0.3) / 1.4) for t in EDGES]
    assert found == pytest.approx(expected, abs=1e-4)


def test_normal_draws_are_the_quantiles_of_scipy(parity):
    special = pytest.importorskip("scipy.special")
    z = torch.from_numpy(special.ndtri(U[:-1].numpy())).sort().values
    times = draw(LogitNormal(mean=-0.3, deviation=1.4), U[:-1]).sort().values
    theirs = (-0.3 + 1.4 * z).sigmoid()
    assert parity(LogitNormal(), "scipy", "quantiles, float64", times, theirs) < 1e-9
    alpha, sigma = VE().alpha_sigma(draw(LogNormal(), U[:-1], VE()))
    ratio, inside = (sigma / alpha).sort().values, slice(100, -100)  # beyond, VE has no levels
    theirs = (-1.2 + 1.2 * z).exp()
    error = parity(LogNormal(), "scipy", "sigma / alpha, float64", ratio[inside], theirs[inside])
    assert error < 1e-9


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 2 / (math.pi - 2)])
def test_mode_is_equation_20(scale, parity):
    v = 1 - U
    expected = 1 - v - scale * ((math.pi * v / 2).cos() ** 2 - 1 + v)
    found = draw(Mode(scale=scale), U)
    parity(Mode(), "the paper's formula", "quantiles, float64", found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (found.diff() > 0).all()


@pytest.mark.parametrize("schedule", [VE(), FLOW, LinearBeta()], ids=lambda s: s.name)
def test_lognormal_is_normal_in_log_sigma_on_any_schedule(schedule):
    times = draw(LogNormal(), U, schedule)
    alpha, sigma = schedule.alpha_sigma(times)
    found = shares((sigma / alpha).log(), (-3.0, -1.2, 0.0, 1.2))
    expected = [normal((z + 1.2) / 1.2) for z in (-3.0, -1.2, 0.0, 1.2)]
    # On a table a time goes up to the next of a thousand noise levels.
    assert found == pytest.approx(expected, abs=1e-2 if schedule.points else 1e-4)


@pytest.mark.parametrize("a", [0.1, 0.6, 1.0, 1.5, 7.0, 20.0])
@pytest.mark.parametrize("b", [0.1, 0.6, 1.0, 1.5, 7.0, 20.0])
def test_beta_distribution_and_quantiles_of_scipy(a, b, parity):
    special = pytest.importorskip("scipy.special")
    p = torch.cat([torch.tensor([2.0**-32, 1 - 2.0**-32, 0.0, 1.0]).double(), U[::61]])
    theirs = torch.from_numpy(special.betaincinv(a, b, p.numpy()))
    parity(BetaTimes(), "scipy", "quantiles, float64", quantile(p, a, b), theirs)
    torch.testing.assert_close(quantile(p, a, b), theirs, rtol=1e-8, atol=0)
    x = U[::61]
    theirs = torch.from_numpy(special.betainc(a, b, x.numpy()))
    torch.testing.assert_close(distribution(x, a, b), theirs, rtol=1e-10, atol=1e-14)


def test_beta_is_that_of_pi0():
    found = shares(draw(BetaTimes(), U), EDGES)
    assert found == pytest.approx([t**1.5 for t in EDGES], abs=1e-4)  # Beta(1.5, 1)


@pytest.mark.parametrize(
    "density", [LogitNormal(), Mode(), LogNormal(), BetaTimes(a=0.5, b=0.5)], ids=lambda d: d.name
)
def test_a_table_gets_the_mass_below_each_entry(density):
    table = LinearBeta(steps=8)
    times = density.quantile(U, table)
    expected = shares(times, [i / 8 for i in range(1, 9)])
    assert shares(draw(density, U, table), [i / 8 for i in range(1, 9)]) == expected


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_stratified_draws_one_time_from_each_interval(rows, parity):
    for seed in range(5):
        times = draw(Stratified(), random(rows, seed))
        u = random(rows, seed)
        expected = (torch.arange(rows) + u) / rows
        parity(Stratified(), "the formula", "times, float64", times.sort().values, expected)
        assert (times * rows).ceil().tolist() == list(range(1, rows + 1))


def bits_mirrored(n):
    return int(f"{n:032b}"[::-1], 2) / 2**32


@pytest.mark.parametrize("step", [0, 1, 13, 2**20 + 3])
def test_low_discrepancy_is_the_van_der_corput_sequence(step):
    found = draw(LowDiscrepancy(), random(48), step=step)
    expected = [bits_mirrored(step * 48 + row + 1) for row in range(48)]
    assert found.tolist() == pytest.approx(expected, abs=2**-32)


def test_low_discrepancy_is_sobols_sequence(parity):
    points = torch.quasirandom.SobolEngine(1).draw(64, dtype=torch.float64)[:, 0]
    found = draw(LowDiscrepancy(), torch.full((64,), 2.0**-32, dtype=torch.float64))
    # Sobol's points in the order of Gray's code: the same points in every block of 2^k, and 0, with
    # which they begin and we do not.
    for block in (4, 16, 64):
        ours, theirs = found[: block - 1].sort().values, points[:block].sort().values[1:]
        parity(LowDiscrepancy(), "torch's SobolEngine", "times, float64", ours, theirs)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [8, 32])
def test_low_discrepancy_covers_every_step_and_ever_finer_over_steps(rows):
    steps = [draw(LowDiscrepancy(), random(rows, s), step=s) for s in range(16)]
    for times in steps:
        assert sorted((times * rows).ceil().tolist()) == list(range(1, rows + 1))
    together = torch.cat(steps) * rows * 16
    assert sorted(together.ceil().tolist()) == list(range(1, rows * 16 + 1))


def test_an_even_spread_composes_with_a_density():
    sampler = create("time_sampler", "stratified", density={"use": "logit_normal", "mean": 0.5})
    assert sampler == Stratified(density=LogitNormal(mean=0.5))
    u = random(16)
    expected = draw(LogitNormal(mean=0.5), (torch.arange(16) + u) / 16)
    assert draw(sampler, u).equal(expected)


def test_an_even_spread_narrows_the_error_of_a_batch():
    """Of the mean of t^2 over 64 rows, against its value 1/3: what the spread is for."""

    def error(sampler):
        batches = [draw(sampler, random(64, seed), step=seed) for seed in range(50)]
        return max(abs(float(t.square().mean()) - 1 / 3) for t in batches)

    assert error(Stratified()) < error(Uniform()) / 10
    assert error(LowDiscrepancy()) < error(Uniform()) / 5
