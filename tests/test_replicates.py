"""Intervals over seeds, against scipy; and what they separate."""

import math

import numpy as np
import pytest
from scipy import stats

from sfumato import replicates
from sfumato.measurements import Measured


def values(numbers, half=0.0, first=0):
    return {
        first + i: Measured(float(x), float(x) - half, float(x) + half, 10)
        for i, x in enumerate(numbers)
    }


@pytest.mark.parametrize("freedom", [*range(1, 12), 29, 30, 100])
def test_the_quantile_is_students(freedom):
    assert replicates.quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_the_mean_over_seeds_is_the_t_interval():
    numbers = [0.2, 0.5, 0.35]
    found = replicates.mean(values(numbers))
    wanted = stats.ttest_1samp(numbers, 0).confidence_interval()
    assert found.value == pytest.approx(0.35)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_the_difference_of_equal_seeds_is_paired():
    first, other = [0.2, 0.5, 0.35], [0.31, 0.6, 0.47]
    found = replicates.difference(values(other), values(first))
    wanted = stats.ttest_rel(other, first).confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.excludes_zero


def test_the_difference_of_other_seeds_is_welchs_with_the_fewest_degrees_of_freedom():
    first, other = [0.2, 0.5, 0.35], [0.31, 0.6, 0.47, 0.4]
    found = replicates.difference(values(other, first=7), values(first))
    error = math.hypot(stats.sem(first), stats.sem(other))
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 2) * error)
    wide = stats.ttest_ind(other, first, equal_var=False).confidence_interval()
    assert found.low <= wide.low


def test_seeds_that_agree_by_chance_have_the_interval_of_their_samples():
    found = replicates.mean(values([0.5, 0.5, 0.5], half=0.3))
    assert found.high - found.value == pytest.approx(0.3 / math.sqrt(3))
    apart = replicates.difference(values([0.6, 0.6, 0.6], half=0.3), values([0.5] * 3, half=0.4))
    assert apart.high - apart.value == pytest.approx(0.5 / math.sqrt(3))
    assert not apart.excludes_zero


def test_one_seed_has_the_interval_of_its_samples():
    one = {0: Measured(0.5, 0.4, 0.7, 10)}
    assert replicates.mean(one) == replicates.Interval(0.5, 0.4, 0.7)
    assert replicates.difference(one, values([0.1], half=0.2)).low == pytest.approx(0.4 - 0.25)


def test_one_seed_against_several_varies_as_they_do():
    """The interval of one further value that is predicted from the others."""
    several = [0.2, 0.5, 0.35]
    half = stats.t.ppf(0.975, 2) * np.std(several, ddof=1) * math.sqrt(1 + 1 / 3)
    for one, other in ((values([0.9]), values(several)), (values(several), values([0.9]))):
        found = replicates.difference(one, other)
        assert found.high - found.value == pytest.approx(half)


@pytest.mark.parametrize(("first", "count"), [(0, 3), (3, 3), (3, 1)])
def test_what_is_equal_is_separated_once_in_twenty_and_what_differs_nearly_always(first, count):
    """400 experiments: 3 seeds against `count`, those from `first` on; deviation 0.03 between seeds
    and 0.03 of the samples.
    """
    draw = np.random.default_rng(0)

    def run(center, first, count):
        weights = center + 0.03 * draw.standard_normal(count)
        drawn = weights + 0.03 * draw.standard_normal(count)
        return values(drawn, half=1.96 * 0.03, first=first)

    def apart(center):
        return replicates.difference(run(center, 0, 3), run(0.5, first, count))

    same, other = ([apart(center) for _ in range(400)] for center in (0.5, 0.9))
    assert sum(one.excludes_zero for one in same) <= 0.05 * 400 + 3 * math.sqrt(400 * 0.05 * 0.95)
    assert sum(one.excludes_zero for one in other) >= 0.9 * 400
