"""The autoencoder that turns squares of pixels into channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from sfumato import AutoencoderModule

if TYPE_CHECKING:
    from torch import Tensor


class PatchesModule(AutoencoderModule):
    """Each square of pixels is one latent."""

    def __init__(self, side: int) -> None:
        """`side` is that of a square, in pixels."""
        super().__init__()
        self.side = side

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3 side^2, H / side, W / side)."""
        return functional.pixel_unshuffle(images, self.side)

    def decode(self, latents: Tensor) -> Tensor:
        """The reverse."""
        return functional.pixel_shuffle(latents, self.side)
