"""What one call of `Pipeline.sample` asks for: checked once, then cut into batches.

Knows nothing about models. What fits the pipeline, such as the shape of a start, the pipeline
checks.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypedDict

import attrs
import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.interfaces import Guidance

Negative = str | Sequence[str | Sequence[str]] | None


class Options(TypedDict, total=False):
    """The arguments of `Pipeline.sample` that are not its prompts."""

    negative: Negative
    steps: int | None
    seed: int | Sequence[int]
    guidance: Guidance | None
    start: Tensor | None
    image: Tensor | None
    mask: Tensor | None
    strength: float | None


@attrs.frozen(eq=False, kw_only=True)
class Request:
    """B pictures.

    Attributes:
        prompts: B texts.
        negatives: those of each prompt, which may be none.
        seed: one number for all, or one for each.
        examples: (B,) int64, whose noise each picture gets.
        steps: intervals of the time grid; None for the pipeline's.
        guidance: None for the pipeline's.
        start: x at the first time, (B, C, H, W), or None for drawn noise.
        image: pictures to start from, (B, 3, H, W), or None.
        mask: (B or 1, 1, height, width), 1 where `image` is painted anew; None for everywhere.
        strength: the share of the steps that are walked.
    """

    prompts: tuple[str, ...]
    negatives: tuple[tuple[str, ...], ...]
    seed: int | tuple[int, ...]
    examples: Tensor
    steps: int | None
    guidance: Guidance | None
    start: Tensor | None
    image: Tensor | None
    mask: Tensor | None
    strength: float

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        *,
        negative: Negative = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        guidance: Guidance | None = None,
        start: Tensor | None = None,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        strength: float | None = None,
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
        for name, value in (("start", start), ("image", image), ("mask", mask)):
            if value is not None and not isinstance(value, Tensor):
                raise ConfigError(f"expected {name} to be a tensor, got {type(value).__name__}")
        _check_start(start, image, mask, strength)
        if steps is not None and (steps := _whole(steps, "steps")) < 1:
            raise ConfigError(f"expected at least 1 step, got {steps}")
        _check_count("images", image, len(texts))
        _check_count("masks", mask, len(texts), 1)
        return cls(
            prompts=texts,
            negatives=_negatives(negative, len(texts)),
            seed=seeds,
            examples=torch.arange(len(texts)) * isinstance(seeds, int),
            steps=steps,
            guidance=guidance,
            start=start,
            image=image,
            mask=mask,
            strength=usual_strength(image, mask) if strength is None else strength,
        )

    def batches(self, size: int) -> Iterator[Self]:
        """The same pictures in their order, at most `size` at once, all of a batch with as many
        negatives.
        """
        if _whole(size, "batch") < 1:
            raise ConfigError(f"expected a batch of at least 1, got {size}")
        for rows in _runs([len(texts) for texts in self.negatives], size):
            yield self.only(rows)

    def only(self, rows: slice) -> Self:
        """Some of the pictures, with the noise that they have among all."""
        return attrs.evolve(
            self,
            prompts=self.prompts[rows],
            negatives=self.negatives[rows],
            seed=self.seed if isinstance(self.seed, int) else self.seed[rows],
            examples=self.examples[rows],
            start=None if self.start is None else self.start[rows],
            image=None if self.image is None else self.image[rows],
            mask=self.mask if self.mask is None or len(self.mask) == 1 else self.mask[rows],
        )


def usual_strength(image: object | None, mask: object | None) -> float:
    """The strength where none is given: 0.6 from an image that no mask keeps, else 1."""
    return 0.6 if image is not None and mask is None else 1.0


def _prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    texts = () if isinstance(prompts, str) else tuple(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"expected a list of prompts, got {prompts!r}")
    return texts


def _check_start(
    start: Tensor | None, image: Tensor | None, mask: Tensor | None, strength: float | None
) -> None:
    """Refuses what would have no effect."""
    if image is None and mask is not None:
        raise ConfigError("a mask says what to paint anew of an image", remedy="give the image")
    if image is None and start is None and strength is not None:
        raise ConfigError(
            "strength says how much of an image is drawn anew", remedy="give the image, or a start"
        )
    if image is not None and mask is None and start is not None:
        raise ConfigError(
            "image and start are two places to start from",
            remedy="leave one out; with a mask, image is what is kept",
        )


def _check_count(of: str, value: Tensor | None, *allowed: int) -> None:
    if value is not None and (value.dim() == 0 or len(value) not in allowed):
        count = len(value) if value.dim() else "no"
        raise ConfigError(f"{count} {of} for {allowed[0]} prompts")


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


def _negatives(negative: Negative, count: int) -> tuple[tuple[str, ...], ...]:
    if negative is None:
        return ((),) * count
    if not isinstance(negative, Sequence):
        raise ConfigError(f"expected negative to be texts, got {negative!r}")
    items = [negative] * count if isinstance(negative, str) else list(negative)
    if len(items) != count:
        raise ConfigError(
            f"{len(items)} negatives for {count} prompts",
            remedy="give one text for all, or one item for each prompt",
        )
    found = tuple((item,) if isinstance(item, str) else tuple(item or ()) for item in items)
    if not all(isinstance(text, str) for texts in found for text in texts):
        raise ConfigError(f"expected negative to be texts, got {negative!r}")
    return found


def _runs(values: Sequence[int], most: int) -> Iterator[slice]:
    """Slices of equal values, in order, each of at most `most`."""
    first = 0
    for place in range(1, len(values) + 1):
        ends = place == len(values) or values[place] != values[first]
        if ends or place - first == most:
            yield slice(first, place)
            first = place
