"""What a plugin may add to sfumato, and what it may watch. Hooks return nothing but what they
register.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sfumato.interfaces import Component
    from sfumato.records import CheckpointSaved, SampleStep, TrainEnd, TrainStart, TrainStep

hookspec = pluggy.HookspecMarker("sfumato")
hookimpl = pluggy.HookimplMarker("sfumato")


@hookspec
def sfumato_components() -> Iterable[type[Component]]:  # type: ignore[empty-body]
    """The component classes that this plugin offers."""


@hookspec
def sfumato_on_train_start(start: TrainStart) -> None:
    """A training stage begins."""


@hookspec
def sfumato_on_train_step(step: TrainStep) -> None:
    """An optimiser step is done."""


@hookspec
def sfumato_on_checkpoint(checkpoint: CheckpointSaved) -> None:
    """A checkpoint is complete on disk."""


@hookspec
def sfumato_on_train_end(end: TrainEnd) -> None:
    """A training stage has ended, or, with `end.stage` None, the run with its results."""


@hookspec
def sfumato_on_sample_step(step: SampleStep) -> None:
    """A sampler has finished a step."""
