"""What training minimises: distances, weights on them, and the denoising objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import Component, hookimpl
from sfumato_losses.distances import L1, MSE, Huber
from sfumato_losses.objectives import Denoising
from sfumato_losses.weights import (
    EDM,
    P2,
    CosMap,
    Debiased,
    MinSNR,
    SigmaSqrt,
    Sigmoid,
    SoftMinSNR,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1

LOSSES = (MSE, L1, Huber)
WEIGHTS = (P2, MinSNR, SoftMinSNR, Debiased, EDM, SigmaSqrt, CosMap, Sigmoid)


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [*LOSSES, *WEIGHTS, Denoising]
