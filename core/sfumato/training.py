"""Training: the stages of an experiment in their order, a generator of steps.

It knows about run folders, checkpoints and hooks, and nothing about diffusion: what is minimised is
the stage's objective, how is told in `stage`, and on which examples in `batches`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato import checkpoint, claim, compatibility, evaluation, plugins, ranks, resumption, runs
from sfumato.batches import Batches
from sfumato.encoded import Encoded, Encoding
from sfumato.errors import CheckpointError, SfumatoError
from sfumato.experiment import Trained
from sfumato.interruption import Interruption
from sfumato.pipeline import Pipeline
from sfumato.records import CheckpointSaved, TrainEnd, TrainStart, TrainStep
from sfumato.runs import Run, Stored
from sfumato.settings import plain
from sfumato.stage import StageRun, learning_rate
from sfumato.weak import Weak

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from sfumato.engine import Single
    from sfumato.experiment import Experiment, Stage
    from sfumato.modules import TrainableModule
    from sfumato.plugins import Catalogue
    from sfumato.resumption import Resumption
    from sfumato.split import Split
    from sfumato.stage import Outcome


def train(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    device: str | None = None,
    catalogue: Catalogue | None = None,
    resume: bool = False,
    interruption: Interruption | None = None,
) -> Iterator[TrainStep]:
    """Trains the stages of an experiment in their order, then evaluates. Under torchrun the ranks
    share out each batch; the first alone writes, tells who watches, and evaluates.

    Nothing happens until the first step is asked for; the run ends when the iterator does.

    Args:
        experiment: what to train.
        out: the run folder, which must not hold anything; by default `runs/NAME`, or, where that is
            taken, `runs/NAME-2` and so on.
        device: as torch names it; by default the GPU where there is one.
        catalogue: what is installed: its plugins watch, beside the experiment's trackers, it is
            what `plugins.lock` records, and its qualified names go into `settings.yaml`; by default
            loaded anew, without local files.
        resume: go on with the run in `out` (by default `runs/NAME`), from its newest checkpoint
            that is whole. Where there is no run yet, it begins; one that is complete stays so.
        interruption: looked at between steps, also those of sampling; asked, it ends the run after
            one checkpoint.

    Yields:
        Each optimiser step.

    Raises:
        ConfigError: the settings or the folder cannot be used; nothing is written.
        SfumatoError: a number is not finite.
        CheckpointError: no checkpoint can be read, or written.
        Preempted: the run was asked to end, and has.
    """
    catalogue = catalogue or plugins.load()
    interruption = interruption or Interruption()
    usual = Path("runs") / experiment.name
    engine = ranks.engine(device, experiment.parallel)
    path = engine.alone(lambda: Path(out) if out else usual if resume else runs.free_path(usual))
    weak = Weak.find(experiment, catalogue)
    start = _start(experiment, catalogue)
    before = None if start is None else start.trained
    compatibility.check_training(experiment, None if weak is None else weak.trained, before)
    split = experiment.given_data().split("train")
    compatibility.check_batches(experiment, split, engine.ranks)
    with engine.session(), contextlib.ExitStack() as held:
        run, found = Run(path, ours=engine.main), None
        begun = resume and engine.alone(lambda: Run.begun(path))
        if begun:
            engine.alone(lambda: held.enter_context(claim.claimed(path)))
            resumption.check_settings(run, experiment, catalogue)
            if engine.in_turn(lambda: resumption.is_complete(run)):
                return
            found = engine.in_turn(
                lambda: resumption.find(run, experiment, catalogue, before, weak)
            )
        pipeline = _built(experiment, split, start, weak) if found is None else found.pipeline
        pipeline.text_dropout = compatibility.text_dropout(experiment, before)
        evaluation.check(pipeline, experiment.evaluation)
        loop = _Loop(experiment, pipeline, split, engine, catalogue, before, interruption)

        def begin() -> None:
            if begun:
                run.go_on(found.trained.step if found else 0, experiment, catalogue, engine.ranks)
                run.retire(experiment.checkpoints, loop.ends)  # a kill may have come before it
            else:
                held.enter_context(runs.new_folder(path))
                _begun(path, experiment, catalogue, start, engine.ranks)

        engine.alone(begin)
        yield from _recorded(run, loop.run(run, found, weak))


def _start(experiment: Experiment, catalogue: Catalogue) -> Stored | None:
    """The checkpoint that training starts from, if any."""
    if experiment.start is None:
        return None
    return Stored.find(experiment.start, "start", catalogue)


def _built(
    experiment: Experiment, split: Split, start: Stored | None, weak: Weak | None
) -> Pipeline:
    """The pipeline at the first step: with drawn weights, or those of the start."""
    seed, captions = experiment.seed, split.texts()
    if start is None:
        pipeline = Pipeline(experiment, experiment.text_encoder.fit(captions), seed, weak=weak)
    else:
        schedule = compatibility.noise_schedule(experiment, start.trained)
        pipeline = Pipeline.restored(start, experiment, seed, schedule=schedule, weak=weak)
    pipeline.text_encoder.check(dict.fromkeys(captions))
    return pipeline


def _begun(
    path: Path, experiment: Experiment, catalogue: Catalogue, start: Stored | None, ranks: int
) -> None:
    run = Run.create(path, experiment, catalogue, ranks)
    if start is not None:
        run.update(start={"checkpoint": str(start.path), "files": checkpoint.hashes(start.path)})


def _recorded(run: Run, steps: Iterator[TrainStep]) -> Iterator[TrainStep]:
    """The steps; how they end stands in the record."""
    try:
        yield from steps
    except BaseException as error:
        ended = isinstance(error, KeyboardInterrupt | GeneratorExit)
        facts = {"status": "preempted"} if ended else {"status": "failed", "error": str(error)}
        with contextlib.suppress(CheckpointError):  # a full disk must not hide what happened
            run.update(**facts)
        raise


class _Loop:
    """What the stages of one run share."""

    def __init__(
        self,
        experiment: Experiment,
        pipeline: Pipeline,
        split: Split,
        engine: Single,
        catalogue: Catalogue,
        start: Trained | None,
        interruption: Interruption,
    ) -> None:
        self.experiment, self.pipeline, self.split = experiment, pipeline, split
        self.catalogue, self.interruption = catalogue, interruption
        self.engine = engine
        self.step = 0
        self.text_dropout = None if start is None else start.text_dropout
        self.trained = set(() if start is None else start.slots)
        self.schedule = experiment.noise_schedule if start is None else start.noise_schedule
        pipeline.to(engine.device)
        self.replaced: dict[int, str] = {}
        self.objectives = {
            name: stage.objective.build(pipeline).to(engine.device)
            for name, stage in experiment.stages.items()
        }
        steps = [stage.steps for stage in experiment.stages.values()]
        self.ends = list(itertools.accumulate(steps))

    def run(self, run: Run, found: Resumption | None, weak: Weak | None) -> Iterator[TrainStep]:
        """The stages, then the evaluation."""
        pipeline = self.pipeline
        if self.engine.main:
            pipeline.watchers = self.catalogue.watchers()
            for tracker in self.experiment.trackers:
                make = functools.partial(tracker.build, run.path)
                pipeline.watchers.add(f"tracker {tracker.name}", make)
        with self.engine.failing_together():
            yield from self.run_stages(run, found)
            if weak is not None:
                weak.check_neighbours(run.newest_checkpoint())
            pipeline.between_steps = functools.partial(self.interruption.check, "evaluation")
            results = self.engine.alone(lambda: self.evaluate(run))
        run.update(status="completed", results=results)
        self.notify("sfumato_on_train_end", end=TrainEnd(run=run.path, stage=None, results=results))

    def evaluate(self, run: Run) -> dict[str, Any]:
        evaluated, seed = self.experiment.evaluation, self.experiment.seed
        return evaluation.evaluate(self.pipeline, evaluated, seed, run, self.step)

    def run_stages(self, run: Run, found: Resumption | None) -> Iterator[TrainStep]:
        done = 0 if found is None else found.trained.step
        for (name, stage), end in zip(self.experiment.stages.items(), self.ends, strict=True):
            if done < end:
                begun = found if found is not None and found.trained.unfinished else None
                yield from self.train_stage(name, stage, run, begun)
                found = None
            self.step = end
            self.trained.add(stage.objective.trains)
            if stage.objective.trains == "denoiser":
                self.schedule = self.experiment.noise_schedule
            self.pipeline.trained = frozenset(self.trained)
            if stage.objective.text_dropout is not None:
                self.text_dropout = stage.objective.text_dropout
            if done < end:
                self.save(run, name)
                self.notify("sfumato_on_train_end", end=TrainEnd(run=run.path, stage=name))
                self.check(run)

    def check(self, run: Run) -> None:
        """Ends the run here if any rank was asked to."""
        self.interruption.check(f"{run.path}, step {self.step}", self.engine.largest)

    def notify(self, hook: str, **record: Any) -> None:
        self.pipeline.watchers.notify(hook, **record)

    def train_stage(
        self, name: str, stage: Stage, run: Run, begun: Resumption | None
    ) -> Iterator[TrainStep]:
        slot: TrainableModule = getattr(self.pipeline, stage.objective.trains)
        under_way = StageRun(
            name, stage, slot, self.objectives[name], self.engine, self.experiment.seed
        )
        if begun is not None:
            self.step = begun.trained.step
            done = self.step - (self.ends[list(self.objectives).index(name)] - stage.steps)
            under_way.restore(done, slot.state_dict(), begun.state)
        count = sum(parameter.numel() for parameter in under_way.parameters.values())
        run.update(parameters={**run.record()["parameters"], name: count})
        start = TrainStart(run=run.path, stage=name, steps=stage.steps, parameters=count)
        self.notify("sfumato_on_train_start", start=start)
        self.check(run)
        batches = Batches(
            split=self.split,
            seed=self.experiment.seed,
            stage=name,
            size=stage.batch,
            rows=self.engine.rows(stage.batch),
            encoded=self.encoded(stage),
        )
        steps = range(under_way.step, stage.steps)
        began = time.perf_counter()
        for batch in batches.of(steps, self.engine.device, self.experiment.workers):
            self.replaced.update(batch.replaced)
            outcome = under_way.advance(batch)
            self.step += 1
            if outcome.skipped:
                self.leave_out(under_way, run)
            done_step = train_step(under_way, self.step, outcome, time.perf_counter() - began)
            run.log(log_line(done_step))
            self.notify("sfumato_on_train_step", step=done_step)
            asked = self.interruption.asked(self.engine.largest)
            stopping = asked and under_way.step < stage.steps
            if stopping or (self.due(self.step) and under_way.step < stage.steps):
                self.save(run, name, under_way)
            yield done_step
            if stopping:
                self.check(run)
            began = time.perf_counter()
        under_way.finish()

    def encoded(self, stage: Stage) -> Encoded | None:
        """What the frozen encoders say of all examples, where the stage keeps that."""
        if stage.cache is None:
            return None
        encoding = Encoding(self.experiment, self.pipeline, self.split, stage, self.engine)
        return self.engine.in_turn(encoding.complete)

    def due(self, step: int) -> bool:
        """Whether a checkpoint of this step is asked for by the settings."""
        every = self.experiment.checkpoints.every
        return every is not None and step % every == 0

    def leave_out(self, under_way: StageRun, run: Run) -> None:
        """Counts a step that was not finite, and where the stage asks for it goes back to the
        weights of its last checkpoint that was due: any other would depend on interruptions.

        Raises:
            SfumatoError: there is none.
        """
        counts = run.record().get("skipped", {})
        run.update(skipped={**counts, under_way.name: counts.get(under_way.name, 0) + 1})
        if under_way.settings.nonfinite != "rollback":
            return
        began = self.step - under_way.step
        steps = [step for step in run.checkpoint_steps() if began < step and self.due(step)]
        if not steps:
            raise SfumatoError(
                "the loss or its gradient is not finite, and there is no checkpoint to go back to",
                place=f"stage {under_way.name}, step {under_way.step}",
                remedy="no weight was moved; set checkpoints.every to a smaller number",
            )
        states, _ = checkpoint.read(run.checkpoint(steps[-1]))
        slot = under_way.settings.objective.trains
        under_way.roll_back(states[slot], states[checkpoint.TRAINING])

    def states(self, under_way: StageRun | None = None) -> dict[str, Mapping[str, Tensor]]:
        """What a checkpoint holds: the weights of each slot that has any, averaged where there is
        an average, and what a stage needs that is under way; of all ranks, on the first.
        """
        modules = self.pipeline.modules()
        states: dict[str, Mapping[str, Tensor]] = {
            slot: state for slot, module in modules.items() if (state := module.state_dict())
        }
        if under_way is not None:
            states[under_way.settings.objective.trains] = under_way.weights()
            states[checkpoint.TRAINING] = under_way.state()
        return {slot: self.engine.whole(state) for slot, state in states.items()}

    def save(self, run: Run, stage: str, under_way: StageRun | None = None) -> None:
        """Writes a checkpoint, then removes those that are not to be kept."""
        states = self.states(under_way)
        facts = self.facts(stage, under_way is not None)
        self.engine.alone(lambda: self.write(run, states, facts))

    def facts(self, stage: str, unfinished: bool) -> Trained:
        objective = self.experiment.stages[stage].objective
        settings, dropout = self.experiment, objective.text_dropout
        return Trained(
            step=self.step,
            stage=stage,
            unfinished=unfinished,
            slots=tuple(sorted({*self.trained, objective.trains})),
            text_dropout=self.text_dropout if dropout is None else dropout,
            noise_schedule=self.schedule
            if objective.trains != "denoiser"
            else settings.noise_schedule,
            text_encoder=settings.text_encoder,
            denoiser=settings.denoiser,
            autoencoder=settings.autoencoder,
        )

    def write(self, run: Run, states: Mapping[str, Mapping[str, Tensor]], facts: Trained) -> None:
        run.sync()
        path = run.checkpoint(self.step)
        files = self.pipeline.text_encoder.files
        checkpoint.write(path, states, files, plain(facts, self.catalogue))
        run.retire(self.experiment.checkpoints, self.ends)
        self.notify("sfumato_on_checkpoint", checkpoint=CheckpointSaved(path=path, step=self.step))
        faults = [*self.split.faults, *self.replaced.values()]
        run.update(
            examples=len(self.split),
            dropped=self.split.dropped + len(self.replaced),
            bad_examples=faults[:10],
        )


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


def log_line(step: TrainStep) -> dict[str, Any]:
    """A step as a line of `metrics.jsonl`; JSON has no word for a number that is not finite."""
    line: dict[str, Any] = {
        **step.numbers,
        "stage": step.stage,
        "step": step.step,
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "seconds": round(step.seconds, 4),
    }
    if not step.skipped:
        return line
    missing = {
        name: None
        for name, value in line.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    return {**line, **missing, "skipped": True}
