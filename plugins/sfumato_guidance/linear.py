"""Guidance that is a weighted sum of predictions, with weights that sum to 1.

    eps = eps_u + sum_i s_i (eps_i - eps_u) = sum_i s_i eps_i + (1 - sum_i s_i) eps_u

u is the null condition. Such a sum commutes with every change of prediction type (epsilon, x0, v,
flow), each being an affine function of eps at given x_t. So x0 and eps get the same weights and
still explain x_t. A branch whose weight is 0 is not evaluated.

As a link of a chain it adds what it would add to the prompt's prediction to what came before:
eps_before + (eps - eps_p).
"""

from __future__ import annotations

import functools
import operator
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs.validators import ge

from sfumato import Branch, Guidance, GuidanceStep, Guided, Prediction, option
from sfumato_guidance.levels import Levels

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from torch import Tensor

PROMPT, NULL = Branch(text="prompt"), Branch(text="null")
NEGLIGIBLE = 1e-12
"""1 - (2.2 - 1.2) is -2e-16 in floating point, and no reason to run the denoiser."""


class LinearGuidance(Guidance):
    """eps_u + sum_i s_i (eps_i - eps_u); a subclass says s_i."""

    @property
    def linear(self) -> bool:
        """By construction."""
        return True

    @abstractmethod
    def pulls(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """s_i of every branch but the null one."""

    def branches(self, step: GuidanceStep) -> Collection[Branch]:
        """The branches whose weight is not 0."""
        return self._weights(step)

    def combine(
        self,
        predictions: Mapping[Branch, Prediction],
        step: GuidanceStep,
        guided: Guided | None,
        memory: Any,
    ) -> tuple[Guided, Any]:
        """The weighted sum, of x0 and of eps."""
        terms = [(weight, predictions[branch]) for branch, weight in self._weights(step).items()]
        if guided is not None:
            terms += [(1.0, guided), (-1.0, predictions[PROMPT])]
        return Guided(
            _sum(weight * prediction.x0 for weight, prediction in terms),
            _sum(weight * prediction.eps for weight, prediction in terms),
        ), memory

    def _weights(self, step: GuidanceStep) -> dict[Branch, float]:
        pulls = self.pulls(step)
        weights = {**pulls, NULL: 1 - sum(pulls.values())}
        return {branch: weight for branch, weight in weights.items() if abs(weight) > NEGLIGIBLE}


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, terms)


@attrs.frozen(kw_only=True)
class NoGuidance(LinearGuidance):
    """The prediction for the prompt, as it is. Costs one branch a step."""

    name = "none"

    def pulls(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """The prompt, once."""
        return {PROMPT: 1.0}


@attrs.frozen(kw_only=True)
class ClassifierFreeGuidance(LinearGuidance):
    """eps_u + s (eps_p - eps_u), with the scale written as s or as the paper's w = s - 1.

    `form: imagen` (the default, and the form of nearly all programs) reads `scale` as s, of which 1
    is off; `form: paper` reads it as w, of which 0 is off. `w` is the paper's in both.

    Costs two branches a step; one where it is off, and at s = 0.

    References:
        Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598, Equation 6 (w)
        Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding, 2022,
        arXiv:2205.11487, Equation 2 (s)
    """

    name = "cfg"
    scale: float = option(
        4.0, "s: 0 ignores the prompt, 1 is no guidance, more follows it; w under `form: paper`",
        ge(0.0),
    )  # fmt: skip
    form: Literal["imagen", "paper"] = option(
        "imagen", "what scale is: s (imagen; 1 is off), or w = s - 1 (paper; 0 is off)"
    )

    def pulls(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """Equation 6 of the paper with w = s - 1."""
        return {PROMPT: self.scale if self.form == "imagen" else 1 + self.scale}

    @property
    def w(self) -> float:
        """As the paper counts."""
        return self.scale - 1 if self.form == "imagen" else self.scale


@attrs.frozen(kw_only=True)
class Negative(Levels):
    """How much one negative prompt repels, and at which noise levels."""

    scale: float = option(2.0, "s_neg of this negative; 0 ignores it", ge(0.0))


@attrs.frozen(kw_only=True)
class NegativePrompt(LinearGuidance):
    """eps_u + s_pos (eps_p - eps_u) - sum_i s_neg_i (eps_n_i - eps_u).

    Towards the prompt, away from each negative i. Without a negative it is `cfg` at s_pos. With
    one, s_pos = s_neg + 1 is the customary eps_n + s_pos (eps_p - eps_n), which needs no eps_u.

    Costs a branch for the prompt, one for each negative at work, and one for u unless its weight
    1 - s_pos + sum_i s_neg_i is 0.

    References:
        Compositional Visual Generation with Composable Diffusion Models, 2022, arXiv:2206.01714
    """

    name = "negative_prompt"
    positive_scale: float = option(4.0, "s_pos, on the prompt", ge(0.0))
    negative_scale: float = option(2.0, "s_neg, on each negative; 0 ignores them", ge(0.0))
    negatives: tuple[Negative, ...] = option(
        (), "for the first negative, the second, ...; those beyond the list get negative_scale"
    )

    def pulls(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """s_pos on the prompt, -s_neg_i on each negative."""
        away = {
            Branch(text="negative", index=index): -self._scale(index, step)
            for index in range(step.negatives)
        }
        return {PROMPT: self.positive_scale, **away}

    def _scale(self, index: int, step: GuidanceStep) -> float:
        if index >= len(self.negatives):
            return self.negative_scale
        negative = self.negatives[index]
        return negative.scale if negative.contain(step) else 0.0

    @property
    def uses_negatives(self) -> bool:
        """They are what it is for."""
        return True

    @property
    def w(self) -> float:
        """s_pos - 1."""
        return self.positive_scale - 1
