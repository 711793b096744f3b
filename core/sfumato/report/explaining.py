"""The pictures that explain a run, where it has none yet: of studies that say `explains`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato.errors import SfumatoError, cause
from sfumato.evaluations import evaluate
from sfumato.interfaces import Study
from sfumato.pipeline import Pipeline
from sfumato.report.reading import study_files
from sfumato.runs import Run, free_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sfumato.plugins import Catalogue
    from sfumato.registry import Registry


def questions(catalogue: Catalogue) -> dict[str, str]:
    """What each study asks, by its name: the first paragraph of its docstring."""
    return {
        study.name: " ".join((study.__doc__ or "").partition("\n\n")[0].split())
        for study in _studies(catalogue)
    }


def missing(path: Path, catalogue: Catalogue) -> list[type[Study]]:
    """The studies that explain, and have left no picture in this run."""
    there = {file.stem for file in study_files(path)}
    return [one for one in _studies(catalogue) if one.explains and one.name not in there]


def make(path: Path, registry: Registry, device: str | None = None) -> list[str]:
    """Evaluates a run once more, with what is missing, if it has a checkpoint.

    Returns:
        What could not be made and why, one line each.
    """
    wanted = missing(path, registry.catalogue)
    if not wanted or not Run(path).checkpoint_steps():
        return []
    try:
        refused = _refused(wanted, Pipeline.load(path, registry=registry, device=device))
        names = [study.name for study in wanted if study.name not in refused]
        if names:
            out = free_path(Run(path).outputs("evaluations") / "report")
            evaluate(path, studies=names, out=out, registry=registry, device=device)
    except SfumatoError as error:
        return [f"explaining pictures could not be made: {cause(error)}"]
    return [f"no picture of {name}: {why}" for name, why in refused.items()]


def _refused(studies: list[type[Study]], pipeline: Pipeline) -> dict[str, str]:
    """The names of those that do not fit the pipeline, and why."""
    found = {}
    for study in studies:
        try:
            study().check(pipeline)
        except SfumatoError as error:
            found[study.name] = cause(error)
    return found


def _studies(catalogue: Catalogue) -> Iterator[type[Study]]:
    for offer in catalogue.offers:
        if issubclass(offer.component, Study):
            yield offer.component
