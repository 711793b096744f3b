"""The squared error, per example and in float32."""

import pytest
import torch

from sfumato_losses import MSE


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
