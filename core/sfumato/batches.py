"""The examples of each training step: a function of (seed, stage, step), so nothing has to be kept.

Epochs follow each other without a gap, each a permutation of the data.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato import randomness
from sfumato.records import Batch

if TYPE_CHECKING:
    from sfumato.interfaces import Split


def examples_at(size: int, seed: int, stage: str, batch: int, step: int) -> list[int]:
    """Which of `size` examples stand in the global batch of a step, in the order of its rows."""
    order = functools.partial(_order, seed, stage, size)
    return [
        int(order(place // size)[place % size]) for place in range(step * batch, (step + 1) * batch)
    ]


def batch_at(
    split: Split, seed: int, stage: str, size: int, step: int, device: torch.device
) -> Batch:
    """The global batch of a step."""
    examples = examples_at(len(split), seed, stage, size, step)
    images, captions = zip(*(split.example(i) for i in examples), strict=True)
    return Batch(
        images=torch.stack(images).to(device),
        captions=captions,
        examples=torch.tensor(examples, device=device),
        rows=torch.arange(size, device=device),
        total=size,
    )


@functools.lru_cache(maxsize=4)
def _order(seed: int, stage: str, size: int, epoch: int) -> Tensor:
    return randomness.permutation(seed, f"{stage}/order", epoch, size)
