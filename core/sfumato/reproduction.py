"""A run once more from its own record, and what of it came out equal.

The facts are those that a run depends on: settings, seed, data, plugins to the byte, versions,
device, threads, ranks. Where they are the same, the log of losses and the weights have to be, bit
for bit; where one is not, it is said beside the result.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

from sfumato import checkpoint, lock, runs
from sfumato.errors import ConfigError
from sfumato.measurements import flat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sfumato.experiment import Experiment
    from sfumato.registry import Registry
    from sfumato.runs import Run

FACTS = ("world_size", "device", "threads")
SECONDS = "seconds"


@attrs.frozen
class Compared:
    """One thing, in the run and in its repetition.

    Attributes:
        what: it is.
        equal: whether both have it alike.
        said: where they differ.
        decides: whether the run is reproduced only if this is equal; facts explain, and results
            decide.
    """

    what: str
    equal: bool
    said: str = ""
    decides: bool = True


def experiment(run: Run, registry: Registry) -> Experiment:
    """What the run trained.

    Raises:
        ConfigError: it was not trained, has not ended, or its settings fit nothing installed.
    """
    record = run.record()
    if record.get("origin") != "trained" or record.get("status") != "completed":
        stands = f"{record.get('origin', 'unknown')}, {record.get('status', 'unknown')}"
        remedy = "name a run that sfumato has trained to its end"
        raise ConfigError(f"cannot be repeated: it is {stands}", place=str(run.path), remedy=remedy)
    return registry.structure(run.settings(), str(record["name"]))


def facts(run: Run, registry: Registry, ranks: int, locked: bool) -> list[Compared]:
    """What the run depends on, then and now.

    Args:
        run: the one to repeat.
        registry: with what is installed.
        ranks: that there are now.
        locked: whether other plugins are an error rather than a line.

    Raises:
        ConfigError: the number of ranks is another, or, if `locked`, a plugin is.
    """
    record = run.record()
    if record["world_size"] != ranks:
        start = f"torchrun --nproc-per-node {record['world_size']} -m sfumato.cli"
        problem = f"was trained on {record['world_size']} ranks, and there are {ranks}"
        raise ConfigError(problem, place=str(run.path), remedy=f"start it with {start}")
    path = run.path / lock.FILE
    try:
        lock.check(path, registry.catalogue, recorded=True)
        plugins = Compared("plugins", True, decides=False)
    except ConfigError as error:
        if locked:
            raise
        plugins = Compared("plugins", False, str(error).splitlines()[0], decides=False)
    versions = _compared("versions", record["versions"], runs.versions())
    commit = _compared("commit", {"": record.get("commit")}, {"": runs.commit()})
    return [plugins, versions, commit]


def compare(first: Run, second: Run) -> list[Compared]:
    """What two runs that have ended have alike: where they ran, their weights at the first step,
    their log but for times, their results, and the files of the checkpoints that both still have,
    among which the last has to be.
    """
    then, now = first.record(), second.record()
    found = [_compared(fact, {"": then.get(fact)}, {"": now.get(fact)}) for fact in FACTS]
    if "start" in then:
        found.append(_compared("start", then["start"]["files"], now["start"]["files"]))
    found.append(_compared("first weights", then.get("initial", {}), now.get("initial", {})))
    found = [attrs.evolve(one, decides=False) for one in found]
    found += [_log(first, second), _results(then["results"], now["results"])]
    steps = second.checkpoint_steps()
    for step in steps:
        path, what = first.checkpoint(step), f"weights of step {step}"
        if path.is_dir():
            checkpoint.verify(path)
            files = checkpoint.hashes(path), checkpoint.hashes(second.checkpoint(step))
            found.append(_compared(what, *files))
        elif step == steps[-1]:
            found.append(Compared(what, False, f"{first.path} has that checkpoint no more"))
    return found


def _log(first: Run, second: Run) -> Compared:
    """Line by line, without the seconds that steps took."""
    then, now = (
        [{k: v for k, v in line.items() if k != SECONDS} for line in run.logged()]
        for run in (first, second)
    )
    what = f"log of {len(then)} steps"
    for before, after in zip(then, now, strict=False):
        if json.dumps(before) != json.dumps(after):
            step = before.get("step")
            losses = f"loss {before.get('loss')!r} then, {after.get('loss')!r} now"
            return Compared(what, False, f"from step {step} on: {losses}")
    if len(then) != len(now):
        return Compared(what, False, f"{len(then)} lines then, {len(now)} now")
    return Compared(what, True)


def _results(then: dict[str, Any], now: dict[str, Any]) -> Compared:
    """Equal with intervals and all; told by the numbers alone."""
    numbers = ({name: one.value for name, one in flat(found).items()} for found in (then, now))
    return Compared("results", then == now, "; ".join(_differences(*numbers)))


def _compared(what: str, then: dict[str, Any], now: dict[str, Any]) -> Compared:
    return Compared(what, then == now, "; ".join(_differences(then, now)))


def _differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*then, *now]):
        if then.get(key) != now.get(key):
            yield f"{key} {_short(then.get(key))} then, {_short(now.get(key))} now".strip()


def _short(value: Any) -> str:
    return str(value)[:12]
