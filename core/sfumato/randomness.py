"""Randomness as a function, not a state: a value for every (seed, stream, example, draw, element).

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a key
and a counter into four 32-bit words. Here the key is a hash of (seed, stream), and the counter is
(element, draw, example low, example high). So example k gets the same noise alone or in any batch,
on one rank or on eight, on a CPU or a GPU, and a run has no generator state to save. Integers are
equal bit for bit everywhere; normals (Box-Muller in float64, then cast) to 1e-6.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def key(seed: int, stream: str) -> tuple[int, int]:
    """The 64-bit Philox key of a stream, as two 32-bit words."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    word = int.from_bytes(digest, "little")
    return word & _MASK, word >> 32


def philox(
    counter: Sequence[Tensor], key: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10.

    Args:
        counter: four int64 tensors that broadcast, each holding 32-bit words.
        key: two such tensors.

    Returns:
        Four int64 tensors of the broadcast shape, in [0, 2^32).
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    k0, k1 = key
    for _ in range(10):
        # int64 wraps at 2^64, which keeps the low 64 bits of the product; the mask undoes the
        # sign of the shift.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> 32 & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            (p0 >> 32 & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


@attrs.frozen(eq=False, kw_only=True)
class Draw:
    """The random values of B examples at one draw (a training step, or one call for noise of a
    sampler).

    Attributes:
        seed: one number for all examples, or one for each.
        stream: what the values are for; a name given to a method is appended to it.
        examples: (B,) int64, who they are for. The values live on its device.
        index: which draw, in [0, 2^32).
    """

    seed: int | Sequence[int]
    stream: str
    examples: Tensor
    index: int = 0

    def bits(self, name: str, count: int) -> Tensor:
        """(B, count) int64, each a uniform 32-bit word."""
        seeds = [self.seed] if isinstance(self.seed, int) else self.seed
        device = self.examples.device
        keys = torch.tensor([key(seed, f"{self.stream}/{name}") for seed in seeds], device=device)
        blocks = torch.arange(-(-count // 4), device=device)
        example = self.examples[:, None]
        counter = (
            blocks[None, :],
            torch.full_like(example, self.index),
            example & _MASK,
            example >> 32 & _MASK,
        )
        words = philox(counter, (keys[:, :1], keys[:, 1:]))
        return torch.stack(words, dim=-1).flatten(1)[:, :count]

    def uniform(self, name: str) -> Tensor:
        """(B,) float64 in (0, 1]."""
        return (self.bits(name, 1)[:, 0].double() + 1) / 2**32

    def normal(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) unit Gaussian."""
        count = math.prod(shape)
        uniform = (self.bits(name, count + count % 2).double() + 1) / 2**32
        radius = torch.sqrt(-2 * torch.log(uniform[:, 0::2]))
        angle = (2 * math.pi) * uniform[:, 1::2]
        pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        return pairs.flatten(1)[:, :count].to(dtype).reshape(len(self.examples), *shape)


def permutation(seed: int, stream: str, draw: int, size: int) -> Tensor:
    """An order of `size` examples, (size,) int64: the same for the same (seed, stream, draw)."""
    words = Draw(seed=seed, stream=stream, examples=torch.arange(size), index=draw).bits("order", 2)
    return torch.argsort((words[:, 0] << 31) ^ words[:, 1], stable=True)
