"""Autoencoders: from pixels to the space where diffusion works, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge

from sfumato import Autoencoder, Component, hookimpl, option

if TYPE_CHECKING:
    from sfumato import AutoencoderModule

SFUMATO_API = 1


@attrs.frozen(kw_only=True)
class Pixels(Autoencoder):
    """The identity: diffusion works on the pixels themselves."""

    name = "pixels"

    @property
    def channels(self) -> int:
        """Red, green and blue."""
        return 3

    @property
    def factor(self) -> int:
        """1: a latent is a pixel."""
        return 1

    def build(self) -> AutoencoderModule:
        """A module without weights."""
        from sfumato_autoencoders.pixels import PixelsModule

        return PixelsModule()


@attrs.frozen(kw_only=True)
class Patches(Autoencoder):
    """Squares of pixels as channels: exact, without weights; no layer runs at full size.

    References:
        Improving Diffusion Model Efficiency Through Patching, 2022, arXiv:2207.04316
    """

    name = "patches"

    side: int = option(2, "pixels of a square's side", ge(1))

    @property
    def channels(self) -> int:
        """The colors of all pixels of a square."""
        return 3 * self.side**2

    @property
    def factor(self) -> int:
        """`side`."""
        return self.side

    def build(self) -> AutoencoderModule:
        """A module without weights."""
        from sfumato_autoencoders.patches import PatchesModule

        return PatchesModule(self.side)


@hookimpl
def sfumato_components() -> list[type[Component]]:
    """The autoencoders."""
    return [Pixels, Patches]
