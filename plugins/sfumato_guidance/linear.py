"""Guidance that is a weighted sum of predictions, with weights that sum to 1.

    eps = eps_u + sum_i s_i (eps_i - eps_u) = sum_i s_i eps_i + (1 - sum_i s_i) eps_u

u is the null condition. Such a sum commutes with every change of prediction type (epsilon, x0, v,
flow), each being an affine function of eps at given x_t. So x0 and eps get the same weights and
still explain x_t. A branch whose weight is 0 is not evaluated.
"""

from __future__ import annotations

import functools
import operator
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from sfumato import Branch, Guidance, GuidanceStep, Guided, Prediction

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from torch import Tensor

_NULL = Branch(text="null")


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
        weights = self._weights(step)
        return Guided(
            _sum(weight * predictions[branch].x0 for branch, weight in weights.items()),
            _sum(weight * predictions[branch].eps for branch, weight in weights.items()),
        ), memory

    def _weights(self, step: GuidanceStep) -> dict[Branch, float]:
        pulls = self.pulls(step)
        weights = {**pulls, _NULL: 1 - sum(pulls.values())}
        # 1 - (2.2 - 1.2) is -2e-16 in floating point, and no reason to run the denoiser.
        return {branch: weight for branch, weight in weights.items() if abs(weight) > 1e-12}


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, terms)
