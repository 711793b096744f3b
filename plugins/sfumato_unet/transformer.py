"""Attention among the pixels of a level, and from them to the text.

Rombach et al., 2021, arXiv:2112.10752, Section 3.3. Names of parameters, here and in `blocks`, are
those of diffusers; so there is an `ff.net.2`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from sfumato_unet import Level, UNet

Zeroed = TypeVar("Zeroed", bound=nn.Module)
KeysValues = tuple[Tensor, Tensor]
Text = Tensor | tuple[KeysValues, ...]
"""Text tokens (B, L, D), or what every transformer block has made of them, by its `index`."""
Size = tuple[int, int]
Form = Callable[["TransformerBlock", Tensor, Text, Size], Tensor]
"""What takes the place of a block's `forward`; it is told the height and width of the level too."""


class Context(NamedTuple):
    """What one call of the network hands to its transformers; a tuple, which can be compiled.

    Attributes:
        text: see `Text`.
        forms: what takes the place of blocks, by their `index`; none in the plain network.
    """

    text: Text
    forms: Mapping[int, Form]


def named(**modules: nn.Module) -> nn.Sequential:
    """Modules in a row, with these names in the state dict."""
    return nn.Sequential(OrderedDict(modules))


def zeroed(module: Zeroed) -> Zeroed:
    """The module with all parameters 0: what ends in it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(head width)) V, with Q from x and K, V from a context."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, width) to (B, heads, N, width / heads)."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def keys_values(self, context: Tensor) -> KeysValues:
        """Keys and values (B, heads, N, width / heads) of a context (B, N, context width)."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def forward(self, x: Tensor, context: Tensor | KeysValues) -> Tensor:
        """Like x (B, N, width); the context is a tensor, or its `keys_values`."""
        keys_values = self.keys_values(context) if isinstance(context, Tensor) else context
        return self.to_out(self.attend(self.to_q(x), keys_values))  # type: ignore[no-any-return]

    def attend(self, queries: Tensor, keys_values: KeysValues) -> Tensor:
        """What queries (B, N, width), not yet split into heads, find in a context: like them."""
        attended = F.scaled_dot_product_attention(self._split(queries), *keys_values)
        return attended.transpose(1, 2).flatten(2)


class GEGLU(nn.Module):
    """a GELU(b), with (a, b) linear in x (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, inputs) to (B, N, outputs)."""
        projected: Tensor = self.proj(x)
        value, gate = projected.chunk(2, dim=-1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a gated feed-forward layer, each a normalised residual.

    Attributes:
        index: its place among all transformer blocks of the network, and so in a precomputed text.
    """

    index: int

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, width)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, text_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = named(
            net=nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))
        )

    def forward(self, x: Tensor, context: Context, size: Size) -> Tensor:
        """Like x (B, N, width); `size` is the height and width that its N tokens come from."""
        form = context.forms.get(self.index)
        if form is not None:
            return form(self, x, context.text, size)
        pixels = self.norm1(x)
        return self.after_pixels(x + self.attn1(pixels, pixels), context.text)

    def after_pixels(self, x: Tensor, text: Text) -> Tensor:
        """What follows self-attention, like x (B, N, width)."""
        x = x + self.attn2(self.norm2(x), text if isinstance(text, Tensor) else text[self.index])
        return x + self.ff(self.norm3(x))  # type: ignore[no-any-return]


class TokenConv(nn.Conv2d):
    """A 1x1 convolution of tokens (B, N, C): a linear map with a differently shaped weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, inputs) to (B, N, outputs)."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class Transformer(nn.Module):
    """Transformer blocks on the pixels of a level, as a residual."""

    def __init__(self, unet: UNet, level: Level, text_width: int) -> None:
        super().__init__()
        width, projection = level.channels, nn.Linear if unet.linear_projection else TokenConv
        self.norm = nn.GroupNorm(unet.groups, width, eps=1e-6)
        self.proj_in = projection(width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, level.heads, text_width) for _ in range(level.depth)
        )
        self.proj_out = zeroed(projection(width, width))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Like x (B, C, H, W). With channels last, to tokens and back are views."""
        size = (x.shape[2], x.shape[3])
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, context, size)
        return x + self.proj_out(tokens).unflatten(1, size).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
