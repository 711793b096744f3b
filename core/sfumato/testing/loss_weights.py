"""Laws of the weights on losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from sfumato.prediction import PredictionType, x0_weight
from sfumato.testing.laws import expect, expect_close, expect_equal, expect_finite, law
from sfumato.testing.losses import noised_examples, rows_of
from sfumato.testing.mixture import QuarterCircle, Straight

if TYPE_CHECKING:
    from sfumato.interfaces import LossWeight

KINDS: tuple[PredictionType, ...] = get_args(PredictionType)


@law("loss_weight")
def a_weight_for_each_example(weight: LossWeight) -> None:
    """Weights are (B,), finite and not below 0, for every prediction type."""
    for kind in KINDS:
        values = weight(noised_examples(), kind)
        expect_equal(tuple(values.shape), (5,), f"shape of the weights of {kind}")
        expect_finite(values, f"weights of {kind}")
        expect(bool((values >= 0).all()), "weights of at least 0", f"{values.tolist()}")


@law("loss_weight")
def per_example(weight: LossWeight) -> None:
    """The weight of an example does not depend on those beside it."""
    state = noised_examples()
    together = weight(state, "epsilon")
    for i in range(5):
        row = slice(i, i + 1)
        alone = weight(rows_of(state, row), "epsilon")
        expect_close(alone, together[row], f"the weight of example {i} alone", 1e-9)


@law("loss_weight")
def agrees_across_prediction_types(weight: LossWeight) -> None:
    """The weight that results on the squared x0 error is the same for every prediction type."""
    for schedule in (QuarterCircle(), Straight()):
        state = noised_examples(schedule)
        on_x0 = weight(state, "x0").double()
        for kind in KINDS:
            resulting = weight(state, kind).double() * x0_weight(kind, state.alpha, state.sigma)
            # A weight may be 0 at some times, so examples are compared relative to their own size.
            size = on_x0.abs().clamp(min=1e-12)
            of = f"the weight that results from that of {kind}, relative to that of x0,"
            expect_close(resulting / size, on_x0 / size, of, 1e-5)
