"""The reverse process: from noise to x0, a generator of steps.

`GuidedDenoiser` is what a sampler calls `denoise`: it asks the guidance which predictions a step
needs, makes one forward pass for each (model, variant) with all their texts in one batch of K B,
and hands the results to `combine`. The sampler sees x0 and eps, and does not know that guidance
exists; neither knows about pictures, prompts or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from sfumato import compatibility
from sfumato.errors import PluginError
from sfumato.prediction import solve
from sfumato.records import Branch, GuidanceStep, Guided, Prediction, SampleStep, TextEmbedding

if TYPE_CHECKING:
    from sfumato.interfaces import Guidance, NoiseSchedule, Sampler, TimeGrid
    from sfumato.modules import DenoiserModule


@attrs.frozen(eq=False, kw_only=True)
class Texts:
    """The texts of one sampling call, encoded once, B each."""

    prompt: TextEmbedding
    null: TextEmbedding
    negatives: Sequence[TextEmbedding] = ()

    def of(self, branch: Branch) -> TextEmbedding:
        """The text that a branch asks for."""
        if branch.text == "negative":
            return self.negatives[branch.index]
        return self.prompt if branch.text == "prompt" else self.null


class GuidedDenoiser:
    """`denoise(x, t)`: x0 and eps with guidance applied, along one trajectory."""

    def __init__(
        self,
        denoisers: Mapping[str, DenoiserModule],
        guidance: Guidance,
        schedule: NoiseSchedule,
        texts: Texts,
        times: Tensor,
    ) -> None:
        """Args: the denoisers by the name that branches call them, and what does not change on the
        way.
        """
        self.denoisers, self.guidance, self.schedule = denoisers, guidance, schedule
        self.texts, self.times = texts, times
        self._memory: Any = None
        self._conditions: dict[tuple[Branch, ...], Any] = {}

    def __call__(self, x: Tensor, t: Tensor) -> Guided:
        """Args: x (B, C, H, W); t, (), float64 on the CPU."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        step = GuidanceStep(
            t=float(t),
            alpha=float(alpha),
            sigma=float(sigma),
            index=int((self.times > t).sum()),
            steps=len(self.times) - 1,
            negatives=len(self.texts.negatives),
        )
        branches = self.guidance.branches(step)
        compatibility.check_branches(self.guidance, branches, self.denoisers)
        groups: dict[tuple[str, str | None], list[Branch]] = {}
        for branch in branches:
            groups.setdefault((branch.model, branch.variant), []).append(branch)
        predictions: dict[Branch, Prediction] = {}
        for group in groups.values():
            predicted = self._predict(x, t, group, alpha, sigma)
            predictions.update(zip(group, predicted, strict=True))
        guided, self._memory = self.guidance.combine(predictions, step, None, self._memory)
        return guided

    def _predict(
        self, x: Tensor, t: Tensor, branches: list[Branch], alpha: Tensor, sigma: Tensor
    ) -> list[Prediction]:
        """The predictions of branches that share a model and a variant, in one forward pass."""
        model, variant = branches[0].model, branches[0].variant
        denoiser = self.denoisers[model]
        x_t = x.repeat(len(branches), 1, 1, 1)
        time = t.to(x.device).expand(len(x_t))
        output = denoiser(x_t, time, self._condition(denoiser, tuple(branches)), variant)
        if output.shape != x_t.shape:
            raise PluginError(
                f"returned shape {tuple(output.shape)}, expected {tuple(x_t.shape)}",
                place=f"denoiser {type(denoiser).__name__}",
            )
        both = solve(denoiser.prediction, output.to(x.dtype), x_t, alpha, sigma)
        pairs = zip(both.x0.chunk(len(branches)), both.eps.chunk(len(branches)), strict=True)
        return [Prediction(x0, eps) for x0, eps in pairs]

    def _condition(self, denoiser: DenoiserModule, branches: tuple[Branch, ...]) -> Any:
        if branches not in self._conditions:
            first, *rest = [self.texts.of(branch) for branch in branches]
            text = first.map(lambda *parts: torch.cat(parts), *rest)
            self._conditions[branches] = denoiser.precompute(text, self.times[:-1])
        return self._conditions[branches]


def times_of(grid: TimeGrid, steps: int, schedule: NoiseSchedule) -> Tensor:
    """The times of a grid, (steps + 1,) float64 on the CPU.

    Raises:
        PluginError: the grid breaks its contract.
    """
    times = grid.times(steps, schedule).double().cpu()
    falling = (
        bool((times[1:] < times[:-1]).all()) and 0 <= float(times[-1]) and float(times[0]) <= 1
    )
    if times.shape != (steps + 1,) or not falling:
        raise PluginError(
            f"expected {steps + 1} falling times in [0, 1], got {times.tolist()}",
            place=f"time_grid {grid.name}",
        )
    return times


def reverse(
    sampler: Sampler,
    denoise: GuidedDenoiser,
    start: Tensor,
    noise: Callable[[], Tensor],
) -> Iterator[SampleStep]:
    """Runs a sampler along the times of `denoise`, and holds it to its contract.

    Args:
        sampler: walks.
        denoise: the model with its guidance.
        start: (B, C, H, W), x at the first time.
        noise: a fresh unit Gaussian like start at each call.

    Raises:
        PluginError: the sampler yields another number of steps than the grid has, or values that
            are not finite.
    """
    steps = len(denoise.times) - 1
    finite: list[Tensor] = []
    for step in sampler.run(denoise, denoise.schedule, start, denoise.times, noise):
        finite.append(step.x.isfinite().all())
        if len(finite) > steps:
            raise PluginError(f"took more than {steps} steps", place=f"sampler {sampler.name}")
        yield step
    if len(finite) != steps:
        problem = f"took {len(finite)} steps, expected {steps}"
        raise PluginError(problem, place=f"sampler {sampler.name}")
    # Looked at once, at the end: a look at every step would make the host wait for the device.
    wrong = (~torch.stack(finite)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise PluginError(
            f"step {first + 1} of {steps} (t = {float(denoise.times[first + 1]):.4f}) gave values "
            "that are not finite",
            place=f"sampler {sampler.name}",
            remedy="a smaller guidance scale or more steps may help",
        )
