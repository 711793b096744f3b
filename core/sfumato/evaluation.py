"""What a trained pipeline can do: metrics over samples with fixed noise, and studies with a picture
each.

It writes where it is told, and knows neither runs nor ranks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from sfumato import pictures
from sfumato.bootstrap import measured
from sfumato.errors import ConfigError
from sfumato.measurements import as_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sfumato.experiment import Evaluation
    from sfumato.interfaces import MetricState, Study
    from sfumato.pipeline import Pipeline

SHEET = 32
"""Samples shown on the sheet of an evaluation."""


@attrs.frozen(eq=False, kw_only=True)
class Output:
    """Where an evaluation leaves what it finds.

    Attributes:
        folder: takes `NAME.png` and `NAME.json` of each study.
        sheet: of the first samples, a PNG.
        tell: told after each measurement what is found so far: `results`, numbers by name, and
            `measured_with`, what those of a metric depend on, by its name.
        saved: told the name and the path of each picture.
        writes: whether this process writes; among ranks one does.
    """

    folder: Path
    sheet: Path
    tell: Callable[..., None]
    saved: Callable[[str, Path], None] = lambda name, path: None
    writes: bool = True


def held_out(pipeline: Pipeline, evaluation: Evaluation) -> list[str]:
    """A caption for each picture that metrics want: the first of the held-out split, from the start
    again where there are too few.
    """
    if not evaluation.metrics:
        return []
    split = pipeline.settings.given_data().split("test")
    return [split.caption(i % len(split)) for i in range(evaluation.count)]


def check(pipeline: Pipeline, evaluation: Evaluation, texts: Sequence[str]) -> None:
    """Raises ConfigError where something could not be measured with pictures of these texts, before
    anything is trained or drawn.
    """
    listed = [(one.kind, one.name) for one in (*evaluation.metrics, *evaluation.studies)]
    for kind, name in listed:
        if listed.count((kind, name)) > 1:
            problem = "is listed twice, and its numbers have one name"
            raise ConfigError(problem, place=f"evaluation: {kind} {name}", remedy="drop one")
    if evaluation.metrics:
        pipeline.text_encoder.check(dict.fromkeys(texts))
    for metric in evaluation.metrics:
        metric.build(pipeline)
    for study in evaluation.studies:
        study.check(pipeline)


class _Found:
    """The numbers so far."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.results: dict[str, Any] = {}
        self.measured_with: dict[str, Any] = {}

    def add(self, numbers: Mapping[str, Any], place: str) -> None:
        for name, value in as_json(numbers).items():
            if name in self.results:
                raise ConfigError(f"the number {name!r} is measured twice", place=place)
            self.results[name] = value
        self.output.tell(results=self.results, measured_with=self.measured_with)


def evaluate(
    pipeline: Pipeline,
    evaluation: Evaluation,
    texts: Sequence[str],
    seed: int,
    output: Output,
) -> dict[str, Any]:
    """Draws a picture for each text, measures them, and runs the studies.

    Pictures are measured in batches as they are drawn, so that only those metrics hold them that
    need them.

    Args:
        pipeline: trained, in eval mode.
        evaluation: what to measure.
        texts: prompts; picture k has the noise of example k.
        seed: of all noise.
        output: where it leaves what it finds.

    Returns:
        The numbers by name, as JSON has them.
    """
    found = _Found(output)
    if evaluation.metrics:
        states = [metric.build(pipeline) for metric in evaluation.metrics]
        _draw(pipeline, states, texts, seed, evaluation.batch, output)
        for metric, state in zip(evaluation.metrics, states, strict=True):
            numbers = measured(state, len(texts))
            if not numbers:
                warnings.warn(
                    f"metric {metric.name} finds no number in these {len(texts)} pictures; "
                    f"`sfumato describe metric {metric.name}` says what it needs",
                    stacklevel=2,
                )
            if facts := state.facts():
                found.measured_with[metric.name] = dict(facts)
            found.add(numbers, f"metric {metric.name}")
    for study in evaluation.studies:
        _answer(study, pipeline, seed, found)
    return found.results


def _draw(
    pipeline: Pipeline,
    states: Sequence[MetricState],
    texts: Sequence[str],
    seed: int,
    batch: int,
    output: Output,
) -> None:
    """Hands each batch to the measurements, and keeps the first pictures for the sheet."""
    shown = []
    at_once = batch * (1 if pipeline.sharing is None else pipeline.sharing.ranks)
    for start in range(0, len(texts), at_once):
        rows = range(start, min(start + at_once, len(texts)))
        images = pipeline.sample(texts, seed=seed, batch=batch, rows=rows)
        for state in states:
            state.update(images, texts[rows.start : rows.stop])
        if start < SHEET:
            shown.append(images[: SHEET - start])
    if output.writes:
        sheet = pictures.grid(torch.cat(shown), columns=8)
        pictures.save(sheet, output.sheet, {"prompts": list(texts[:SHEET]), "seed": seed})
        output.saved("samples", output.sheet)


def _answer(study: Study, pipeline: Pipeline, seed: int, found: _Found) -> None:
    finding, output = study.run(pipeline, seed), found.output
    if output.writes:
        numbers, details = as_json(finding.numbers), as_json(finding.details)
        if finding.picture is not None:
            path = output.folder / f"{study.name}.png"
            pictures.save(finding.picture, path, numbers)
            output.saved(study.name, path)
        text = json.dumps({**numbers, **details}, indent=1)
        (output.folder / f"{study.name}.json").write_text(text + "\n", encoding="utf-8")
    found.add(finding.numbers, f"study {study.name}")
