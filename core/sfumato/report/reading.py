"""Reads run folders for a report, whatever state they are in: what cannot be read is said, and the
rest is shown.
"""

from __future__ import annotations

import io
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
from PIL import Image, UnidentifiedImageError

from sfumato.errors import SfumatoError, cause
from sfumato.evaluations import RESULTS
from sfumato.runs import METRICS, RECORD, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

Series: TypeAlias = "dict[str, tuple[array[float], array[float]]]"
"""Steps and values of each number that was logged."""

NOT_CURVES = {"stage", "step", "skipped"}
SHEET = "samples.png"
"""The one of a later evaluation."""
SHEETS = 4
"""Sample sheets shown of a run, the newest."""


@attrs.frozen(eq=False, kw_only=True)
class Picture:
    """A PNG file, whole.

    Attributes:
        name: of the file, without its suffix.
        content: its bytes.
        width: in pixels.
        height: in pixels.
        facts: what stands in its text chunk `sfumato`; empty where that says nothing.
    """

    name: str
    content: bytes
    width: int
    height: int
    facts: Mapping[str, Any]


@attrs.frozen(eq=False, kw_only=True)
class Reported:
    """What a run folder holds.

    Attributes:
        path: of the folder.
        name: what tells it from the others of the report.
        place: among these, from 0.
        record: `run.json`.
        settings: `settings.yaml`, as YAML has it.
        results: all that was measured: numbers by name, as `run.json` has them, and those of each
            later evaluation under its name.
        stages: what was logged, by stage in the order of training.
        steps: how many steps were logged.
        checkpoints: the steps at which there is one.
        problems: what could not be read, one line each; more may be added.
    """

    path: Path
    name: str
    place: int
    record: Mapping[str, Any]
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    stages: Mapping[str, Series]
    steps: int
    checkpoints: Sequence[int]
    problems: list[str]

    @property
    def status(self) -> str:
        """That of the record, or that there is none."""
        return str(self.record.get("status", "unknown"))

    def sheets(self) -> Iterator[Picture]:
        """The newest sample sheets, newest first."""
        files = [*self.path.glob("samples/*.png"), *_evaluations(self.path).glob(f"*/{SHEET}")]
        newest = sorted(files, key=_age, reverse=True)
        yield from self._pictures(newest[:SHEETS])

    def studies(self) -> Iterator[Picture]:
        """The pictures that studies left: of each the newest."""
        files = sorted(study_files(self.path), key=_age)
        newest = {file.stem: file for file in files}
        yield from self._pictures([newest[name] for name in sorted(newest)])

    def _pictures(self, files: Sequence[Path]) -> Iterator[Picture]:
        for file in files:
            try:
                yield picture(file)
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                known = isinstance(error, UnidentifiedImageError)
                why = "it is no picture" if known else cause(error)
                self.problems.append(f"{file.relative_to(self.path)} cannot be shown: {why}")


def read(path: Path, name: str, place: int = 0) -> Reported:
    """Reads what there is."""
    run, problems = Run(path), []
    record: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    stages: dict[str, Series] = {}
    steps = 0
    try:
        record = run.record()
        if not record:
            problems.append(f"{RECORD} is missing: nothing says what this run is")
    except (SfumatoError, TypeError, ValueError) as error:
        problems.append(cause(error))
    try:
        settings = run.settings().plain()
    except SfumatoError as error:
        problems.append(cause(error))
    try:
        stages, steps = curves(path / METRICS)
    except FileNotFoundError:
        problems.append(f"{METRICS} is missing: no step was logged")
    except (OSError, ValueError) as error:
        problems.append(f"{METRICS} cannot be read: {cause(error)}")
    return Reported(
        path=path,
        name=name,
        place=place,
        record=record,
        settings=settings,
        results=_results(path, record, problems),
        stages=stages,
        steps=steps,
        checkpoints=run.checkpoint_steps(),
        problems=problems,
    )


def curves(path: Path) -> tuple[dict[str, Series], int]:
    """What a log says, by stage and number, and how many lines it has, up to one that a kill left
    unfinished. Holds 16 bytes for each number, not the log.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text.
    """
    stages: dict[str, Series] = {}
    count = 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                said = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(said, dict) or "step" not in said:
                break
            count += 1
            series = stages.setdefault(str(said.get("stage", "")), {})
            for key, value in said.items():
                if (
                    key not in NOT_CURVES
                    and isinstance(value, int | float)
                    and math.isfinite(value)
                ):
                    at, values = series.setdefault(key, (array("d"), array("d")))
                    at.append(float(said["step"]))
                    values.append(float(value))
    return stages, count


def picture(file: Path) -> Picture:
    """A PNG file, decoded once to see that it is whole.

    Raises:
        OSError, ValueError: it is not.
    """
    content = file.read_bytes()
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        image.load()
        width, height = image.size
        said = image.info.get("sfumato", "{}")
    try:
        facts = json.loads(said)
    except ValueError:
        facts = {}
    return Picture(
        name=file.stem,
        content=content,
        width=width,
        height=height,
        facts=facts if isinstance(facts, dict) else {},
    )


def study_files(path: Path) -> list[Path]:
    """Where studies of a run left pictures: in its folder, and in its evaluations."""
    files = [*path.glob("*.png"), *_evaluations(path).glob("*/*.png")]
    return [file for file in files if file.name != SHEET]


def _evaluations(path: Path) -> Path:
    """The folder of a run's later evaluations."""
    return Run(path).outputs("evaluations")


def _results(path: Path, record: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    said = record.get("results")
    found: dict[str, Any] = dict(said) if isinstance(said, Mapping) else {}
    for file in sorted(_evaluations(path).glob(f"*/{RESULTS}")):
        try:
            found[f"evaluation {file.parent.name}"] = json.loads(file.read_bytes())["results"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            problems.append(f"{file}: cannot be read: {cause(error)}")
    return found


def _age(file: Path) -> tuple[float, str]:
    """What sorts files from the oldest to the newest."""
    return file.stat().st_mtime, file.name


def names(paths: Sequence[Path]) -> list[str]:
    """What tells these folders apart: their own names where these differ, else their paths."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]
