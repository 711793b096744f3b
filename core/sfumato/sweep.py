"""Sweeps: one experiment many times, each time with other settings.

    grid    every combination of the values of its keys
    zip     the first values of its keys together, then the second ones ..., with each of the grid
    list    further points, each spelt out
    search  values that an optimiser chooses; the points above are then what each trial is averaged
            over

Keys are paths as in `--set`. Two have a meaning of their own: `seed`, over which a table pools, and
`label`, which changes nothing and tells points apart that are otherwise equal.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import ge

from sfumato import document
from sfumato.errors import ConfigError
from sfumato.interfaces import option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SEED, LABEL = "seed", "label"
LONGEST = 120
"""Characters of the name of a point; file systems allow 255."""


@attrs.frozen(kw_only=True)
class Range:
    """What a search may choose from: numbers between two, or one of several values."""

    low: float | None = option(None, "the least; beside `high`")
    high: float | None = option(None, "the largest")
    step: float | None = option(None, "between values that may be chosen; null: any")
    log: bool = option(False, "whether ratios count rather than differences")
    whole: bool = option(False, "whether only whole numbers may be chosen")
    choices: tuple[Any, ...] = option((), "values, in place of `low` and `high`")

    def __attrs_post_init__(self) -> None:
        bounded = self.low is not None and self.high is not None
        if bounded == bool(self.choices):
            raise ValueError("expected low and high, or choices")
        if bounded and not float(self.low or 0) <= float(self.high or 0):
            raise ValueError("low is above high")
        if self.log and (self.step is not None or float(self.low or 0) <= 0):
            raise ValueError("with log, low is above 0 and there is no step")


@attrs.frozen(kw_only=True)
class Sweep:
    """The `sweep` of an experiment."""

    grid: dict[str, tuple[Any, ...]] = option(
        attrs.Factory(dict), "the values of each key; every combination is a point"
    )
    zip: dict[str, tuple[Any, ...]] = option(
        attrs.Factory(dict), "the values of each key, as many of each, that change together"
    )
    list: tuple[dict[str, Any], ...] = option((), "further points, each a mapping from keys")
    search: dict[str, Range] = option(attrs.Factory(dict), "what an optimiser chooses")
    trials: int = option(20, "of the search", ge(1))
    maximize: str | None = option(None, "the number that the search makes large")
    minimize: str | None = option(None, "the number that the search makes small")

    def __attrs_post_init__(self) -> None:
        for key, values in {**self.grid, **self.zip}.items():
            if not values:
                raise ValueError(f"{key} has no values")
        if len({len(values) for values in self.zip.values()}) > 1:
            counts = ", ".join(f"{key} {len(values)}" for key, values in self.zip.items())
            raise ValueError(f"keys of zip have as many values each, not {counts}")
        twice = [k for k, n in Counter([*self.grid, *self.zip, *self.search]).items() if n > 1]
        if twice:
            raise ValueError(f"{', '.join(twice)} is swept in two ways")
        if bool(self.search) != (self.number is not None):
            raise ValueError("search goes with one of maximize and minimize")
        if self.maximize is not None and self.minimize is not None:
            raise ValueError("expected one of maximize and minimize")

    @property
    def number(self) -> str | None:
        """What a search looks at."""
        return self.maximize or self.minimize

    def points(self) -> tuple[dict[str, Any], ...]:
        """The settings of each point by key; one that changes nothing where only a search does.

        Raises:
            ConfigError: a point stands twice.
        """
        grid = _points(self.grid, itertools.product(*self.grid.values()))
        tied = _points(self.zip, zip(*self.zip.values(), strict=True))
        crossed = [{**one, **other} for one in grid for other in tied or [{}]]
        swept = bool(self.grid or self.zip)
        found = [*(crossed if swept or not self.list else []), *map(dict, self.list)]
        counts = Counter(map(_alike, found))
        for point in found:
            if counts[_alike(point)] > 1:
                said = json.dumps(point, sort_keys=True)
                remedy = f"drop one, or tell them apart by a {LABEL}"
                raise ConfigError(f"the point {said} stands twice", place="sweep", remedy=remedy)
        return tuple(found)


def _alike(point: Mapping[str, Any]) -> str:
    """The same text for points with equal values, such as 1 and 1.0."""
    text = json.dumps(point, sort_keys=True)
    return json.dumps(json.loads(text, parse_int=float))


def _points(keys: Iterable[str], found: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(keys, values, strict=True)) for values in found]


def from_arguments(grid: Sequence[str], tied: Sequence[str]) -> Sweep:
    """A sweep from `KEY=VALUE,VALUE` texts; commas inside brackets and quotes part nothing.

    Raises:
        ConfigError: a text is not of this form, or they do not fit each other.
    """
    keys = Counter(text.partition("=")[0].strip() for text in (*grid, *tied))
    if twice := [key for key, count in keys.items() if count > 1]:
        remedy = "give all values of a key at once"
        raise ConfigError(f"{twice[0]} is swept over twice", place="--sweep", remedy=remedy)
    try:
        return Sweep(grid=dict(map(_parsed, grid)), zip=dict(map(_parsed, tied)))
    except ValueError as error:
        raise ConfigError(str(error), place="--sweep") from None


def _parsed(text: str) -> tuple[str, tuple[Any, ...]]:
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise ConfigError("expected KEY=VALUE,VALUE", place=f"--sweep {text}")
    node = document.read(f"[{values}]", "--sweep", (key.strip(),), lines=False)
    return key.strip(), tuple(node.plain())


def overrides(point: Mapping[str, Any]) -> list[str]:
    """A point as `--set` takes it."""
    return [f"{key}={written(value)}" for key, value in point.items() if key != LABEL]


def written(value: Any) -> str:
    """A value as a text that the YAML rules read as that value."""
    if isinstance(value, str):
        try:
            if document.read(value, "").value == value:
                return value
        except ConfigError:
            pass
    return json.dumps(value, ensure_ascii=False)


def names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """A file name for each point: `noise_schedule=cosine,scale=4,seed=0`."""
    short = short_keys(key for point in points for key in point)
    found: list[str] = []
    for point in points:
        parts = [f"{short[key]}={_safe(value)}" for key, value in point.items()]
        name = ",".join(parts) or "all"
        if len(name) > LONGEST or name in found:
            exact = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]
            name = f"{name[: LONGEST - 9]},{exact}"
        found.append(name)
    return found


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """The end of each key that no other one has: `scale` for `guidance.scale`."""
    ends: dict[str, list[str]] = {}
    for key in keys:
        parts = key.split(".")
        ends[key] = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
    counts = Counter(end for known in ends.values() for end in known)
    return {key: next((end for end in ends[key] if counts[end] == 1), key) for key in ends}


def shown(value: Any) -> str:
    """A value in a table or a name: a component by its name and the options that are given."""
    if isinstance(value, dict) and "use" in value:
        rest = [f"{key}={shown(item)}" for key, item in value.items() if key != "use"]
        return " ".join([str(value["use"]), *rest])
    return written(value)


def _safe(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", shown(value)).strip("-") or "-"
