"""Tables on the continuous clock: exact at the entries, as promised between them, and invertible."""

import math

import attrs
import pytest
import torch

from sfumato import ConfigError, NoiseSchedule, TableSchedule


@attrs.frozen(kw_only=True)
class Table(TableSchedule):
    """The betas that it is given."""

    name = "table"
    given: tuple[float, ...]

    def betas(self):
        return self.given


BETAS = tuple(1e-4 + 0.0199 * i / 99 for i in range(100))
TABLE = Table(given=BETAS)


class Shifted(NoiseSchedule):
    """sigma / alpha = 3 t / (1 - t) with alpha + sigma = 1: continuous, up to infinity."""

    name = "shifted"

    def alpha_sigma(self, t):
        sigma = 3 * t / (1 + 2 * t)
        return 1 - sigma, sigma


def log_ratio(schedule, t):
    alpha, sigma = schedule.alpha_sigma(t)
    return sigma.log() - alpha.log()


def every(points):
    return torch.arange(1, points + 1, dtype=torch.float64) / points


@pytest.mark.parametrize("points", [1, 2, 3, 100])
def test_exact_at_the_entries(points):
    table = Table(given=BETAS[:points])
    alpha, sigma = table.alpha_sigma(every(points))
    assert table.points == points
    assert table.alpha_bars == pytest.approx(
        [math.prod(1 - b for b in BETAS[: i + 1]) for i in range(points)], rel=1e-14
    )
    expected = torch.tensor(table.alpha_bars, dtype=torch.float64)
    torch.testing.assert_close(alpha**2, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma**2, 1 - expected, rtol=1e-12, atol=0)


def test_log_of_the_ratio_is_linear_between_entries():
    share = torch.linspace(0, 1, 11, dtype=torch.float64)
    for low in (1, 2, 50, 99):
        ends = log_ratio(TABLE, torch.tensor([low, low + 1], dtype=torch.float64) / 100)
        inside = log_ratio(TABLE, (low + share) / 100)
        torch.testing.assert_close(inside, torch.lerp(*ends, share), rtol=0, atol=1e-12)


def test_ratio_is_linear_below_the_first_entry():
    share = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, sigma = TABLE.alpha_sigma(share / 100)
    first = math.sqrt(BETAS[0] / (1 - BETAS[0]))
    torch.testing.assert_close(sigma / alpha, first * share, rtol=1e-12, atol=0)
    assert (alpha[0], sigma[0]) == (1, 0)


def test_snr():
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    expected = [math.inf] + [TABLE.alpha_bars[i] / (1 - TABLE.alpha_bars[i]) for i in (29, 99)]
    assert TABLE.snr(t).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shape_and_dtype_are_those_of_t(shape, dtype):
    t = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for values in TABLE.alpha_sigma(t):
        assert values.shape == shape
        assert values.dtype == dtype


def test_float32_is_near_float64():
    t = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for narrow, wide in zip(TABLE.alpha_sigma(t.float()), TABLE.alpha_sigma(t), strict=True):
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=0)


def test_gradients_are_finite_and_right_from_the_first_entry_on():
    # The curve has corners at the entries, so the derivative is compared between them.
    t = torch.cat([every(100), (every(100) + 0.005)[:-1]]).requires_grad_()
    alpha, sigma = TABLE.alpha_sigma(t)
    (gradient,) = torch.autograd.grad((alpha + 2 * sigma).sum(), t)
    assert gradient.isfinite().all()

    def value(t):
        alpha, sigma = TABLE.alpha_sigma(t)
        return alpha + 2 * sigma

    between = t.detach()[100:]
    difference = (value(between + 1e-6) - value(between - 1e-6)) / 2e-6
    torch.testing.assert_close(gradient[100:], difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "schedule", [TABLE, Table(given=BETAS[:1]), Shifted()], ids=["table", "one", "continuous"]
)
def test_time_at_inverts(schedule):
    t = torch.cat([torch.linspace(0.0005, 0.9995, 400, dtype=torch.float64), every(100)[:-1]])
    torch.testing.assert_close(schedule.time_at(log_ratio(schedule, t)), t, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", [TABLE, Shifted()], ids=["table", "continuous"])
def test_time_at_keeps_shapes_and_returns_float64(schedule):
    for shape in [(), (3,), (2, 3)]:
        time = schedule.time_at(torch.zeros(shape, dtype=torch.float32))
        assert time.shape == shape
        assert time.dtype == torch.float64


@pytest.mark.parametrize("schedule", [TABLE, Shifted()], ids=["table", "continuous"])
def test_time_at_stays_within_the_range(schedule):
    wanted = torch.tensor([-math.inf, -1e4, 1e4, math.inf])
    torch.testing.assert_close(
        schedule.time_at(wanted), torch.tensor([0, 0, 1, 1]).double(), rtol=0, atol=1e-15
    )


def test_timestep_is_the_classical_index():
    t = torch.tensor([0.0, 0.005, 0.01, 0.02, 0.505, 1.0], dtype=torch.float64)
    torch.testing.assert_close(TABLE.timestep(t).tolist(), [0.0, 0.0, 0.0, 1.0, 49.5, 99.0])
    assert Shifted().timestep(t[-1]) == 999


def test_start_scale():
    assert TABLE.start_scale(1.0) == pytest.approx(1.0, rel=1e-15)
    assert Shifted().start_scale(0.25) == pytest.approx(math.hypot(0.5, 0.5), rel=1e-15)


def test_tables_are_values():
    assert Table(given=BETAS) == TABLE
    assert hash(Table(given=BETAS)) == hash(TABLE)
    assert Table(given=BETAS[:5]) != TABLE


TERMINAL = Table(given=(*BETAS[:-1], 1.0))


def test_a_table_may_end_without_signal():
    assert TERMINAL.alpha_bars[:-1] == TABLE.alpha_bars[:-1]
    assert [float(value) for value in TERMINAL.alpha_sigma(torch.ones(()))] == [0, 1]
    before = torch.linspace(0, 0.99, 400, dtype=torch.float64)
    for found, expected in zip(
        TERMINAL.alpha_sigma(before), TABLE.alpha_sigma(before), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("table", [TERMINAL, Table(given=(0.3, 1.0))], ids=["100", "2"])
def test_inverse_ratio_is_linear_up_to_an_entry_without_signal(table):
    share = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, sigma = table.alpha_sigma((table.points - 1 + share) / table.points)
    last = table.alpha_bars[-2]
    expected = math.sqrt(last / (1 - last)) * (1 - share)
    torch.testing.assert_close(alpha / sigma, expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("table", [TERMINAL, Table(given=(0.3, 1.0))], ids=["100", "2"])
def test_time_at_inverts_a_table_without_signal_at_the_end(table):
    t = torch.cat(
        [torch.linspace(0.001, 0.9999, 997, dtype=torch.float64), every(table.points)[:-1]]
    )
    torch.testing.assert_close(table.time_at(log_ratio(table, t)), t, rtol=1e-10, atol=1e-12)
    ends = table.time_at(torch.tensor([-math.inf, 200.0, math.inf]))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0, 1.0]).double(), rtol=0, atol=1e-15)


def test_derivatives_are_finite_before_an_end_without_signal():
    t = torch.linspace(0.01, 0.999, 500, dtype=torch.float64, requires_grad=True)
    for value in TERMINAL.alpha_sigma(t):
        (gradient,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("given", [(1.0,), (0.5, 1.0, 0.5)], ids=["the only", "in the middle"])
def test_no_signal_anywhere_else_is_refused(given):
    with pytest.raises(ConfigError, match="no signal is left at step"):
        Table(given=given)
