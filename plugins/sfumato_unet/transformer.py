"""Attention among the pixels of a level, and from them to the text.

Rombach et al., 2021, arXiv:2112.10752, Section 3.3. Names of parameters, here and in `blocks`, are
those of diffusers; so there is an `ff.net.2`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato_unet.folded import Folded

if TYPE_CHECKING:
    from sfumato_unet import Level, UNet

Zeroed = TypeVar("Zeroed", bound=nn.Module)
KeysValues = tuple[Tensor, Tensor]
Text = Tensor | tuple[KeysValues, ...]
"""Text tokens (B, L, D), or what every transformer block has made of them, by its `index`."""
Time = Tensor | tuple[Tensor, ...]
"""The activated time embedding (B, time width), or what every residual block has made of it and
adds, (B or 1, channels) each, by its `index`."""
Size = tuple[int, int]
Form = Callable[[Any, Tensor, Text, Size], Tensor]
"""What takes the place of an `AttentionBlock`, which it is handed first, as `attended`."""


class GroupNorm(nn.GroupNorm):
    """GroupNorm of x + offset, activated or not; compiled for a GPU, told for channels last.

    A group's channels are few and lie apart. So the moments of each channel come first, by one
    reduction in the order of memory, and those of the group from these: the variance is the mean of
    the variances and the variance of the means.
    """

    def forward(self, x: Tensor, offset: Tensor | None = None, silu: bool = False) -> Tensor:
        """Like x (B, C, H, W); offset (B or 1, C)."""
        if offset is not None:
            x = x + offset[:, :, None, None]
        compiled = x.is_cuda and torch.compiler.is_compiling()
        x = self.by_channel(x) if compiled else super().forward(x)
        return F.silu(x) if silu else x

    def by_channel(self, x: Tensor) -> Tensor:
        """The norm alone, in float32, like x."""
        variances, means = torch.var_mean(x.float(), (2, 3), correction=0)
        means = means.view(len(x), self.num_groups, -1)
        spread, mean = torch.var_mean(means, -1, correction=0, keepdim=True)
        variance = variances.view_as(means).mean(-1, keepdim=True) + spread
        scale = (variance + self.eps).rsqrt() * self.weight.view(self.num_groups, -1)
        shift = self.bias.view(self.num_groups, -1) - mean * scale
        scale, shift = (one.view(len(x), -1, 1, 1) for one in (scale, shift))
        return (x * scale + shift).to(x.dtype)


class Context(NamedTuple):
    """What one call of the network hands to all of its blocks; a tuple, which can be compiled.

    Attributes:
        text: see `Text`.
        forms: what takes the place of attention blocks, by their `index`; none in the plain
            network.
        time: see `Time`.
        folded: whether what is `Folded` is there and may be used.
    """

    text: Text
    forms: Mapping[int, Form]
    time: Time
    folded: bool = False


def named(**modules: nn.Module) -> nn.Sequential:
    """Modules in a row, with these names in the state dict."""
    return nn.Sequential(OrderedDict(modules))


def zeroed(module: Zeroed) -> Zeroed:
    """The module with all parameters 0: what ends in it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H W, C): with channels last a view, as is the way back."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_pixels(tokens: Tensor, size: Size) -> Tensor:
    """(B, H W, C) to (B, C, H, W)."""
    return tokens.view(len(tokens), *size, -1).permute(0, 3, 1, 2)


