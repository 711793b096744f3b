"""What the runs of a sweep measured, as tables: a CSV of the runs, a Markdown page of the settings.

Runs that differ in nothing but the seed are one row of the page; how their numbers are put together
is told in `replicates`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from sfumato import replicates
from sfumato.measurements import Measured
from sfumato.sweep import SEED, short_keys, shown

METHOD = """Mean over seeds, with a 95 % interval by Student's t over the seeds, and never narrower
than the samples' own (bootstrap) intervals make it. Differences are to the first row: paired where
the seeds are the same, else Welch's. A * marks a difference whose interval excludes 0; where
nothing differs, one in twenty does so by chance."""
TRAINED = """A seed is a training, and the noise of its pictures; the prompts are those of all
seeds. One seed has the interval of its samples alone, which says nothing about another training, so
that it is never marked; against several it is taken to vary as they do."""
DRAWN = """A seed is the noise of pictures alone: all are drawn from one training, and say nothing
about another; the prompts are those of all seeds. One seed has the interval of its samples."""


@attrs.frozen(kw_only=True)
class Row:
    """A run of a sweep.

    Attributes:
        name: of its folder.
        settings: that vary, by key.
        seed: of it.
        status: how it ended.
        complete: whether it has come to its end.
        results: the measured numbers by name.
    """

    name: str
    settings: Mapping[str, Any]
    seed: int
    status: str
    complete: bool
    results: Mapping[str, Measured] = attrs.field(factory=dict)

    @property
    def configuration(self) -> tuple[tuple[str, str], ...]:
        """What the row shares with those of other seeds."""
        found = ((key, shown(value)) for key, value in self.settings.items() if key != SEED)
        return tuple(sorted(found))


def table(rows: Sequence[Row]) -> str:
    """A line for each run, as CSV: its settings, its status, each number with interval and n."""
    keys, numbers = _keys(rows), _numbers(rows)
    short = short_keys(keys)
    parts = ("low", "high", "n")
    head = ["run", *(short[key] for key in keys), "status"]
    head += [one for name in numbers for one in (name, *(f"{name}.{part}" for part in parts))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        line = [
            row.name,
            *(shown(row.settings[key]) if key in row.settings else "" for key in keys),
        ]
        line.append(row.status)
        for name in numbers:
            measured = row.results.get(name)
            line += ["", "", "", ""] if measured is None else attrs.astuple(measured)
        writer.writerow(line)
    return text.getvalue()


def page(name: str, rows: Sequence[Row], *, trained: bool) -> str:
    """The sweep called `name` as Markdown: a table for each number, and what is missing.

    Args:
        name: of what is swept over.
        rows: its runs.
        trained: whether each was trained, rather than all drawn from one training.
    """
    done = [row for row in rows if row.complete]
    lost = [f"- `{row.name}`: {row.status}" for row in rows if not row.complete]
    parts = [f"# {name}: {len(done)} of {len(rows)} runs"]
    parts.append(f"{METHOD} {TRAINED if trained else DRAWN}")
    if lost:
        parts.append("\n".join(["Not in the tables:", "", *lost]))
    keys = [key for key in _keys(rows) if key != SEED]
    for number in _numbers(done):
        parts.append(f"## {number}")
        parts.append(_markdown(_lines(number, keys, done, fewest=2 if trained else 1)))
    return "\n\n".join(parts) + "\n"


def _lines(number: str, keys: Sequence[str], rows: Sequence[Row], fewest: int) -> list[list[str]]:
    """The table of one number, its head first; with fewer seeds no difference is marked."""
    short = short_keys(keys)
    pooled: dict[tuple[tuple[str, str], ...], dict[int, Measured]] = {}
    samples: dict[tuple[tuple[str, str], ...], int] = {}
    for row in rows:
        if (found := row.results.get(number)) is not None:
            pooled.setdefault(row.configuration, {})[row.seed] = found
            samples[row.configuration] = samples.get(row.configuration, 0) + found.n
    lines = [[*(short[key] for key in keys), "seeds", "samples", "mean", "95 %"]]
    lines[0] += ["difference", "95 %", ""]
    first = next(iter(pooled.values()))
    for configuration, values in pooled.items():
        told = dict(configuration)
        average = replicates.mean(values)
        line = [told.get(key, "") for key in keys]
        line += [str(len(values)), str(samples[configuration]), f"{average.value:.4g}"]
        line.append(f"{average.low:.4g} to {average.high:.4g}")
        if values is first:
            line += ["", "", ""]
        else:
            apart = replicates.difference(values, first)
            between = f"{apart.low:+.4g} to {apart.high:+.4g}"
            enough = min(len(values), len(first)) >= fewest
            line += [f"{apart.value:+.4g}", between, "*" * (enough and apart.excludes_zero)]
        lines.append(line)
    return lines


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in ruled
    )


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.settings))


def _numbers(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.results))
