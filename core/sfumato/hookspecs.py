"""What a plugin may add to sfumato, and what it may watch. Hooks return nothing but what they
register.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pluggy

from sfumato.errors import PluginError, suggestion

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sfumato.interfaces import Component
    from sfumato.records import (
        CheckpointSaved,
        PictureSaved,
        SampleStep,
        TrainEnd,
        TrainStart,
        TrainStep,
    )

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
def sfumato_on_picture(picture: PictureSaved) -> None:
    """A picture of an evaluation is on disk."""


@hookspec
def sfumato_on_train_end(end: TrainEnd) -> None:
    """A training stage has ended, or, with `end.stage` None, the run with its results."""


@hookspec
def sfumato_on_sample_step(step: SampleStep) -> None:
    """A sampler has finished a step."""


def manager_of(plugin: object) -> pluggy.PluginManager:
    """A manager that holds this plugin alone, so that no plugin can break another's hooks.

    Raises:
        PluginError: it implements no hook, one that does not exist, or one with other arguments.
    """
    manager = pluggy.PluginManager("sfumato")
    manager.add_hookspecs(sys.modules[__name__])
    known = list(vars(manager.hook))
    try:
        manager.register(plugin)
    except pluggy.PluginValidationError as error:
        raise PluginError(", ".join(str(error).splitlines()[1:])) from error
    callers = manager.get_hookcallers(plugin)
    if not callers:
        raise PluginError("implements no hook", remedy="mark each with @hookimpl")
    for caller in callers:
        optional = all(implementation.optionalhook for implementation in caller.get_hookimpls())
        if not (caller.has_spec() or optional):
            remedy = suggestion(caller.name, known)
            raise PluginError(f"there is no hook {caller.name!r}", remedy=remedy)
    return manager
