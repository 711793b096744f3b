"""Trackers: where a run shows itself while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sfumato import Component, Tracker, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SFUMATO_API = 1


@attrs.frozen(kw_only=True)
class Progress(Tracker):
    """A progress bar for each stage on a terminal, a plain line now and then elsewhere."""

    name = "progress"

    def build(self, run: Path) -> object:
        """The bar."""
        from sfumato_trackers.progress import ProgressBar

        return ProgressBar()


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [Progress]
