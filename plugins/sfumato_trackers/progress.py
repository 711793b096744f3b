"""Progress of training, through rich."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sfumato import hookimpl

if TYPE_CHECKING:
    from sfumato import SampleStep, TrainEnd, TrainStart, TrainStep

EVERY_SECONDS = 10.0


class ProgressBar:
    """Watches a run. The loss shown is a running mean over about fifty steps."""

    def __init__(self, console: Console | None = None) -> None:
        """`console` is where it writes; by default standard error."""
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._loss: float | None = None
        self._said = 0.0
        self._sampled = 0

    @hookimpl
    def sfumato_on_train_start(self, start: TrainStart) -> None:
        """Opens the bar of a stage."""
        self._loss, self._said = None, time.monotonic()
        self.console.print(
            f"stage {start.stage}: {start.steps} steps, {start.parameters:,} parameters",
            highlight=False,
        )
        if self.console.is_terminal:
            text = TextColumn(
                "{task.description} {task.completed}/{task.total} {task.fields[loss]}"
            )
            self._bar = Progress(text, BarColumn(), TimeRemainingColumn(), console=self.console)
            self._task = self._bar.add_task(start.stage, total=start.steps, loss="")
            self._bar.start()

    @hookimpl
    def sfumato_on_train_step(self, step: TrainStep) -> None:
        """Moves the bar, or says a line when the last one is some seconds old."""
        if not step.skipped:
            self._loss = step.loss if self._loss is None else 0.98 * self._loss + 0.02 * step.loss
        shown = "no loss yet" if self._loss is None else f"loss {self._loss:.4f}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step.stage_step, loss=shown)
        elif time.monotonic() - self._said >= EVERY_SECONDS or step.stage_step == step.stage_steps:
            self._said = time.monotonic()
            self.console.print(
                f"  {step.stage} {step.stage_step}/{step.stage_steps} {shown}", highlight=False
            )

    @hookimpl
    def sfumato_on_train_end(self, end: TrainEnd) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @hookimpl
    def sfumato_on_sample_step(self, step: SampleStep) -> None:
        """Says now and then that measuring goes on."""
        self._sampled += 1
        if time.monotonic() - self._said >= EVERY_SECONDS:
            self._said = time.monotonic()
            self.console.print(f"  measuring, {self._sampled} sampler steps done", highlight=False)
