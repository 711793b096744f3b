"""Guidance away from a weaker model, instead of one that does not hear the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge

from sfumato import Branch, GuidanceStep, option
from sfumato_guidance.linear import PROMPT, LinearGuidance

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen(kw_only=True)
class Autoguidance(LinearGuidance):
    """eps_p + (s - 1) (eps_p - eps_p'), ' being a smaller or less trained model.

    Both hear the prompt, so unlike `cfg` it does not trade variety for fidelity, and no null
    condition is asked for. The other model is `sampling.weak`: a run, or a checkpoint of one.

    Costs two branches a step, one in each model; one where it is off, and at s = 0.

    References:
        Guiding a Diffusion Model with a Bad Version of Itself, 2024, arXiv:2406.02507
    """

    name = "autoguidance"
    scale: float = option(2.0, "s, the w of the paper: 1 is off, 0 the weak model alone", ge(0.0))

    def pulls(self, step: GuidanceStep) -> Mapping[Branch, float]:
        """The main model with s, the weak one with 1 - s."""
        return {PROMPT: self.scale, Branch(text="prompt", model="weak"): 1 - self.scale}

    @property
    def w(self) -> float:
        """S - 1, as for `cfg`."""
        return self.scale - 1
