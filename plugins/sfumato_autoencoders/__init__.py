"""Autoencoders: from pixels to the space where diffusion works, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import attrs
from attrs.validators import deep_iterable, ge, le, min_len

from sfumato import Autoencoder, Component, ConfigError, hookimpl, option

if TYPE_CHECKING:
    from pathlib import Path

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


@attrs.frozen(kw_only=True)
class KL(Autoencoder):
    """The autoencoder of latent diffusion, whose latents a KL term holds near a unit Gaussian.

    z = scaling (mean(x) - shift): encoding takes the mode of the posterior and draws nothing. The
    defaults are those of Stable Diffusion 1 and 2; SDXL differs in `scaling: 0.13025`. Parameters
    have the names and shapes of diffusers' `AutoencoderKL`, whose weights load as they are.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models, 2021, arXiv:2112.10752
    """

    name = "kl"
    adjustable = frozenset({"slice_pixels"})

    channels: int = option(4, "C of the latents", ge(1))
    widths: tuple[int, ...] = option(
        (128, 256, 512, 512), "channels of each level", min_len(1), deep_iterable(ge(1))
    )
    layers: int = option(2, "residual blocks of each level of the encoder; +1: the decoder", ge(1))
    groups: int = option(32, "groups of GroupNorm", ge(1))
    quant_conv: bool = option(True, "1x1 convolutions next to the latents (SD 3 has none)")
    scaling: float = option(0.18215, "factor on latents, which gives them unit variance", ge(1e-3))
    shift: float = option(0.0, "mean of the latents before scaling", ge(-100), le(100))
    slice_pixels: int = option(
        2**20, "pixels at once: a larger batch is taken in slices, of one picture or more", ge(1)
    )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Two levels of 8 channels."""
        return cls(widths=(8, 8), layers=1, groups=4)

    @property
    def factor(self) -> int:
        """2 for each level below the first, which halves the picture."""
        return int(2 ** (len(self.widths) - 1))

    def build(self) -> AutoencoderModule:
        """The networks.

        Raises:
            ConfigError: groups do not divide the channels of a level.
        """
        from sfumato_autoencoders.kl import KLModule

        for width in self.widths:
            if width % self.groups:
                raise ConfigError(
                    f"{self.groups} groups do not divide {width} channels",
                    place="kl.groups",
                    remedy="change kl.groups or kl.widths",
                )
        return KLModule(self)


@attrs.frozen(kw_only=True)
class Tiny(Autoencoder):
    """TAESD: a few plain convolutions, distilled from the `kl` whose scaled latents it shares.

    For previews, or instead of `kl` where quick is more than sharp. The defaults are those of TAESD
    and TAESDXL. Parameters have the names and shapes of diffusers' `AutoencoderTiny`, whose weights
    load as they are.

    References:
        Tiny AutoEncoder for Stable Diffusion, 2023, madebyollin/taesd on GitHub
    """

    name = "tiny"
    adjustable = frozenset({"slice_pixels"})

    channels: int = option(4, "C of the latents", ge(1))
    width: int = option(64, "channels of every level", ge(4))
    blocks: tuple[int, ...] = option(
        (1, 3, 3, 3),
        "residual blocks of each level, from the finest",
        min_len(1),
        deep_iterable(ge(0)),
    )
    slice_pixels: int = option(
        2**22, "pixels at once: a larger batch is taken in slices, of one picture or more", ge(1)
    )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Two levels of 8 channels."""
        return cls(width=8, blocks=(1, 1))

    @property
    def factor(self) -> int:
        """2 for each level below the first, which halves the picture."""
        return int(2 ** (len(self.blocks) - 1))

    def build(self) -> AutoencoderModule:
        """The networks."""
        from sfumato_autoencoders.tiny import TinyModule

        return TinyModule(self)


@hookimpl
def sfumato_components() -> list[type[Component]]:
    """The autoencoders."""
    return [Pixels, Patches, KL, Tiny]
