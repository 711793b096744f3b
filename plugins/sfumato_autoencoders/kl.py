"""The convolutional autoencoder of latent diffusion, a VAE held to few numbers by a KL term.

Rombach et al., 2021, arXiv:2112.10752, Appendix G. Each half is a row of levels, between which the
picture halves or doubles, with attention at the coarsest. Names of parameters are those of
diffusers' `AutoencoderKL`.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato import AutoencoderModule
from sfumato_autoencoders.slices import in_slices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sfumato_autoencoders import KL

EPSILON = 1e-6
"""Of every GroupNorm."""


class KLModule(AutoencoderModule):
    """The mean of the posterior, shifted and scaled, and the decoder."""

    def __init__(self, options: KL) -> None:
        """`options` are the settings."""
        super().__init__()
        self.options = options
        self.encoder, self.decoder = encoder(options), decoder(options)
        mixing = nn.Conv2d if options.quant_conv else nn.Identity
        self.quant_conv = mixing(2 * options.channels, 2 * options.channels, 1)
        self.post_quant_conv = mixing(options.channels, options.channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """The mode of the posterior: (B, 3, H, W) to (B, channels, H / factor, W / factor)."""
        network = nn.Sequential(self.encoder, self.quant_conv)
        mean, _ = in_slices(network, images, self.options.slice_pixels).chunk(2, dim=1)
        return (mean - self.options.shift) * self.options.scaling

    def decode(self, latents: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, 3, H factor, W factor)."""
        network = nn.Sequential(self.post_quant_conv, self.decoder)
        unscaled = latents / self.options.scaling + self.options.shift
        return in_slices(network, unscaled, self.options.slice_pixels // self.options.factor**2)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, options: KL, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(options.groups, inputs, EPSILON)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(options.groups, outputs, EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention among the pixels, with one head, as a residual."""

    def __init__(self, options: KL, width: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(options.groups, width, EPSILON)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Like x (B, C, H, W)."""
        # With an axis for the one head: without it the full matrix of scores would be held.
        pixels = self.group_norm(x).flatten(2).transpose(1, 2).unsqueeze(1)
        attended = F.scaled_dot_product_attention(
            self.to_q(pixels), self.to_k(pixels), self.to_v(pixels)
        )
        return x + self.to_out(attended).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])  # type: ignore[no-any-return]


class MidBlock(nn.Module):
    """Two residual blocks around attention, at the coarsest level."""

    def __init__(self, options: KL) -> None:
        super().__init__()
        width = options.widths[-1]
        self.resnets = nn.ModuleList(ResidualBlock(options, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(options, width)])

    def forward(self, x: Tensor) -> Tensor:
        """Like x (B, C, H, W)."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))  # type: ignore[no-any-return]


class HalvingConv(nn.Conv2d):
    """A strided convolution, padded below and on the right alone."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 2 H, 2 W) to (B, C, H, W)."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class DoublingConv(nn.Conv2d):
    """A 3x3 convolution of the picture at twice its size, each pixel repeated 2x2.

    Repeating is a transposed convolution with a box, so both together are one with the 4x4 kernel
    that is the box convolved with the 3x3: 16 products for 4 pixels, not 36.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        kernel = F.pad(self.weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
        kernel = kernel[:, :, 1:] + kernel[:, :, :-1]
        kernel = kernel[..., 1:] + kernel[..., :-1]
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


def named(**modules: nn.Module) -> nn.Sequential:
    """Modules in a row, with these names in the state dict."""
    return nn.Sequential(OrderedDict(modules))


def encoder(options: KL) -> nn.Module:
    """Pictures (B, 3, H, W) to mean and log variance, (B, 2 channels, H / factor, W / factor)."""
    widths = options.widths
    return named(
        conv_in=nn.Conv2d(3, widths[0], 3, padding=1),
        down_blocks=levels(options, widths, options.layers, downsamplers=HalvingConv),
        mid_block=MidBlock(options),
        conv_norm_out=nn.GroupNorm(options.groups, widths[-1], EPSILON),
        conv_act=nn.SiLU(),
        conv_out=nn.Conv2d(widths[-1], 2 * options.channels, 3, padding=1),
    )


def decoder(options: KL) -> nn.Module:
    """Latents (B, channels, H / factor, W / factor) to pictures (B, 3, H, W)."""
    widths = options.widths[::-1]
    return named(
        conv_in=nn.Conv2d(options.channels, widths[0], 3, padding=1),
        mid_block=MidBlock(options),
        up_blocks=levels(options, widths, options.layers + 1, upsamplers=DoublingConv),
        conv_norm_out=nn.GroupNorm(options.groups, widths[-1], EPSILON),
        conv_act=nn.SiLU(),
        conv_out=nn.Conv2d(widths[-1], 3, 3, padding=1),
    )


def levels(
    options: KL, widths: Sequence[int], layers: int, **resize: Callable[[int], nn.Module]
) -> nn.Sequential:
    """`layers` residual blocks for each width, and between two levels what changes the size."""
    rows: list[nn.Module] = []
    for inputs, width in pairwise((widths[0], *widths)):
        channels = pairwise((inputs, *(width,) * layers))
        blocks = nn.Sequential(*(ResidualBlock(options, *each) for each in channels))
        between = {
            name: nn.Sequential(named(conv=conv(width)))
            for name, conv in resize.items()
            if len(rows) < len(widths) - 1
        }
        rows.append(named(resnets=blocks, **between))
    return nn.Sequential(*rows)
