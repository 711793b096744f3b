"""The examples of each training step: a function of (seed, stage, step), so nothing has to be kept.

Epochs follow each other without a gap, each a permutation of the data. Worker processes, where
there are any, are handed numbers of steps and make whole batches ahead of time: which ones there
are, and how many, changes no example.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sfumato import interruption, randomness
from sfumato.encoded import Encoded
from sfumato.randomness import Draw
from sfumato.records import Batch
from sfumato.split import Split

if TYPE_CHECKING:
    from collections.abc import Iterator


def examples_at(size: int, seed: int, stage: str, batch: int, step: int) -> list[int]:
    """Which of `size` examples stand in the global batch of a step, in the order of its rows."""
    order = functools.partial(_order, seed, stage, size)
    return [
        int(order(place // size)[place % size]) for place in range(step * batch, (step + 1) * batch)
    ]


def variation_words(seed: int, stage: str, step: int, rows: range) -> list[int]:
    """A number in [0, 2^64) for each of these rows of the global batch: its variation."""
    draw = Draw(
        seed=seed,
        stream=f"{stage}/variation",
        examples=torch.arange(rows.start, rows.stop),
        index=step,
    )
    return [high << 32 | low for high, low in draw.bits("word", 2).tolist()]


def batch_at(
    split: Split,
    seed: int,
    stage: str,
    size: int,
    step: int,
    device: torch.device,
    rows: range | None = None,
    encoded: Encoded | None = None,
) -> Batch:
    """The global batch of a step, or some rows of it: only their examples are looked at, or what
    was `encoded` of them before.
    """
    rows = range(size) if rows is None else rows
    examples = examples_at(len(split), seed, stage, size, step)[rows.start : rows.stop]
    if encoded is not None:
        places = torch.arange(rows.start, rows.stop)
        return attrs.evolve(encoded.batch(examples), rows=places, total=size).to(device)
    if split.varies:
        words = variation_words(seed, stage, step, rows)
        images, captions = zip(*map(split.variation, examples, words), strict=True)
    else:
        images, captions = zip(*map(split.example, examples), strict=True)
    return Batch(
        images=torch.stack(images).to(device),
        captions=captions,
        examples=torch.tensor(examples, device=device),
        rows=torch.arange(rows.start, rows.stop, device=device),
        total=size,
        replaced={i: fault for i in examples if (fault := split.fault(i)) is not None},
    )


@attrs.frozen(eq=False, kw_only=True)
class Batches(Dataset[Batch | Exception]):
    """The batches of one stage, by the number of the step, on the CPU: of each the same rows."""

    split: Split
    seed: int
    stage: str
    size: int
    rows: range
    encoded: Encoded | None = None

    def __getitem__(self, step: int) -> Batch | Exception:
        """What went wrong comes back as a value: a loader would bury it in a traceback."""
        try:
            return batch_at(
                self.split,
                self.seed,
                self.stage,
                self.size,
                step,
                torch.device("cpu"),
                self.rows,
                self.encoded,
            )
        except Exception as error:
            return error

    def of(self, steps: range, device: torch.device, workers: int = 0) -> Iterator[Batch]:
        """Those of `steps`, on a device, prepared by so many processes; 0 is this one.

        Raises:
            Exception: an example cannot be had.
        """
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            worker_init_fn=_begin if workers else None,
            # A split may come from a plugin's file, which no other start could import.
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # torch's own would be moved on by a draw
        )
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch.to(device)


def _begin(worker: int) -> None:
    interruption.ignored()


@functools.lru_cache(maxsize=4)
def _order(seed: int, stage: str, size: int, epoch: int) -> Tensor:
    return randomness.permutation(seed, f"{stage}/order", epoch, size)
