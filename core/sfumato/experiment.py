"""What an experiment is made of: a pipeline's components, and what is done with them.

These classes are what `registry.yaml` is structured into and what a run folder stores as
`settings.yaml`.
"""

from __future__ import annotations

from typing import Literal

import attrs
from attrs.validators import deep_iterable, ge, gt, lt, max_len, min_len, optional

from sfumato.errors import ConfigError
from sfumato.interfaces import (
    Autoencoder,
    Data,
    Denoiser,
    Guidance,
    Loss,
    LossWeight,
    Metric,
    NoiseSchedule,
    Objective,
    Sampler,
    Study,
    TextEncoder,
    TimeGrid,
    TimeSampler,
    Tracker,
    option,
    required,
)

Precision = Literal["float32", "bfloat16", "float16"]


@attrs.frozen(kw_only=True)
class Sampling:
    """How pictures are drawn."""

    steps: int = option(25, "intervals of the time grid", ge(1))
    size: tuple[int, ...] | None = option(
        None,
        "height and width in pixels; null: those of the data",
        optional([min_len(2), max_len(2), deep_iterable(ge(1))]),
    )
    precision: Precision = option("float32", "of the weights and of what is computed with them")
    compile: bool = option(False, "compile the denoiser; takes a minute, then it is faster")
    weak: str | None = option(None, "RUN or RUN@STEP, of the weaker model that guidance asks")


@attrs.frozen(kw_only=True)
class PipelineSettings:
    """One component in each slot of a system."""

    noise_schedule: NoiseSchedule = required("the forward process")
    text_encoder: TextEncoder = required("prompts to embeddings")
    denoiser: Denoiser = required("what is trained to predict")
    autoencoder: Autoencoder = required("pixels to latents")
    loss: Loss = required("compares a prediction with its target")
    loss_weight: LossWeight | None = option(None, "how much each time counts")
    time_sampler: TimeSampler = required("the times that training draws")
    time_grid: TimeGrid = required("the times that inference visits")
    sampler: Sampler = required("the reverse process")
    guidance: Guidance = required("how branches combine")
    data: Data | None = option(
        None, "captioned pictures; null where nothing is trained or measured"
    )
    sampling: Sampling = option(attrs.Factory(Sampling), "how pictures are drawn")

    def given_data(self) -> Data:
        """The data.

        Raises:
            ConfigError: there is none.
        """
        if self.data is None:
            remedy = "name some, such as --set data=shapes"
            raise ConfigError("captioned pictures are needed here", place="data", remedy=remedy)
        return self.data

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels of what is drawn.

        Raises:
            ConfigError: nothing says it.
        """
        if self.sampling.size is not None:
            height, width = self.sampling.size
            return height, width
        if self.data is None:
            remedy = "give height and width (--set sampling.size=[512,512]), or data"
            raise ConfigError("nothing says how large pictures are", remedy=remedy)
        return self.data.picture_size


@attrs.frozen(kw_only=True)
class Trained:
    """What a checkpoint says of itself: where it stands, and what its weights go with."""

    step: int = required("of the run", ge(0))
    stage: str = required("that was under way, or had just ended")
    slots: tuple[str, ...] = required("whose weights a stage has trained")
    text_dropout: float | None = required("share of texts trained without; null: nobody knows")
    unfinished: bool = option(False, "whether that stage was still under way")
    noise_schedule: NoiseSchedule = required("that the denoiser was trained with")
    text_encoder: TextEncoder = required("whose weights these are")
    denoiser: Denoiser = required("whose weights these are")
    autoencoder: Autoencoder = required("whose latents the denoiser knows")


@attrs.frozen(kw_only=True)
class Stage:
    """One training loop. In YAML the options of its objective stand beside these."""

    objective: Objective = required("what is minimised")
    steps: int = required("optimiser steps", ge(1))
    batch: int = required("examples a step, over all ranks", ge(1))
    learning_rate: float = option(1e-3, "peak, of AdamW", gt(0))
    weight_decay: float = option(0.0, "of AdamW", ge(0))
    warmup: int = option(0, "steps of linear rise of the learning rate", ge(0))
    decay: Literal["constant", "cosine"] = option("cosine", "of the learning rate, to 0")
    gradient_clip: float | None = option(1.0, "largest norm of the gradient", optional(gt(0)))
    ema: float | None = option(None, "decay of the averaged weights", optional([ge(0), lt(1)]))
    precision: Literal["float32", "bfloat16"] = option("float32", "bfloat16: under autocast")
    compile: bool = option(False, "what is trained; the first step then takes minutes")
    activation_checkpointing: bool = option(
        False, "compute the inside of blocks again in the backward pass: less memory, more time"
    )
    accumulation: int = option(
        1, "parts that each rank's rows are computed in; the step is the same", ge(1)
    )
    cache: str | None = option(
        None,
        "a folder for latents and text embeddings, which are computed once; null: at each step",
    )
    nonfinite: Literal["stop", "skip", "rollback"] = option(
        "stop",
        "where loss or gradient is not finite: end the run, leave the step out, or go back to the "
        "weights of the last checkpoint and leave out all steps since",
    )


@attrs.frozen(kw_only=True)
class Checkpoints:
    """Which checkpoints are kept, beside those of the ends of stages, which all are."""

    every: int | None = option(
        1000, "steps of the run; null: at ends of stages only", optional(ge(1))
    )
    keep_last: int = option(2, "the newest", ge(1))
    keep_every: int | None = option(None, "those of multiples of it", optional(ge(1)))


@attrs.frozen(kw_only=True)
class Evaluation:
    """What is measured after the last stage, on prompts of the held-out split."""

    metrics: tuple[Metric, ...] = option((), "numbers over all samples")
    studies: tuple[Study, ...] = option((), "questions with a picture each")
    count: int = option(192, "samples", ge(1))
    batch: int = option(64, "samples drawn at once; changes no number", ge(1))


@attrs.frozen(kw_only=True)
class Experiment(PipelineSettings):
    """A pipeline and what is done with it."""

    name: str = required("in the registry")
    seed: int = option(0, "of everything random", ge(0))
    start: str | None = option(
        None, "RUN or RUN@STEP, whose weights training starts from; null: drawn anew"
    )
    stages: dict[str, Stage] = option(attrs.Factory(dict), "in the order of training")
    evaluation: Evaluation = option(attrs.Factory(Evaluation), "after the last stage")
    trackers: tuple[Tracker, ...] = option((), "where numbers go while it runs")
    checkpoints: Checkpoints = option(attrs.Factory(Checkpoints), "which of them are kept")
    workers: int = option(0, "processes that prepare examples; changes no number", ge(0))
    parallel: Literal["ddp", "fsdp"] = option(
        "ddp", "on several ranks: whole weights on each, or shards of them"
    )
