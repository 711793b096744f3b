"""Where a run goes on: its newest checkpoint that is whole.

Order, noise, times, dropout and augmentation are functions of (seed, stream, example, step), so a
checkpoint's step, weights, averages and moments are all there is to find, and a run that goes on is
the run that was never interrupted, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
from torch import Tensor

from sfumato import checkpoint, compatibility, runs, settings
from sfumato.errors import CheckpointError, ConfigError
from sfumato.experiment import Trained
from sfumato.pipeline import MODULES, Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sfumato.experiment import Experiment
    from sfumato.plugins import Catalogue
    from sfumato.runs import Run
    from sfumato.weak import Weak

    Names = tuple[str, ...]

OF_STAGES = ("accumulation", "activation_checkpointing", "cache", "compile")
FREE = {
    *((name,) for name in ("checkpoints", "workers", "trackers", "parallel")),
    *(("stages", "*", name) for name in OF_STAGES),
}
"""Paths of settings, with all below, that a run may go on with others of: they change numbers by
rounding at most."""


@attrs.frozen(eq=False, kw_only=True)
class Resumption:
    """A checkpoint, read.

    Attributes:
        trained: what it says of itself.
        pipeline: with its weights.
        state: what a stage needs beside them that was under way; empty between stages.
    """

    trained: Trained
    pipeline: Pipeline
    state: Mapping[str, Tensor]


def is_complete(run: Run) -> bool:
    """Whether there is nothing left to do: the run has ended, and its last checkpoint is whole."""
    if run.record()["status"] != "completed":
        return False
    try:
        checkpoint.verify(run.newest_checkpoint())
    except CheckpointError:
        return False
    return True


def find(
    run: Run,
    experiment: Experiment,
    catalogue: Catalogue,
    start: Trained | None,
    weak: Weak | None,
) -> Resumption | None:
    """The newest checkpoint that can be used; None where the run had not got to one.

    Damaged ones are set aside with a warning, and what killed writers left is removed.

    Raises:
        CheckpointError: there are checkpoints, and none can be used.
    """
    checkpoint.remove_unfinished(run.path / runs.CHECKPOINTS)
    steps = run.checkpoint_steps()
    for step in reversed(steps):
        path = run.checkpoint(step)
        try:
            return _read(path, experiment, catalogue, start, weak)
        except CheckpointError as error:
            aside = runs.free_path(path.with_name(f"damaged-{path.name}"))
            path.rename(aside)
            problem = f"{error}; it is set aside as {aside.name}, and an earlier one is tried"
            warnings.warn(problem, stacklevel=2)
    if steps:
        raise CheckpointError(
            f"none of its {len(steps)} checkpoints can be used",
            place=str(run.path),
            remedy="train anew with another --out",
        )
    return None


def _read(
    path: Path,
    experiment: Experiment,
    catalogue: Catalogue,
    start: Trained | None,
    weak: Weak | None,
) -> Resumption:
    trained = runs.trained(path, catalogue)
    if trained.stage not in experiment.stages:
        raise CheckpointError(
            f"is of a stage {trained.stage!r}, which is not ours", place=str(path)
        )
    try:
        compatibility.check_weights(trained, experiment)
    except ConfigError as error:
        raise CheckpointError(str(error), place=str(path)) from error
    states, _ = checkpoint.read(path, without=MODULES)
    if trained.unfinished and checkpoint.TRAINING not in states:
        raise CheckpointError(f"has no {checkpoint.TRAINING}.safetensors", place=str(path))
    schedule = experiment.noise_schedule
    if start is not None:
        schedule = compatibility.noise_schedule(experiment, start)
    stored = runs.Stored(path=path, trained=trained)
    pipeline = Pipeline.restored(stored, experiment, schedule=schedule, weak=weak)
    return Resumption(trained=trained, pipeline=pipeline, state=states.get(checkpoint.TRAINING, {}))


def check_settings(run: Run, experiment: Experiment, catalogue: Catalogue) -> None:
    """Raises ConfigError where settings that change numbers are not those of the run, and warns
    where the software is not.
    """
    free = set(FREE)
    if any(stage.nonfinite == "rollback" for stage in experiment.stages.values()):
        free.remove(("checkpoints",))  # they say to which step a stage goes back
    now = settings.plain(experiment, catalogue)
    lines = [
        f"{'.'.join(path)}: {was!r} in the run, {wanted!r} now"
        for path, was, wanted in _differences(run.settings().plain(), now)
        if not any(_is_at_or_below(path, one) for one in free)
    ]
    if lines:
        more = [f"and {len(lines) - 8} more"] if len(lines) > 8 else []
        shown = "\n  ".join([*lines[:8], *more])
        remedy = "leave them as they are, or choose another --out"
        raise ConfigError(f"has other settings:\n  {shown}", place=str(run.path), remedy=remedy)
    before = run.record().get("versions", {})
    changed = [
        f"{name} {before.get(name)} -> {version}"
        for name, version in runs.versions().items()
        if before.get(name) != version
    ]
    if changed:
        warnings.warn(f"not bit for bit: {run.path} began with {', '.join(changed)}", stacklevel=3)


def _is_at_or_below(path: Names, top: Names) -> bool:
    pairs = zip(path, top, strict=False)
    return len(path) >= len(top) and all(wanted in ("*", name) for name, wanted in pairs)


def _differences(was: Any, now: Any, path: Names = ()) -> Iterator[tuple[Names, Any, Any]]:
    """The leaves that differ, each with its path."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*was, *now]):
            yield from _differences(was.get(key), now.get(key), (*path, str(key)))
    elif was != now:
        yield path, was, now
