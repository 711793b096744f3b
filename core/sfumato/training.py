"""Training: an experiment from its settings to a run folder that is complete, a generator of steps.

It knows how a run begins, goes on and ends; what is between stands in `loop`.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sfumato import (
    checkpoint,
    claim,
    compatibility,
    evaluation,
    plugins,
    ranks,
    resumption,
    runs,
    stage_keys,
)
from sfumato.bad_examples import BadExamples
from sfumato.engine import Single
from sfumato.errors import CheckpointError
from sfumato.interruption import Interruption
from sfumato.loop import Loop
from sfumato.pipeline import Pipeline
from sfumato.records import PictureSaved, TrainEnd
from sfumato.reuse import Shelf
from sfumato.runs import Run, Stored
from sfumato.saving import Saving
from sfumato.weak import Weak

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sfumato.experiment import Experiment, Trained
    from sfumato.plugins import Catalogue
    from sfumato.records import TrainStep
    from sfumato.resumption import Resumption
    from sfumato.split import Split


def train(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    device: str | None = None,
    catalogue: Catalogue | None = None,
    resume: bool = False,
    interruption: Interruption | None = None,
    reuse: str | Path | None = None,
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
        reuse: a folder of runs, or a run: a stage that one of them has finished, and that read
            nothing else than ours will, is taken from there instead of trained, to the same bits.

    Yields:
        Each optimiser step that is done here.

    Raises:
        ConfigError: the settings or the folder cannot be used; nothing is written.
        SfumatoError: a number is not finite.
        CheckpointError: no checkpoint can be read, or written.
        Preempted: the run was asked to end, and has.
    """
    catalogue = catalogue or plugins.load()
    interruption = interruption or Interruption()
    engine = ranks.engine(device, experiment.parallel)
    usual = Path("runs") / experiment.name
    path = engine.alone(lambda: Path(out) if out else usual if resume else runs.free_path(usual))
    split, start, weak = _checked(experiment, catalogue, engine)
    before = None if start is None else start.trained
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
        loop = _loop(run, experiment, pipeline, split, engine, interruption, catalogue, before)

        def begin() -> dict[int, str]:
            if begun:
                run.go_on(found.trained.step if found else 0, experiment, catalogue, engine.ranks)
                loop.saving.retire()  # a kill may have come before it
            else:
                held.enter_context(runs.new_folder(path))
                Run.create(path, experiment, catalogue, engine.ranks)
                if start is not None:
                    files = checkpoint.hashes(start.path)
                    run.update(start={"checkpoint": str(start.path), "files": files})
            keys = loop.note_keys(found.trained.step if found else 0)
            loop.shelf = Shelf(None if reuse is None else Path(reuse), keys)
            pipeline.watchers = catalogue.watchers()
            for tracker in experiment.trackers:
                make = functools.partial(tracker.build, path)
                pipeline.watchers.add(f"tracker {tracker.name}", make)
            return BadExamples.logged(run.logged())

        loop.bad.found = engine.alone(begin)
        yield from _recorded(run, _steps(loop, found, weak))


def rehearse(
    experiment: Experiment, catalogue: Catalogue, device: str | None = None
) -> dict[str, str]:
    """Does what `train` does before its first step, in one process, and writes nothing.

    Returns:
        The content key of each stage.

    Raises:
        ConfigError: `train` would refuse.
    """
    engine = Single(device)
    split, start, weak = _checked(experiment, catalogue, engine)
    pipeline, run = _built(experiment, split, start, weak), Run(Path(), ours=False)
    before = None if start is None else start.trained
    _loop(run, experiment, pipeline, split, engine, Interruption(), catalogue, before)
    weights = stage_keys.initial(experiment, pipeline)
    return stage_keys.keys(experiment, catalogue, split, engine, weights)


def _checked(
    experiment: Experiment, catalogue: Catalogue, engine: Single
) -> tuple[Split, Stored | None, Weak | None]:
    """What an experiment, whose settings fit each other, is trained on, and the runs it names."""
    weak = Weak.find(experiment, catalogue)
    start = None if experiment.start is None else Stored.find(experiment.start, "start", catalogue)
    trained = (None if one is None else one.trained for one in (weak, start))
    compatibility.check_training(experiment, *trained)
    split = experiment.given_data().split("train")
    compatibility.check_batches(experiment, split, engine.ranks)
    return split, start, weak


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


def _loop(
    run: Run,
    experiment: Experiment,
    pipeline: Pipeline,
    split: Split,
    engine: Single,
    interruption: Interruption,
    catalogue: Catalogue,
    before: Trained | None,
) -> Loop:
    """The loop before its first step, with the modules where they run."""
    pipeline.text_dropout = compatibility.text_dropout(experiment, before)
    texts = evaluation.held_out(pipeline, experiment.evaluation)
    evaluation.check(pipeline, experiment.evaluation, texts)
    pipeline.to(engine.device)
    objectives = {
        name: stage.objective.build(pipeline).to(engine.device)
        for name, stage in experiment.stages.items()
    }
    saving = Saving(run, experiment, pipeline, engine, catalogue)
    shared = (run, experiment, pipeline, split, engine, interruption, saving)
    return Loop(*shared, before, objectives, BadExamples(split, engine, {}), Shelf())


def _steps(loop: Loop, found: Resumption | None, weak: Weak | None) -> Iterator[TrainStep]:
    """The stages, then the evaluation."""
    run, experiment, pipeline, engine = loop.run, loop.experiment, loop.pipeline, loop.engine
    with engine.failing_together():
        yield from loop.stages(found)
        if weak is not None:
            weak.check_neighbours(run.newest_checkpoint())
        pipeline.between_steps = functools.partial(loop.interruption.check, "evaluation")
        results = engine.alone(lambda: _evaluated(run, experiment, pipeline, loop.step))
    run.update(status="completed", results=results)
    end = TrainEnd(run=run.path, stage=None, results=results)
    pipeline.watchers.notify("sfumato_on_train_end", end=end)


def _evaluated(run: Run, experiment: Experiment, pipeline: Pipeline, step: int) -> dict[str, Any]:
    evaluated, sheet = experiment.evaluation, run.path / "samples" / f"step-{step:08d}.png"
    texts = evaluation.held_out(pipeline, evaluated)
    pipeline.to(pipeline.device, getattr(torch, experiment.sampling.precision))

    def saved(name: str, path: Path) -> None:
        picture = PictureSaved(name=name, path=path, step=step)
        pipeline.watchers.notify("sfumato_on_picture", picture=picture)

    output = evaluation.Output(folder=run.path, sheet=sheet, tell=run.update, saved=saved)
    return evaluation.evaluate(pipeline, evaluated, texts, experiment.seed, output)


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
