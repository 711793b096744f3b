"""The squared error, per example and in float32."""

import pytest
import torch

from sfumato import Noised, x0_weight
from sfumato_losses import MSE, P2
from sfumato_schedules import LinearBeta


def pair(dtype):
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(2, 4, 3, 8, 8, generator=generator).to(dtype)
    return output, target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_mean_over_all_but_the_batch_in_float32(dtype):
    output, target = pair(dtype)
    values = MSE()(output, target, None)
    assert values.shape == (4,)
    assert values.dtype == torch.float32
    for k in range(4):
        expected = torch.nn.functional.mse_loss(output[k].double(), target[k].double())
        assert float(values[k]) == pytest.approx(float(expected), rel=1e-6)


def test_gradient_reaches_the_output_of_its_own_example():
    output, target = pair(torch.float32)
    output.requires_grad_()
    MSE()(output, target, None)[1].backward()
    expected = torch.zeros_like(output)
    expected[1] = 2 * (output[1] - target[1]) / output[1].numel()
    torch.testing.assert_close(output.grad, expected)


def at(index):
    """A batch of one at an index of the linear table."""
    t = torch.tensor([(index + 1) / 1000], dtype=torch.float64)
    alpha, sigma = LinearBeta().alpha_sigma(t)
    x = torch.zeros(1, 1, 2, 2)
    return Noised(x_t=x, x0=x, eps=x, t=t, alpha=alpha, sigma=sigma)


def test_p2_is_its_formula():
    assert P2()(at(100), "epsilon").item() == pytest.approx(0.104858, rel=1e-5)
    state = at(500)
    snr = (state.alpha / state.sigma) ** 2
    expected = (0.5 + snr) ** -2.0
    torch.testing.assert_close(P2(k=0.5, gamma=2.0)(state, "epsilon"), expected)


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
@pytest.mark.parametrize("index", [0, 100, 500, 999])
def test_a_weight_means_the_same_for_every_prediction_type(kind, index):
    state = at(index)
    on_x0 = [
        P2()(state, one) * x0_weight(one, state.alpha, state.sigma) for one in ("epsilon", kind)
    ]
    torch.testing.assert_close(on_x0[0], on_x0[1], rtol=1e-12, atol=0)
