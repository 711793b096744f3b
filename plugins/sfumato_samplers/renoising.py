"""Samplers that estimate x0 and noise it again, less than before.

One step goes from time t to an earlier time s:

    x_s = alpha_s x0 + kept eps + fresh z

x0 and eps are the estimates at x_t, z is new. The posterior of the forward process is of this form
for any alpha and sigma (Kingma et al., "Variational Diffusion Models", 2021, arXiv:2107.00630,
Appendix A). With r = 1 - SNR_t / SNR_s, the share of the noise that it renews,

    q(x_s given x_t, x0):  kept^2 = sigma_s^2 (1 - r),  fresh^2 = sigma_s^2 r
    q(x_t given x_s):      variance sigma_t^2 r

On a variance-preserving schedule the last two variances are Ho et al.'s beta_tilde and beta. As the
step is written with eps instead of x_t, guidance may renoise with another eps than that of x0. All
coefficients are host floats (float64), so a step waits for no device.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge, optional

from sfumato import Denoise, Guided, NoiseSchedule, Sampler, SampleStep, option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


@attrs.frozen(kw_only=True)
class Interval:
    """A step from t down to s: sigma at both, the share of noise that the posterior renews."""

    sigma_t: float
    sigma_s: float
    renewed: float
    last: bool


@attrs.frozen(kw_only=True)
class RenoisingSampler(Sampler):
    """x_s = alpha_s x0 + kept eps + fresh z; a subclass says how much of each noise."""

    clip_x0: float | None = option(
        None,
        "bound on the values of each x0 estimate, for pixels 1; none by default",
        optional(ge(1.0)),
    )

    @abstractmethod
    def levels(self, interval: Interval) -> tuple[float, float]:
        """The standard deviations (kept, fresh)."""

    def run(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        x: Tensor,
        times: Tensor,
        noise: Callable[[], Tensor],
    ) -> Iterator[SampleStep]:
        """Walks x down the times; `noise` is called only at steps that add fresh noise."""
        alphas, sigmas = (values.tolist() for values in schedule.alpha_sigma(times))
        levels = zip(alphas, sigmas, strict=True)
        for index, ((alpha_t, sigma_t), (alpha_s, sigma_s)) in enumerate(pairwise(levels)):
            interval = Interval(
                sigma_t=sigma_t,
                sigma_s=sigma_s,
                renewed=1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2,
                last=index == len(times) - 2,
            )
            guided = self._clipped(denoise(x, times[index]), alpha_t / sigma_t)
            kept, fresh = self.levels(interval)
            x = alpha_s * guided.x0 + kept * guided.eps
            if fresh > 0:
                x = x + fresh * noise()
            yield SampleStep(index=index, t=float(times[index + 1]), x=x, x0=guided.x0)

    def _clipped(self, guided: Guided, alpha_over_sigma: float) -> Guided:
        if self.clip_x0 is None:
            return guided
        x0 = guided.x0.clamp(-self.clip_x0, self.clip_x0)
        # What x0 loses eps takes over, so that alpha x0 + sigma eps is still x_t.
        return Guided(x0, guided.eps + alpha_over_sigma * (guided.x0 - x0))
