"""How sure a number is: the bootstrap over pictures, with randomness of our own.

A statistic is computed again over rows drawn with replacement, and the middle 95 % of what comes
out is its interval (the percentile interval of Efron, "Better Bootstrap Confidence Intervals",
1987). The repeats bias distances between distributions and between pictures; where a metric says so
(`MetricState.biased`), the interval is moved back by the shift of the resampled mean.

A row is a picture with its prompt: the interval is that of other pictures of other such prompts,
and pictures that share a prompt count as independent ones.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.interfaces import MetricState
from sfumato.measurements import Measured
from sfumato.randomness import Draw

if TYPE_CHECKING:
    from collections.abc import Mapping

RESAMPLES = 400
COVERAGE = 0.95


@functools.lru_cache(maxsize=2)
def resamples(count: int) -> Tensor:
    """(RESAMPLES, count) int64: rows drawn with replacement, the same at each call."""
    draw = Draw(seed=0, stream="bootstrap", examples=torch.arange(RESAMPLES))
    return draw.bits("rows", count) * count >> 32


def measured(state: MetricState, count: int) -> dict[str, Measured]:
    """The numbers of a measurement of `count` pictures, by name, each with its interval."""
    rows = torch.arange(count)
    again = [state.compute(chosen) for chosen in resamples(count)]
    found = {}
    for name, value in state.compute(rows).items():
        numbers = [numbers[name] for numbers in again if name in numbers]
        drawn = torch.tensor(numbers or [value], dtype=torch.float64)
        low, high = _interval(drawn - drawn.mean() + value if name in state.biased else drawn)
        found[name] = Measured(value=value, low=low, high=high, n=state.counted(name, rows))
    return found


def measured_mean(scores: Tensor) -> Measured:
    """The mean of scores (n,) of single pictures, such as whether each is right."""
    scores = scores.double()
    low, high = _interval(scores[resamples(len(scores))].mean(dim=1))
    return Measured(value=float(scores.mean()), low=low, high=high, n=len(scores))


def _interval(drawn: Tensor) -> tuple[float, float]:
    tail = (1 - COVERAGE) / 2
    low, high = drawn.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


class Scores(MetricState):
    """A measurement whose numbers are means of scores that each picture has for itself.

    `update` computes the scores and hands them to `add`.
    """

    def __init__(self) -> None:
        """No picture yet."""
        self._pieces: dict[str, list[Tensor]] = {}

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Keeps scores (B,) by name, the same names at each call; NaN where a picture has none."""
        for name, values in scores.items():
            self._pieces.setdefault(name, []).append(values.detach().cpu().double())

    def scores(self, name: str) -> Tensor:
        """All scores of a name, (n,) float64."""
        whole = torch.cat(self._pieces[name])
        self._pieces[name] = [whole]
        return whole

    def compute(self, rows: Tensor) -> Mapping[str, float]:
        """The means; a number of which no picture has a score is absent."""
        means = {name: float(self.scores(name)[rows].nanmean()) for name in self._pieces}
        return {name: mean for name, mean in means.items() if mean == mean}

    def counted(self, name: str, rows: Tensor) -> int:
        """The pictures that have a score."""
        return int((~self.scores(name)[rows].isnan()).sum())
