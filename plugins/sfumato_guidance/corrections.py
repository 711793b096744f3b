"""Guidance away from worse predictions: each difference to the prompt's is added with its weight.

    eps = eps_p + sum_i w_i (eps_p - eps_i)

In a chain, the result of the links before stands in the place of the first eps_p. Like every sum
whose weights sum to 1, it commutes with the change of prediction type (see `linear`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from sfumato import Branch, Guidance, GuidanceStep, Guided, Prediction

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

PROMPT = Branch(text="prompt")


class Correction(Guidance):
    """eps + sum_i w_i (eps_p - eps_i), where eps is eps_p or what came before in a chain; a
    subclass says w_i.
    """

    @property
    def linear(self) -> bool:
        """By construction."""
        return True

    @abstractmethod
    def away(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """w_i of the branches that it goes away from."""

    def branches(self, step: GuidanceStep) -> Collection[Branch]:
        """The prompt's, and those whose weight is not 0."""
        return [PROMPT, *(branch for branch, weight in self.away(step).items() if weight)]

    def combine(
        self,
        predictions: Mapping[Branch, Prediction],
        step: GuidanceStep,
        guided: Guided | None,
        memory: Any,
    ) -> tuple[Guided, Any]:
        """The sum, of x0 and of eps."""
        prompt = predictions[PROMPT]
        x0, eps = (prompt.x0, prompt.eps) if guided is None else (guided.x0, guided.eps)
        for branch, weight in self.away(step).items():
            if weight:
                x0 = x0 + weight * (prompt.x0 - predictions[branch].x0)
                eps = eps + weight * (prompt.eps - predictions[branch].eps)
        return Guided(x0, eps), memory
