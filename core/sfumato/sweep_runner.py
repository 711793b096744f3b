"""A sweep under way: its points as runs, each in a folder of its own, and the tables of all.

    OUT/  NAME/ of each point  logs/NAME.txt  table.csv  table.md

Every point is checked before the first begins. A run is made by our own command, so that a point is
no more than `sfumato train` with `--set`, `--resume` and `--reuse`: what a point has finished is
left alone, what was killed goes on, and a stage that points share is trained once. A trained run is
swept over by `sfumato evaluate` in place of training.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence

import attrs

from sfumato import jobs, reuse, summary
from sfumato.errors import CheckpointError
from sfumato.interruption import Interruption
from sfumato.jobs import Executor, Task
from sfumato.measurements import flat
from sfumato.summary import Row
from sfumato.sweep_targets import LOGS, Planned, Target

TABLE, PAGE = "table.csv", "table.md"


@attrs.frozen(kw_only=True)
class Runner:
    """How points become runs.

    Attributes:
        target: what is swept over.
        executor: where runs are made.
        jobs: how many at once.
        interruption: asked, runs under way are asked to end, and no other begins.
        told: what happens, a line at a time.
    """

    target: Target
    executor: Executor
    jobs: int
    interruption: Interruption
    told: Callable[[str], None]

    def run(self, points: Sequence[Planned], before: Sequence[Planned] = ()) -> list[Row]:
        """Makes the runs that are not complete, and the tables after each.

        Args:
            points: to be run.
            before: those of earlier calls, which stand in the tables too.

        Returns:
            A row for each of `points`.
        """
        out = self.target.out
        (out / LOGS).mkdir(parents=True, exist_ok=True)
        unfinished = [one for one in points if not self.target.is_complete(one)]
        for one in unfinished:
            self.target.clear(one)
        left = [one.task for one in unfinished]
        if len(left) < len(points):
            self.told(f"{len(points) - len(left)} of {len(points)} points are complete already")
        codes: dict[str, int] = {}

        def told(task: Task, code: int | None, seconds: float) -> None:
            if code is None:
                _begin(task)
                self.told(f"begins   {task.name}")
                return
            codes[task.name] = code
            self.told(f"{'ends' if code == 0 else 'FAILED':8} {task.name} after {seconds:.0f} s")
            self.tables([*before, *points], codes)

        jobs.run(left, self.executor, self.jobs, self.interruption, self._available, told)
        self.tables([*before, *points], codes)
        return [self._row(one, codes) for one in points]

    def rows(self, points: Sequence[Planned]) -> list[Row]:
        """What became of points that are not under way."""
        return [self._row(one, {}) for one in points]

    def tables(self, points: Sequence[Planned], codes: Mapping[str, int] | None = None) -> None:
        """Writes both tables, each whole or not at all.

        Args:
            points: a row each.
            codes: exit codes, by name, of those that have just ended.
        """
        rows, out = [self._row(one, codes or {}) for one in points], self.target.out
        page = summary.page(self.target.name, rows, trained=self.target.trains)
        for name, text in ((TABLE, summary.table(rows)), (PAGE, page)):
            temporary = out / f".{name}.{os.getpid()}"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(out / name)

    def _row(self, point: Planned, codes: Mapping[str, int]) -> Row:
        try:
            results, said = self.target.results(point), None
        except CheckpointError as error:
            results, said = None, str(error)
        complete = results is not None
        return Row(
            name=point.task.name,
            settings=point.settings,
            seed=point.seed,
            status="completed" if complete else said or _said(point.task, codes),
            complete=complete,
            results=flat(results or {}),
        )

    def _available(self, key: str) -> bool:
        return reuse.find(self.target.out, key) is not None


def _begin(task: Task) -> None:
    """Parts this attempt from earlier ones in the log."""
    with task.log.open("a", encoding="utf-8") as log:
        log.write(f"{_command(task)}\n")


def _command(task: Task) -> str:
    return f"$ {shlex.join(task.arguments)}"


def _said(task: Task, codes: Mapping[str, int]) -> str:
    """Why a task has not come to its end, in a line: the last error of its last attempt."""
    code = codes.get(task.name)
    if code in (130, 143):
        return "interrupted; continue with --resume"
    if not task.log.is_file():
        return "not run"
    text = task.log.read_text(encoding="utf-8", errors="replace")
    lines = text.rpartition(f"{_command(task)}\n")[2].splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["not known" if code is None else f"exit code {code}"])[-1]
