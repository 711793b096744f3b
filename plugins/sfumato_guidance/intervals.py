"""Guidance at some noise levels only: early, it costs variety; late, it changes little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import attrs

from sfumato import Branch, Guidance, GuidanceStep, Guided, required
from sfumato_guidance.levels import Levels
from sfumato_guidance.linear import PROMPT, ClassifierFreeGuidance

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from sfumato import Prediction


@attrs.frozen(kw_only=True)
class Interval(Levels, Guidance):
    """Another guidance where low < level <= high; elsewhere the prompt's prediction as it is.

    The paper's intervals are of sigma (by: sigma), such as 0.28 to 5.42 for SDXL. Within a chain it
    leaves what it gets as it is elsewhere. Memory waits.

    Costs what the other guidance costs inside, one branch a step outside.

    References:
        Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
        Diffusion Models, 2024, arXiv:2404.07724
    """

    name = "interval"
    guidance: Guidance = required("what guides inside")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Classifier-free guidance in the middle."""
        return cls(guidance=ClassifierFreeGuidance(), low=0.2, high=0.8)

    @property
    def linear(self) -> bool:
        """Where the other is."""
        return self.guidance.linear

    @property
    def uses_negatives(self) -> bool:
        """Where the other does."""
        return self.guidance.uses_negatives

    @property
    def keeps_agreement(self) -> bool:
        """Where the other does."""
        return self.guidance.keeps_agreement

    @property
    def explains_x_t(self) -> bool:
        """Where the other does."""
        return self.guidance.explains_x_t

    @property
    def w(self) -> float | None:
        """Inside."""
        return self.guidance.w

    def branches(self, step: GuidanceStep) -> Collection[Branch]:
        """The other's, or the prompt."""
        return self.guidance.branches(step) if self.contain(step) else (PROMPT,)

    def combine(
        self,
        predictions: Mapping[Branch, Prediction],
        step: GuidanceStep,
        guided: Guided | None,
        memory: Any,
    ) -> tuple[Guided, Any]:
        """The other's, or what came before."""
        if self.contain(step):
            return self.guidance.combine(predictions, step, guided, memory)
        prompt = predictions[PROMPT]
        return guided or Guided(prompt.x0, prompt.eps), memory
