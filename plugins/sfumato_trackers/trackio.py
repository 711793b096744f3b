"""Runs of Trackio."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from sfumato_trackers.following import Sink, identity, library, settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class TrackioRun(Sink):
    """A run under a name that stays the same where training goes on."""

    def __init__(self, run: Path, project: str) -> None:
        """Begins the run, or goes on with it.

        Raises:
            ConfigError: trackio is not installed.
        """
        self.trackio = library("trackio", "trackio")
        with contextlib.redirect_stdout(io.StringIO()):  # standard output is the command's
            self.run = self.trackio.init(
                project=project,
                name=f"{run.resolve().name}-{identity(run)}",
                config=settings(run),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """A row of the run's metrics."""
        self.run.log(dict(values), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """The PNG, copied."""
        self.run.log({name: self.trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        """Waits until all is written."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.finish()
