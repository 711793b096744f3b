"""The autoencoder that leaves pictures as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import AutoencoderModule

if TYPE_CHECKING:
    from torch import Tensor


class PixelsModule(AutoencoderModule):
    """Latents are pixels."""

    def encode(self, images: Tensor) -> Tensor:
        """The same images."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """The same latents."""
        return latents
