"""Guidance that looks at directions: what of one prediction lies along another.

All are a push away from null, added to the prompt's prediction or to what a chain has made so far,

    before + (s - 1) push        push = p - u is classifier-free guidance

per example, with inner products over C, H and W.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import ge, gt, lt, optional

from sfumato import Branch, GuidanceStep, PredictionType, option
from sfumato_guidance.linear import NEGLIGIBLE, NULL, PROMPT
from sfumato_guidance.spaces import GuidanceInSpace

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor


def dot(one: Tensor, other: Tensor) -> Tensor:
    """The inner product of each example, (B, 1, 1, 1)."""
    return (one * other).sum((1, 2, 3), keepdim=True)


def along(value: Tensor, direction: Tensor) -> Tensor:
    """The part of `value` along `direction`, (B, C, H, W); 0 along nothing."""
    return dot(value, direction) / dot(direction, direction).clamp_min(1e-30) * direction


@attrs.frozen(kw_only=True)
class ScaledGuidance(GuidanceInSpace):
    """Goes from null towards the prompt and s times as far. Scale 1 is off."""

    scale: float = option(4.0, "s: 1 is no guidance, more follows the prompt", ge(0.0))

    @property
    def w(self) -> float:
        """S - 1."""
        return self.scale - 1

    def others(self, step: GuidanceStep) -> Collection[Branch]:
        """Null, unless it is off."""
        return () if self.scale == 1 else (NULL,)


@attrs.frozen(kw_only=True)
class PushedGuidance(ScaledGuidance):
    """before + (s - 1) push; a subclass says what the push is."""

    @abstractmethod
    def push(self, prompt: Tensor, null: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """The push, like both, and what to remember."""

    def act(
        self, before: Tensor, values: Mapping[Branch, Tensor], step: GuidanceStep, memory: Any
    ) -> tuple[Tensor, Any]:
        """The push, where there is one."""
        if NULL not in values:
            return before, memory
        push, memory = self.push(values[PROMPT], values[NULL], memory)
        return before + self.w * push, memory


@attrs.frozen(kw_only=True)
class AdaptiveProjectedGuidance(PushedGuidance):
    """p + (s - 1) (d_perp + eta d_par), d = p - u split across and along p.

    The part along p mostly saturates the picture, so eta = 0 leaves it out. Before, d is shortened
    to a norm of r, and a negative momentum takes away what earlier predictions have pushed already:
    d <- p - u + beta d_before, which is its `memory`. At eta = 1 without norm and momentum it is
    `cfg` at s, exactly. Norms grow with the size of the latents: r = 15 is the paper's for SDXL.

    Costs two branches a step, one at s = 1.

    References:
        Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models, 2024,
        arXiv:2410.02416, in x0
    """

    name = "apg"
    eta: float = option(0.0, "how much of the part along the prompt's prediction stays", ge(0.0))
    norm_threshold: float | None = option(
        15.0, "r; null leaves d as long as it is", optional(gt(0.0))
    )
    momentum: float = option(-0.5, "beta; 0 forgets", gt(-1.0), lt(1.0))
    space: PredictionType = option("x0", "what is projected")

    def push(self, prompt: Tensor, null: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Momentum, norm, projection: in this order."""
        push = prompt - null
        if memory is not None:
            push = push + self.momentum * memory
        memory = push
        if self.norm_threshold is not None:
            push = push * (self.norm_threshold / dot(push, push).sqrt()).clamp(max=1.0)
        return push + (self.eta - 1) * along(push, prompt), memory


