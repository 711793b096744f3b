"""Stages that another run has finished: found by their content keys, and taken instead of trained.

What is taken are the weights of the slot that the stage trains and the lines of its log; checkpoint
and record are then written as if it had been trained here. Nothing is taken that does not verify.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sfumato import checkpoint, stage_keys
from sfumato.bad_examples import BadExamples
from sfumato.errors import CheckpointError
from sfumato.pipeline import MODULES
from sfumato.runs import RECORD, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from sfumato.experiment import Experiment
    from sfumato.loop import Loop


@attrs.frozen(eq=False, kw_only=True)
class Finished:
    """A stage at its end.

    Attributes:
        run: that trained it.
        name: of the stage.
        path: of the checkpoint at its end.
        last: its last step in that run.
    """

    run: Run
    name: str
    path: Path
    last: int

    def weights(self, slot: str) -> Mapping[str, Tensor]:
        """The state of a slot.

        Raises:
            CheckpointError: it cannot be read, or is not what its manifest says.
        """
        states, _ = checkpoint.read(self.path, without={*MODULES, checkpoint.TRAINING} - {slot})
        if slot not in states:
            raise CheckpointError(f"has no weights for the {slot}", place=str(self.path))
        return states[slot]

    def lines(self, last: int) -> list[dict[str, Any]]:
        """Its lines of `metrics.jsonl`, for a run in which its last step is `last`."""
        own = [line for line in self.run.logged() if line["stage"] == self.name]
        return [{**line, "step": line["step"] - self.last + last} for line in own]


@attrs.define(eq=False)
class Shelf:
    """The runs that a run may take stages from.

    Attributes:
        folder: of run folders, or one of them; None where nothing is to be taken.
        keys: of the stages of our run; None where one is not known. The first rank has them.
    """

    folder: Path | None
    keys: Mapping[str, str | None] = attrs.field(factory=dict)

    def take(self, loop: Loop, name: str, end: int) -> bool:
        """Puts the weights that a stage ends in into the pipeline, and its lines into the log, if
        they are at hand; `end` is the last step of the stage.
        """
        found = loop.engine.alone(lambda: self._find(name))
        if found is None:
            return False
        slot = loop.experiment.stages[name].objective.trains
        weights = found.weights(slot)
        checkpoint.restore(getattr(loop.pipeline, slot), weights, str(found.path))
        lines = found.lines(end)
        loop.bad.add(BadExamples.logged(lines))
        for line in lines:
            loop.run.log(line)
        record, theirs = loop.run.record(), found.run.record()
        taken = {**record["stages"][name], "taken": f"{found.run.path}@{found.last}"}
        counts = {"parameters": theirs["parameters"][found.name]}
        if skipped := sum(bool(line.get("skipped")) for line in lines):
            counts["skipped"] = skipped
        loop.run.update(
            stages={**record["stages"], name: taken},
            **{fact: {**record[fact], name: count} for fact, count in counts.items()},
        )
        return True

    def _find(self, name: str) -> Finished | None:
        key = self.keys.get(name)
        found = find(self.folder, key) if self.folder is not None and key is not None else None
        if found is not None:
            try:
                checkpoint.verify(found.path)
            except CheckpointError as error:
                warnings.warn(f"stage {name} is trained again: {error}", stacklevel=2)
                return None
        return found


def noted(loop: Loop, experiment: Experiment, step: int) -> dict[str, str | None]:
    """The keys of the stages of a run that stands at `step`, written into its record.

    They are not known of a run that began before there were any.
    """
    run, pipeline, saving = loop.run, loop.pipeline, loop.saving
    before = run.record()
    weights = before.get("initial") if step else stage_keys.initial(experiment, pipeline)
    if weights is None:
        return {}
    keys = stage_keys.keys(experiment, saving.catalogue, loop.split, loop.engine, weights)
    ends = dict(zip(experiment.stages, saving.ends, strict=True))
    stages = recorded(keys, before.get("stages", {}), ends, step)
    run.update(initial=weights, stages=stages, **stage_keys.device(loop.engine))
    return {name: stage["key"] for name, stage in stages.items()}


def recorded(
    keys: Mapping[str, str], before: Mapping[str, Any], ends: Mapping[str, int], step: int
) -> dict[str, Any]:
    """The stages of a run for its record: the key of each, None where bits are no longer those of
    one key, as the run went on with other software, ranks or device in the middle.

    Args:
        keys: as they are now.
        before: what the record said of stages until now; empty at the first step.
        ends: the last step of each.
        step: that the run stands at.
    """
    found: dict[str, Any] = {}
    same = True
    for (name, key), begin in zip(keys.items(), [0, *ends.values()], strict=False):
        known = key if step <= begin else before.get(name, {}).get("key")
        same = same and known == key
        kept = before.get(name) if step >= ends[name] else None
        found[name] = kept or {"key": key if same else None, "last": ends[name]}
    return found


def find(folder: Path, key: str) -> Finished | None:
    """The stage of this key, if a run in `folder`, or that run itself, has finished it."""
    for run in _runs(folder):
        try:
            stages = run.record().get("stages", {})
            for name, stage in stages.items():
                path = run.checkpoint(stage["last"])
                if stage["key"] == key and path.is_dir():
                    if not checkpoint.facts(path)["unfinished"]:
                        return Finished(run=run, name=name, path=path, last=stage["last"])
        except (CheckpointError, KeyError, TypeError, AttributeError):
            continue  # what is not whole has nothing to offer
    return None


def _runs(folder: Path) -> Iterator[Run]:
    for record in sorted([*folder.glob(RECORD), *folder.glob(f"*/{RECORD}")]):
        yield Run(record.parent)
