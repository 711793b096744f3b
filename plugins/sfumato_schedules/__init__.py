"""Noise schedules, the times that inference visits, and the times that training draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import Component, hookimpl
from sfumato_schedules.betas import Cosine, LinearBeta, ScaledLinearBeta
from sfumato_schedules.grids import Leading, Linspace, Trailing
from sfumato_schedules.uniform import Uniform

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1

__all__ = [
    "Cosine",
    "Leading",
    "LinearBeta",
    "Linspace",
    "ScaledLinearBeta",
    "Trailing",
    "Uniform",
]


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [LinearBeta, ScaledLinearBeta, Cosine, Leading, Trailing, Linspace, Uniform]
