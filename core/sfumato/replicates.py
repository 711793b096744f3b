"""A number over seeds: its mean with a 95 % interval, and how far two configurations are apart.

Two things make a measured number uncertain: which weights training ended in, told by the seed, and
which samples were drawn, told by the bootstrap interval of each run. The values of S seeds vary by
both, so Student's t over them covers both:

    mean +- t(0.975, S - 1) s / sqrt(S)                      s: deviation of the S values
    difference: the same of the S differences, where both have the same seeds (paired);
                else +- t(0.975, min(S, S') - 1) sqrt(s^2 / S + s'^2 / S')             (Welch)

One value has no deviation. Against S others it is taken to vary as they do:

    difference: +- t(0.975, S - 1) s sqrt(1 + 1 / S)

A few values can agree by chance, so an interval is never narrower than the one that the samples
alone give: sqrt(sum of the squared half-widths of the runs) / S. Alone, and against another alone,
one seed has only that, which says nothing about another training.

References:
    Deep Reinforcement Learning at the Edge of the Statistical Precipice, Agarwal et al., 2021,
    arXiv:2108.13264, on how few runs there are; Handbook of Mathematical Functions, Abramowitz &
    Stegun, 1964, 26.7.3 and 26.7.4.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping

import attrs

from sfumato.measurements import Measured

CONFIDENCE = 0.95

Values = Mapping[int, Measured]
"""A measured number by seed."""


@attrs.frozen
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def mean(values: Values) -> Interval:
    """Over seeds, of which there is at least one."""
    center = statistics.fmean(one.value for one in values.values())
    if len(values) == 1:
        (only,) = values.values()
        return Interval(center, only.low, only.high)
    spread = _t(values) * _error(_plain(values))
    return _around(center, max(spread, _samples(values)))


def difference(values: Values, first: Values) -> Interval:
    """Of two means: paired where both have the same seeds."""
    center = mean(values).value - mean(first).value
    samples = math.hypot(_samples(values), _samples(first))
    fewer, more = sorted((values, first), key=len)
    if len(more) == 1:
        return _around(center, samples)
    if len(fewer) == 1:
        spread = _t(more) * math.sqrt(len(more) + 1) * _error(_plain(more))
    elif values.keys() == first.keys():
        spread = _t(fewer) * _error([values[k].value - first[k].value for k in values])
    else:
        spread = _t(fewer) * math.hypot(_error(_plain(values)), _error(_plain(first)))
    return _around(center, max(spread, samples))


def _around(center: float, half: float) -> Interval:
    return Interval(center, center - half, center + half)


def _samples(values: Values) -> float:
    """Half the interval of the mean that the samples alone give."""
    return math.hypot(*((one.high - one.low) / 2 for one in values.values())) / len(values)


def _plain(values: Values) -> list[float]:
    return [one.value for one in values.values()]


def _error(values: list[float]) -> float:
    """The standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _t(values: Values) -> float:
    return quantile(len(values) - 1)


@functools.cache
def quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """T such that a Student variable of that many degrees of freedom lies in [-t, t] with that
    probability.

    By bisection of the finite series that A & S give in theta = atan(t / sqrt(freedom)).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        below = _probability(middle, freedom) < confidence
        low, high = (middle, high) if below else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _probability(theta: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(theta))."""
    cosine = math.cos(theta)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    total *= math.sin(theta)
    return (theta + total) * 2 / math.pi if odd else total
