"""The loop of a run: its stages in their order, step by step.

It knows when to save, to stop and to tell who watches, and nothing about diffusion: how a step is
made is told in `stage`, on which examples in `batches`, and what is saved in `saving`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sfumato import bad_examples, checkpoint, reuse, saving, stage_keys
from sfumato.bad_examples import BadExamples
from sfumato.batches import Batches
from sfumato.encoded import Encoded, Encoding
from sfumato.engine import Single
from sfumato.experiment import Experiment, Stage, Trained
from sfumato.interruption import Interruption
from sfumato.modules import ObjectiveModule
from sfumato.pipeline import Pipeline
from sfumato.records import Batch, TrainEnd, TrainStart, TrainStep
from sfumato.reuse import Shelf
from sfumato.runs import Run
from sfumato.saving import Saving
from sfumato.split import Split
from sfumato.stage import Outcome, StageRun, learning_rate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sfumato.modules import TrainableModule
    from sfumato.resumption import Resumption

LOGGED = ("stage", "step", "loss", "learning_rate", "gradient_norm")


@attrs.define(eq=False)
class Loop:
    """What the stages of one run share.

    Attributes:
        trained: what is trained so far; None where nothing is.
        objectives: of each stage.
        bad: examples, as far as they are known.
        shelf: of stages that need not be trained; only the first rank looks there.
        step: how many steps of the run are done.
    """

    run: Run
    experiment: Experiment
    pipeline: Pipeline
    split: Split
    engine: Single
    interruption: Interruption
    saving: Saving
    trained: Trained | None
    objectives: Mapping[str, ObjectiveModule]
    bad: BadExamples
    shelf: Shelf
    step: int = 0

    def stages(self, found: Resumption | None) -> Iterator[TrainStep]:
        """The steps of all stages, from those on that a checkpoint has not."""
        done = 0 if found is None else found.trained.step
        for (name, stage), end in zip(
            self.experiment.stages.items(), self.saving.ends, strict=True
        ):
            if done < end:
                begun = found if found is not None and found.trained.unfinished else None
                if begun is not None or not self._taken(name, end):
                    yield from self._stage(name, stage, begun)
                found = None
            self.step = end
            self.trained = saving.trained(self.experiment, name, end, self.trained)
            self.pipeline.trained = frozenset(self.trained.slots)
            if done < end:
                self._save(self.trained)
                self._notify("sfumato_on_train_end", end=TrainEnd(run=self.run.path, stage=name))
                self._check()

    def note_keys(self, step: int) -> dict[str, str | None]:
        """The keys of the stages of a run that stands at `step`, written into its record too.

        They are not known of a run that began before there were any.
        """
        before, experiment, catalogue = self.run.record(), self.experiment, self.saving.catalogue
        weights = before.get("initial") if step else stage_keys.initial(experiment, self.pipeline)
        if weights is None:
            return {}
        keys = stage_keys.keys(experiment, catalogue, self.split, self.engine, weights)
        ends = dict(zip(experiment.stages, self.saving.ends, strict=True))
        stages = reuse.recorded(keys, before.get("stages", {}), ends, step)
        self.run.update(initial=weights, stages=stages, **stage_keys.device(self.engine))
        return {name: stage["key"] for name, stage in stages.items()}

    def _taken(self, name: str, end: int) -> bool:
        """Puts the weights that a stage ends in into the pipeline, and its lines into the log, if
        they are at hand; `end` is the last step of the stage.
        """
        found = self.engine.alone(lambda: self.shelf.find(name))
        if found is None:
            return False
        slot = self.experiment.stages[name].objective.trains
        checkpoint.restore(getattr(self.pipeline, slot), found.weights(slot), str(found.path))
        lines = found.lines(end)
        self.bad.add(BadExamples.logged(lines))
        for line in lines:
            self.run.log(line)
        record = self.run.record()
        taken = {**record["stages"][name], "taken": f"{found.run.path}@{found.last}"}
        self.run.update(
            stages={**record["stages"], name: taken},
            **{fact: {**record[fact], name: count} for fact, count in found.counts().items()},
        )
        return True

    def _stage(self, name: str, stage: Stage, begun: Resumption | None) -> Iterator[TrainStep]:
        under_way = self._begun(name, stage, begun)
        began = time.perf_counter()
        for batch in self._batches(under_way):
            bad = self.bad.add(batch.replaced)
            outcome = under_way.advance(batch)
            self.step += 1
            if outcome.skipped:
                self._leave_out(under_way)
            done = train_step(under_way, self.step, outcome, time.perf_counter() - began)
            self.run.log(log_line(done, bad))
            self._notify("sfumato_on_train_step", step=done)
            unfinished = under_way.step < stage.steps
            stopping = self.interruption.asked(self.engine.largest) and unfinished
            if stopping or (self.saving.due(self.step) and unfinished):
                facts = saving.trained(self.experiment, name, self.step, self.trained, unfinished)
                self._save(facts, under_way)
            yield done
            if stopping:
                self._check()
            began = time.perf_counter()
        under_way.finish()

    def _begun(self, name: str, stage: Stage, begun: Resumption | None) -> StageRun:
        """A stage at its first step, or where a checkpoint left it."""
        slot: TrainableModule = getattr(self.pipeline, stage.objective.trains)
        objective, seed = self.objectives[name], self.experiment.seed
        under_way = StageRun(name, stage, slot, objective, self.engine, seed)
        if begun is not None:
            done = begun.trained.step - self.step
            self.step = begun.trained.step
            under_way.restore(done, slot.state_dict(), begun.state)
        count = sum(parameter.numel() for parameter in under_way.parameters.values())
        self.run.update(parameters={**self.run.record()["parameters"], name: count})
        start = TrainStart(run=self.run.path, stage=name, steps=stage.steps, parameters=count)
        self._notify("sfumato_on_train_start", start=start)
        self._check()
        return under_way

    def _batches(self, under_way: StageRun) -> Iterator[Batch]:
        """Those of the steps that a stage still has to do."""
        stage = under_way.settings
        batches = Batches(
            split=self.split,
            seed=self.experiment.seed,
            stage=under_way.name,
            size=stage.batch,
            rows=self.engine.rows(stage.batch),
            encoded=self._encoded(stage),
        )
        steps = range(under_way.step, stage.steps)
        return batches.of(steps, self.engine.device, self.experiment.workers)

    def _encoded(self, stage: Stage) -> Encoded | None:
        """What the frozen encoders say of all examples, where the stage keeps that."""
        if stage.cache is None:
            return None
        encoding = Encoding(
            self.experiment,
            self.pipeline,
            self.split,
            stage,
            self.engine,
            self.saving.catalogue,
        )
        return self.engine.in_turn(encoding.complete)

    def _leave_out(self, under_way: StageRun) -> None:
        """Counts a step that was not finite, and rolls back where the stage asks for it."""
        counts = self.run.record().get("skipped", {})
        self.run.update(skipped={**counts, under_way.name: counts.get(under_way.name, 0) + 1})
        if under_way.settings.nonfinite == "rollback":
            self.saving.roll_back(under_way, self.step)

    def _save(self, facts: Trained, under_way: StageRun | None = None) -> None:
        self.saving.save(facts, under_way)
        self.run.update(**self.bad.record())

    def _check(self) -> None:
        """Ends the run here if any rank was asked to."""
        self.interruption.check(f"{self.run.path}, step {self.step}", self.engine.largest)

    def _notify(self, hook: str, **record: Any) -> None:
        self.pipeline.watchers.notify(hook, **record)


def train_step(under_way: StageRun, step: int, outcome: Outcome, seconds: float) -> TrainStep:
    """The step that a stage has just done, as the `step`-th of the run."""
    stage = under_way.settings
    return TrainStep(
        stage=under_way.name,
        step=step,
        stage_step=under_way.step,
        stage_steps=stage.steps,
        loss=outcome.loss,
        learning_rate=learning_rate(stage, under_way.step - 1),
        gradient_norm=outcome.gradient_norm,
        seconds=seconds,
        numbers=outcome.numbers,
        skipped=outcome.skipped,
    )


def log_line(step: TrainStep, bad: Mapping[int, str]) -> dict[str, Any]:
    """A step as a line of `metrics.jsonl`, with the examples that it found to be `bad`.

    JSON has no word for a number that is not finite.
    """
    line = {**step.numbers, **{name: getattr(step, name) for name in LOGGED}}
    line["seconds"] = round(step.seconds, 4)
    if step.skipped:
        for name, value in line.items():
            if isinstance(value, float) and not math.isfinite(value):
                line[name] = None
        line["skipped"] = True
    return {**line, bad_examples.LOGGED: bad} if bad else line
