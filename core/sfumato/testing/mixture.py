"""A closed-form oracle: data whose best possible denoiser is known at every noise level.

Let x0 given the text c be a mixture of Gaussians, with weights p(k | c), means mu_k and one
deviation d_k each. After the forward process, x_t = alpha x0 + sigma eps is a mixture too, and

    v_k        = alpha^2 d_k^2 + sigma^2
    p(k | x_t) ~ p(k | c) N(x_t; alpha mu_k, v_k)
    E[x0]      = sum_k p(k | x_t) (mu_k + alpha d_k^2 / v_k (x_t - alpha mu_k))
    E[eps]     = (x_t - alpha E[x0]) / sigma

from which the best v and flow predictions follow by `prediction.target`, being linear in these. So
samplers, guidance and losses can be compared with the truth instead of with another program.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from sfumato.interfaces import NoiseSchedule
from sfumato.prediction import like
from sfumato.records import Guided, Prediction
from sfumato.tables import TableSchedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sfumato.interfaces import Denoise


@attrs.frozen(kw_only=True)
class QuarterCircle(NoiseSchedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): smooth, and pure noise at t = 1."""

    name = "quarter_circle"

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, shaped and typed as t."""
        angle = t * (math.pi / 2)
        return angle.cos(), angle.sin()

    def time_at(self, log_sigma_over_alpha: Tensor) -> Tensor:
        """The inverse: an arctangent."""
        return log_sigma_over_alpha.double().exp().atan() * (2 / math.pi)


@attrs.frozen(kw_only=True)
class Straight(NoiseSchedule):
    """alpha = 1 - t, sigma = t: rectified flow, which does not preserve variance."""

    name = "straight"

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, shaped and typed as t."""
        return 1 - t, t


@attrs.frozen(kw_only=True)
class ShortTable(TableSchedule):
    """A table of 40 betas that rise evenly to 0.4."""

    name = "short_table"

    def betas(self) -> Sequence[float]:
        """beta_1 ... beta_40."""
        return [0.01 * step for step in range(1, 41)]


@attrs.frozen(eq=False, kw_only=True)
class Mixture:
    """The distribution of x0 for each of several texts.

    Attributes:
        means: (K, C, H, W) float64.
        deviations: (K,) float64.
        weights: (texts, K) float64, rows sum to 1.
    """

    means: Tensor
    deviations: Tensor
    weights: Tensor

    def predict(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, text: Tensor) -> Prediction:
        """The best estimates of x0 and eps, (B, C, H, W) each.

        Args:
            x_t: (B, C, H, W).
            alpha: () or (B,).
            sigma: as alpha, above 0.
            text: (B,) int64, a row of `weights` each.
        """
        size = math.prod(self.means.shape[1:])
        a, s = (like(value.expand(len(x_t)), x_t)[..., None] for value in (alpha, sigma))
        means = self.means.movedim(0, -1).to(x_t)
        variances = self.deviations.square().to(x_t)
        noisy = a**2 * variances + s**2  # v_k
        apart = x_t[..., None] - a * means
        distance = (apart**2 / noisy).sum(dim=(1, 2, 3)) + size * noisy[:, 0, 0, 0].log()
        share = (self.weights[text].to(x_t).log() - distance / 2).softmax(dim=-1)
        each = means + a * variances / noisy * apart
        x0 = (share[:, None, None, None] * each).sum(dim=-1)
        return Prediction(x0, (x_t - a[..., 0] * x0) / s[..., 0])

    def denoise(self, schedule: NoiseSchedule, text: int = 0) -> Denoise:
        """`denoise(x, t)` of a sampler, for one text."""

        def best(x: Tensor, t: Tensor) -> Guided:
            alpha, sigma = schedule.alpha_sigma(t)
            row = torch.full((len(x),), text)
            found = self.predict(x, alpha.to(x), sigma.to(x), row)
            return Guided(found.x0, found.eps)

        return best


def gaussian(mean: float, deviation: float, shape: Sequence[int] = (1, 2, 2)) -> Mixture:
    """Independent elements, N(mean, deviation^2) each."""
    means = torch.full((1, *shape), mean, dtype=torch.float64)
    deviations = torch.tensor([deviation], dtype=torch.float64)
    return Mixture(means=means, deviations=deviations, weights=torch.ones(1, 1))


def point(value: float) -> Mixture:
    """All data at one point, every element of it `value`."""
    return gaussian(value, 0)


def clusters() -> Mixture:
    """Three clusters of pictures (1, 2, 2) well inside [-1, 1]; text 1 prefers the first."""
    means = torch.tensor(
        [[0.3, 0.1, -0.2, 0.2], [-0.3, 0.2, 0.1, -0.1], [0.0, -0.3, 0.3, 0.1]], dtype=torch.float64
    )
    return Mixture(
        means=means.reshape(3, 1, 2, 2),
        deviations=torch.tensor([0.08, 0.12, 0.1], dtype=torch.float64),
        weights=torch.tensor([[0.3, 0.4, 0.3], [0.9, 0.05, 0.05]], dtype=torch.float64),
    )


def flow_to(
    mixture: Mixture, schedule: NoiseSchedule, x: Tensor, start: float, end: float, steps: int = 400
) -> Tensor:
    """Where the probability flow takes x from time `start` to `end` > 0, like x (float64).

    With z = x / alpha and r = sigma / alpha the flow is dz / dr = eps (Song et al., 2020,
    arXiv:2010.02502, Equation 14); here by the classical Runge-Kutta method in log r.
    """
    denoise = mixture.denoise(schedule)
    ends = torch.tensor([start, end], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(ends)
    (first, last), (alpha_start, alpha_end) = (sigma / alpha).log().tolist(), alpha
    width = (last - first) / steps

    def slope(log_r: float, z: Tensor) -> Tensor:
        t = schedule.time_at(torch.tensor(log_r, dtype=torch.float64))
        return denoise(z * schedule.alpha_sigma(t)[0], t).eps * math.exp(log_r)

    z = x / float(alpha_start)
    for i in range(steps):
        log_r = first + i * width
        k1 = slope(log_r, z)
        k2 = slope(log_r + width / 2, z + width / 2 * k1)
        k3 = slope(log_r + width / 2, z + width / 2 * k2)
        k4 = slope(log_r + width, z + width * k3)
        z = z + width / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z * float(alpha_end)
