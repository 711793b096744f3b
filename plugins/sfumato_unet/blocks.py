"""Residual blocks (Ho et al., 2020, arXiv:2006.11239, Appendix B), and levels made of them.

A level is a row of residual blocks, each followed by what attends where the level does. On the
way down every output is kept; on the way up every residual block takes the youngest of them too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato_unet.folded import Folded
from sfumato_unet.self_attention import SelfAttention
from sfumato_unet.transformer import GroupNorm, Transformer, named, zeroed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sfumato_unet import Level, UNet
    from sfumato_unet.transformer import Context


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))), the last convolution zero at first.

    Attributes:
        index: its place among all residual blocks of the network, and so in a precomputed time.
    """

    index: int

    def __init__(self, unet: UNet, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(unet.groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(unet.time_width, outputs)
        self.norm2 = GroupNorm(unet.groups, outputs)
        self.dropout = nn.Dropout(unet.dropout)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.conv_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        h = self.conv1(self.norm1(x, silu=True))
        time = context.time
        shift = self.time_emb_proj(time) if isinstance(time, Tensor) else time[self.index]
        h = self.norm2(h, shift, silu=True)
        h = self.conv2(self.dropout(h))
        return self.conv_shortcut(x) + h  # type: ignore[no-any-return]


class DoublingConv(nn.Conv2d):
    """A 3x3 convolution of the picture at twice its size, each pixel repeated 2x2.

    Repeating is a transposed convolution with a box, so both together are a transposed convolution
    with the 4x4 kernel that is the box convolved with the 3x3: 16 products for 4 pixels, not 36.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.kernel = Folded(box_convolved)

    def fold(self) -> None:
        """Makes the 4x4 kernel."""
        self.kernel.refresh(self.weight)

    def forward(self, x: Tensor, folded: bool = False) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        kernel = self.kernel.value if folded else None
        kernel = box_convolved(self.weight) if kernel is None else kernel
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class Upsampler(nn.Module):
    """A doubling convolution, under the name that it has in the state dict."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = DoublingConv(channels)

    def forward(self, x: Tensor, folded: bool) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        return self.conv(x, folded)  # type: ignore[no-any-return]


def box_convolved(weight: Tensor) -> Tensor:
    """The 4x4 kernel of a transposed convolution, of a 3x3 convolution (outputs, inputs, 3, 3)."""
    kernel = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    kernel = kernel[:, :, 1:] + kernel[:, :, :-1]
    return kernel[..., 1:] + kernel[..., :-1]


def attending(unet: UNet, level: Level, text_width: int) -> nn.Module:
    """What attends after a residual block of a level."""
    if unet.attention_block == "self_attention":
        return SelfAttention(unet, level)
    return Transformer(unet, level, text_width)


class Row(nn.Module):
    """Residual blocks of the given input channels; the first of them are followed by attention."""

    def __init__(
        self, unet: UNet, level: Level, inputs: Sequence[int], attentions: int, text_width: int
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(unet, width, level.channels) for width in inputs)
        self.attentions = nn.ModuleList(
            attending(unet, level, text_width) for _ in range(attentions)
        )

    def layer(self, index: int, x: Tensor, context: Context) -> Tensor:
        """A residual block and what attends: (B, inputs, H, W) to (B, channels, H, W)."""
        x = self.resnets[index](x, context)
        return self.attentions[index](x, context) if index < len(self.attentions) else x


class DownBlock(Row):
    """A level on the way down, ending with a strided convolution unless it is the last."""

    def __init__(
        self, unet: UNet, level: Level, inputs: Sequence[int], last: bool, text_width: int
    ) -> None:
        super().__init__(unet, level, inputs, len(inputs) * level.attention, text_width)
        down = named(conv=nn.Conv2d(level.channels, level.channels, 3, stride=2, padding=1))
        self.downsamplers = nn.ModuleList([] if last else [down])

    def forward(self, x: Tensor, context: Context) -> list[Tensor]:
        """Every output, for the way up; the last of them goes on down."""
        outputs = []
        for index in range(len(self.resnets)):
            x = self.layer(index, x, context)
            outputs.append(x)
        return outputs + [down(x) for down in self.downsamplers]


class MidBlock(Row):
    """Two residual blocks around what attends, at the coarsest level."""

    def __init__(self, unet: UNet, level: Level, text_width: int) -> None:
        super().__init__(unet, level, (level.channels, level.channels), 1, text_width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Like x (B, C, H, W)."""
        return self.layer(1, self.layer(0, x, context), context)


class UpBlock(Row):
    """A level on the way up, ending with a doubling of the size unless it is the finest."""

    def __init__(
        self, unet: UNet, level: Level, inputs: Sequence[int], last: bool, text_width: int
    ) -> None:
        super().__init__(unet, level, inputs, len(inputs) * level.attention, text_width)
        self.upsamplers = nn.ModuleList([] if last else [Upsampler(level.channels)])

    def forward(self, x: Tensor, kept: Sequence[Tensor], context: Context) -> Tensor:
        """(B, C, H, W) and a kept output for each residual block to the next level's input."""
        for index, skip in enumerate(kept):
            x = self.layer(index, torch.cat((x, skip), dim=1), context)
        for up in self.upsamplers:
            x = up(x, context.folded)
        return x
