"""Noise schedules, the times that inference visits, and the times that training draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import Component, hookimpl
from sfumato_schedules.betas import Betas, Cosine, LinearBeta, ScaledLinearBeta, Sigmoid
from sfumato_schedules.continuous import VE, VP, Laplace, RectifiedFlow
from sfumato_schedules.densities import BetaTimes, LogitNormal, LogNormal, Mode
from sfumato_schedules.grids import Leading, Linspace, SGMUniform, Trailing
from sfumato_schedules.sigma_grids import AlignYourSteps, Exponential, Karras, PolyExponential
from sfumato_schedules.time_grids import BetaGrid, LinearQuadratic, Times
from sfumato_schedules.uniform import LowDiscrepancy, Stratified, Uniform
from sfumato_schedules.wrappers import Shifted, ZeroTerminalSNR

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1

SCHEDULES = (
    LinearBeta, ScaledLinearBeta, Cosine, Sigmoid, Betas, VP, VE, RectifiedFlow, Laplace,
    Shifted, ZeroTerminalSNR,
)  # fmt: skip
GRIDS = (
    Leading, Trailing, Linspace, SGMUniform, Karras, Exponential, PolyExponential, AlignYourSteps,
    BetaGrid, LinearQuadratic, Times,
)  # fmt: skip
TIME_SAMPLERS = (Uniform, Stratified, LowDiscrepancy, LogitNormal, Mode, LogNormal, BetaTimes)

__all__ = [
    "VE",
    "VP",
    "AlignYourSteps",
    "BetaGrid",
    "BetaTimes",
    "Betas",
    "Cosine",
    "Exponential",
    "Karras",
    "Laplace",
    "Leading",
    "LinearBeta",
    "LinearQuadratic",
    "Linspace",
    "LogNormal",
    "LogitNormal",
    "LowDiscrepancy",
    "Mode",
    "PolyExponential",
    "RectifiedFlow",
    "SGMUniform",
    "ScaledLinearBeta",
    "Shifted",
    "Sigmoid",
    "Stratified",
    "Times",
    "Trailing",
    "Uniform",
    "ZeroTerminalSNR",
]


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [*SCHEDULES, *GRIDS, *TIME_SAMPLERS]
