"""Runs of Weights & Biases."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sfumato_trackers.following import Sink, identity, library, settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class WandbRun(Sink):
    """A run with an id that stays the same where training goes on; offline each part has a folder
    of its own, and `wandb sync` puts them together.
    """

    def __init__(self, run: Path, project: str) -> None:
        """Begins the run, or a further part of it.

        Raises:
            ConfigError: wandb is not installed.
        """
        self.wandb = library("wandb", "wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        self.run = self.wandb.init(
            project=project,
            name=run.resolve().name,
            id=identity(run),
            resume="allow" if mode == "online" else None,
            dir=str(run),
            mode=mode,
            config=settings(run),
            settings=self.wandb.Settings(
                console="off",  # what a run prints is not wandb's to catch
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """A row of the run's history."""
        self.run.log(dict(values), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """The PNG, copied."""
        self.run.log({name: self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Ends the run and waits for its file."""
        self.run.finish()
