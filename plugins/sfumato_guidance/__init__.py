"""Guidance: which predictions a step needs, and how they combine.

linear        none, cfg, negative_prompt         weighted sums, the same in every space
intervals     interval                           another one, at some noise levels only
projections   apg, cfg_zero_star, tcfg, perp_neg directions, per example
spaces        rescale, thresholding              what works on the result of others
chains        chain, cfg_plus_plus               one after the other; renoised otherwise
attention     pag, seg, slg, nag                 away from what a perturbed network says
weak          autoguidance                       away from what a weaker model says
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import Component, hookimpl
from sfumato_guidance.attention import (
    NormalizedAttentionGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from sfumato_guidance.chains import CFGPlusPlus, Chain
from sfumato_guidance.intervals import Interval
from sfumato_guidance.linear import ClassifierFreeGuidance, NegativePrompt, NoGuidance
from sfumato_guidance.projections import (
    AdaptiveProjectedGuidance,
    CFGZeroStar,
    PerpNeg,
    TangentialDamping,
)
from sfumato_guidance.spaces import Rescale, Thresholding
from sfumato_guidance.weak import Autoguidance

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [
        *(NoGuidance, ClassifierFreeGuidance, NegativePrompt),
        *(Interval, Chain, CFGPlusPlus),
        *(AdaptiveProjectedGuidance, CFGZeroStar, TangentialDamping, PerpNeg),
        *(Rescale, Thresholding),
        *(PerturbedAttentionGuidance, SmoothedEnergyGuidance, SkipLayerGuidance),
        *(NormalizedAttentionGuidance, Autoguidance),
    ]
