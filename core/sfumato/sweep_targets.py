"""What is swept over: an experiment, each of whose points is trained, or a run, drawn from anew.

Either checks a point before anything begins, says which of our own commands makes it, and reads
what it measured.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from sfumato import checkpoint, evaluation, evaluations, jobs, resumption, runs, settings, sweep
from sfumato.errors import CheckpointError, ConfigError, SfumatoError
from sfumato.jobs import Task
from sfumato.pipeline import Pipeline
from sfumato.references import parted
from sfumato.registry import Registry
from sfumato.runs import Run, Stored
from sfumato.sweep import SEED
from sfumato.training import rehearse

if TYPE_CHECKING:
    from sfumato.experiment import Experiment

LOGS = "logs"
Point = Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Planned:
    """A point that has passed all checks.

    Attributes:
        settings: that it varies.
        seed: of it.
        task: that makes its run.
        folder: of the run.
    """

    settings: Point
    seed: int
    task: Task
    folder: Path


@attrs.frozen(kw_only=True)
class Target(ABC):
    """What is swept over.

    Attributes:
        name: of an experiment, or a run.
        registry: what names in points mean.
        out: the folder of the sweep.
        overrides: of all points, below their own.
        options: of our command, before its name, such as `--registry FILE`.
        device: as torch names it.
        trains: whether points are trained.
        record: the file that a point's folder has once it has begun.
    """

    trains: ClassVar[bool]
    record: ClassVar[str]

    name: str
    registry: Registry
    out: Path
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    device: str | None = None

    def planned(self, points: Sequence[Point]) -> list[Planned]:
        """Checks all points.

        Raises:
            ConfigError: lists what is wrong with each.
        """
        swept = {key for point in points for key in point}
        for text in self.overrides:
            if text.partition("=")[0].strip() in swept:
                problem, remedy = "is swept over, and given for all points", "leave one out"
                raise ConfigError(problem, place=f"--set {text}", remedy=remedy)
        found, errors = [], []
        for point, name in zip(points, sweep.names(points), strict=True):
            try:
                found.append(self._planned(point, name))
            except SfumatoError as error:
                errors.append(ConfigError(str(error), place=name))
        if errors:
            raise ConfigError.joined(errors)
        return found

    def refuse_another(self, points: Sequence[Planned]) -> None:
        """Raises ConfigError where the folder holds a point that is none of these: it would not be
        in the table any more.
        """
        names = [point.folder.name for point in points]
        held = [path.parent.name for path in self.out.glob(f"*/{self.record}")]
        if others := sorted(set(held) - set(names)):
            raise ConfigError(
                f"holds points of another sweep: {', '.join(others[:3])}",
                place=str(self.out),
                remedy="name all points that it has, or choose another --out",
            )

    @abstractmethod
    def seed(self) -> int:
        """Of the points that set none."""

    def changed(self, point: Point) -> list[str]:
        """What a point sets, as `--set` takes it."""
        return [*self.overrides, *sweep.overrides(point)]

    def task(self, name: str, arguments: Sequence[str], keys: frozenset[str]) -> Task:
        """Our own command for one point."""
        device = () if self.device is None else ("--device", self.device)
        command = jobs.sfumato(*self.options, *arguments, *device)
        log = self.out / LOGS / f"{name}.txt"
        return Task(name=name, arguments=command, log=log, keys=keys)

    @abstractmethod
    def _planned(self, point: Point, name: str) -> Planned:
        """A point, checked."""

    @abstractmethod
    def is_complete(self, point: Planned) -> bool:
        """Whether there is nothing left to do."""

    @abstractmethod
    def clear(self, point: Planned) -> None:
        """Makes room for a point that is not complete, as it is about to begin."""

    @abstractmethod
    def results(self, point: Planned) -> Mapping[str, Any] | None:
        """What its run measured, as `run.json` has it; None where it has not come to its end."""


class Trainings(Target):
    """An experiment: each point is trained."""

    trains, record = True, runs.RECORD

    def seed(self) -> int:
        """Of the experiment."""
        return self.registry.experiment(self.name, self.overrides).seed

    def _planned(self, point: Point, name: str) -> Planned:
        changes = self.changed(point)
        experiment = self.registry.experiment(self.name, changes)
        folder = self.out / name
        if Run.begun(folder):
            resumption.check_settings(Run(folder), experiment, self.registry.catalogue)
        keys = rehearse(experiment, self.registry.catalogue, self.device)
        arguments = ["train", self.name, *(part for one in changes for part in ("--set", one))]
        arguments += ["--out", str(folder), "--resume", "--reuse", str(self.out)]
        task = self.task(name, arguments, frozenset(keys.values()))
        return Planned(settings=point, seed=experiment.seed, task=task, folder=folder)

    def is_complete(self, point: Planned) -> bool:
        """Whether the run has ended, and its last checkpoint is whole."""
        return Run.begun(point.folder) and resumption.is_complete(Run(point.folder))

    def clear(self, point: Planned) -> None:
        """Nothing: a run goes on from what it has."""

    def results(self, point: Planned) -> Mapping[str, Any] | None:
        """Those of the run that is complete."""
        record = Run(point.folder).record()
        return record["results"] if record.get("status") == "completed" else None


def _pinned(run: str) -> str:
    """RUN as RUN@STEP, so that all points draw from one checkpoint, whatever the run comes to."""
    name, step = parted(run)
    if step is None:
        found = Run.open(name)
        found.newest_checkpoint()
        step = found.checkpoint_steps()[-1]
    return f"{name}@{step}"


@attrs.frozen(kw_only=True)
class Evaluations(Target):
    """A trained run: each point draws from it with other settings, and is measured.

    Attributes:
        name: RUN@STEP; of a RUN its newest checkpoint.
    """

    trains, record = False, evaluations.RESULTS

    name: str = attrs.field(converter=_pinned)

    def seed(self) -> int:
        """Of the run."""
        return self._settings(()).seed

    def _planned(self, point: Point, name: str) -> Planned:
        changes = self.changed({key: value for key, value in point.items() if key != SEED})
        measured, seed = self._settings(changes).evaluation, int(point.get(SEED, self.seed()))
        if not (measured.metrics or measured.studies):
            remedy = "name metrics or studies, such as --set evaluation.metrics=[shape_accuracy]"
            raise ConfigError("nothing is to be measured", place="evaluation", remedy=remedy)
        pipeline = Pipeline.load(self.name, changes, self.registry, evaluates=True)
        evaluation.check(pipeline, measured, evaluation.held_out(pipeline, measured))
        folder = self.out / name
        self._check(folder, changes, seed)
        arguments = ["evaluate", self.name, *(part for one in changes for part in ("--set", one))]
        arguments += ["--seed", str(seed), "--out", str(folder)]
        task = self.task(name, arguments, frozenset())
        return Planned(settings=point, seed=seed, task=task, folder=folder)

    def _check(self, folder: Path, changes: Sequence[str], seed: int) -> None:
        """Raises ConfigError where something else is there, or results of something else."""
        _left(folder)
        record = self._record(folder)
        if not record:
            return
        before, now = (settings.plain(self._settings(some)) for some in ((), changes))
        files = checkpoint.hashes(Stored.find(self.name, "", self.registry.catalogue).path)
        for what, found, wanted in (
            ("settings", record["settings"], evaluations.changed(before, now)),
            ("noise", record["seed"], seed),
            ("weights", record["checkpoint"]["files"], files),
        ):
            if found != wanted:
                remedy = "choose another --out"
                raise ConfigError(
                    f"was measured with other {what}", place=str(folder), remedy=remedy
                )

    def is_complete(self, point: Planned) -> bool:
        """Whether there are results: they are written last."""
        return self.results(point) is not None

    def clear(self, point: Planned) -> None:
        """Removes what an evaluation that was killed has left: it begins in an empty folder."""
        for path in _left(point.folder):
            path.unlink()

    def results(self, point: Planned) -> Mapping[str, Any] | None:
        """Those of the evaluation."""
        return self._record(point.folder).get("results")

    def _settings(self, changes: Sequence[str]) -> Experiment:
        tree = Run.open(parted(self.name)[0]).settings()
        return self.registry.structure(self.registry.override(tree, changes), self.name)

    def _record(self, folder: Path) -> dict[str, Any]:
        try:
            return dict(json.loads((folder / evaluations.RESULTS).read_bytes()))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise CheckpointError("cannot be read", place=str(folder)) from error


def _left(folder: Path) -> list[Path]:
    """The files of an evaluation in a folder, which may not be there.

    Raises:
        ConfigError: it holds anything else, above all a run, which nobody is to remove.
    """
    found = list(folder.iterdir()) if folder.is_dir() else []
    if Run.begun(folder) or any(one.suffix not in (".png", ".json") for one in found):
        problem, remedy = "holds what no evaluation has written", "choose another --out"
        raise ConfigError(problem, place=str(folder), remedy=remedy)
    return found
