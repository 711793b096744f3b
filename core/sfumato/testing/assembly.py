"""A small pipeline and small batches, for components that need a whole system around them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sfumato.pipeline import Pipeline
from sfumato.records import Batch
from sfumato.registry import Registry
from sfumato.testing.modules import shake

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sfumato.experiment import Experiment

REGISTRY = Path(__file__).with_name("registry.yaml")


@functools.cache
def experiment() -> Experiment:
    """The small experiment of the kit's own registry."""
    return Registry.load(REGISTRY).experiment("small")


@functools.cache
def _files() -> Mapping[str, bytes]:
    split = experiment().given_data().split("train")
    return experiment().text_encoder.fit([split.caption(i) for i in range(len(split))])


def pipeline() -> Pipeline:
    """A new one, always with the same weights: random ones, since no law asks for good pictures."""
    made = Pipeline(experiment(), _files())
    for module in made.modules().values():
        shake(module)
    return made


def batch(size: int) -> Batch:
    """The first captioned pictures of the training split, whose captions are distinct."""
    split = experiment().given_data().split("train")
    places = list({split.caption(i): i for i in range(len(split))}.values())[:size]
    images, captions = zip(*(split.example(i) for i in places), strict=True)
    return Batch(
        images=torch.stack(images),
        captions=captions,
        examples=torch.tensor(places),
        rows=torch.arange(size),
        total=size,
    )
