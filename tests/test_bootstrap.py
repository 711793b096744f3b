"""Intervals against the textbook: they cover what they should, and repeats do not move them."""

import json

import attrs
import pytest
import torch

import sfumato
from sfumato import bootstrap, measurements


class Values(sfumato.Scores):
    def update(self, images, prompts):
        self.add({"brightness": images.mean(dim=(1, 2, 3))})


class Gap(sfumato.MetricState):
    """The mean distance of all pairs, repeats included: 0 for a picture and itself."""

    biased = frozenset({"gap"})

    def __init__(self, numbers):
        self.numbers = numbers

    def update(self, images, prompts):
        """Has its numbers."""

    def compute(self, rows):
        return {"gap": float(torch.pdist(self.numbers[rows][:, None]).mean())}


def numbers(count, seed=0):
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    drawn = numbers(400)
    found = sfumato.measured_mean(drawn)
    error = float(1.96 * drawn.std() / 20)
    assert found.value == pytest.approx(float(drawn.mean()))
    assert found.low == pytest.approx(float(drawn.mean()) - error, abs=0.15 * error)
    assert found.high == pytest.approx(float(drawn.mean()) + error, abs=0.15 * error)
    assert found.n == 400


def test_it_covers_the_truth_about_19_times_in_20():
    held = [sfumato.measured_mean(numbers(60, seed)) for seed in range(300)]
    covered = sum(one.low <= 0 <= one.high for one in held) / 300
    assert 0.91 <= covered <= 0.98


def test_what_repeats_bias_is_moved_back():
    drawn = numbers(12)
    again = sfumato.measured(Gap(drawn), 12)["gap"]
    plain = Gap(drawn)
    plain.biased = frozenset()
    moved = sfumato.measured(plain, 12)["gap"]
    middle = (again.low + again.high) / 2
    assert middle == pytest.approx(again.value, rel=0.05)
    assert (moved.low + moved.high) / 2 < 0.95 * again.value  # 1 in 12 pairs is a repeat
    assert again.high - again.low == pytest.approx(moved.high - moved.low)


def test_scores_are_means_of_those_that_have_one():
    state = Values()
    images = torch.tensor([1.0, torch.nan, 0.0, 0.5])[:, None, None, None].expand(4, 3, 2, 2)
    state.update(images[:1], ["a"])
    state.update(images[1:], ["b", "c", "d"])
    assert state.compute(torch.tensor([0, 1, 2])) == {"brightness": 0.5}
    assert state.compute(torch.tensor([1])) == {}
    found = sfumato.measured(state, 4)["brightness"]
    assert (found.value, found.n) == (0.5, 3)
    alone = sfumato.measured_mean(torch.tensor([1.0, 0.0, 0.5]))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.1)


def test_rows_are_drawn_evenly_and_are_the_same_each_time():
    rows = bootstrap.resamples(7)
    assert rows.shape == (bootstrap.RESAMPLES, 7)
    counts = torch.bincount(rows.flatten(), minlength=7)
    assert ((counts - 400).abs() < 4 * 400**0.5).all()
    bootstrap.resamples.cache_clear()
    assert torch.equal(bootstrap.resamples(7), rows)


def test_a_number_as_json_and_as_text():
    one = sfumato.Measured(value=0.9123, low=0.87, high=0.94771, n=192)
    assert str(one) == "0.912 [0.87, 0.948] n=192"
    stated = measurements.as_json({"share": one, "guidance": {"4": {"share": one}}, "steps": 3})
    assert json.loads(json.dumps(stated)) == {
        "share": attrs.asdict(one), "guidance": {"4": {"share": attrs.asdict(one)}}, "steps": 3,
    }  # fmt: skip
    assert measurements.flat(stated) == {"share": one, "guidance.4.share": one}
