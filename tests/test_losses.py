"""Distances: their formulas, per example and in float32; weights in test_loss_weights."""

import math

import pytest
import torch

from sfumato import Noised
from sfumato_losses import L1, MSE, Huber
from sfumato_schedules import LinearBeta, RectifiedFlow

T = torch.tensor([0.01, 0.3, 0.7, 1.0], dtype=torch.float64)


def pair(dtype):
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(2, 4, 3, 8, 8, generator=generator).to(dtype)
    return output, target


def state(schedule):
    alpha, sigma = schedule.alpha_sigma(T)
    x = torch.zeros(4, 3, 8, 8)
    return Noised(x_t=x, x0=x, eps=x, t=T, alpha=alpha, sigma=sigma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("loss", "peer"),
    [(MSE(), torch.nn.functional.mse_loss), (L1(), torch.nn.functional.l1_loss)],
    ids=["mse", "l1"],
)
def test_mean_over_all_but_the_batch_in_float32(loss, peer, dtype, parity):
    output, target = pair(dtype)
    values = loss(output, target, None)
    assert values.shape == (4,)
    assert values.dtype == torch.float32
    for k in range(4):
        expected = peer(output[k].double(), target[k].double())
        if dtype == torch.float32:
            parity(loss, "torch", "values, float32", values[k], expected)
        assert float(values[k]) == pytest.approx(float(expected), rel=1e-6)


def test_gradient_reaches_the_output_of_its_own_example():
    output, target = pair(torch.float32)
    output.requires_grad_()
    MSE()(output, target, None)[1].backward()
    expected = torch.zeros_like(output)
    expected[1] = 2 * (output[1] - target[1]) / output[1].numel()
    torch.testing.assert_close(output.grad, expected)


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
@pytest.mark.parametrize("delta", [0.1, 0.7, 2.0])
def test_huber_is_that_of_kohya(schedule, delta, parity):
    """`conditional_loss` and `get_huber_threshold_if_needed`, in float64."""
    output, target = pair(torch.float64)
    table = LinearBeta()
    timesteps = T * 1000
    alpha_bar = table.alpha_sigma(T)[0] ** 2
    match schedule:
        case "constant":
            c = torch.full_like(T, delta)
        case "exponential":
            c = torch.exp(math.log(delta) / 1000 * timesteps)
        case "snr":
            sigmas = ((1.0 - alpha_bar) / alpha_bar) ** 0.5
            c = (1 - delta) / (1 + sigmas) ** 2 + delta
    c = c.view(-1, 1, 1, 1)
    expected = 2 * c * (torch.sqrt((output - target) ** 2 + c**2) - c)
    found = Huber(delta=delta, schedule=schedule)(output, target, state(table))
    parity(Huber(), "kohya's formula", "values, float32", found, expected.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(found.double(), expected.mean(dim=(1, 2, 3)), rtol=1e-6, atol=0)


def test_huber_is_the_square_below_and_the_absolute_value_above():
    noised = state(LinearBeta())
    huber = Huber(delta=0.1, schedule="constant")
    zero = torch.zeros(4, 3, 8, 8)
    small, large = zero + 1e-4, zero + 1e3
    torch.testing.assert_close(huber(small, zero, noised), MSE()(small, zero, noised))
    torch.testing.assert_close(
        huber(large, zero, noised), 0.2 * L1()(large, zero, noised), rtol=2e-4, atol=0
    )


def test_huber_turns_at_delta_where_there_is_no_signal():
    assert float(Huber(delta=0.3).turning(state(RectifiedFlow()))[-1]) == pytest.approx(0.3)
