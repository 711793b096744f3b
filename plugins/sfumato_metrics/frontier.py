"""Settings of the study of what two guidance scales buy and cost.

The answer stands in `trade_off` and its picture in `charts`, which need torch and matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import attrs
from attrs.validators import deep_iterable, ge, min_len

from sfumato import ConfigError, Metric, Study, option
from sfumato_metrics.explanations import PROMPTS
from sfumato_metrics.metrics import Diversity

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import Finding, Pipeline


@attrs.frozen(kw_only=True)
class Frontier(Study):
    """Which positive and negative scales are worth it?

    Alignment against diversity, and against fidelity where a metric for it is given, at each pair
    of s_pos and s_neg, with the same prompts, negatives and noise at all of them: under `frontier`
    by `s_pos, s_neg`. Alignment is the mean of the numbers of its metric; the two others are the
    first number of theirs.

    `frontier_knee` is the pair at which the front bends: of the pairs that no other beats in both
    alignment and diversity, the one farthest above the chord between the ends of that front, both
    axes brought to [0, 1] (Kneedle). Where fidelity is measured, `frontier_knee_fidelity` is that
    of alignment against fidelity.

    References:
        Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598, Figure 4 (the trade-off)
        Compositional Visual Generation with Composable Diffusion Models, 2022, arXiv:2206.01714
        Finding a "Kneedle" in a Haystack: Detecting Knee Points in System Behavior, 2011
    """

    name = "frontier"

    positive: tuple[float, ...] = option(
        (1.0, 2.0, 4.0, 8.0), "s_pos, on the prompt", min_len(1), deep_iterable(ge(0.0))
    )
    negative: tuple[float, ...] = option(
        (0.0, 1.0, 2.0, 4.0), "s_neg, on the negative prompt", min_len(1), deep_iterable(ge(0.0))
    )
    prompts: tuple[str, ...] = option((), PROMPTS)
    negatives: tuple[str, ...] = option(
        (), "one for all prompts or one for each; empty: a color that the prompt does not name, "
        "where the data has such, else the next prompt"
    )  # fmt: skip
    count: int = option(16, "captions, where no prompts are given", ge(1))
    samples: int = option(4, "pictures of each prompt; diversity needs two", ge(2))
    alignment: Metric | None = option(
        None, "how well pictures fit their prompts; null: shape_attributes where the data can be "
        "read, else clip_similarity"
    )  # fmt: skip
    diversity: Metric = option(Diversity(), "how much pictures of one prompt differ")
    fidelity: Metric | None = option(
        None, "a distance from real pictures, of which less is better; null: not measured"
    )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Two pictures of each of two captions, at four pairs of scales."""
        return cls(positive=(1.0, 3.0), negative=(0.0, 1.0), count=2, samples=2)

    def __attrs_post_init__(self) -> None:
        for option_name in ("positive", "negative"):
            named = [f"{scale:g}" for scale in getattr(self, option_name)]
            if len(set(named)) < len(named):
                raise ConfigError(
                    f"the scales {', '.join(named)} are not distinct",
                    place=f"study.frontier.{option_name}",
                    remedy="name each once; results are kept by the first six digits",
                )

    def check(self, pipeline: Pipeline) -> None:
        """Needs prompts, or data with enough captions, a model that knows the null condition unless
        s_pos is s_neg + 1 everywhere, and whatever the metrics need.
        """
        from sfumato_metrics.trade_off import metrics
        from sfumato_metrics.walking import chosen, negatives_for, two_scales

        prompts = chosen(self.prompts, self.count, pipeline)
        negatives_for(prompts, self.negatives, pipeline, "study.frontier")
        for metric in metrics(self, pipeline).values():
            metric.build(pipeline)
        for negative in self.negative:
            for positive in self.positive:
                pipeline.plan(guidance=two_scales(positive, negative), negatives=1)

    def run(self, pipeline: Pipeline, seed: int) -> Finding:
        """Samples `count` times `samples` pictures at each pair of scales."""
        from sfumato_metrics.trade_off import frontier

        return frontier(self, pipeline, seed)
