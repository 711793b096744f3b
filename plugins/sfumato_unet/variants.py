"""Perturbed forms of attention blocks, for guidance away from what they predict.

A form takes the place of the blocks that `UNet.perturbed` names and leaves all others, and every
weight, as they are. In `pag` the map of self-attention is the identity; in `seg` its queries are
blurred; in `slg` the whole block is skipped. What the perturbed network still gets right comes from
elsewhere, so the difference to the plain one is what these blocks know of structure.

`nag` is another thing: all transformer blocks attend to two texts, and hold one against the other.

References:
    Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance, 2024, arXiv:2403.17377
    Smoothed Energy Guidance, 2024, arXiv:2408.00760
    Normalized Attention Guidance, 2025, arXiv:2505.21179
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sfumato import Against, Opposed
    from sfumato_unet import UNet
    from sfumato_unet.transformer import (
        AttentionBlock,
        Form,
        KeysValues,
        Size,
        Text,
        TransformerBlock,
    )


def identity_map(block: AttentionBlock, x: Tensor, text: Text, size: Size) -> Tensor:
    """PAG: softmax(Q K^T) is replaced by the identity, so that each pixel hears its own value."""
    attention = block.self_attention
    values = attention.to_v(block.normalized(x))
    return block.after_pixels(x + attention.to_out(values), text)


def skipped(block: AttentionBlock, x: Tensor, text: Text, size: Size) -> Tensor:
    """SLG: the block is left out."""
    return x


def blurred_queries(
    block: AttentionBlock, x: Tensor, text: Text, size: Size, sigma: float | None
) -> Tensor:
    """SEG: queries are blurred over the picture with sigma pixels; None is their mean."""
    attention, pixels = block.self_attention, block.normalized(x)
    queries = blurred(attention.to_q(pixels), size, sigma)
    found = attention.attend(queries, attention.keys_values(pixels))
    return block.after_pixels(x + attention.to_out(found), text)


def held_against(
    block: TransformerBlock,
    x: Tensor,
    text: Text,
    size: Size,
    own: KeysValues,
    other: KeysValues,
    how: Against,
) -> Tensor:
    """NAG: what the pixels hear of their text is moved away from what they would of another."""
    pixels = block.norm1(x)
    x = x + block.attn1.across(pixels, pixels)
    queries = block.attn2.to_q(block.norm2(x))
    found, opposite = (block.attn2.attend(queries, one) for one in (own, other))
    x = x + block.attn2.to_out(normalized(found, opposite, how))
    return x + block.ff(block.norm3(x))  # type: ignore[no-any-return]


def normalized(found: Tensor, opposite: Tensor, how: Against) -> Tensor:
    """Like z+ and z- (B, N, width), of which it makes what `Against` says."""
    moved = how.scale * found - (how.scale - 1) * opposite
    norm, most = (z.abs().sum(-1, keepdim=True) for z in (moved, how.tau * found))
    moved = moved * (most / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1)
    return torch.lerp(found, moved, how.alpha)


def blurred(tokens: Tensor, size: Size, sigma: float | None) -> Tensor:
    """A Gaussian blur of tokens (B, H W, C) over their places, reflected at the borders."""
    if sigma is None:
        return tokens.mean(1, keepdim=True).expand_as(tokens)
    picture = tokens.view(len(tokens), *size, -1)
    rows, columns = (gaussian(length, sigma).to(tokens) for length in size)
    return torch.einsum("ih,jw,bhwc->bijc", rows, columns, picture).flatten(1, 2)


def gaussian(length: int, sigma: float) -> Tensor:
    """The matrix (length, length) of a Gaussian blur, cut off at 3 sigma, float64; rows sum to 1.

    A place beyond a border is the one as far inside of it.
    """
    reach = math.ceil(6 * sigma) // 2
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets / sigma).double() ** 2)
    period = max(2 * (length - 1), 1)
    places = (torch.arange(length)[:, None] + offsets).remainder(period)
    places = torch.minimum(places, period - places) if length > 1 else torch.zeros_like(places)
    matrix = weights.new_zeros(length, length)
    return matrix.scatter_add_(1, places, (weights / weights.sum()).expand_as(places).contiguous())


def opposing(
    blocks: Iterable[TransformerBlock], heard: Iterable[KeysValues], condition: Opposed
) -> Iterator[tuple[int, Form]]:
    """What takes the place of each block, by `index`, to hold texts against each other.

    Args:
        blocks: all transformer blocks of the network.
        heard: what each of them has made of the own text.
        condition: both texts, and how.
    """
    for block, own in zip(blocks, heard, strict=True):
        other = block.attn2.keys_values(condition.against.tokens)
        form = functools.partial(held_against, own=own, other=other, how=condition.how)
        yield block.index, form


def forms_of(
    unet: UNet, blocks: Iterable[tuple[str, AttentionBlock]]
) -> Mapping[str | None, Mapping[int, Form]]:
    """For each variant, and None, what takes the place of which attention blocks, by `index`.

    Not so for nag, whose forms depend on the text: see `opposing`.

    Args:
        unet: says which blocks are perturbed.
        blocks: with the names that they have in the network.

    Raises:
        ConfigError: a name in `perturbed` is that of no block, nor of anything that holds one.
    """
    named = {f"{name}.": block.index for name, block in blocks}
    chosen: set[int] = set()
    for part in unet.perturbed:
        found = {index for name, index in named.items() if name.startswith(f"{part}.")}
        if not found:
            raise ConfigError(
                f"nothing in {part!r} attends",
                place="unet.perturbed",
                remedy="blocks that do: " + ", ".join(name.rstrip(".") for name in named),
            )
        chosen |= found
    forms: dict[str, Form] = {
        "pag": identity_map,
        "seg": functools.partial(blurred_queries, sigma=unet.blur),
        "slg": skipped,
    }
    changed = {name: dict.fromkeys(chosen, form) for name, form in forms.items()}
    return {None: {}, **{name: changed.get(name, {}) for name in unet.variants}}
