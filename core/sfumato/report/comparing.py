"""What differs between runs: their facts, their settings, their results."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sfumato.report.reading import Reported

ABSENT = "\N{EM DASH}"
"""Stands where a run says nothing."""

Rows: TypeAlias = "dict[str, list[str]]"
"""A text for each run, by what it is about."""


@attrs.frozen
class Number:
    """A result in words: the value, and its interval and count where they are known."""

    value: str = ABSENT
    interval: str = ""
    count: str = ""


def facts(runs: Sequence[Reported]) -> Rows:
    """What records say, as texts; what no record says is left out."""
    columns = [_facts(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, ABSENT) for column in columns] for name in names}


def _facts(run: Reported) -> dict[str, str]:
    record = run.record
    said = {
        "experiment": record.get("name"),
        "origin": record.get("origin"),
        "started from": record.get("start"),
        "error": record.get("error"),
        "started": _moment(record.get("started")),
        "took": _duration(record.get("started"), record.get("updated")),
        "seed": record.get("seed"),
        "steps logged": f"{run.steps:,}" if run.steps else None,
        "checkpoints": ", ".join(map(str, run.checkpoints)) or None,
        "parameters trained": _listed(record.get("parameters")),
        "processes": record.get("world_size"),
        "resumed": len(record.get("resumed") or ()) or None,
        "steps skipped": _listed(record.get("skipped")),
        "pictures left out": record.get("dropped") or None,
        "commit": _commit(record.get("commit")),
        "versions": _listed(record.get("versions"), " "),
    }
    return {name: str(value) for name, value in said.items() if value is not None}


def _commit(full: Any) -> str | None:
    """The first digits, which tell commits apart, and whether files differed."""
    commit, dash, dirty = str(full or "").partition("-")
    return f"{commit[:12]}{dash}{dirty}" or None


def _listed(items: Any, between: str = ": ") -> str | None:
    if not isinstance(items, Mapping) or not items:
        return None
    shown = ((key, f"{one:,}" if isinstance(one, int) else str(one)) for key, one in items.items())
    return ", ".join(f"{key}{between}{one}" for key, one in shown)


def _time(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _moment(text: Any) -> str | None:
    at = _time(text)
    return None if at is None else f"{at:%Y-%m-%d %H:%M} {at.tzname() or ''}".strip()


def _duration(start: Any, end: Any) -> str | None:
    """Between two moments of one record, which both have a time zone or both have none."""
    first, last = _time(start), _time(end)
    return None if first is None or last is None else str(last - first)


def differences(runs: Sequence[Reported]) -> Rows:
    """The settings that are not the same in all runs, by their path."""
    columns = [dict(leaves(run.settings)) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = {name: [column.get(name, ABSENT) for column in columns] for name in names}
    return {name: row for name, row in rows.items() if len(set(row)) > 1}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The values of settings as texts, by path; lists of components are entered, others are not."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = enumerate(value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield path, text
    for key, item in items:
        yield from leaves(item, f"{path}.{key}".removeprefix("."))


def results(runs: Sequence[Reported]) -> dict[str, dict[str, list[Number]]]:
    """Numbers of each run, by name within the group that nests them: "" is that of metrics."""
    found = [dict(_numbers(run.results)) for run in runs]
    groups: dict[str, dict[str, list[Number]]] = {}
    for group, name in dict.fromkeys(key for numbers in found for key in numbers):
        row = [numbers.get((group, name), Number()) for numbers in found]
        groups.setdefault(group, {})[name] = row
    return dict(sorted(groups.items(), key=lambda item: item[0] != ""))


def _numbers(
    results: Any, group: str = "", path: str = ""
) -> Iterator[tuple[tuple[str, str], Number]]:
    if not isinstance(results, Mapping):
        return
    for key, value in results.items():
        name = f"{path} {key}".strip()
        if isinstance(value, Mapping) and "value" not in value:
            yield from _numbers(value, group or str(key), name if group else "")
        else:
            yield (group, name), _number(value)


def _number(said: Any) -> Number:
    if not isinstance(said, Mapping):
        return Number(_shown(said))
    low, high, count = said.get("low"), said.get("high"), said.get("n")
    known = low is not None and high is not None
    return Number(
        value=_shown(said["value"]),
        interval=f"{_shown(low)} to {_shown(high)}" if known else "",
        count="" if count is None else _shown(count),
    )


def _shown(value: Any) -> str:
    """Four digits of a number; whatever else it is as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
