"""Stages that another run has finished: found by their content keys, and taken instead of trained.

What is taken are the weights of the slot that the stage trains, the lines of its log, and what its
run says of it; checkpoint and record are then written as if it had been trained here. Nothing is
taken that does not verify. This module finds and reads; a `Loop` takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sfumato import checkpoint
from sfumato.errors import CheckpointError
from sfumato.pipeline import MODULES
from sfumato.runs import RECORD, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


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

    def counts(self) -> dict[str, int]:
        """What the record of a run counts by stage: its parameters, and the steps left out."""
        record = self.run.record()
        counted = {fact: record.get(fact, {}) for fact in ("parameters", "skipped")}
        return {fact: by[self.name] for fact, by in counted.items() if self.name in by}


@attrs.frozen(eq=False)
class Shelf:
    """The runs that a run may take stages from.

    Attributes:
        folder: of run folders, or one of them; None where nothing is to be taken.
        keys: of the stages of our run; None where one is not known.
    """

    folder: Path | None = None
    keys: Mapping[str, str | None] = attrs.field(factory=dict)

    def find(self, name: str) -> Finished | None:
        """The stage of the same key as ours of this name, if it is there and verifies."""
        key = self.keys.get(name)
        found = find(self.folder, key) if self.folder is not None and key is not None else None
        if found is not None:
            try:
                checkpoint.verify(found.path)
            except CheckpointError as error:
                warnings.warn(f"stage {name} is trained again: {error}", stacklevel=2)
                return None
        return found


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