def joined(*weights: Tensor) -> Tensor:
    """Matrices (outputs, inputs) or biases (outputs,) as one, their outputs in a row."""
    return torch.cat(weights)


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(head width)) V, with Q from x and K, V from a context."""

    def __init__(self, width: int, heads: int, context_width: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias)
        self.to_k = nn.Linear(context_width, width, bias)
        self.to_v = nn.Linear(context_width, width, bias)
        self.to_out = nn.Sequential(nn.Linear(width, width))
        self.joint = Folded(joined)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, width) to (B, heads, N, width / heads)."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def keys_values(self, context: Tensor) -> KeysValues:
        """Keys and values (B, heads, N, width / heads) of a context (B, N, context width)."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def across(self, x: Tensor, context: Tensor | KeysValues) -> Tensor:
        """Like x (B, N, width); the context is a tensor, or its `keys_values`."""
        keys_values = self.keys_values(context) if isinstance(context, Tensor) else context
        return self.to_out(self.attend(self.to_q(x), keys_values))  # type: ignore[no-any-return]

    def fold(self) -> None:
        """Makes the joint matrix of `among`."""
        if self._plain():
            self.joint.refresh(*self._each("weight"))

    def among(self, x: Tensor, folded: bool) -> Tensor:
        """`across` where x (B, N, width) is its own context; folded, by one product for three.

        Compiled it is one product too: then x has one gradient, not three to add.
        """
        joint = self.joint.value if folded else None
        if joint is None and torch.compiler.is_compiling() and self._plain():
            joint = joined(*self._each("weight"))
        if joint is None:
            return self.across(x, x)
        bias = None if self.to_q.bias is None else joined(*self._each("bias"))
        queries, keys, values = F.linear(x, joint, bias).chunk(3, dim=-1)
        attended = self.attend(queries, (self._split(keys), self._split(values)))
        return self.to_out(attended)  # type: ignore[no-any-return]

    def _plain(self) -> bool:
        """Whether the projections are matrices and nothing else, such as adapters around them."""
        return all(type(one) is nn.Linear for one in (self.to_q, self.to_k, self.to_v))

    def _each(self, name: str) -> Iterator[Tensor]:
        return (getattr(one, name) for one in (self.to_q, self.to_k, self.to_v))

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
        if (
            torch.compiler.is_compiling()
            and torch.is_grad_enabled()
            and type(self.proj) is nn.Linear
        ):
            # Two products: else it takes a pass of its own to put both gradients side by side.
            weights, biases = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
            value, gate = map(F.linear, (x, x), weights, biases)
        else:
            value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class AttentionBlock(nn.Module, ABC):
    """A residual of attention among pixels, with or without something after it.

    Attributes:
        index: its place among all attention blocks of the network, and so in a precomputed text.
    """

    index: int

    @property
    @abstractmethod
    def self_attention(self) -> Attention:
        """That among pixels."""

    @abstractmethod
    def normalized(self, x: Tensor) -> Tensor:
        """What it sees of x (B, N, width)."""

    @abstractmethod
    def after_pixels(self, x: Tensor, text: Text) -> Tensor:
        """What follows self-attention, like x (B, N, width)."""

    def attended(self, x: Tensor, context: Context, size: Size) -> Tensor:
        """Like x (B, N, width); `size` is the height and width that its N tokens come from."""
        form = context.forms.get(self.index)
        if form is not None:
            return form(self, x, context.text, size)
        found = self.self_attention.among(self.normalized(x), context.folded)
        return self.after_pixels(x + found, context.text)


class TransformerBlock(AttentionBlock):
    """Attention to pixels, to text, and a gated feed-forward layer, each a normalised residual."""

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

    @property
    def self_attention(self) -> Attention:
        """The first of its two."""
        return self.attn1

    def normalized(self, x: Tensor) -> Tensor:
        """What it sees of x (B, N, width)."""
        return self.norm1(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, context: Context, size: Size) -> Tensor:
        """See `attended`."""
        return self.attended(x, context, size)

    def after_pixels(self, x: Tensor, text: Text) -> Tensor:
        """Cross-attention and the feed-forward layer, like x (B, N, width)."""
        heard = text if isinstance(text, Tensor) else text[self.index]
        x = x + self.attn2.across(self.norm2(x), heard)
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
        self.norm = GroupNorm(unet.groups, width, eps=1e-6)
        self.proj_in = projection(width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, level.heads, text_width) for _ in range(level.depth)
        )
        self.proj_out = zeroed(projection(width, width))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Like x (B, C, H, W)."""
        size = (x.shape[2], x.shape[3])
        tokens = self.proj_in(to_tokens(self.norm(x)))
        for block in self.transformer_blocks:
            tokens = block(tokens, context, size)
        return x + to_pixels(self.proj_out(tokens), size)
