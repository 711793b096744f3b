"""Guidance: which predictions a step needs, and how they combine.

The methods here are linear (see `linear`): they weigh x0 and eps alike, so it does not matter
which of them is guided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge

from sfumato import Branch, Component, GuidanceStep, hookimpl, option
from sfumato_guidance.attention import (
    NormalizedAttentionGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from sfumato_guidance.linear import LinearGuidance
from sfumato_guidance.weak import Autoguidance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SFUMATO_API = 1


@attrs.frozen(kw_only=True)
class NoGuidance(LinearGuidance):
    """The prediction for the prompt, as it is."""

    name = "none"

    def pulls(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """The prompt, once."""
        return {Branch(text="prompt"): 1.0}


@attrs.frozen(kw_only=True)
class ClassifierFreeGuidance(LinearGuidance):
    """eps_u + s (eps_p - eps_u). Scale 1 is off; the paper's w is s - 1.

    References:
        Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598
    """

    name = "cfg"
    scale: float = option(
        4.0, "s: 0 ignores the prompt, 1 is no guidance, more follows it", ge(0.0)
    )

    def pulls(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """Equation 6 of the paper with w = s - 1."""
        return {Branch(text="prompt"): self.scale}

    @property
    def w(self) -> float:
        """S - 1."""
        return self.scale - 1


@attrs.frozen(kw_only=True)
class NegativePrompt(LinearGuidance):
    """eps_u + s_pos (eps_p - eps_u) - s_neg sum_i (eps_n_i - eps_u).

    Towards the prompt, away from each negative i. Without a negative it is `cfg` at s_pos. With
    one, s_pos = s_neg + 1 is the customary eps_n + s_pos (eps_p - eps_n), which needs no eps_u.

    References:
        Compositional Visual Generation with Composable Diffusion Models, 2022, arXiv:2206.01714
    """

    name = "negative_prompt"
    positive_scale: float = option(4.0, "s_pos, on the prompt", ge(0.0))
    negative_scale: float = option(2.0, "s_neg, on each negative; 0 ignores them", ge(0.0))

    def pulls(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """s_pos on the prompt, -s_neg on each negative."""
        away = {
            Branch(text="negative", index=index): -self.negative_scale
            for index in range(step.negatives)
        }
        return {Branch(text="prompt"): self.positive_scale, **away}

    @property
    def uses_negatives(self) -> bool:
        """They are what it is for."""
        return True

    @property
    def w(self) -> float:
        """s_pos - 1."""
        return self.positive_scale - 1


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [
        NoGuidance,
        ClassifierFreeGuidance,
        NegativePrompt,
        PerturbedAttentionGuidance,
        SmoothedEnergyGuidance,
        SkipLayerGuidance,
        NormalizedAttentionGuidance,
        Autoguidance,
    ]
