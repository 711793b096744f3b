"""Guidance away from the denoiser with its attention perturbed, beside `cfg`.

    eps = eps_u + s (eps_p - eps_u) + r (eps_p - eps_p')

eps_p' is the prediction for the prompt by a variant of the denoiser, which the denoiser has to
offer (see `Denoiser.variants`) and whose details are options of its own. It costs one branch more,
in a forward pass of its own; at s = 1 there is no null branch, so it also guides a model that knows
no null condition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
from attrs.validators import ge

from sfumato import Branch, GuidanceStep, option
from sfumato_guidance.corrections import Correction

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen(kw_only=True)
class AttentionGuidance(Correction):
    """A subclass is named by its variant."""

    name: ClassVar[str]

    scale: float = option(4.0, "s of cfg; 1 is off, and needs no null condition", ge(0.0))
    perturbed_scale: float = option(3.0, "r, away from the perturbed network; 0 is off", ge(0.0))

    def away(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """Null with s - 1, and the perturbed network with r."""
        perturbed = Branch(text="prompt", variant=self.name)
        return {Branch(text="null"): self.scale - 1, perturbed: self.perturbed_scale}


@attrs.frozen(kw_only=True)
class PerturbedAttentionGuidance(AttentionGuidance):
    """eps_u + s (eps_p - eps_u) + r (eps_p - eps_p'), ' with identity self-attention maps.

    References:
        Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance, 2024,
        arXiv:2403.17377
    """

    name = "pag"


@attrs.frozen(kw_only=True)
class SmoothedEnergyGuidance(AttentionGuidance):
    """eps_u + s (eps_p - eps_u) + r (eps_p - eps_p'), ' with blurred self-attention queries.

    References:
        Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of
        Attention, 2024, arXiv:2408.00760
    """

    name = "seg"


@attrs.frozen(kw_only=True)
class SkipLayerGuidance(AttentionGuidance):
    """eps_u + s (eps_p - eps_u) + r (eps_p - eps_p'), ' with transformer blocks skipped.

    It came with Stable Diffusion 3.5, without a paper of its own.

    References:
        Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling, 2024, arXiv:2411.18664
    """

    name = "slg"
    perturbed_scale: float = option(2.8, "r, away from the skipping network; 0 is off", ge(0.0))
