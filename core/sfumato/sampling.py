"""The reverse process: from noise to x0, a generator of steps.

`GuidedDenoiser` is what a sampler calls `denoise`: it asks the guidance which predictions a step
needs, makes one forward pass for all that differ only in their text, in one batch of K B, and hands
the results to `combine`. The sampler sees x0 and eps, and does not know that guidance exists;
neither knows about pictures, prompts or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from sfumato import compatibility, trajectory
from sfumato.compiling import Compiled
from sfumato.errors import PluginError
from sfumato.interfaces import Denoiser, NoiseSchedule
from sfumato.modules import DenoiserModule
from sfumato.prediction import solve
from sfumato.records import (
    Against,
    Branch,
    Guided,
    Opposed,
    Prediction,
    SampleStep,
    TextEmbedding,
)

if TYPE_CHECKING:
    from sfumato.interfaces import Denoise, Guidance, Sampler


@attrs.frozen(eq=False, kw_only=True)
class Model:
    """A denoiser, its settings, the schedule that it was trained with; `dtype` of its weights, None
    where that is the dtype of x.
    """

    module: DenoiserModule | Compiled
    settings: Denoiser
    schedule: NoiseSchedule
    dtype: torch.dtype | None = None


@attrs.frozen(eq=False, kw_only=True)
class Texts:
    """The texts of one sampling call, encoded once, B each."""

    prompt: TextEmbedding
    null: TextEmbedding
    negatives: Sequence[TextEmbedding] = ()

    def of(self, branch: Branch | Against) -> TextEmbedding:
        """The text that a branch asks for, or is held against."""
        if branch.text == "negative":
            return self.negatives[branch.index]
        return self.prompt if branch.text == "prompt" else self.null


class GuidedDenoiser:
    """`denoise(x, t)`: x0 and eps with guidance applied, along one trajectory."""

    def __init__(
        self,
        models: Mapping[str, Model],
        guidance: Guidance,
        schedule: NoiseSchedule,
        texts: Texts,
        times: Tensor,
    ) -> None:
        """Args: the models by the name that branches call them, and what does not change on the
        way. `schedule` is that of the trajectory.
        """
        self.models, self.guidance, self.schedule = models, guidance, schedule
        self.texts, self.times = texts, times
        self.index = 0
        """The interval that the sampler is in; whoever walks moves it on."""
        self._memory: Any = None
        self._conditions: dict[tuple[Branch, ...], Any] = {}

    def __call__(self, x: Tensor, t: Tensor) -> Guided:
        """Args: x (B, C, H, W); t, (), float64 on the CPU."""
        negatives = len(self.texts.negatives)
        step = trajectory.guidance_step(t, self.times, self.schedule, negatives, self.index)
        branches = self.guidance.branches(step)
        # A sampler may ask between the times of the grid, which no check before has seen.
        settings = {name: model.settings for name, model in self.models.items()}
        compatibility.check_branches(self.guidance, branches, settings, negatives)
        groups: dict[tuple[str, str | None, Against | None], list[Branch]] = {}
        for branch in branches:
            groups.setdefault((branch.model, branch.variant, branch.against), []).append(branch)
        predictions: dict[Branch, Prediction] = {}
        for group in groups.values():
            predictions.update(zip(group, self._predict(x, t, group), strict=True))
        guided, self._memory = self.guidance.combine(predictions, step, None, self._memory)
        return guided

    def _predict(self, x: Tensor, t: Tensor, branches: list[Branch]) -> list[Prediction]:
        """The predictions of branches that differ only in their text, in one forward pass."""
        model, variant = self.models[branches[0].model], branches[0].variant
        x = x * trajectory.rescaling(t, self.schedule, model.schedule)
        t = trajectory.matched(t, self.schedule, model.schedule)
        alpha, sigma = model.schedule.alpha_sigma(t)
        x_t = x.repeat(len(branches), 1, 1, 1)
        # Filled in, not copied there: a copy from the host would wait for all that is under way.
        time = torch.full((len(x_t),), float(t), dtype=t.dtype, device=x.device)
        condition = model.module.at(self._condition(model, tuple(branches)), t)
        output = model.module(x_t.to(dtype=model.dtype), time, condition, variant)
        if output.shape != x_t.shape:
            raise PluginError(
                f"expected shape {tuple(x_t.shape)}, got {tuple(output.shape)}",
                place=f"denoiser {model.settings.name}",
            )
        both = solve(model.settings.prediction, output.to(x.dtype), x_t, alpha, sigma)
        pairs = zip(both.x0.chunk(len(branches)), both.eps.chunk(len(branches)), strict=True)
        return [Prediction(x0, eps) for x0, eps in pairs]

    def _condition(self, model: Model, branches: tuple[Branch, ...]) -> Any:
        if branches not in self._conditions:
            text: TextEmbedding | Opposed
            text = TextEmbedding.cat(*(self.texts.of(branch) for branch in branches))
            if (how := branches[0].against) is not None:
                others = TextEmbedding.cat(*[self.texts.of(how)] * len(branches))
                text = Opposed(text=text, against=others, how=how)
            times = trajectory.matched(self.times[:-1], self.schedule, model.schedule)
            self._conditions[branches] = model.module.precompute(text, times)
        return self._conditions[branches]


def reverse(
    sampler: Sampler,
    denoise: Denoise,
    schedule: NoiseSchedule,
    start: Tensor,
    times: Tensor,
    noise: Callable[[], Tensor],
) -> Iterator[SampleStep]:
    """Runs a sampler along `times`, and holds it to its contract.

    Args:
        sampler: walks.
        denoise: the model with its guidance.
        schedule: of the trajectory.
        start: (B, C, H, W), x at the first time.
        times: (steps + 1,) float64 on the CPU, falling or, for inversion, rising.
        noise: a fresh unit Gaussian like start at each call.

    Raises:
        PluginError: the sampler yields another number of steps than the grid has, or values that
            are not finite.
    """
    steps = len(times) - 1
    finite: list[Tensor] = []
    for step in sampler.run(denoise, schedule, start, times, noise):
        finite.append(step.x.isfinite().all())
        if len(finite) > steps:
            problem = f"expected {steps} steps, got more"
            raise PluginError(problem, place=f"sampler {sampler.name}")
        yield step
    if len(finite) != steps:
        problem = f"expected {steps} steps, got {len(finite)}"
        raise PluginError(problem, place=f"sampler {sampler.name}")
    # Looked at once, at the end: a look at every step would make the host wait for the device.
    wrong = (~torch.stack(finite)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise PluginError(
            f"step {first + 1} of {steps} (t = {float(times[first + 1]):.4f}) gave values "
            "that are not finite",
            place=f"sampler {sampler.name}",
            remedy="a smaller guidance scale or more steps may help",
        )
