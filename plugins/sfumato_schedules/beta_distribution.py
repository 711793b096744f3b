"""Quantiles of the beta distribution, on any device.

The distribution function at x <= 1/2 is a power series with positive terms (DLMF 8.17.8),

    I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) sum_n x^n prod_{k < n} (a + b + k) / (a + 1 + k)

and above it I_x(a, b) = 1 - I_{1-x}(b, a). In y = log(x / (1 - x)) the density x^a (1 - x)^b is
log-concave, so log I is concave and rising: Newton's method on it, begun left of the root, stays
left of it and converges, whatever a and b. e^(a y) / (a B) is above I and gives the beginning.
"""

from __future__ import annotations

import functools
import math
from itertools import accumulate

import torch
from torch import Tensor

TERMS = 200
"""Enough for float64 at x = 1/2 and a, b <= 20."""
ITERATIONS = 10


@functools.cache
def series(a: float, b: float, device: torch.device) -> Tensor:
    """The coefficients of x, x^2 ..., (TERMS,) float64."""
    ratios = ((a + b + k) / (a + 1 + k) for k in range(TERMS))
    coefficients = tuple(accumulate(ratios, lambda x, y: x * y))
    return torch.tensor(coefficients, dtype=torch.float64, device=device)


def log_complete(a: float, b: float) -> float:
    """Log B(a, b)."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def below_half(x: Tensor, a: float, b: float) -> Tensor:
    """I_x(a, b) for x <= 1/2, (B,) float64."""
    powers = x[:, None].expand(-1, TERMS).cumprod(1)
    front = (a * x.log() + b * (-x).log1p() - log_complete(a, b)).exp() / a
    return front * (1 + powers @ series(a, b, x.device))


def distribution(x: Tensor, a: float, b: float) -> Tensor:
    """I_x(a, b) of x (B,) float64 in (0, 1)."""
    low = below_half(x.clamp(max=0.5), a, b)
    return low.where(x <= 0.5, 1 - below_half((1 - x).clamp(max=0.5), b, a))


def quantile(p: Tensor, a: float, b: float) -> Tensor:
    """The x at which I_x(a, b) is p, (B,) float64 in [0, 1]; a and b lie in [0.1, 20]."""
    low, high = _root(p.clamp(max=0.5), a, b), _root((1 - p).clamp(max=0.5), b, a)
    return low.where(p <= 0.5, 1 - high)


def _root(p: Tensor, a: float, b: float) -> Tensor:
    wanted = p.clamp(min=2.0**-60).log()
    y = (wanted + math.log(a) + log_complete(a, b)) / a
    for _ in range(ITERATIONS):
        x = y.sigmoid()
        reached = distribution(x, a, b)
        density = (a * x.log() + b * (-x).log1p() - log_complete(a, b)).exp()
        y = y + (wanted - reached.log()) * reached / density
    return y.sigmoid() * (p > 0)
