"""The UNet as a module: time and text in, levels down, middle, levels up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato import ConfigError, DenoiserModule, Opposed, Space, TextEmbedding
from sfumato_unet import variants
from sfumato_unet.blocks import DoublingConv, DownBlock, MidBlock, ResidualBlock, UpBlock
from sfumato_unet.transformer import (
    AttentionBlock,
    Context,
    Form,
    GroupNorm,
    KeysValues,
    Time,
    TransformerBlock,
    named,
    zeroed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sfumato_unet import UNet


Shifts = tuple[Tensor, ...]
"""What times add to each residual block, by its `index`: (times, channels) each."""


@attrs.frozen(eq=False, kw_only=True)
class Times:
    """What the UNet makes of the times of a walk, whatever the picture.

    Attributes:
        places: of each time in what follows.
        embedded: (times, time width).
        shifts: None where the pooled vector has a say in them.
    """

    places: Mapping[float, int]
    embedded: Tensor
    shifts: Shifts | None


@attrs.frozen(eq=False, kw_only=True)
class Condition:
    """What the UNet makes of a text whatever the time, and of the times.

    Attributes:
        keys_values: of every cross-attention, (B, heads, L, width / heads) each; none where there
            is none.
        pooled: (B, time width), or None where the pooled vector is not used.
        opposing: for variant nag, what takes the place of each transformer block.
        times: from which `UNetModule.at` takes the shifts of one.
        shifts: of the one time that this is for, (B or 1, channels) each; None where it is for all.
    """

    keys_values: tuple[KeysValues, ...]
    pooled: Tensor | None
    opposing: Mapping[int, Form] = attrs.field(factory=dict)
    times: Times | None = None
    shifts: Shifts | None = None


def sinusoids(timestep: Tensor, width: int) -> Tensor:
    """cos(k f_i), then sin(k f_i), with f_i = 10000^(-2i / width), of timesteps k (B,): (B, width).

    Vaswani et al., 2017, arXiv:1706.03762, Section 3.5, in the order of Stable Diffusion.
    """
    place = torch.arange(width // 2, device=timestep.device, dtype=timestep.dtype)
    angles = timestep[:, None] * torch.exp(-2 * math.log(10000) / width * place)
    return F.pad(torch.cat((angles.cos(), angles.sin()), dim=-1), (0, width % 2))


class UNetModule(DenoiserModule):
    """See `UNet`. Activations are stored channels last, as convolutions and attention like them."""

    def __init__(self, unet: UNet, space: Space) -> None:
        super().__init__()
        levels = unet.levels()
        _refuse_deaf(unet, space)
        self.layers = unet.layers
        self.schedule = space.schedule
        self.conv_in = nn.Conv2d(space.channels, unet.channels[0], 3, padding=1)
        self.time_embedding = _embedding(unet.channels[0], unet.time_width)
        self.class_embedding = (
            _embedding(space.pooled_width, unet.time_width) if unet.pooled else None
        )
        self.add_embedding = SizeEmbedding(unet, space) if unet.size_width else None

        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        kept = [unet.channels[0]]
        for level in levels:
            inputs = (kept[-1], *(unet.layers - 1) * (level.channels,))
            last = level is levels[-1]
            self.down_blocks.append(DownBlock(unet, level, inputs, last, space.text_width))
            kept += (unet.layers + (not last)) * [level.channels]
        self.mid_block = MidBlock(unet, levels[-1], space.text_width)
        width = levels[-1].channels
        for level in reversed(levels):
            before = (width, *unet.layers * (level.channels,))
            inputs = tuple(channels + kept.pop() for channels in before)
            last = level is levels[0]
            self.up_blocks.append(UpBlock(unet, level, inputs, last, space.text_width))
            width = level.channels

        self.conv_norm_out = GroupNorm(unet.groups, unet.channels[0])
        self.conv_out = zeroed(nn.Conv2d(unet.channels[0], space.channels, 3, padding=1))
        for index, (_, block) in enumerate(self._attention_blocks()):
            block.index = index
        for place, residual in enumerate(self._residual_blocks()):
            residual.index = place
        self.forms = variants.forms_of(unet, self._attention_blocks())

    def _attention_blocks(self) -> Iterator[tuple[str, AttentionBlock]]:
        for name, module in self.named_modules():
            if isinstance(module, AttentionBlock):
                yield name, module

    def _residual_blocks(self) -> Iterator[ResidualBlock]:
        return (module for module in self.modules() if isinstance(module, ResidualBlock))

    def _pooled(self, text: TextEmbedding) -> Tensor | None:
        """What the pooled vector adds to the embedded time, (B, time width)."""
        embeddings = (self.class_embedding, self.add_embedding)
        parts = [one(text.pooled) for one in embeddings if one is not None]
        return sum(parts[1:], parts[0]) if parts else None

    def _embedded(self, t: Tensor) -> Tensor:
        """Times (B,) to (B, time width)."""
        found = sinusoids(self.schedule.timestep(t), self.conv_in.out_channels)
        return self.time_embedding(found.to(self.conv_in.weight.dtype))  # type: ignore[no-any-return]

    def _shifts(self, embedded: Tensor, pooled: Tensor | None) -> Shifts:
        time = _activated(embedded, pooled)
        return tuple(block.time_emb_proj(time) for block in self._residual_blocks())

    def precompute(self, text: TextEmbedding | Opposed, times: Tensor) -> Condition:
        """The keys and values of every cross-attention, the projected pooled vector, the times."""
        for module in self.modules():
            if isinstance(module, DoublingConv):
                module.fold()
        blocks = [block for _, block in self._attention_blocks()]
        for block in blocks:
            block.self_attention.fold()
        own = text.text if isinstance(text, Opposed) else text
        hearing = [block for block in blocks if isinstance(block, TransformerBlock)]
        heard = tuple(block.attn2.keys_values(own.tokens) for block in hearing)
        opposed = variants.opposing(hearing, heard, text) if isinstance(text, Opposed) else ()
        pooled = self._pooled(own)
        embedded = self._embedded(times.to(own.tokens.device))
        known = Times(
            places={float(t): place for place, t in enumerate(times)},
            embedded=embedded,
            shifts=self._shifts(embedded, None) if pooled is None else None,
        )
        return Condition(keys_values=heard, pooled=pooled, opposing=dict(opposed), times=known)

    def at(self, condition: Any, t: Tensor) -> Any:
        """With the shifts of t: looked up, or, between the precomputed times, computed."""
        if not isinstance(condition, Condition) or condition.times is None:
            return condition
        known, place = condition.times, condition.times.places.get(float(t))
        if place is None:
            embedded = self._embedded(t[None].to(known.embedded.device))
        else:
            embedded = known.embedded[place : place + 1]
        if place is None or known.shifts is None:
            shifts = self._shifts(embedded, condition.pooled)
        else:
            shifts = tuple(one[place : place + 1] for one in known.shifts)
        return attrs.evolve(condition, times=None, shifts=shifts)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: TextEmbedding | Opposed | Condition,
        variant: str | None = None,
    ) -> Tensor:
        """See `DenoiserModule.forward`.

        Raises:
            ConfigError: there is no such variant, or x_t has not the size that the text was told.
        """
        if self.add_embedding is not None:
            self.add_embedding.refuse_other(x_t)
        context = self._context(t, condition, variant)
        x = self.conv_in(x_t.contiguous(memory_format=torch.channels_last))
        kept = [x]
        for down in self.down_blocks:
            kept += down(kept[-1], context)
        x = self.mid_block(kept[-1], context)
        for up in self.up_blocks:
            x = up(x, [kept.pop() for _ in range(self.layers + 1)], context)
        return self.conv_out(self.conv_norm_out(x, silu=True))  # type: ignore[no-any-return]

    def _context(
        self, t: Tensor, condition: TextEmbedding | Opposed | Condition, variant: str | None
    ) -> Context:
        if variant not in self.forms:
            raise ConfigError(f"the unet has no variant {variant!r}", place="denoiser")
        if isinstance(condition, Opposed):
            condition = self.precompute(condition, t[:0])
        if isinstance(condition, TextEmbedding):
            activated = _activated(self._embedded(t), self._pooled(condition))
            return Context(condition.tokens, self.forms[variant], activated)
        time: Time | None = condition.shifts
        if time is None:
            time = _activated(self._embedded(t), condition.pooled)
        forms = condition.opposing if variant == "nag" else self.forms[variant]
        return Context(condition.keys_values, forms, time, folded=True)


def _refuse_deaf(unet: UNet, space: Space) -> None:
    """Raises ConfigError where there is a text, and nothing of the network would hear it."""
    hears = unet.attention_block == "transformer" or unet.pooled or unet.size_width is not None
    if not hears and (space.text_width or space.pooled_width):
        raise ConfigError(
            "the text has no way into a network of self-attention alone",
            place="unet.pooled",
            remedy="set it, or use attention_block: transformer",
        )


def _activated(embedded: Tensor, pooled: Tensor | None) -> Tensor:
    return F.silu(embedded if pooled is None else embedded + pooled)


def _embedding(inputs: int, outputs: int) -> nn.Sequential:
    return named(
        linear_1=nn.Linear(inputs, outputs), act=nn.SiLU(), linear_2=nn.Linear(outputs, outputs)
    )


class SizeEmbedding(nn.Module):
    """What SDXL adds to the embedded time: an MLP of the pooled text and of six sizes in pixels.

    They are the height and width of a picture before it was cropped, the top and left of the crop,
    and the height and width that are left: here those of what is drawn, with no crop. They come
    from `Space` and not from x_t, so that `precompute` knows them.

    References:
        SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis, 2023,
        arXiv:2307.01952, Section 2.2
    """

    waves: Tensor

    def __init__(self, unet: UNet, space: Space) -> None:
        super().__init__()
        assert unet.size_width is not None
        self.size = (space.height, space.width)
        height, width = (side * space.factor for side in self.size)
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        waves = sinusoids(sizes, unet.size_width).flatten()
        self.register_buffer("waves", waves, persistent=False)
        self.linear_1 = nn.Linear(space.pooled_width + len(waves), unet.time_width)
        self.linear_2 = nn.Linear(unet.time_width, unet.time_width)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, P) to (B, time width)."""
        inputs = torch.cat((pooled, self.waves.expand(len(pooled), -1)), dim=-1)
        return self.linear_2(F.silu(self.linear_1(inputs)))  # type: ignore[no-any-return]

    def refuse_other(self, x_t: Tensor) -> None:
        """Raises ConfigError where x_t is of another size than the network is told."""
        if x_t.shape[2:] != self.size:
            (height, width), (here, there) = self.size, x_t.shape[2:]
            raise ConfigError(
                f"the unet is built for latents of {height} x {width}, and tells their size to "
                f"itself, but these are {here} x {there}",
                place="denoiser",
                remedy="build it for the space of what is drawn (sampling.size)",
            )