@attrs.frozen(kw_only=True)
class CFGZeroStar(PushedGuidance):
    """s p + (1 - s) u*, where u* is the part of p along u; nothing at all in the first steps.

    u* = u <p, u> / <u, u> is the multiple of u that comes nearest to p, which helps where u is of
    the wrong size. In the first `zero_steps` the prediction is 0, which asks for no null: an
    untrained velocity is worse than to stand still. `space` is flow, for rectified flow; where
    variance is preserved it is v that says "stand still" with 0. First in a chain.

    Costs two branches a step; one in the first steps, and at s = 1.

    References:
        CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models, 2025,
        arXiv:2503.18886, Algorithm 1
    """

    name = "cfg_zero_star"
    zero_steps: int = option(1, "how many steps at the start stand still", ge(0))
    space: PredictionType = option("flow", "what is scaled, and is 0 in the first steps")

    @property
    def keeps_agreement(self) -> bool:
        """Not where it stands still."""
        return self.zero_steps == 0

    def others(self, step: GuidanceStep) -> Collection[Branch]:
        """Null, but not in the first steps."""
        return () if step.index < self.zero_steps else super().others(step)

    def push(self, prompt: Tensor, null: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Away from the optimised null."""
        return prompt - along(prompt, null), memory

    def act(
        self, before: Tensor, values: Mapping[Branch, Tensor], step: GuidanceStep, memory: Any
    ) -> tuple[Tensor, Any]:
        """Nothing, then the push."""
        if step.index < self.zero_steps:
            return before.new_zeros(before.shape), memory
        return super().act(before, values, step, memory)


@attrs.frozen(kw_only=True)
class TangentialDamping(PushedGuidance):
    """s p + (1 - s) u', where u' is the part of u along the direction that p and u share most.

    That is the first right singular vector of the two, stacked. It is q_0 p + q_1 u up to a
    factor, with (q_0, q_1) = (cos a, sin a) the first eigenvector of their inner products, for
    which tan 2a = 2 <p, u> / (<p, p> - <u, u>); so no SVD of pictures is needed.

    Costs two branches a step, one at s = 1.

    References:
        TCFG: Tangential Damping Classifier-free Guidance, 2025, arXiv:2503.18137
    """

    name = "tcfg"
    space: PredictionType = option("epsilon", "what is damped")

    def push(self, prompt: Tensor, null: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Away from the damped null, sin a (cos a p + sin a u)."""
        angle = dot(prompt, null).mul(2).atan2(dot(prompt, prompt) - dot(null, null)) / 2
        damped = angle.sin() * (angle.cos() * prompt + angle.sin() * null)
        return prompt - damped, memory


@attrs.frozen(kw_only=True)
class PerpNeg(ScaledGuidance):
    """eps_u + s (p - k sum_i n_i'): p is eps_p - eps_u, n_i' what of eps_n_i - eps_u lies across p.

    So a negative cannot take away what the prompt asks for: it changes nothing if it says what the
    prompt says, nor if it is null. Differences of predictions are in every space the same but for a
    factor, so the result is too; it is computed in x0.

    Costs two branches a step and one for each negative; without negatives one at s = 1.

    References:
        Re-imagine the Negative Prompt Algorithm: Transform 2D Diffusion into 3D, alleviate Janus
        problem and Beyond, 2023, arXiv:2304.04968
    """

    name = "perp_neg"
    negative_scale: float = option(1.0, "k, on each negative; 0 ignores them", ge(0.0))
    space = "x0"

    @property
    def uses_negatives(self) -> bool:
        """They are what it is for."""
        return True

    def others(self, step: GuidanceStep) -> Collection[Branch]:
        """Null and the negatives, where they count."""
        if not step.negatives or self.scale * self.negative_scale < NEGLIGIBLE:
            return super().others(step)
        return [NULL, *(Branch(text="negative", index=i) for i in range(step.negatives))]

    def act(
        self, before: Tensor, values: Mapping[Branch, Tensor], step: GuidanceStep, memory: Any
    ) -> tuple[Tensor, Any]:
        """Towards the prompt, and away from what of the negatives lies across."""
        if NULL not in values:
            return before, memory
        prompt = values[PROMPT] - values[NULL]
        value = before + self.w * prompt
        for negative in (v - values[NULL] for b, v in values.items() if b.text == "negative"):
            across = negative - along(negative, prompt)
            value = value - self.scale * self.negative_scale * across
        return value, memory
