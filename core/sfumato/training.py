"""Training: the stages of an experiment in their order, a generator of steps.

It knows about run folders, checkpoints and hooks, and nothing about diffusion: what is minimised is
the stage's objective, how is told in `stage`, and on which examples in `batches`.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato import checkpoint, compatibility, evaluation, plugins, runs
from sfumato.batches import batch_at
from sfumato.engine import Single
from sfumato.experiment import Trained
from sfumato.pipeline import Pipeline
from sfumato.records import CheckpointSaved, TrainEnd, TrainStart, TrainStep
from sfumato.runs import Run, Stored
from sfumato.settings import plain
from sfumato.stage import StageRun, learning_rate
from sfumato.weak import Weak

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sfumato.experiment import Experiment, Stage
    from sfumato.interfaces import Split
    from sfumato.modules import TrainableModule
    from sfumato.plugins import Catalogue
    from sfumato.records import Batch


def train(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    device: str | None = None,
    catalogue: Catalogue | None = None,
) -> Iterator[TrainStep]:
    """Trains the stages of an experiment in their order, then evaluates.

    Nothing happens until the first step is asked for; the run ends when the iterator does.

    Args:
        experiment: what to train.
        out: the run folder, which must not hold anything; by default `runs/NAME`, or, where that is
            taken, `runs/NAME-2` and so on.
        device: as torch names it; by default the GPU where there is one.
        catalogue: what is installed: its plugins watch, beside the experiment's trackers, it is
            what `plugins.lock` records, and its qualified names go into `settings.yaml`; by default
            loaded anew, without local files.

    Yields:
        Each optimiser step.

    Raises:
        ConfigError: the settings or the folder cannot be used; nothing is written.
        SfumatoError: a number is not finite.
    """
    catalogue = catalogue or plugins.load()
    weak = Weak.find(experiment, catalogue)
    start = _start(experiment, catalogue)
    before = None if start is None else start.trained
    compatibility.check_training(experiment, None if weak is None else weak.trained, before)
    split = experiment.given_data().split("train")
    compatibility.check_batches(experiment, len(split))
    captions = [split.caption(i) for i in range(len(split))]
    pipeline = _built(experiment, captions, start, weak)
    pipeline.text_encoder.check(dict.fromkeys(captions))
    pipeline.text_dropout = compatibility.text_dropout(experiment, before)
    loop = _Loop(experiment, pipeline, split, Single(device), catalogue, before)
    evaluation.check(pipeline, experiment.evaluation)
    path = Path(out) if out else runs.free_path(Path("runs") / experiment.name)
    run = Run.create(path, experiment, catalogue)
    if start is not None:
        run.update(start={"checkpoint": str(start.path), "files": checkpoint.hashes(start.path)})
    pipeline.watchers = catalogue.watchers()
    for tracker in experiment.trackers:
        pipeline.watchers.add(f"tracker {tracker.name}", functools.partial(tracker.build, run.path))
    try:
        yield from loop.run_stages(run)
        if weak is not None:
            weak.check_neighbours(run.newest_checkpoint())
        results = evaluation.evaluate(
            pipeline, experiment.evaluation, experiment.seed, run, loop.step
        )
        run.update(status="completed", results=results)
        end = TrainEnd(run=run.path, stage=None, results=results)
        pipeline.watchers.notify("sfumato_on_train_end", end=end)
    except (KeyboardInterrupt, GeneratorExit):
        run.update(status="preempted")
        raise
    except BaseException as error:
        run.update(status="failed", error=str(error))
        raise


def _start(experiment: Experiment, catalogue: Catalogue) -> Stored | None:
    """The checkpoint that training starts from, if any."""
    if experiment.start is None:
        return None
    return Stored.find(experiment.start, "start", catalogue)


def _built(
    experiment: Experiment, captions: Sequence[str], start: Stored | None, weak: Weak | None
) -> Pipeline:
    """The pipeline at the first step: with drawn weights, or those of the start."""
    seed = experiment.seed
    if start is None:
        return Pipeline(experiment, experiment.text_encoder.fit(captions), seed, weak=weak)
    schedule = compatibility.noise_schedule(experiment, start.trained)
    return Pipeline.restored(start, experiment, seed, schedule=schedule, weak=weak)


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
    ) -> None:
        self.experiment, self.pipeline, self.split = experiment, pipeline, split
        self.catalogue = catalogue
        self.engine = engine
        self.step = 0
        self.text_dropout = None if start is None else start.text_dropout
        self.trained = set(() if start is None else start.slots)
        self.schedule = experiment.noise_schedule if start is None else start.noise_schedule
        pipeline.to(engine.device)
        self.objectives = {
            name: stage.objective.build(pipeline).to(engine.device)
            for name, stage in experiment.stages.items()
        }

    def run_stages(self, run: Run) -> Iterator[TrainStep]:
        for name, stage in self.experiment.stages.items():
            yield from self.train_stage(name, stage, run)
            if stage.objective.text_dropout is not None:
                self.text_dropout = stage.objective.text_dropout
            self.trained.add(stage.objective.trains)
            if stage.objective.trains == "denoiser":
                self.schedule = self.experiment.noise_schedule
            self.pipeline.trained = frozenset(self.trained)
            self.save(name, run)
            self.notify("sfumato_on_train_end", end=TrainEnd(run=run.path, stage=name))

    def notify(self, hook: str, **record: Any) -> None:
        self.pipeline.watchers.notify(hook, **record)

    def train_stage(self, name: str, stage: Stage, run: Run) -> Iterator[TrainStep]:
        slot: TrainableModule = getattr(self.pipeline, stage.objective.trains)
        under_way = StageRun(
            name, stage, slot, self.objectives[name], self.engine, self.experiment.seed
        )
        count = sum(parameter.numel() for parameter in under_way.parameters.values())
        run.update(parameters={**run.record()["parameters"], name: count})
        start = TrainStart(run=run.path, stage=name, steps=stage.steps, parameters=count)
        self.notify("sfumato_on_train_start", start=start)
        while under_way.step < stage.steps:
            began, at = time.perf_counter(), under_way.step
            outcome = under_way.advance(self.batch(name, stage, at))
            self.step += 1
            done = TrainStep(
                stage=name, step=self.step, stage_step=at + 1, stage_steps=stage.steps,
                loss=outcome.loss, learning_rate=learning_rate(stage, at),
                gradient_norm=outcome.gradient_norm, seconds=time.perf_counter() - began,
                numbers=outcome.numbers,
            )  # fmt: skip
            run.log(log_line(done))
            self.notify("sfumato_on_train_step", step=done)
            yield done
        under_way.finish()

    def batch(self, name: str, stage: Stage, step: int) -> Batch:
        seed, device = self.experiment.seed, self.engine.device
        return batch_at(self.split, seed, name, stage.batch, step, device)

    def save(self, stage: str, run: Run) -> None:
        path = run.checkpoint(self.step)
        states = {slot: module.state_dict() for slot, module in self.pipeline.modules().items()}
        settings = self.experiment
        facts = Trained(
            step=self.step,
            stage=stage,
            slots=tuple(sorted(self.trained)),
            text_dropout=self.text_dropout,
            noise_schedule=self.schedule,
            text_encoder=settings.text_encoder,
            denoiser=settings.denoiser,
            autoencoder=settings.autoencoder,
        )
        checkpoint.write(
            path,
            {slot: state for slot, state in states.items() if state},
            self.pipeline.text_encoder.files,
            plain(facts, self.catalogue),
        )
        saved = CheckpointSaved(path=path, step=self.step)
        self.notify("sfumato_on_checkpoint", checkpoint=saved)
        run.update(examples=len(self.split), dropped=self.split.dropped)


def log_line(step: TrainStep) -> dict[str, Any]:
    """A step as a line of `metrics.jsonl`."""
    return {
        **step.numbers,
        "stage": step.stage,
        "step": step.step,
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "seconds": round(step.seconds, 4),
    }
