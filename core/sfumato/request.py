"""What one call of `Pipeline.sample` asks for: checked once, then cut into batches.

Knows nothing about models. What fits the pipeline, such as the shape of a start, the pipeline
checks.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, Self

import attrs
import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.interfaces import Guidance

Negative = str | Sequence[str | Sequence[str]] | None


@attrs.frozen(eq=False, kw_only=True)
class Request:
    """B pictures.

    Attributes:
        prompts: B texts.
        negatives: B texts for each negative, None where a prompt has fewer: null subtracts nothing.
        seed: one number for all, or one for each.
        examples: (B,) int64, whose noise each picture gets.
        steps: intervals of the time grid; None for the pipeline's.
        guidance: None for the pipeline's.
        start: x at the first time, (B, C, H, W), or None for drawn noise.
    """

    prompts: tuple[str, ...]
    negatives: tuple[tuple[str | None, ...], ...]
    seed: int | tuple[int, ...]
    examples: Tensor
    steps: int | None
    guidance: Guidance | None
    start: Tensor | None

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        negative: Negative,
        steps: int | None,
        seed: int | Sequence[int],
        guidance: Guidance | None,
        start: Tensor | None,
    ) -> Self:
        """The arguments of `Pipeline.sample`, each of which has the right type.

        Raises:
            ConfigError: one has not, or they do not fit each other.
        """
        texts = _prompts(prompts)
        seeds = _seeds(seed, len(texts))
        if guidance is not None and not isinstance(guidance, Guidance):
            remedy = "make one with sfumato.create('guidance', 'cfg', scale=4.0)"
            raise ConfigError(f"expected a guidance, got {guidance!r}", remedy=remedy)
        if start is not None and not isinstance(start, Tensor):
            raise ConfigError(f"expected start to be a tensor, got {type(start).__name__}")
        if steps is not None and (steps := _whole(steps, "steps")) < 1:
            raise ConfigError(f"expected at least 1 step, got {steps}")
        return cls(
            prompts=texts,
            negatives=_negatives(negative, len(texts)),
            seed=seeds,
            examples=torch.arange(len(texts)) * isinstance(seeds, int),
            steps=steps,
            guidance=guidance,
            start=start,
        )

    def batches(self, size: int) -> Iterator[Self]:
        """The same pictures, at most `size` at once."""
        if _whole(size, "batch") < 1:
            raise ConfigError(f"expected a batch of at least 1, got {size}")
        for first in range(0, len(self.prompts), size):
            rows = slice(first, first + size)
            yield attrs.evolve(
                self,
                prompts=self.prompts[rows],
                negatives=tuple(texts[rows] for texts in self.negatives),
                seed=self.seed if isinstance(self.seed, int) else self.seed[rows],
                examples=self.examples[rows],
                start=None if self.start is None else self.start[rows],
            )


def _prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    texts = () if isinstance(prompts, str) else tuple(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"expected a list of prompts, got {prompts!r}")
    return texts


def _whole(value: Any, of: str) -> int:
    """A whole number of any library's."""
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"expected {of} to be a whole number, got {value!r}") from None


def _seeds(seed: int | Sequence[int], count: int) -> int | tuple[int, ...]:
    if not isinstance(seed, Sequence | Tensor):
        return _whole(seed, "seed")
    seeds = tuple(_whole(one, "seed") for one in seed)
    if len(seeds) != count:
        raise ConfigError(f"{len(seeds)} seeds for {count} prompts")
    return seeds


def _negatives(negative: Negative, count: int) -> tuple[tuple[str | None, ...], ...]:
    if negative is None:
        return ()
    if not isinstance(negative, Sequence):
        raise ConfigError(f"expected negative to be texts, got {negative!r}")
    items = [negative] * count if isinstance(negative, str) else list(negative)
    if len(items) != count:
        raise ConfigError(
            f"{len(items)} negatives for {count} prompts",
            remedy="give one text for all, or one item for each prompt",
        )
    texts = [[item] if isinstance(item, str) else list(item or ()) for item in items]
    most = max((len(item) for item in texts), default=0)
    return tuple(tuple(item[i] if i < len(item) else None for item in texts) for i in range(most))
