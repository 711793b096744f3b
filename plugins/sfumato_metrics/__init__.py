"""What samples are worth: metrics of pictures, and studies that answer a question with a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import Component, hookimpl
from sfumato_metrics.explanations import DenoisingPath, GuidanceGeometry, NegativeEffect
from sfumato_metrics.frontier import Frontier
from sfumato_metrics.metrics import (
    ClipScore,
    ClipSimilarity,
    Diversity,
    FrechetDistance,
    KernelDistance,
    PrecisionRecall,
    Retrieval,
    ShapeAttributes,
)
from sfumato_metrics.studies import ClipSimilarityStudy, GuidanceStudy, NegativePromptStudy

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The metrics and studies of this plugin."""
    return [
        ShapeAttributes,
        ClipSimilarity,
        ClipScore,
        Retrieval,
        FrechetDistance,
        KernelDistance,
        PrecisionRecall,
        Diversity,
        ClipSimilarityStudy,
        GuidanceStudy,
        NegativePromptStudy,
        DenoisingPath,
        GuidanceGeometry,
        NegativeEffect,
        Frontier,
    ]
