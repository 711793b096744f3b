"""The settings side of the interfaces: one abstract class for each kind of component.

A component is an `attrs.frozen(kw_only=True)` class. Its fields are its options: from their types,
validators and one-line docs come the YAML schema, the error messages and the reference. A component
without weights (a schedule, a sampler) is the value itself; one with weights is its settings, and
`build` takes what its neighbours impose, so that no option can contradict another. This module
imports no torch: listing what is installed must be quick.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import attrs

from sfumato.records import (
    Branch,
    Finding,
    GuidanceStep,
    Guided,
    Noised,
    Prediction,
    SampleStep,
    Snapshot,
    Space,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sfumato.modules import (
        AdapterModule,
        AutoencoderModule,
        DenoiserModule,
        ObjectiveModule,
        TextEncoderModule,
    )
    from sfumato.pipeline import Pipeline
    from sfumato.prediction import PredictionType
    from sfumato.split import Split

Denoise = Callable[["Tensor", "Tensor"], Guided]


def option(default: Any = attrs.NOTHING, doc: str = "", *validators: Callable[..., Any]) -> Any:
    """A field of a component: its default, one line of documentation, and attrs validators.

    Bounds are read from the validators `ge`, `gt`, `le`, `lt` and `in_` of attrs: for the error
    message, for `sfumato describe` and for the conformance kit.
    """
    return attrs.field(default=default, validator=list(validators) or None, metadata={"doc": doc})


def required(doc: str, *validators: Callable[..., Any]) -> Any:
    """An option without a default."""
    return option(attrs.NOTHING, doc, *validators)


class Component(ABC):
    """Anything that YAML can name with `use:`. A subclass states `name`; its kind is that of its
    interface.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    adjustable: ClassVar[frozenset[str]] = frozenset()
    """Of a component with weights: the options that may differ from those of training."""
    retrainable: ClassVar[frozenset[str]] = frozenset()
    """Of a component with weights: further options that may differ where training goes on from
    them, as no shape depends on these.
    """

    @classmethod
    def example(cls, folder: Path) -> Self:
        """A small and complete instance: what the conformance kit starts from, so quick to build.

        By default that with no option set. A component with required options, or one that is large
        by default, overrides it.

        Args:
            folder: an empty one, into which it may write what the component reads.
        """
        return cls()


