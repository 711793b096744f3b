"""Samplers: the reverse process, from noise to x0.

`ddpm` and `ddim` are one step with different shares of kept and fresh noise (see `renoising`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import attrs
from attrs.validators import ge, le

from sfumato import Component, hookimpl, option
from sfumato_samplers.renoising import Interval, RenoisingSampler

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1


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
        kept = interval.sigma_s * math.sqrt(1 - interval.renewed)
        if interval.last:
            return kept, 0.0
        scale = interval.sigma_s if self.variance == "small" else interval.sigma_t
        return kept, scale * math.sqrt(interval.renewed)


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
        share = self.eta**2 * interval.renewed
        return interval.sigma_s * math.sqrt(1 - share), interval.sigma_s * math.sqrt(share)


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [DDPM, DDIM]
