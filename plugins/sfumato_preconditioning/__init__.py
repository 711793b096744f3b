"""Denoisers around a denoiser, which bring what its network sees and says to unit scale.

It is a folder of its own: neither an architecture, since it goes around any, nor a loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import attrs
from attrs.validators import ge, le

from sfumato import Component, Denoiser, Space, hookimpl, option, required

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import DenoiserModule, PredictionType

SFUMATO_API = 1


@attrs.frozen(kw_only=True)
class EDM(Denoiser):
    """D(x; s) = c_skip x + c_out F(c_in x; c_noise): a network inside, at unit scale.

    With s = sigma / alpha, x = x_t / alpha and d = sigma_data,

        c_skip = d^2 / (s^2 + d^2)           c_out   = s d / sqrt(s^2 + d^2)
        c_in   = 1 / sqrt(s^2 + d^2)         c_noise = log(s) / 4

    D is x0; F, the network inside, sees and says tensors of unit variance, whatever its own
    `prediction` claims. On any schedule: with alpha = 1 it is the paper's; where variance is
    preserved and d = 1, F is -v.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364,
        Equation 7 and Table 1
    """

    name = "edm"
    retrainable = frozenset({"sigma_data"})

    denoiser: Denoiser = required("the network inside, F")
    sigma_data: float = option(0.5, "d, the standard deviation of the data", ge(0.05), le(20))

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Around a small unet."""
        from sfumato import create

        unet = create("denoiser", "unet", channels=[8, 8], heads=[2], groups=4, pooled=True)
        return cls(denoiser=unet)

    @property
    def prediction(self) -> PredictionType:
        """x0."""
        return "x0"

    @property
    def multiple(self) -> int:
        """That of the network inside."""
        return self.denoiser.multiple

    @property
    def variants(self) -> frozenset[str]:
        """Those of the network inside."""
        return self.denoiser.variants

    def build(self, space: Space) -> DenoiserModule:
        """The network, told log(s) / 4 in the place of the timestep, in its frame."""
        from sfumato_preconditioning.edm import EDMModule

        return EDMModule(self, space)


@hookimpl
def sfumato_components() -> list[type[Component]]:
    """The components of this plugin."""
    return [EDM]