class NoiseSchedule(Component):
    """q(x_t given x0): how much signal and how much noise there is at each time."""

    kind = "noise_schedule"

    @property
    def points(self) -> int | None:
        """T of a table of T steps; None for a schedule in continuous time."""
        return None

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, shaped and typed as t, whose values lie in [0, 1]. sigma(0) is 0; sigma
        / alpha rises with t.
        """

    def snr(self, t: Tensor) -> Tensor:
        """The signal-to-noise ratio alpha^2 / sigma^2, as t; infinite at t = 0."""
        alpha, sigma = self.alpha_sigma(t)
        return (alpha / sigma) ** 2

    def time_at(self, log_sigma_over_alpha: Tensor) -> Tensor:
        """The time in [0, 1] at which log(sigma / alpha) has these values: float64, clamped to the
        schedule's range.

        By bisection, to the last bit; a schedule with a closed form overrides it.
        """
        wanted = log_sigma_over_alpha.double()
        low, high = wanted.new_zeros(wanted.shape), wanted.new_ones(wanted.shape)
        for _ in range(60):
            middle = (low + high) / 2
            alpha, sigma = self.alpha_sigma(middle)
            below = sigma.log() - alpha.log() < wanted
            low, high = middle.where(below, low), high.where(below, middle)
        return (low + high) / 2

    def timestep(self, t: Tensor) -> Tensor:
        """What networks call the timestep, like t: the classical index `max(T t - 1, 0)`, with T =
        1000 where there is no table.
        """
        return (t * (self.points or 1000) - 1).clamp(min=0)

    def start_scale(self, t: float) -> float:
        """The standard deviation of x_t for unit data: what unit noise is multiplied with to start
        at t.
        """
        import torch

        alpha, sigma = self.alpha_sigma(torch.tensor(t, dtype=torch.float64))
        return math.hypot(float(alpha), float(sigma))


class TimeGrid(Component):
    """The times that inference visits."""

    kind = "time_grid"

    @abstractmethod
    def times(self, steps: int, schedule: NoiseSchedule) -> Tensor:
        """(steps + 1,) float64, strictly falling, from the noisiest time to the one at which the
        picture is done.

        Raises:
            ConfigError: `steps` is below 1, or above `schedule.points`.
        """


class TimeSampler(Component):
    """The times that training draws."""

    kind = "time_sampler"

    @abstractmethod
    def draw(self, u: Tensor, row: Tensor, rows: int, step: int, schedule: NoiseSchedule) -> Tensor:
        """Times (B,) float64 in (0, 1]; on a table they are i / T.

        Args:
            u: (B,) float64, uniform in (0, 1].
            row: (B,) int64, places in the global batch of `rows`, so that stratified draws do not
                depend on ranks.
            rows: the size of the global batch.
            step: the step of the stage, from 0.
            schedule: what the times are for.
        """


class TextEncoder(Component):
    """Prompts to embeddings."""

    kind = "text_encoder"

    def fit(self, captions: Iterable[str]) -> Mapping[str, bytes]:
        """Learns what is not learnt by gradients, such as a vocabulary: files by name, for `build`
        and the checkpoint.
        """
        return {}

    @abstractmethod
    def build(self, files: Mapping[str, bytes]) -> TextEncoderModule:
        """The module, from what `fit` returned or from the `files` of the module that a checkpoint
        holds.
        """


class Denoiser(Component):
    """Predicts epsilon (or x0, v, flow) from x_t, t and the text."""

    kind = "denoiser"

    @property
    @abstractmethod
    def prediction(self) -> PredictionType:
        """What the output of the module is."""

    @property
    def multiple(self) -> int:
        """Height and width of the latents must be multiples of it."""
        return 1

    @property
    def variants(self) -> frozenset[str]:
        """The perturbed forms of itself that guidance may ask for."""
        return frozenset()

    @abstractmethod
    def build(self, space: Space) -> DenoiserModule:
        """The module, for this space, whose height and width are multiples of `multiple`.

        Raises:
            ConfigError: the options do not fit each other or the space.
        """


class Adapter(Denoiser):
    """A denoiser around another one, whose weights stay as they are beside a few that are trained.

    Training may start from weights of the denoiser inside: see `Experiment.start`.
    """

    @property
    @abstractmethod
    def base(self) -> Denoiser:
        """The denoiser inside."""

    @abstractmethod
    def build(self, space: Space) -> AdapterModule:
        """As for `Denoiser`."""

    @abstractmethod
    def parted(
        self, state: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, bytes]]:
        """The state of a module of its own in two parts.

        Returns:
            The state of the denoiser inside, and the rest as files by name, in the layout in which
            other programs load such adapters.
        """


class Autoencoder(Component):
    """Pixels to latents."""

    kind = "autoencoder"

    @property
    @abstractmethod
    def channels(self) -> int:
        """C of the latents."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """How many pixels one latent is high and wide."""

    @abstractmethod
    def build(self) -> AutoencoderModule:
        """The module."""


class Loss(Component):
    """Compares a prediction with its target."""

    kind = "loss"

    @abstractmethod
    def __call__(self, output: Tensor, target: Tensor, noised: Noised) -> Tensor:
        """Unreduced losses (B,), float32: the mean over all but the batch of output against target,
        (B, C, H, W) each.
        """


class LossWeight(Component):
    """How much each time counts."""

    kind = "loss_weight"

    @abstractmethod
    def __call__(self, noised: Noised, prediction: PredictionType) -> Tensor:
        """Weights (B,) on the squared error of this prediction type, such that x0 is weighted alike
        for every type. Other distances are weighted by the same factor.
        """


class Guidance(Component):
    """Which predictions a step needs, and how they combine."""

    kind = "guidance"

    @property
    def linear(self) -> bool:
        """Whether it is linear in the predictions: guiding x0, eps, v or flow is then the same."""
        return False

    @property
    def uses_negatives(self) -> bool:
        """Whether negative prompts reach it; where they do not, giving one is an error."""
        return False

    @property
    def keeps_agreement(self) -> bool:
        """Whether what all branches agree on passes as it is; not so where it works on the result
        itself, as thresholding does.
        """
        return True

    @property
    def explains_x_t(self) -> bool:
        """Whether x0 and eps still are those of x_t, `x_t = alpha x0 + sigma eps`; not so where it
        renoises with another eps on purpose, as CFG++ does.
        """
        return True

    @property
    def w(self) -> float | None:
        """S - 1, the w of Ho & Salimans (2022, arXiv:2207.12598), for the record; None without a
        scale.
        """
        return None

    @abstractmethod
    def branches(self, step: GuidanceStep) -> Collection[Branch]:
        """The predictions that `combine` wants at this step: at least one, each once.

        Args:
            step: where the reverse process stands, and how many negatives each prompt has.
        """

    @abstractmethod
    def combine(
        self,
        predictions: Mapping[Branch, Prediction],
        step: GuidanceStep,
        guided: Guided | None,
        memory: Any,
    ) -> tuple[Guided, Any]:
        """One estimate from the branches. Pure, and per example: never across the batch.

        Args:
            predictions: what `branches` asked for, and perhaps what other links of a chain did.
            step: as for `branches`.
            guided: the result of the previous link of a chain, to be changed; None at its head,
                which is as if it were the prompt's prediction.
            memory: what this method returned last time on this trajectory; None at first.

        Returns:
            The estimate, and what to remember.
        """


class Sampler(Component):
    """The reverse process. It does not know that guidance exists."""

    kind = "sampler"

    @property
    def order(self) -> int | None:
        """p, where the error of n steps falls like n^-p given an exact denoiser.

        None claims nothing, as of a sampler that draws noise.
        """
        return None

    @abstractmethod
    def run(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        x: Tensor,
        times: Tensor,
        noise: Callable[[], Tensor],
    ) -> Iterator[SampleStep]:
        """Walks x along the times; local variables are its memory, so a multistep method reads like
        its paper.

        Args:
            denoise: (x, t) to x0 and eps with guidance applied, t one of `times`, or a time between
                two of them.
            schedule: alpha and sigma at any time.
            x: (B, C, H, W), the start, at times[0].
            times: (steps + 1,) float64 on the CPU, monotone: falling, or, for inversion,
                rising, which only a sampler that claims an order is asked for.
            noise: a fresh unit Gaussian like x at each call.

        Yields:
            A step for each interval; the last one's x is the result.
        """


class Objective(Component):
    """What one training stage minimises."""

    kind = "objective"
    trains: ClassVar[Literal["text_encoder", "denoiser"]]
    """The slot of the pipeline whose weights this objective moves."""
    compares: ClassVar[bool] = False
    """Whether an example's loss depends on the others of its batch, which can then not be computed
    in parts; over ranks, `sfumato.gathered` brings the others."""
    looks_at_pictures: ClassVar[bool] = True
    """Whether it needs more of a batch than `Pipeline.encoded` says."""
    reads: ClassVar[frozenset[str] | None] = None
    """The slots of the pipeline that change what it does, beside the data; None: any of them may.
    A finished stage is shared by runs that differ in nothing that it read."""

    @property
    def text_dropout(self) -> float | None:
        """The share of texts replaced by the null condition; None where that has no meaning."""
        return None

    @abstractmethod
    def build(self, pipeline: Pipeline) -> ObjectiveModule:
        """The module, on the shared pipeline; all that it does not train is frozen and in eval
        mode.
        """


class Data(Component):
    """Captioned pictures of one size."""

    kind = "data"

    @property
    @abstractmethod
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @abstractmethod
    def split(self, name: Literal["train", "test"]) -> Split:
        """The examples to train on, or those held out.

        Raises:
            DataError: the source is missing or holds nothing usable.
        """


class Tracker(Component):
    """Where numbers and pictures go while a run goes on."""

    kind = "tracker"

    @abstractmethod
    def build(self, run: Path) -> object:
        """An object with hook implementations (`sfumato.hookimpl`); one that raises is switched
        off, the run goes on.
        """


class MetricState(ABC):
    """A measurement under way. A picture is known by its row: 0 is the first that was taken in."""

    biased: frozenset[str] = frozenset()
    """The numbers that rows which repeat shift, as they do distances between distributions."""

    @abstractmethod
    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Takes in images (B, 3, H, W) in [-1, 1] and the prompts that they should show."""

    @abstractmethod
    def compute(self, rows: Tensor) -> Mapping[str, float]:
        """The numbers, by name, of the pictures of these rows, as if no other had been taken in.

        Args:
            rows: (n,) int64, in any order; some may repeat, as `sfumato.measured` draws them.
        """

    def counted(self, name: str, rows: Tensor) -> int:
        """How many of these pictures a number rests on; by default all."""
        return len(rows)

    def facts(self) -> Mapping[str, Any]:
        """What the numbers depend on beside the pictures, for the record; it fits JSON."""
        return {}


