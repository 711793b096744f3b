"""The checkpoints of a run under way: what they hold, when one is due, and which are kept.

It knows nothing about steps and batches; `checkpoint` knows how files are written.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import attrs

from sfumato import checkpoint
from sfumato.engine import Single
from sfumato.errors import SfumatoError
from sfumato.experiment import Experiment, Trained
from sfumato.pipeline import Pipeline
from sfumato.plugins import Catalogue
from sfumato.records import CheckpointSaved
from sfumato.runs import Run
from sfumato.settings import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sfumato.stage import StageRun


def trained(
    experiment: Experiment, stage: str, step: int, before: Trained | None, unfinished: bool = False
) -> Trained:
    """What a checkpoint says of itself that is written in a stage, or, unless `unfinished`, at its
    end; `before` is what was trained when the stage began.
    """
    objective = experiment.stages[stage].objective
    schedule, dropout = experiment.noise_schedule, objective.text_dropout
    if before is not None and objective.trains != "denoiser":
        schedule = before.noise_schedule
    if before is not None and dropout is None:
        dropout = before.text_dropout
    return Trained(
        step=step,
        stage=stage,
        unfinished=unfinished,
        slots=tuple(sorted({*(before.slots if before else ()), objective.trains})),
        text_dropout=dropout,
        noise_schedule=schedule,
        text_encoder=experiment.text_encoder,
        denoiser=experiment.denoiser,
        autoencoder=experiment.autoencoder,
    )


@attrs.frozen(eq=False)
class Saving:
    """The checkpoints of one run."""

    run: Run
    experiment: Experiment
    pipeline: Pipeline
    engine: Single
    catalogue: Catalogue

    @property
    def ends(self) -> list[int]:
        """The steps of the run at which its stages end."""
        return list(itertools.accumulate(one.steps for one in self.experiment.stages.values()))

    def due(self, step: int) -> bool:
        """Whether a checkpoint of this step is asked for by the settings."""
        every = self.experiment.checkpoints.every
        return every is not None and step % every == 0

    def save(self, facts: Trained, under_way: StageRun | None = None) -> None:
        """Writes a checkpoint, then removes those that are not to be kept."""
        states = self._states(under_way)
        self.engine.alone(lambda: self._write(states, facts))

    def retire(self) -> None:
        """Removes the checkpoints that are not to be kept."""
        self.run.retire(self.experiment.checkpoints, self.ends)

    def roll_back(self, under_way: StageRun, step: int) -> None:
        """Gives a stage that stands at a step of the run the weights of its last checkpoint that
        was due: any other would depend on interruptions.

        Raises:
            SfumatoError: there is none.
        """
        began = step - under_way.step
        steps = [one for one in self.run.checkpoint_steps() if began < one and self.due(one)]
        if not steps:
            raise SfumatoError(
                "the loss or its gradient is not finite, and there is no checkpoint to go back to",
                place=f"stage {under_way.name}, step {under_way.step}",
                remedy="no weight was moved; set checkpoints.every to a smaller number",
            )
        states, _ = checkpoint.read(self.run.checkpoint(steps[-1]))
        slot = under_way.settings.objective.trains
        under_way.roll_back(states[slot], states[checkpoint.TRAINING])

    def _states(self, under_way: StageRun | None) -> dict[str, Mapping[str, Tensor]]:
        """The weights of each slot that has any, averaged where there is an average, and what a
        stage needs that is under way; of all ranks, on the first.
        """
        modules = self.pipeline.modules()
        states: dict[str, Mapping[str, Tensor]] = {
            slot: state for slot, module in modules.items() if (state := module.state_dict())
        }
        if under_way is not None:
            states[under_way.settings.objective.trains] = under_way.weights()
            states[checkpoint.TRAINING] = under_way.state()
        return {slot: self.engine.whole(state) for slot, state in states.items()}

    def _write(self, states: Mapping[str, Mapping[str, Tensor]], facts: Trained) -> None:
        self.run.sync()
        path = self.run.checkpoint(facts.step)
        files = self.pipeline.text_encoder.files
        checkpoint.write(path, states, files, plain(facts, self.catalogue))
        self.retire()
        saved = CheckpointSaved(path=path, step=facts.step)
        self.pipeline.watchers.notify("sfumato_on_checkpoint", checkpoint=saved)
