"""Samplers that estimate x0 and noise it again, less than before: one prediction a step, no memory.

One step goes from time t to an earlier time s:

    x_s = alpha_s x0 + kept eps + fresh z

x0 and eps are the estimates at x_t, z is new. The posterior of the forward process is of this form
for any alpha and sigma (Kingma et al., "Variational Diffusion Models", 2021, arXiv:2107.00630,
Appendix A). With e = 1 - SNR_t / SNR_s, the share of the noise that it renews,

    q(x_s given x_t, x0):  kept^2 = sigma_s^2 (1 - e),  fresh^2 = sigma_s^2 e
    q(x_t given x_s):      variance sigma_t^2 e

On a variance-preserving schedule the last two variances are Ho et al.'s beta_tilde and beta. As the
step is written with eps instead of x_t, guidance may renoise with another eps than that of x0.

`euler` and `euler_ancestral` are the names that the same step got in coordinates x / alpha, where
it reads z + (r_s - r_t) dz/dr; with them go the settings that are published under those names.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import attrs
from attrs.validators import ge, le, optional

from sfumato import Denoise, Guided, SampleStep, option
from sfumato_samplers.stepping import SingleStepSampler

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato_samplers.intervals import Interval, Noise


@attrs.frozen(kw_only=True)
class RenoisingSampler(SingleStepSampler):
    """x_s = alpha_s x0 + kept eps + fresh z; a subclass says how much of each noise."""

    clip_x0: float | None = option(
        None,
        "bound on the values of each x0 estimate, for pixels 1; none by default",
        optional(ge(1.0)),
    )

    @abstractmethod
    def levels(self, interval: Interval) -> tuple[float, float]:
        """The standard deviations (kept, fresh)."""

    def step(self, denoise: Denoise, x: Tensor, interval: Interval, noise: Noise) -> SampleStep:
        """One prediction; `noise` is called only where fresh noise is added."""
        start, end = interval.start, interval.end
        guided = self._clipped(denoise(x, interval.t), start.alpha / start.sigma)
        kept, fresh = self.levels(interval)
        x = end.alpha * guided.x0 + kept * guided.eps
        if fresh > 0:
            x = x + fresh * noise()
        return interval.done(x, guided.x0)

    def _clipped(self, guided: Guided, alpha_over_sigma: float) -> Guided:
        if self.clip_x0 is None:
            return guided
        x0 = guided.x0.clamp(-self.clip_x0, self.clip_x0)
        # What x0 loses eps takes over, so that alpha x0 + sigma eps is still x_t.
        return Guided(x0, guided.eps + alpha_over_sigma * (guided.x0 - x0))


@attrs.frozen(kw_only=True)
class DDPM(RenoisingSampler):
    """A draw from q(x_s given x_t, x0) at the estimated x0, on any grid; its mean at the last step.

    In the paper's terms the variance is beta_tilde (`small`, right for data at one point) or beta
    (`large`, right for unit Gaussian data), beta being that of the whole step from s to t.

    References:
        Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239
        Variational Diffusion Models, 2021, arXiv:2107.00630
    """

    name = "ddpm"
    variance: Literal["small", "large"] = option("small", "of the fresh noise: beta_tilde or beta")

    def levels(self, interval: Interval) -> tuple[float, float]:
        """Algorithm 2 of the paper: no fresh noise at the last step."""
        down, fresh = interval.start.ancestral(interval.end, 1.0)
        if interval.index == interval.steps - 1:
            return down.sigma, 0.0
        if self.variance == "small":
            return down.sigma, fresh
        renewed = 1 - interval.start.remaining(interval.end) ** 2
        return down.sigma, interval.start.sigma * math.sqrt(renewed)


@attrs.frozen(kw_only=True)
class DDIM(RenoisingSampler):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - v^2) eps + v z, with v^2 = eta^2 var(x_s given x_t, x0).

    References:
        Denoising Diffusion Implicit Models, 2020, arXiv:2010.02502
    """

    name = "ddim"
    eta: float = option(0.0, "0 is deterministic, 1 is ddpm with small variance", ge(0.0), le(1.0))

    @property
    def order(self) -> int | None:
        """1, of an Euler step in sigma / alpha; none once noise is drawn."""
        return 1 if self.eta == 0 else None

    def levels(self, interval: Interval) -> tuple[float, float]:
        """Equations 12 and 16 of the paper."""
        down, fresh = interval.start.ancestral(interval.end, self.eta)
        return down.sigma, fresh


@attrs.frozen(kw_only=True)
class Euler(RenoisingSampler):
    """z_s = z_t + (r_s - r_t) eps: ddim at eta 0, under the name that it has for EDM's schedule.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364
    """

    name = "euler"
    order = 1

    def levels(self, interval: Interval) -> tuple[float, float]:
        """Line 5 of Algorithm 1 of the paper: all noise is kept."""
        return interval.end.sigma, 0.0


@attrs.frozen(kw_only=True)
class EulerAncestral(DDIM):
    """An Euler step down to less noise than s has, then fresh noise up to s: ddim at eta 1.

    References:
        k-diffusion, `sample_euler_ancestral`, 2022
        Denoising Diffusion Implicit Models, 2020, arXiv:2010.02502, Equation 16
    """

    name = "euler_ancestral"
    eta: float = option(1.0, "0 is euler, 1 draws from the posterior", ge(0.0), le(1.0))
