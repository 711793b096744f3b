"""TAESD, the tiny autoencoder of Stable Diffusion (Bohan, 2023): convolutions and ReLU alone.

It was distilled on pictures in [0, 1] and on latents that are squashed between -3 and 3. Names of
parameters are those of diffusers' `AutoencoderTiny`, which count the layers of each half.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfumato import AutoencoderModule
from sfumato_autoencoders.slices import in_slices

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sfumato_autoencoders import Tiny

LIMIT = 3
"""Of the latents that are decoded."""


class TinyModule(AutoencoderModule):
    """Two rows of layers in which nothing normalises and nothing attends."""

    def __init__(self, options: Tiny) -> None:
        """`options` are the settings."""
        super().__init__()
        self.options = options
        self.encoder = _counted(_encoder(options))
        self.decoder = _counted(_decoder(options))

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, channels, H / factor, W / factor)."""
        return in_slices(self.encoder, (images + 1) / 2, self.options.slice_pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, 3, H factor, W factor)."""
        squashed = LIMIT * torch.tanh(latents / LIMIT)
        positions = self.options.slice_pixels // self.options.factor**2
        return 2 * in_slices(self.decoder, squashed, positions) - 1


class Block(nn.Module):
    """relu(x + three convolutions of x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Like x (B, width, H, W)."""
        return (x + self.conv(x)).relu()  # type: ignore[no-any-return]


def _encoder(options: Tiny) -> Iterable[nn.Module]:
    """From pictures to latents: before each level but the first, a strided convolution."""
    width = options.width
    yield nn.Conv2d(3, width, 3, padding=1)
    for level, blocks in enumerate(options.blocks):
        if level > 0:
            yield nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        for _ in range(blocks):
            yield Block(width)
    yield nn.Conv2d(width, options.channels, 3, padding=1)


def _decoder(options: Tiny) -> Iterable[nn.Module]:
    """From latents to pictures: before each level but the first, pixels are repeated."""
    width = options.width
    yield nn.Conv2d(options.channels, width, 3, padding=1)
    yield nn.ReLU()
    for level, blocks in enumerate(reversed(options.blocks)):
        if level > 0:
            yield nn.Upsample(scale_factor=2.0)
            yield nn.Conv2d(width, width, 3, padding=1, bias=False)
        for _ in range(blocks):
            yield Block(width)
    yield nn.Conv2d(width, 3, 3, padding=1)


def _counted(layers: Iterable[nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers=nn.Sequential(*layers)))
