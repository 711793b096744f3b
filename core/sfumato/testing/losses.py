"""Laws of losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from sfumato.prediction import noised
from sfumato.records import Noised
from sfumato.testing.laws import expect, expect_close, expect_equal, expect_finite, law
from sfumato.testing.mixture import QuarterCircle

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.interfaces import Loss, NoiseSchedule

SHAPE = (5, 3, 4, 4)


def _normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def noised_examples(schedule: NoiseSchedule | None = None) -> Noised:
    """Five examples at five times."""
    t = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64)
    alpha, sigma = (schedule or QuarterCircle()).alpha_sigma(t)
    x0, eps = _normal(0), _normal(1)
    x_t = noised(x0, eps, alpha, sigma)
    return Noised(x_t=x_t, x0=x0, eps=eps, t=t, alpha=alpha, sigma=sigma)


def rows_of(state: Noised, rows: slice) -> Noised:
    """Some of the examples."""
    return Noised(
        x_t=state.x_t[rows], x0=state.x0[rows], eps=state.eps[rows],
        t=state.t[rows], alpha=state.alpha[rows], sigma=state.sigma[rows],
    )  # fmt: skip


@law("loss")
def one_number_for_each_example(loss: Loss) -> None:
    """Losses are (B,) float32, finite and not below 0, also for bfloat16 predictions."""
    for dtype in (torch.float32, torch.bfloat16):
        values = loss(_normal(2).to(dtype), _normal(3).to(dtype), noised_examples())
        expect_equal((tuple(values.shape), values.dtype), ((5,), torch.float32), "losses")
        expect_finite(values, "losses")
        expect(bool((values >= 0).all()), "losses of at least 0", f"{values.tolist()}")


@law("loss")
def per_example(loss: Loss) -> None:
    """The loss of an example does not depend on those beside it."""
    output, target, state = _normal(2), _normal(3), noised_examples()
    together = loss(output, target, state)
    for i in range(len(output)):
        row = slice(i, i + 1)
        alone = loss(output[row], target[row], rows_of(state, row))
        expect_close(alone, together[row], f"the loss of example {i} alone", 1e-6)


@law("loss")
def nothing_for_the_truth(loss: Loss) -> None:
    """It is 0 where the output is the target, and more elsewhere."""
    target, state = _normal(3), noised_examples()
    expect_close(loss(target, target, state), torch.zeros(5), "the loss of the target", 1e-6)
    values = loss(target + 0.5, target, state)
    expect(bool((values > 0).all()), "a loss of what is off by 0.5", f"{values.tolist()}")


@law("loss")
def mean_over_the_picture(loss: Loss) -> None:
    """A picture repeated to four times its size has the loss of the picture: it is a mean."""
    output, target, state = _normal(2), _normal(3), noised_examples()

    def tiled(value: Tensor) -> Tensor:
        return value.repeat(1, 1, 2, 2)

    large = attrs.evolve(state, x_t=tiled(state.x_t), x0=tiled(state.x0), eps=tiled(state.eps))
    whole = loss(tiled(output), tiled(target), large)
    expect_close(whole, loss(output, target, state), "the loss of the repeated picture", 1e-5)


@law("loss")
def every_element_counts(loss: Loss) -> None:
    """The derivative reaches every element of the output."""
    output, target, state = _normal(2).requires_grad_(), _normal(3), noised_examples()
    (gradient,) = torch.autograd.grad(loss(output, target, state).sum(), output)
    share = float((gradient != 0).float().mean())
    expect(share > 0.99, "a derivative at every element", f"none at {1 - share:.0%} of them")


@law("loss")
def gradient_is_its_derivative(loss: Loss) -> None:
    """Autograd's derivative along a direction is that of finite differences."""
    output, target, state = _normal(2).requires_grad_(), _normal(3), noised_examples()
    direction, width = _normal(4), 1e-2
    (gradient,) = torch.autograd.grad(loss(output, target, state).sum(), output)
    along = (gradient * direction).double().flatten(1).sum(1)
    with torch.no_grad():
        ahead = loss(output + width * direction, target, state)
        behind = loss(output - width * direction, target, state)
    expect_close(along, (ahead - behind) / (2 * width), "the derivative", 2e-2)
