"""Measures alignment, diversity and fidelity over a grid of guidance scales, and finds the knee."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from sfumato import ConfigError, Finding, MetricState, measured
from sfumato_metrics import charts
from sfumato_metrics.knees import knee
from sfumato_metrics.metrics import ClipSimilarity, DescribedShapes, ShapeAttributes
from sfumato_metrics.walking import chosen, negatives_for, two_scales

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from sfumato import Measured, Metric, Pipeline
    from sfumato_metrics.frontier import Frontier

Row = dict[str, Any]
"""One pair of scales, and what was measured there."""


class Averaged(MetricState):
    """The mean of the numbers of another measurement, of shares or cosines, as `mean`."""

    def __init__(self, inner: MetricState) -> None:
        self._inner = inner
        self.biased = frozenset({"mean"} if inner.biased else ())

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Hands them on."""
        self._inner.update(images, prompts)

    def compute(self, rows: Tensor) -> Mapping[str, float]:
        """Of the numbers that these rows have."""
        numbers = list(self._inner.compute(rows).values())
        return {"mean": sum(numbers) / len(numbers)} if numbers else {}

    def counted(self, name: str, rows: Tensor) -> int:
        """The pictures that count for the number for which most do."""
        return max(self._inner.counted(one, rows) for one in self._inner.compute(rows))


def metrics(study: Frontier, pipeline: Pipeline) -> dict[str, Metric]:
    """What is measured at each pair of scales."""
    readable = isinstance(pipeline.settings.data, DescribedShapes)
    alignment = study.alignment or (ShapeAttributes() if readable else ClipSimilarity())
    found = {"alignment": alignment, "diversity": study.diversity, "fidelity": study.fidelity}
    return {role: metric for role, metric in found.items() if metric is not None}


def frontier(study: Frontier, pipeline: Pipeline, seed: int) -> Finding:
    """All pairs of scales, from the same noise."""
    prompts = chosen(study.prompts, study.count, pipeline)
    negatives = negatives_for(prompts, study.negatives, pipeline, "study.frontier")
    texts = [prompt for prompt in prompts for _ in range(study.samples)]
    opposed = [negative for negative in negatives for _ in range(study.samples)]
    roles = metrics(study, pipeline)
    rows: list[Row] = []
    for negative, positive in itertools.product(study.negative, study.positive):
        images = pipeline.sample(
            texts, negative=opposed, seed=seed, guidance=two_scales(positive, negative)
        )
        row: Row = {"positive": positive, "negative": negative}
        for role, metric in roles.items():
            row[role] = _measured(metric, role, pipeline, images, texts)
        rows.append(row)
    knees = bends(rows, roles)
    return Finding(
        numbers={
            "frontier": {_named(row): {role: row[role] for role in roles} for row in rows},
            **{
                "frontier_knee" if role == "diversity" else f"frontier_knee_{role}": scales(row)
                for role, row in knees.items()
            },
        },
        details={
            "prompts": prompts,
            "negatives": negatives,
            "samples": study.samples,
            "metrics": {role: metric.name for role, metric in roles.items()},
            "seed": seed,
        },
        picture=charts.frontier(rows, {role: metric.name for role, metric in roles.items()}, knees),
    )


def bends(rows: Sequence[Row], roles: Iterable[str]) -> dict[str, Row]:
    """The knee of alignment against each other role, where there is one."""
    signs = {"diversity": 1, "fidelity": -1}
    alignment = [row["alignment"].value for row in rows]
    found = {
        role: knee(alignment, [sign * row[role].value for row in rows])
        for role, sign in signs.items()
        if role in roles
    }
    return {role: rows[place] for role, place in found.items() if place is not None}


def scales(row: Row) -> dict[str, float]:
    """The pair alone."""
    return {key: row[key] for key in ("positive", "negative")}


def _named(row: Row) -> str:
    return f"{row['positive']:g}, {row['negative']:g}"


def _measured(
    metric: Metric, role: str, pipeline: Pipeline, images: Tensor, texts: Sequence[str]
) -> Measured:
    """The one number of a role.

    Raises:
        ConfigError: the metric finds none in these pictures.
    """
    state = metric.build(pipeline)
    if role == "alignment":
        state = Averaged(state)
    state.update(images, texts)
    numbers = list(measured(state, len(texts)).values())
    if not numbers:
        raise ConfigError(
            f"the metric {metric.name!r} finds no number in these pictures",
            place=f"study.frontier.{role}",
            remedy="name what it reads in the prompts, or use another metric",
        )
    return numbers[0]