class Metric(Component):
    """A measured property of samples."""

    kind = "metric"

    @abstractmethod
    def build(self, pipeline: Pipeline) -> MetricState:
        """An empty measurement.

        Raises:
            ConfigError: the pipeline has not what this metric needs.
        """


class Study(Component):
    """A question about a trained pipeline, answered with numbers and one picture."""

    kind = "study"
    explains: ClassVar[bool] = False
    """Whether a report makes it of a run that lacks it: quick, and of interest in every run."""

    def check(self, pipeline: Pipeline) -> None:
        """Called before training, on the untrained pipeline.

        Raises:
            ConfigError: `run` would fail later: an extra is missing, the pipeline does not fit.
        """

    @abstractmethod
    def run(self, pipeline: Pipeline, seed: int) -> Finding:
        """The answer.

        Args:
            pipeline: trained, in eval mode.
            seed: of all noise.
        """


class Layout(Component):
    """How another program lays a system out in a folder: weights, and what they are weights of."""

    kind = "layout"
    mark: ClassVar[str] = ""
    """The file that `recognises` looks for, for messages."""

    @abstractmethod
    def recognises(self, folder: Path) -> bool:
        """Whether the folder seems to be laid out like this; `read` says whether it can be read."""

    @abstractmethod
    def read(self, folder: Path) -> Snapshot:
        """What the folder holds, with nothing built and no code of it run.

        Whatever changes numbers is in the settings or is refused, never passed over.

        Raises:
            CheckpointError: something is missing or damaged, or has no counterpart here.
        """

    @abstractmethod
    def write(self, snapshot: Snapshot, folder: Path) -> None:
        """Fills an empty folder, so that `read` finds the same again.

        Args:
            snapshot: of a run.
            folder: an empty one. On an error whoever called removes it.

        Raises:
            ConfigError: a component has no counterpart there.
        """

    @classmethod
    def specimen(cls) -> Snapshot | None:
        """A small system that can be laid out like this, for the conformance kit.

        By default the kit's own, of components that come with sfumato.
        """
        return None


KINDS: Mapping[str, type[Component]] = {
    interface.kind: interface
    for interface in (
        NoiseSchedule, TimeGrid, TimeSampler, TextEncoder, Denoiser, Autoencoder, Loss, LossWeight,
        Guidance, Sampler, Objective, Data, Tracker, Metric, Study, Layout,
    )
}  # fmt: skip
"""The interface of each kind."""
