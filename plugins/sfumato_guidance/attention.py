"""Guidance away from the denoiser with its attention perturbed, beside `cfg`.

    eps = eps_u + s (eps_p - eps_u) + r (eps_p - eps_p')

eps_p' is the prediction for the prompt by a variant of the denoiser, which the denoiser has to
offer (see `Denoiser.variants`) and whose details are options of its own. At s = 1 there is no null
branch, so it also guides a model that knows no null condition.

`nag` works inside of attention instead, in place of the prompt's prediction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
from attrs.validators import ge, gt, le

from sfumato import Against, Branch, GuidanceStep, option
from sfumato_guidance.linear import PROMPT, LinearGuidance

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen(kw_only=True)
class AttentionGuidance(LinearGuidance):
    """A subclass is named by its variant."""

    name: ClassVar[str]

    scale: float = option(4.0, "s of cfg; 1 is off, and needs no null condition", ge(0.0))
    perturbed_scale: float = option(3.0, "r, away from the perturbed network; 0 is off", ge(0.0))

    def pulls(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """The prompt with s + r, the perturbed network with -r."""
        perturbed = Branch(text="prompt", variant=self.name)
        return {PROMPT: self.scale + self.perturbed_scale, perturbed: -self.perturbed_scale}


@attrs.frozen(kw_only=True)
class PerturbedAttentionGuidance(AttentionGuidance):
    """eps_u + s (eps_p - eps_u) + r (eps_p - eps_p'), ' with identity self-attention maps.

    Costs three branches a step, two of them in one forward pass; one less at s = 1, and at r = 0.

    References:
        Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance, 2024,
        arXiv:2403.17377
    """

    name = "pag"


@attrs.frozen(kw_only=True)
class SmoothedEnergyGuidance(AttentionGuidance):
    """eps_u + s (eps_p - eps_u) + r (eps_p - eps_p'), ' with blurred self-attention queries.

    Costs three branches a step, two of them in one forward pass; one less at s = 1, and at r = 0.

    References:
        Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of
        Attention, 2024, arXiv:2408.00760
    """

    name = "seg"


@attrs.frozen(kw_only=True)
class SkipLayerGuidance(AttentionGuidance):
    """eps_u + s (eps_p - eps_u) + r (eps_p - eps_p'), ' with transformer blocks skipped.

    It came with Stable Diffusion 3.5, without a paper of its own. Costs three branches a step, two
    of them in one forward pass; one less at s = 1, and at r = 0.

    References:
        Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling, 2024, arXiv:2411.18664
    """

    name = "slg"
    perturbed_scale: float = option(2.8, "r, away from the skipping network; 0 is off", ge(0.0))


@attrs.frozen(kw_only=True)
class NormalizedAttentionGuidance(LinearGuidance):
    """eps_u + s (eps_p' - eps_u), ' with z moved away from the negative's in all cross-attention.

    There, z+ of the prompt becomes alpha z + (1 - alpha) z+ with z = a z+ - (a - 1) z-, shortened
    to at most tau times the L1 norm of z+ at each pixel. Without a negative, z- is that of null. Of
    several, each gives a prediction, and their mean is taken.

    Costs a branch for each negative (or null), in a forward pass each, and one for u unless s = 1.

    References:
        Normalized Attention Guidance: Universal Negative Guidance for Diffusion Models, 2025,
        arXiv:2505.21179
    """

    name = "nag"
    scale: float = option(4.0, "s of cfg; 1 is off, and needs no null branch", ge(0.0))
    attention_scale: float = option(5.0, "a, away from the negative; 1 is off", ge(1.0))
    tau: float = option(2.5, "the largest L1 norm of z, in those of z+", gt(0.0))
    alpha: float = option(0.5, "share of z in what goes on; 0 is off", ge(0.0), le(1.0))

    def pulls(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """The prompt held against each negative, s in all."""
        if self.attention_scale == 1 or self.alpha == 0:
            return {PROMPT: self.scale}
        null = Against(scale=self.attention_scale, tau=self.tau, alpha=self.alpha)
        negatives = [
            attrs.evolve(null, text="negative", index=index) for index in range(step.negatives)
        ]
        return {
            Branch(text="prompt", variant="nag", against=other): self.scale / max(step.negatives, 1)
            for other in negatives or [null]
        }

    @property
    def uses_negatives(self) -> bool:
        """They are what it is for."""
        return True
