"""The algebra of epsilon, x0, v and flow: every way to say what a denoiser says.

With a = alpha and b = sigma, `x_t = a x0 + b eps` and a network may predict

    epsilon  eps
    x0       x0
    v        a eps - b x0            (Salimans & Ho, 2022, arXiv:2202.00512)
    flow     eps - x0                (Esser et al., 2024, arXiv:2403.03206)

Each of them and x_t give x0 and eps by solving two linear equations, for any (a, b), variance
preserving or not. Everything else in the project speaks x0 and eps only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sfumato.errors import ConfigError
from sfumato.records import Prediction

if TYPE_CHECKING:
    from torch import Tensor

PredictionType = Literal["epsilon", "x0", "v", "flow"]


def like(value: Tensor, x: Tensor) -> Tensor:
    """Numbers (B,) shaped (B, 1, 1, 1) and typed as x (B, C, H, W), to multiply it; a 0-dimensional
    one stays as it is.
    """
    if value.dim() == 0:
        return value
    return value.to(x).reshape(-1, *(1,) * (x.dim() - 1))


def noised(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The forward process in closed form, x_t = alpha x0 + sigma eps (Ho et al., 2020,
    arXiv:2006.11239, Equation 4).

    Args:
        x0: (B, C, H, W).
        eps: like x0, unit Gaussian.
        alpha: (B,) or ().
        sigma: as alpha.
    """
    return like(alpha, x0) * x0 + like(sigma, x0) * eps


def target(kind: PredictionType, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network of this kind should say, like x0."""
    match kind:
        case "epsilon":
            return eps
        case "x0":
            return x0
        case "v":
            return like(alpha, x0) * eps - like(sigma, x0) * x0
        case "flow":
            return eps - x0


def solve(
    kind: PredictionType, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor
) -> Prediction:
    """x0 and eps from what a network of this kind said about x_t.

    Args:
        kind: what the network predicts.
        output: (B, C, H, W).
        x_t: like output.
        alpha: (B,), or () on any device.
        sigma: as alpha. `x0` prediction needs sigma > 0, `epsilon` prediction alpha > 0.

    Raises:
        ConfigError: epsilon prediction at a single alpha = 0, where x_t says nothing about x0.
    """
    a, b = like(alpha, output), like(sigma, output)
    match kind:
        case "epsilon":
            if alpha.dim() == 0 and alpha.device.type == "cpu" and float(alpha) == 0.0:
                raise ConfigError(
                    "epsilon prediction cannot be solved for x0 where alpha is 0",
                    remedy="use v or x0 prediction, or a time_grid that does not visit t = 1",
                )
            return Prediction((x_t - b * output) / a, output)
        case "x0":
            return Prediction(output, (x_t - a * output) / b)
        case "v":
            norm = a * a + b * b
            return Prediction((a * x_t - b * output) / norm, (b * x_t + a * output) / norm)
        case "flow":
            return Prediction((x_t - b * output) / (a + b), (x_t + a * output) / (a + b))


def x0_weight(kind: PredictionType, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The weight on the squared x0 error that equals the plain squared error of this kind of
    output, shaped as alpha.
    """
    match kind:
        case "epsilon":
            return (alpha / sigma) ** 2
        case "x0":
            return alpha * 0 + 1
        case "v":
            return ((alpha**2 + sigma**2) / sigma) ** 2
        case "flow":
            return ((alpha + sigma) / sigma) ** 2
