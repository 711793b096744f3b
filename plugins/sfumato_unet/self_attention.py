"""Attention among the pixels of a level and to nothing else, under diffusers' names.

Where it is what attends, text reaches the network through the embedding of the time alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato_unet.transformer import (
    Attention,
    AttentionBlock,
    GroupNorm,
    to_pixels,
    to_tokens,
    zeroed,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato_unet import Level, UNet
    from sfumato_unet.transformer import Context, Text


class SelfAttention(Attention, AttentionBlock):
    """x + to_out(attention(norm(x))), the last projection zero at first.

    References:
        Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239, Appendix B: with one head
        Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv:2105.05233, Section 3: several
    """

    def __init__(self, unet: UNet, level: Level) -> None:
        super().__init__(level.channels, level.heads, level.channels, bias=True)
        self.group_norm = GroupNorm(unet.groups, level.channels)
        zeroed(self.to_out)

    @property
    def self_attention(self) -> Attention:
        """Itself."""
        return self

    def normalized(self, x: Tensor) -> Tensor:
        """Like x (B, N, width), which is a picture of one row to the norm."""
        return self.group_norm(x.mT[:, :, None])[:, :, 0].mT  # type: ignore[no-any-return]

    def after_pixels(self, x: Tensor, text: Text) -> Tensor:
        """Nothing: x (B, N, width)."""
        return x

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Like x (B, C, H, W)."""
        size = (x.shape[2], x.shape[3])
        return to_pixels(self.attended(to_tokens(x), context, size), size)
