"""How far a prediction is from its target: elementwise distances, averaged over C, H and W."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import attrs
from attrs.validators import gt

from sfumato import Loss, Noised, like, option

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(kw_only=True)
class Distance(Loss):
    """A loss that is the mean of a function of output - target."""

    @abstractmethod
    def of(self, error: Tensor, noised: Noised) -> Tensor:
        """Like error, (B, C, H, W) float32."""

    def __call__(self, output: Tensor, target: Tensor, noised: Noised) -> Tensor:
        """(B,) float32, computed in float32 whatever the network's dtype."""
        return self.of(output.float() - target.float(), noised).flatten(1).mean(1)


@attrs.frozen(kw_only=True)
class MSE(Distance):
    """The square, L_simple of the paper.

    References:
        Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239
    """

    name = "mse"

    def of(self, error: Tensor, noised: Noised) -> Tensor:
        """The square."""
        return error.square()


@attrs.frozen(kw_only=True)
class L1(Distance):
    """The absolute value.

    References:
        Palette: Image-to-Image Diffusion Models, 2021, arXiv:2111.05826: fewer
        hallucinations than with the square, and less diversity
    """

    name = "l1"

    def of(self, error: Tensor, noised: Noised) -> Tensor:
        """The absolute value."""
        return error.abs()


@attrs.frozen(kw_only=True)
class Huber(Distance):
    """2 c (sqrt(e^2 + c^2) - c): e^2 for errors below c, 2 c |e| above.

    Outliers in the data pull less. `schedule` says how c depends on the time, from 1 at t = 0
    towards `delta`:

        constant      c = delta
        exponential   c = delta^t
        snr           c = delta + (1 - delta) / (1 + sigma / alpha)^2

    References:
        Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss,
        2024, arXiv:2403.16728
    """

    name = "huber"
    delta: float = option(0.1, "where squares turn into absolute values", gt(0))
    schedule: Literal["constant", "exponential", "snr"] = option("snr", "of the turning point")

    def of(self, error: Tensor, noised: Noised) -> Tensor:
        """The pseudo-Huber distance, without the difference of two nearly equal roots."""
        c = like(self.turning(noised), error)
        return 2 * c * error.square() / ((error.square() + c.square()).sqrt() + c)

    def turning(self, noised: Noised) -> Tensor:
        """c, (B,) float64."""
        match self.schedule:
            case "constant":
                return noised.t * 0 + self.delta
            case "exponential":
                return self.delta**noised.t
            case "snr":
                # alpha / (alpha + sigma) is 1 / (1 + sigma / alpha), also where alpha is 0.
                share = noised.alpha / (noised.alpha + noised.sigma)
                return self.delta + (1 - self.delta) * share.square()
