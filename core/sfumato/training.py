"""The optimisation loop: a generator of steps.

The loop knows about optimisers, averages and checkpoints, and nothing about diffusion: what is
minimised is the stage's objective. Order, times, noise and dropout are functions of (seed, stage,
step, row), so the state of a run is its weights, its optimiser and the number of its step.
"""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sfumato import checkpoint, compatibility, evaluation, plugins, randomness, runs
from sfumato.engine import Single
from sfumato.errors import SfumatoError
from sfumato.experiment import Trained
from sfumato.pipeline import Pipeline
from sfumato.randomness import Draw
from sfumato.records import Batch, CheckpointSaved, TrainEnd, TrainStart, TrainStep
from sfumato.runs import Run
from sfumato.settings import plain
from sfumato.weak import Weak

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sfumato.experiment import Experiment, Stage
    from sfumato.interfaces import Split
    from sfumato.modules import ObjectiveModule
    from sfumato.plugins import Catalogue


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
    compatibility.check_training(experiment, None if weak is None else weak.trained)
    split = experiment.given_data().split("train")
    compatibility.check_batches(experiment, len(split))
    captions = [split.caption(i) for i in range(len(split))]
    files = experiment.text_encoder.fit(captions)
    pipeline = Pipeline(experiment, files, experiment.seed, weak=weak)
    pipeline.text_encoder.check(dict.fromkeys(captions))
    pipeline.text_dropout = compatibility.text_dropout(experiment)
    loop = _Loop(experiment, pipeline, split, Single(device), catalogue)
    evaluation.check(pipeline, experiment.evaluation)
    path = Path(out) if out else runs.free_path(Path("runs") / experiment.name)
    run = Run.create(path, experiment, catalogue)
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


class _Loop:
    """What the stages of one run share."""

    def __init__(
        self,
        experiment: Experiment,
        pipeline: Pipeline,
        split: Split,
        engine: Single,
        catalogue: Catalogue,
    ) -> None:
        self.experiment, self.pipeline, self.split = experiment, pipeline, split
        self.catalogue = catalogue
        self.engine = engine
        self.step = 0
        self.text_dropout: float | None = None
        pipeline.to(engine.device)
        self.trained: set[str] = set()
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
            self.pipeline.trained = frozenset(self.trained)
            self.save(name, run)
            self.notify("sfumato_on_train_end", end=TrainEnd(run=run.path, stage=name))

    def notify(self, hook: str, **record: Any) -> None:
        self.pipeline.watchers.notify(hook, **record)

    def train_stage(self, name: str, stage: Stage, run: Run) -> Iterator[TrainStep]:
        trained: nn.Module = getattr(self.pipeline, stage.objective.trains)
        trained.train().requires_grad_(True)
        objective = self.objectives[name]
        parameters = [p for p in objective.parameters() if p.requires_grad]
        count = sum(p.numel() for p in parameters)
        run.update(parameters={**run.record()["parameters"], name: count})
        start = TrainStart(run=run.path, stage=name, steps=stage.steps, parameters=count)
        self.notify("sfumato_on_train_start", start=start)
        optimizer = torch.optim.AdamW(
            parameters, stage.learning_rate, weight_decay=stage.weight_decay, fused=True
        )
        averaged = None if stage.ema is None else average(trained, stage.ema)
        for step in range(stage.steps):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, step)
            numbers = self.optimise(name, stage, step, objective, parameters, optimizer)
            if averaged is not None:
                averaged.update_parameters(trained)
            self.step += 1
            done = TrainStep(
                stage=name, step=self.step, stage_step=step + 1, stage_steps=stage.steps,
                learning_rate=learning_rate(stage, step), seconds=time.perf_counter() - began,
                **numbers,
            )  # fmt: skip
            run.log(log_line(done))
            self.notify("sfumato_on_train_step", step=done)
            yield done
        if averaged is not None:
            trained.load_state_dict(averaged.module.state_dict())
        trained.eval().requires_grad_(False)

    def optimise(
        self,
        name: str,
        stage: Stage,
        step: int,
        objective: ObjectiveModule,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> dict[str, Any]:
        """One optimiser step; the loss and the norm of its gradient are checked before any weight
        moves.
        """
        seed, device = self.experiment.seed, self.engine.device
        batch = batch_at(self.split, seed, name, stage.batch, step, device)
        draw = Draw(seed=seed, stream=name, examples=batch.rows, index=step)
        torch.manual_seed(randomness.key(seed, f"{name}/{step}")[0])  # for dropout inside modules
        with self.engine.autocast(stage.precision):
            losses = objective(batch, draw)
        loss = losses.values.float().mean()
        self.engine.backward(loss)
        norm = self.engine.clip(parameters, stage.gradient_clip)
        value, gradient_norm = loss.item(), norm.item()
        if not (math.isfinite(value) and math.isfinite(gradient_norm)):
            raise SfumatoError(
                f"loss {value:g} with gradient norm {gradient_norm:g} at learning rate "
                f"{learning_rate(stage, step):g}; examples {batch.examples.tolist()[:8]} ...",
                place=f"stage {name}, step {step + 1}",
                remedy="no weight was moved; lower the learning rate, or look at these examples",
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.after_step()
        means = {key: number.float().mean().item() for key, number in losses.numbers.items()}
        return {"loss": value, "gradient_norm": gradient_norm, "numbers": means}

    def save(self, stage: str, run: Run) -> None:
        path = run.checkpoint(self.step)
        states = {slot: module.state_dict() for slot, module in self.pipeline.modules().items()}
        settings = self.experiment
        facts = Trained(
            step=self.step,
            stage=stage,
            slots=tuple(sorted(self.trained)),
            text_dropout=self.text_dropout,
            noise_schedule=settings.noise_schedule,
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


def learning_rate(stage: Stage, step: int) -> float:
    """The learning rate at a step, counted from 0: linear warm-up, then constant or half a cosine
    to 0.
    """
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    if stage.decay == "constant":
        return stage.learning_rate
    done = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def average(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights, with decay min(decay, (1 + n) / (10 + n)) at update
    n.

    A constant 0.999 would still hold 30 % of the first weights after 1,200 steps.
    """

    def update(averaged: Any, current: Any, updates: Any) -> None:
        n = int(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(module, multi_avg_fn=update, use_buffers=False)


def batch_at(
    split: Split, seed: int, stage: str, size: int, step: int, device: torch.device
) -> Batch:
    """The global batch of a step: epochs follow each other, each a permutation."""
    positions = range(step * size, (step + 1) * size)
    order = functools.partial(_order, seed, stage, len(split))
    examples = [int(order(p // len(split))[p % len(split)]) for p in positions]
    images, captions = zip(*(split.example(i) for i in examples), strict=True)
    return Batch(
        images=torch.stack(images).to(device),
        captions=captions,
        examples=torch.tensor(examples, device=device),
        rows=torch.arange(size, device=device),
        total=size,
    )


@functools.lru_cache(maxsize=4)
def _order(seed: int, stage: str, size: int, epoch: int) -> Tensor:
    return randomness.permutation(seed, f"{stage}/order", epoch, size)


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
