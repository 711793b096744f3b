"""What a trained pipeline can do: metrics over samples with fixed noise, and studies with a picture
each.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sfumato import pictures
from sfumato.errors import ConfigError
from sfumato.records import PictureSaved

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL.Image import Image

    from sfumato.experiment import Evaluation
    from sfumato.pipeline import Pipeline
    from sfumato.runs import Run

SHEET = 32
"""Samples shown on the sheet of an evaluation."""


def prompts(pipeline: Pipeline, count: int) -> list[str]:
    """The first captions of the held-out split, from the start again where there are too few."""
    split = pipeline.settings.given_data().split("test")
    return [split.caption(i % len(split)) for i in range(count)]


def check(pipeline: Pipeline, evaluation: Evaluation) -> None:
    """Raises ConfigError where something could not be measured, before anything is trained."""
    listed = [(one.kind, one.name) for one in (*evaluation.metrics, *evaluation.studies)]
    for kind, name in listed:
        if listed.count((kind, name)) > 1:
            problem = "is listed twice, and its numbers have one name"
            raise ConfigError(problem, place=f"evaluation: {kind} {name}", remedy="drop one")
    if evaluation.metrics:
        pipeline.text_encoder.check(dict.fromkeys(prompts(pipeline, evaluation.count)))
    for metric in evaluation.metrics:
        metric.build(pipeline)
    for study in evaluation.studies:
        study.check(pipeline)


def evaluate(
    pipeline: Pipeline, evaluation: Evaluation, seed: int, run: Run, step: int
) -> dict[str, Any]:
    """Draws samples for held-out captions, measures them, and runs the studies.

    Args:
        pipeline: trained, in eval mode.
        evaluation: what to measure.
        seed: of all noise.
        run: takes `samples/step-N.png`, `NAME.png` and `NAME.json` of each study, and, after each
            measurement, the results so far.
        step: that the weights stand at.

    Returns:
        The numbers by name.
    """
    results: dict[str, Any] = {}

    def save(name: str, picture: Image, path: Path, facts: Mapping[str, Any]) -> None:
        pictures.save(picture, path, facts)
        saved = PictureSaved(name=name, path=path, step=step)
        pipeline.watchers.notify("sfumato_on_picture", picture=saved)

    if evaluation.metrics:
        texts = prompts(pipeline, evaluation.count)
        images = pipeline.sample(texts, seed=seed, batch=evaluation.batch)
        sheet = pictures.grid(images[:SHEET], columns=8)
        facts = {"prompts": texts[:SHEET], "seed": seed, "step": step}
        save("samples", sheet, run.path / "samples" / f"step-{step:08d}.png", facts)
        results["samples"] = len(texts)
        for metric in evaluation.metrics:
            state = metric.build(pipeline)
            state.update(images, texts)
            _add(results, state.compute(), f"metric {metric.name}")
            run.update(results=results)
    for study in evaluation.studies:
        finding = study.run(pipeline, seed)
        _add(results, finding.numbers, f"study {study.name}")
        if finding.picture is not None:
            path = run.path / f"{study.name}.png"
            save(study.name, finding.picture, path, finding.numbers)
        text = json.dumps({**finding.numbers, **finding.details}, indent=1)
        (run.path / f"{study.name}.json").write_text(text + "\n", encoding="utf-8")
        run.update(results=results)
    return results


def _add(results: dict[str, Any], numbers: Mapping[str, Any], place: str) -> None:
    for name, value in numbers.items():
        if name in results:
            raise ConfigError(f"the number {name!r} is measured twice", place=place)
        results[name] = value
