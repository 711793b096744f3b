"""Guidances one after the other, and one that renoises with another eps than it guides.

Each link gets what those before it made (`guided`) and changes it; at the head that is the prompt's
prediction. What guides adds its own change; what works on the result (rescale, thresholding)
replaces it. So the order is stated, and counts, and each link acts in the space that it states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import attrs
from attrs.validators import ge, min_len

from sfumato import Branch, Guidance, GuidanceStep, Guided, option, required
from sfumato_guidance.linear import NULL, PROMPT, ClassifierFreeGuidance
from sfumato_guidance.projections import AdaptiveProjectedGuidance
from sfumato_guidance.spaces import Rescale

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from sfumato import Prediction


@attrs.frozen(kw_only=True)
class Chain(Guidance):
    """Its parts in their order, each with a memory of its own.

    Costs the branches that any part asks for, each once, and the prompt's.
    """

    name = "chain"
    parts: tuple[Guidance, ...] = required(
        "guidances, each of which changes what those before it made", min_len(1)
    )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Classifier-free guidance, more of it projected, then rescaled."""
        return cls(parts=(ClassifierFreeGuidance(), AdaptiveProjectedGuidance(), Rescale()))

    @property
    def linear(self) -> bool:
        """Where all parts are."""
        return all(part.linear for part in self.parts)

    @property
    def uses_negatives(self) -> bool:
        """Where a part does."""
        return any(part.uses_negatives for part in self.parts)

    @property
    def keeps_agreement(self) -> bool:
        """Where all parts do."""
        return all(part.keeps_agreement for part in self.parts)

    @property
    def explains_x_t(self) -> bool:
        """Where all parts do."""
        return all(part.explains_x_t for part in self.parts)

    @property
    def w(self) -> float | None:
        """That of the only part which has one."""
        scales = [part.w for part in self.parts if part.w is not None]
        return scales[0] if len(scales) == 1 else None

    def branches(self, step: GuidanceStep) -> Collection[Branch]:
        """Those of all parts; between links the prompt's is what changes are measured from."""
        asked = dict.fromkeys(branch for part in self.parts for branch in part.branches(step))
        return asked if len(self.parts) == 1 else asked | {PROMPT: None}

    def combine(
        self,
        predictions: Mapping[Branch, Prediction],
        step: GuidanceStep,
        guided: Guided | None,
        memory: Any,
    ) -> tuple[Guided, Any]:
        """Link by link; it remembers what each part does."""
        remembered = []
        for part, before in zip(self.parts, memory or [None] * len(self.parts), strict=True):
            guided, after = part.combine(predictions, step, guided, before)
            remembered.append(after)
        assert guided is not None  # there is a part
        return guided, remembered


@attrs.frozen(kw_only=True)
class CFGPlusPlus(Guidance):
    """x0_u + lambda (x0_p - x0_u), renoised with eps_u: lambda goes from null (0) to prompt (1).

    The x0 of `cfg` at s = lambda, but the noise that the sampler puts back is that of null, so that
    the path stays where noisy pictures lie. Lambda is not on the scale of s: 1 is not off. Last
    in a chain, where it renoises whatever was made before with eps_u.

    Costs two branches a step, one at lambda = 0.

    References:
        CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models, 2024,
        arXiv:2406.08070, Algorithm 2
    """

    name = "cfg_plus_plus"
    scale: float = option(0.6, "lambda; the paper stays within 0 and 1", ge(0.0))

    @property
    def explains_x_t(self) -> bool:
        """It renoises with another eps on purpose."""
        return False

    def branches(self, step: GuidanceStep) -> Collection[Branch]:
        """The prompt, and null even at 1."""
        return [PROMPT, NULL] if self.scale else [NULL]

    def combine(
        self,
        predictions: Mapping[Branch, Prediction],
        step: GuidanceStep,
        guided: Guided | None,
        memory: Any,
    ) -> tuple[Guided, Any]:
        """x0 of one, eps of the other."""
        cfg = ClassifierFreeGuidance(scale=self.scale)
        toward, memory = cfg.combine(predictions, step, guided, memory)
        return Guided(toward.x0, predictions[NULL].eps), memory
