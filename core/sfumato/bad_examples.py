"""Which examples of a run are bad: on all ranks, in all workers, from its first step on.

A batch tells which of its own examples others stand in for. Each is counted once, when a step
first asks for it, and stands in the log line of that step, from which a run that goes on knows it.
So neither the number of processes nor an interruption changes the count, or where it ends a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from sfumato.engine import Single
from sfumato.split import Split

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TOLD = 10
"""Faults that the record of a run tells one by one."""
LOGGED = "bad_examples"
"""Their place in a line of the log."""


@attrs.define(eq=False)
class BadExamples:
    """Those of one run, by index, each with what is wrong."""

    split: Split
    engine: Single
    found: dict[int, str]

    @staticmethod
    def logged(lines: Iterable[Mapping[str, Any]]) -> dict[int, str]:
        """Those that the lines of a log tell of, in their order."""
        named = [line.get(LOGGED, {}) for line in lines]
        return {int(index): fault for one in named for index, fault in one.items()}

    def add(self, replaced: Mapping[int, str]) -> dict[int, str]:
        """Counts those of a batch; every rank has to.

        Returns:
            Those that no step had asked for before.

        Raises:
            DataError: more are bad than may be.
        """
        new = self.engine.united({i: said for i, said in replaced.items() if i not in self.found})
        if new:
            self.found |= new
            self.split.check_bad(self.found)
        return new

    def record(self) -> dict[str, Any]:
        """What `run.json` says of them, and of those that the data left out from the start."""
        return {
            "examples": len(self.split),
            "dropped": self.split.dropped + len(self.found),
            "bad_examples": [*self.split.faults, *self.found.values()][:TOLD],
        }
