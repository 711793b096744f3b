"""Laws of metrics: numbers that depend on the pictures and prompts, and not on how they came."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor

from sfumato.bootstrap import measured
from sfumato.interfaces import Metric, MetricState
from sfumato.pipeline import Pipeline
from sfumato.randomness import Draw
from sfumato.testing import assembly
from sfumato.testing.laws import Broken, expect, expect_close, expect_equal, law, subject
from sfumato.testing.modules import EXACT, expect_same_state, random_state_kept, state_of

Numbers = Mapping[str, float]


@attrs.frozen(eq=False)
class Subject:
    """The settings, a pipeline, and eight pictures of four prompts."""

    settings: Metric
    pipeline: Pipeline
    images: Tensor
    prompts: tuple[str, ...]

    def of(self, pieces: Sequence[Sequence[int]]) -> Numbers:
        """The numbers of a measurement that takes in these pictures, piece by piece."""
        state = self.settings.build(self.pipeline)
        for piece in pieces:
            self.update(state, piece)
        return state.compute(torch.arange(sum(map(len, pieces))))

    def update(self, state: MetricState, piece: Sequence[int]) -> None:
        """Takes in these pictures with their prompts."""
        state.update(self.images[list(piece)], [self.prompts[place] for place in piece])

    @property
    def together(self) -> Numbers:
        """Of all pictures at once."""
        return self.of([range(len(self.prompts))])


@subject("metric")
def builds(settings: Metric) -> Subject:
    """It begins a measurement on a small pipeline."""
    pipeline, batch = assembly.pipeline(), assembly.batch(4)
    settings.build(pipeline)
    draw = Draw(seed=0, stream="metrics", examples=torch.arange(8))
    noise = draw.normal("pictures", batch.images.shape[1:])
    images = (batch.images.repeat(2, 1, 1, 1) + 0.1 * noise).clamp(-1, 1)
    return Subject(settings, pipeline, images, batch.captions * 2)


def _expect_same(got: Numbers, wanted: Numbers, of: str) -> None:
    expect_equal(sorted(got), sorted(wanted), f"numbers {of}:")
    for name in wanted:
        found, expected = (
            torch.tensor(numbers[name], dtype=torch.float64) for numbers in (got, wanted)
        )
        expect_close(found, expected, f"{name} {of}", EXACT)


def _expect_numbers(numbers: Numbers) -> None:
    try:
        text = json.dumps(dict(numbers), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Broken("finite numbers by name", f"{dict(numbers)!r}"[:200]) from error
    plain = all(isinstance(value, float | int) for value in json.loads(text).values())
    expect(plain, "numbers by name", text[:200])


@law("metric")
def gives_numbers(metric: Subject) -> None:
    """Eight pictures, two of each prompt, give at least one number; all are finite and fit JSON."""
    numbers = metric.together
    expect(len(numbers) > 0, "a number", "none")
    _expect_numbers(numbers)


@law("metric")
def pieces_do_not_matter(metric: Subject) -> None:
    """Pictures taken in piece by piece, or one by one, give the numbers of all at once."""
    wanted = metric.together
    _expect_same(metric.of([range(3), range(3, 4), range(4, 8)]), wanted, "in three pieces")
    _expect_same(metric.of([[place] for place in range(8)]), wanted, "one by one")


@law("metric")
def order_does_not_matter(metric: Subject) -> None:
    """Pictures in another order, each with its prompt, give the same numbers."""
    _expect_same(metric.of([[5, 2, 7, 0, 3, 6, 1, 4]]), metric.together, "in another order")


@law("metric")
def measurements_are_apart(metric: Subject) -> None:
    """Two measurements that go on at the same time do not mix, and pictures stay as they are."""
    before = metric.images.clone()
    wanted = metric.of([range(4)])
    one, other = (metric.settings.build(metric.pipeline) for _ in range(2))
    metric.update(other, range(4, 8))
    metric.update(one, range(4))
    metric.update(other, range(2))
    _expect_same(one.compute(torch.arange(4)), wanted, "beside another measurement")
    expect_close(metric.images, before, "the pictures afterwards", 0)


@law("metric")
def computing_ends_nothing(metric: Subject) -> None:
    """`compute` gives the same again, and `update` may go on after it."""
    state = metric.settings.build(metric.pipeline)
    metric.update(state, range(5))
    first = dict(state.compute(torch.arange(5)))
    _expect_same(state.compute(torch.arange(5)), first, "computed again")
    metric.update(state, range(5, 8))
    _expect_same(state.compute(torch.arange(8)), metric.together, "after going on")


@law("metric")
def rows_are_chosen(metric: Subject) -> None:
    """`compute` of some rows gives the numbers of those pictures alone, in any order."""
    state = metric.settings.build(metric.pipeline)
    metric.update(state, range(8))
    for rows in ([1, 2, 5, 6], [6, 1, 5, 2]):
        _expect_same(state.compute(torch.tensor(rows)), metric.of([rows]), f"of rows {rows}")


@law("metric")
def can_be_resampled(metric: Subject) -> None:
    """Rows may repeat: each number gets a finite interval, and rests on at most eight pictures."""
    state = metric.settings.build(metric.pipeline)
    metric.update(state, range(8))
    found = measured(state, 8)
    for name, one in found.items():
        _expect_numbers({name: one.value, "low": one.low, "high": one.high})
        expect(one.low <= one.high, f"an interval of {name}", f"[{one.low}, {one.high}]")
        expect(0 < one.n <= 8, f"{name} of 1 to 8 pictures", str(one.n))
    try:
        json.dumps(dict(state.facts()), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Broken("facts that fit JSON", str(error)) from error


@law("metric")
def one_picture_is_enough(metric: Subject) -> None:
    """A single picture raises nothing; what it gives is finite."""
    _expect_numbers(metric.of([[0]]))


@law("metric")
def leaves_things_alone(metric: Subject) -> None:
    """Pictures, the pipeline's weights and torch's random state stay as they are."""
    images, modules = metric.images.clone(), metric.pipeline.modules()
    before = {slot: state_of(module) for slot, module in modules.items()}
    with random_state_kept():
        _ = metric.together
    expect(torch.equal(metric.images, images), "the pictures as they were", "others")
    for slot, module in modules.items():
        expect_same_state(module, before[slot], f"the {slot}")
        expect(not module.training, f"the {slot} in eval mode", "train mode")
