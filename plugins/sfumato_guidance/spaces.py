"""Guidance that acts on one quantity, and so has to say on which.

Norms, projections, quantiles and deviations do not commute with a change of prediction type: what
acts on eps is another method than what acts on x0. Such a method states its `space`, one of the
four prediction types. There it sees every branch and what the chain has made so far (at its head
the prompt's prediction), and says what shall stand instead; x0 and eps follow by solving
x_t = alpha x0 + sigma eps.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import ge, gt, le

from sfumato import (
    Branch,
    ConfigError,
    Guidance,
    GuidanceStep,
    Guided,
    Prediction,
    PredictionType,
    option,
    solve,
    target,
)
from sfumato_guidance.linear import PROMPT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

NO_SIGNAL = 2.0**-23
"""alpha / sigma below which float32 holds nothing of x0 in x_t."""


class GuidanceInSpace(Guidance):
    """Acts in `space`: a subclass says which branches it compares, and what becomes of them.

    Raises:
        ConfigError: epsilon is to be guided where there is no signal, and says nothing about x0.
    """

    space: PredictionType

    def others(self, step: GuidanceStep) -> Collection[Branch]:
        """The branches that it asks for beside the prompt."""
        return ()

    @abstractmethod
    def act(
        self, before: Tensor, values: Mapping[Branch, Tensor], step: GuidanceStep, memory: Any
    ) -> tuple[Tensor, Any]:
        """What stands in place of `before`, like it, and what to remember.

        Args:
            before: (B, C, H, W) in `space`: what the chain made so far, or the prompt's.
            values: likewise, of each branch.
            step: as for `combine`.
            memory: as for `combine`.
        """

    def branches(self, step: GuidanceStep) -> Collection[Branch]:
        """The prompt, and the others."""
        if self.space == "epsilon" and step.alpha <= NO_SIGNAL * step.sigma:
            raise ConfigError(
                f"the guidance {self.name!r} acts on epsilon, which says nothing about x0 at t = "
                f"{step.t:g}, where alpha is {step.alpha:g}",
                remedy="give it another space, such as v, or use a time_grid that starts later",
            )
        return [PROMPT, *self.others(step)]

    def combine(
        self,
        predictions: Mapping[Branch, Prediction],
        step: GuidanceStep,
        guided: Guided | None,
        memory: Any,
    ) -> tuple[Guided, Any]:
        """There and back again."""
        import torch

        alpha = torch.tensor(step.alpha, dtype=torch.float64)
        sigma = torch.tensor(step.sigma, dtype=torch.float64)

        def seen(prediction: Prediction) -> Tensor:
            return target(self.space, prediction.x0, prediction.eps, alpha, sigma)

        before = guided or predictions[PROMPT]
        values = {branch: seen(predictions[branch]) for branch in self.branches(step)}
        value, memory = self.act(seen(before), values, step, memory)
        # Of `before`, so that a link which renoises otherwise on purpose is not undone.
        x_t = alpha * before.x0 + sigma * before.eps
        solved = solve(self.space, value, x_t, alpha, sigma)
        return Guided(solved.x0, solved.eps), memory


@attrs.frozen(kw_only=True)
class Rescale(GuidanceInSpace):
    """phi g std(p) / std(g) + (1 - phi) g: g, the guided, with the contrast of the prompt's own.

    For a chain, after what guides; at its head g is p, and nothing happens. Standard deviations are
    those of an example, over C, H and W. The paper and its followers rescale what the network says:
    `space` is epsilon by default, and should be v on a schedule that ends without signal.

    Costs no branch beside the prompt.

    References:
        Common Diffusion Noise Schedules and Sample Steps are Flawed, 2023, arXiv:2305.08891,
        Section 3.4
    """

    name = "rescale"
    phi: float = option(0.7, "0 leaves the guided as it is, 1 rescales it fully", ge(0.0), le(1.0))
    space: PredictionType = option("epsilon", "what is rescaled")

    def act(
        self, before: Tensor, values: Mapping[Branch, Tensor], step: GuidanceStep, memory: Any
    ) -> tuple[Tensor, Any]:
        """Section 3.4; where the guided has no deviation it stays."""
        wanted, found = (v.std((1, 2, 3), keepdim=True) for v in (values[PROMPT], before))
        rescaled = before * (wanted / found).where(found > 0, 1.0)
        return self.phi * rescaled + (1 - self.phi) * before, memory


@attrs.frozen(kw_only=True)
class Thresholding(GuidanceInSpace):
    """x0 clipped to [-q, q] and divided by q: a percentile of |x0|, or 1 where that is less.

    Dynamic thresholding. For pictures, whose values lie in [-1, 1]; latents have no such range. For
    a chain, after what guides; at its head it acts on the prompt's prediction. In x0.

    Costs no branch beside the prompt.

    References:
        Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding, 2022,
        arXiv:2205.11487, Section 2.3
    """

    name = "thresholding"
    percentile: float = option(0.995, "the share of values that are not clipped", gt(0.0), le(1.0))
    space = "x0"

    @property
    def keeps_agreement(self) -> bool:
        """It clips what all branches agree on, too."""
        return False

    def act(
        self, before: Tensor, values: Mapping[Branch, Tensor], step: GuidanceStep, memory: Any
    ) -> tuple[Tensor, Any]:
        """Section 2.3; the percentile between two values is interpolated."""
        # torch.quantile refuses batches of more than 16 million values, and bfloat16.
        ordered = before.abs().flatten(1).sort(1).values
        place = self.percentile * (ordered.shape[1] - 1)
        below = int(place)
        above = min(below + 1, ordered.shape[1] - 1)
        q = ordered[:, below].lerp(ordered[:, above], place - below)
        q = q.clamp_min(1.0).reshape(-1, 1, 1, 1)
        return before.clamp(-q, q) / q, memory
