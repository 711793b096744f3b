"""What a dashboard is told of a run: settings, numbers of steps, pictures, and what was measured.

A dashboard differs from another only in how it takes these, which is a `Sink`. Names are paths, the
stage or the topic first (`denoiser/loss`, `results/color_accuracy/low`), as dashboards group them.
"""

from __future__ import annotations

import importlib
import json
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from sfumato import ConfigError, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import CheckpointSaved, PictureSaved, TrainEnd, TrainStep


class Sink(ABC):
    """Where a run goes."""

    @abstractmethod
    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Takes finite numbers by name."""

    @abstractmethod
    def picture(self, name: str, path: Path, step: int) -> None:
        """Takes the PNG at `path`."""

    def flush(self) -> None:  # noqa: B027 - not every dashboard keeps something back
        """Makes durable what was taken."""

    @abstractmethod
    def close(self) -> None:
        """The run has ended."""


class Following:
    """Watches a run for a sink."""

    def __init__(self, sink: Sink, every: int) -> None:
        """Numbers are taken at each multiple of `every` steps, and at the last step of a stage."""
        self.sink, self.every = sink, every
        self._step = 0

    @hookimpl
    def sfumato_on_train_step(self, step: TrainStep) -> None:
        """Passes loss, learning rate, norm of the gradient and the objective's numbers on."""
        self._step = step.step
        if step.step % self.every and step.stage_step != step.stage_steps:
            return
        values = {
            **step.numbers,
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "seconds": step.seconds,
        }
        self.sink.numbers(flat(values, step.stage), step.step)

    @hookimpl
    def sfumato_on_checkpoint(self, checkpoint: CheckpointSaved) -> None:
        """What a run goes on from, it has said before."""
        self.sink.flush()

    @hookimpl
    def sfumato_on_picture(self, picture: PictureSaved) -> None:
        """Passes a picture on."""
        self._step = max(self._step, picture.step)
        self.sink.picture(picture.name, picture.path, picture.step)

    @hookimpl
    def sfumato_on_train_end(self, end: TrainEnd) -> None:
        """Passes what was measured on, each value with its interval and count."""
        if end.stage is None:
            if measured := flat(end.results, "results"):
                self.sink.numbers(measured, self._step)
            self.sink.close()


def flat(numbers: Mapping[str, Any], path: str) -> dict[str, float]:
    """Nested numbers by their path; what is not a finite number is left out."""
    found: dict[str, float] = {}
    for name, value in numbers.items():
        here = f"{path}/{name}"
        if isinstance(value, Mapping):
            found |= flat(value, here)
        elif isinstance(value, int | float) and math.isfinite(value):
            found[here] = value
    return found


def settings(run: Path) -> dict[str, Any]:
    """The settings of a run, as its folder has them; empty where it has none."""
    path = run / "settings.yaml"
    return dict(yaml.safe_load(path.read_bytes()) or {}) if path.is_file() else {}


def resumed_at(run: Path) -> int | None:
    """The step that a run last went on from; None where it began."""
    resumed = json.loads((run / "run.json").read_bytes()).get("resumed", [])
    return int(resumed[-1]["step"]) if resumed else None


def identity(run: Path) -> str:
    """A name for a run that no other has, and that it keeps when it goes on: drawn once, and kept
    in its folder.
    """
    path = run / "tracker-id"
    if not path.exists():
        path.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def library(module: str, extra: str) -> Any:
    """A module of an extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        problem = f"{error.name} is not installed"
        raise ConfigError(problem, remedy=f"pip install 'sfumato[{extra}]'") from error
