"""A measured number, with how sure it is: in memory, as JSON, and as text.

Imports no torch, so that tables and summaries of stored runs are quick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen
class Measured:
    """A number, its 95 % bootstrap interval, and how many pictures it rests on."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """As `0.912 [0.87, 0.948] n=192`."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] n={self.n}"


_KEYS = {field.name for field in attrs.fields(Measured)}


def as_json(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, which may be nested and hold `Measured`, as `run.json` has them: mappings of value,
    low, high and n.
    """
    return dict(json.loads(json.dumps(numbers, default=attrs.asdict)))


def flat(results: Mapping[str, Any], prefix: str = "") -> dict[str, Measured]:
    """All that was measured, from results as `run.json` has them: nested names joined by dots, such
    as `guidance.4.diversity`. Numbers without an interval are left out.
    """
    found: dict[str, Measured] = {}
    for name, value in results.items():
        if isinstance(value, Mapping) and value.keys() == _KEYS:
            found[prefix + name] = Measured(**value)
        elif isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
    return found
