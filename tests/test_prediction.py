"""The algebra of epsilon, x0, v and flow, on variance-preserving pairs and others."""

import itertools
import math
from typing import get_args

import pytest
import torch

from sfumato import ConfigError, PredictionType, like, noised, solve, target, x0_weight

KINDS = get_args(PredictionType)
# (alpha, sigma): variance preserving, flow, variance exploding, neither; nearly clean and nearly noise.
ALPHA = torch.tensor([math.cos(0.9), 0.3, 1.0, 0.6, 0.9999, 0.01], dtype=torch.float64)
SIGMA = torch.tensor([math.sin(0.9), 0.7, 5.0, 1.7, 0.01, 0.9999], dtype=torch.float64)
GENERATOR = torch.Generator().manual_seed(0)
X0, EPS = torch.randn(2, len(ALPHA), 3, 4, 4, generator=GENERATOR, dtype=torch.float64)
X_T = noised(X0, EPS, ALPHA, SIGMA)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_kinds_are_the_four_of_the_field():
    assert KINDS == ("epsilon", "x0", "v", "flow")


def test_noised_is_the_closed_form():
    for k, (alpha, sigma) in enumerate(zip(ALPHA, SIGMA, strict=True)):
        close(X_T[k], alpha * X0[k] + sigma * EPS[k], 0)
        close(noised(X0[k], EPS[k], alpha, sigma), X_T[k], 0)


def test_like_shapes_numbers_for_a_batch():
    x = torch.zeros(2, 3, 4, 4)
    shaped = like(torch.tensor([1.0, 2.0], dtype=torch.float64), x)
    assert shaped.shape == (2, 1, 1, 1)
    assert shaped.dtype == torch.float32
    single = torch.tensor(0.1, dtype=torch.float64)
    assert like(single, x) is single
    assert (single * x).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("epsilon", lambda a, b, x0, eps: eps),
        ("x0", lambda a, b, x0, eps: x0),
        ("v", lambda a, b, x0, eps: a * eps - b * x0),
        ("flow", lambda a, b, x0, eps: eps - x0),
    ],
)
def test_target_is_the_formula(kind, formula):
    for k, (a, b) in enumerate(zip(ALPHA, SIGMA, strict=True)):
        close(target(kind, X0, EPS, ALPHA, SIGMA)[k], formula(a, b, X0[k], EPS[k]), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_solve_inverts_target(kind):
    solved = solve(kind, target(kind, X0, EPS, ALPHA, SIGMA), X_T, ALPHA, SIGMA)
    close(solved.x0, X0)
    close(solved.eps, EPS)


@pytest.mark.parametrize("kinds", list(itertools.permutations(KINDS)), ids="-".join)
def test_a_cycle_through_every_kind_comes_home(kinds):
    """Of any output, not only of the truth: what is solved from it explains x_t."""
    start = output = torch.randn(
        X_T.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    for here, there in itertools.pairwise((*kinds, kinds[0])):
        solved = solve(here, output, X_T, ALPHA, SIGMA)
        close(noised(solved.x0, solved.eps, ALPHA, SIGMA), X_T)
        output = target(there, solved.x0, solved.eps, ALPHA, SIGMA)
    close(output, start, 1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_single_coefficients_are_those_of_a_batch(kind):
    output = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    x_t = X_T[:2].float()
    for a, b in zip(ALPHA, SIGMA, strict=True):
        one = solve(kind, output, x_t, a, b)
        many = solve(kind, output, x_t, a.expand(2), b.expand(2))
        assert one.x0.dtype == many.x0.dtype == torch.float32
        torch.testing.assert_close(one.x0, many.x0, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(one.eps, many.eps, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_x0_weight_is_the_measured_ratio_of_squared_errors(kind):
    """An output that errs by d errs in x0 by some e; d^2 = weight e^2 at every time."""
    error = torch.randn(X_T.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    solved = solve(kind, target(kind, X0, EPS, ALPHA, SIGMA) + error, X_T, ALPHA, SIGMA)
    ratio = error.square().sum((1, 2, 3)) / (solved.x0 - X0).square().sum((1, 2, 3))
    torch.testing.assert_close(x0_weight(kind, ALPHA, SIGMA), ratio, rtol=1e-7, atol=0)


def test_x0_weight_on_a_variance_preserving_pair():
    snr = (ALPHA[0] / SIGMA[0]) ** 2
    close(x0_weight("epsilon", ALPHA[0], SIGMA[0]), snr)
    close(x0_weight("v", ALPHA[0], SIGMA[0]), snr + 1)
    close(x0_weight("x0", ALPHA, SIGMA), torch.ones_like(ALPHA))


def test_epsilon_prediction_says_nothing_about_x0_where_alpha_is_zero():
    zero, one = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    with pytest.raises(ConfigError) as error:
        solve("epsilon", EPS, X_T, zero, one)
    assert str(error.value) == (
        "epsilon prediction cannot be solved for x0 where alpha is 0; "
        "use v or x0 prediction, or a time_grid that does not visit t = 1"
    )


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_other_kinds_can_start_at_pure_noise(kind):
    zero, one = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    solved = solve(kind, target(kind, X0, EPS, zero, one), EPS, zero, one)
    close(solved.x0, X0)
    close(solved.eps, EPS)
