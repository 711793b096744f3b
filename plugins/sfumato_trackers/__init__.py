"""Trackers: where a run shows itself while it goes on.

`progress` writes to a terminal; `tensorboard`, `wandb` and `trackio` to the dashboards of these
names, each with an extra of its name. All three are told the same, see `following`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge

from sfumato import Component, Tracker, hookimpl, option

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


@attrs.frozen(kw_only=True)
class Dashboard(Tracker):
    """What the dashboards have in common."""

    every: int = option(10, "steps from one line of numbers to the next", ge(1))


@attrs.frozen(kw_only=True)
class TensorBoard(Dashboard):
    """Scalars, settings and pictures in `RUN/tensorboard`, for `tensorboard --logdir runs`.

    It needs the extra: `pip install 'sfumato[tensorboard]'`.
    """

    name = "tensorboard"

    def build(self, run: Path) -> object:
        """What writes the event files."""
        from sfumato_trackers.following import Following
        from sfumato_trackers.tensorboard import EventFiles

        return Following(EventFiles(run), self.every)


@attrs.frozen(kw_only=True)
class WeightsAndBiases(Dashboard):
    """A run of Weights & Biases in `RUN/wandb`, offline: it never asks the network, and `wandb sync
    RUN/wandb/offline-run-*` uploads it. `WANDB_MODE=online` in the environment sends it at once.

    It needs the extra: `pip install 'sfumato[wandb]'`.
    """

    name = "wandb"

    project: str = option("sfumato", "that runs are listed in")

    def build(self, run: Path) -> object:
        """What talks to wandb."""
        from sfumato_trackers.following import Following
        from sfumato_trackers.wandb import WandbRun

        return Following(WandbRun(run, self.project), self.every)


@attrs.frozen(kw_only=True)
class Trackio(Dashboard):
    """A run of Trackio among its others on this machine (in `TRACKIO_DIR`, else its cache), for
    `trackio show --project sfumato`. A process follows one such run at a time.

    It needs the extra: `pip install 'sfumato[trackio]'`.
    """

    name = "trackio"

    project: str = option("sfumato", "that runs are listed in")

    def build(self, run: Path) -> object:
        """What talks to Trackio."""
        from sfumato_trackers.following import Following
        from sfumato_trackers.trackio import TrackioRun

        return Following(TrackioRun(run, self.project), self.every)


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [Progress, TensorBoard, WeightsAndBiases, Trackio]
