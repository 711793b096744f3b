"""Who watches a run: plugins and trackers, told what happens through the lifecycle hooks.

One that fails is switched off with a warning and the run goes on: nothing flows back.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from sfumato.errors import cause
from sfumato.hookspecs import manager_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pluggy


class Watchers:
    """Objects or modules with hook implementations, each under a name for messages."""

    def __init__(self) -> None:
        """Nobody watches at first."""
        self._managers: list[tuple[str, pluggy.PluginManager]] = []

    def add(self, name: str, make: Callable[[], object]) -> None:
        """Adds what `make` makes; a failure is a warning that names it."""
        try:
            self._managers.append((name, manager_of(make())))
        except Exception as error:
            problem = f"{name} failed to start and is left out: {cause(error)}"
            warnings.warn(problem, stacklevel=2)

    def notify(self, hook: str, **record: Any) -> None:
        """Calls one lifecycle hook of every watcher with its one record."""
        for watcher in list(self._managers):
            name, manager = watcher
            try:
                getattr(manager.hook, hook)(**record)
            except (Exception, SystemExit) as error:  # rich exits where a pipe is closed
                self._managers.remove(watcher)
                problem = f"{name} failed in {hook} and is switched off: {cause(error)}"
                warnings.warn(problem, stacklevel=2)
