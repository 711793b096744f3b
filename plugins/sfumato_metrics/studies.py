"""Settings of the studies: questions about a trained pipeline.

The answers stand in `answering` and their pictures in `figures`, which need torch and matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import attrs
from attrs.validators import deep_iterable, ge, min_len

from sfumato import ConfigError, Guidance, Metric, Study, option, required
from sfumato_metrics.metrics import Diversity, ShapeAttributes

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import Finding, Pipeline


@attrs.frozen(kw_only=True)
class ClipSimilarityStudy(Study):
    """Does the text encoder know which caption belongs to which picture?

    Cosines of held-out pictures with their captions, which are distinct and, where the data can
    parse captions, name every attribute. `clip_retrieval` is the share of the pictures whose most
    similar caption is their own.

    References:
        Learning Transferable Visual Models From Natural Language Supervision, 2021,
        arXiv:2103.00020
    """

    name = "clip_similarity"
    explains: ClassVar[bool] = True

    count: int = option(32, "number of pictures", ge(2))

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Three pictures."""
        return cls(count=3)

    def check(self, pipeline: Pipeline) -> None:
        """Needs a joint encoder and enough captions."""
        from sfumato_metrics.answering import full_captions
        from sfumato_metrics.features import joint_encoder

        joint_encoder("run", pipeline, "study.clip_similarity")
        full_captions(pipeline.settings.given_data(), self.count)

    def run(self, pipeline: Pipeline, seed: int) -> Finding:
        """The matrix of cosines; nothing is sampled."""
        from sfumato_metrics.answering import clip_similarity

        return clip_similarity(self, pipeline)


@attrs.frozen(kw_only=True)
class GuidanceStudy(Study):
    """What does the guidance scale buy, and what does it cost?

    The same captions of the test split and the same noise at every scale: the metrics by scale
    under `guidance`.

    References:
        Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598
    """

    name = "guidance"

    scales: tuple[float, ...] = option(
        (1.0, 2.0, 4.0, 8.0), "guidance scales; 1 is off", min_len(1), deep_iterable(ge(0.0))
    )
    prompts: int = option(24, "number of distinct captions", ge(1))
    samples: int = option(8, "pictures of each caption", ge(1))
    metrics: tuple[Metric, ...] = option((ShapeAttributes(), Diversity()), "what is measured")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Two pictures of each of two captions, at two scales."""
        return cls(scales=(1.0, 3.0), prompts=2, samples=2)

    def __attrs_post_init__(self) -> None:
        named = [f"{scale:g}" for scale in self.scales]
        if len(set(named)) < len(named):
            raise ConfigError(
                f"the scales {', '.join(named)} are not distinct",
                place="study.guidance",
                remedy="name each once; results are kept by the first six digits",
            )

    def check(self, pipeline: Pipeline) -> None:
        """Needs a guidance with a scale that this model can be sampled with, enough captions, and
        data that the metrics can read.
        """
        from sfumato_metrics.answering import full_captions, scaled

        full_captions(pipeline.settings.given_data(), self.prompts)
        for scale in self.scales:
            pipeline.plan(guidance=scaled(pipeline.settings.guidance, scale))
        for metric in self.metrics:
            metric.build(pipeline)

    def run(self, pipeline: Pipeline, seed: int) -> Finding:
        """Samples `prompts` times `samples` pictures at each scale."""
        from sfumato_metrics.answering import guidance

        return guidance(self, pipeline, seed)


@attrs.frozen(kw_only=True)
class NegativePromptStudy(Study):
    """Does a negative prompt take away what it names?

    The prompts leave the color open. The share of pictures that show the negative's color, under
    `negative_prompt`: `without`, by the pipeline's own guidance, and `with` the negative prompt,
    from the same noise. A picture of nothing shows no color either, so `shape_accuracy_without` and
    `shape_accuracy_with`, measured against the prompts, tell whether the pictures stay whole.
    """

    name = "negative_prompt"

    guidance: Guidance = required("guides with the negative prompt")
    negative: str = option("a red shape", "the negative prompt; the metric must know its color")
    prompts: tuple[str, ...] = option(
        (
            "a circle",
            "a square",
            "a triangle",
            "a large circle on a gray background",
            "a large square on a white background",
            "a large triangle on a black background",
        ),
        "prompts that name shapes and leave the color open",
    )
    samples: int = option(32, "pictures of each prompt", ge(1))
    metric: Metric = option(ShapeAttributes(), "computes color_accuracy and shape_accuracy")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Two pictures of each of two prompts."""
        from sfumato import create

        guidance = create("guidance", "negative_prompt")
        return cls(guidance=guidance, prompts=("a circle", "a square"), samples=2)

    def check(self, pipeline: Pipeline) -> None:
        """Needs a guidance that can be sampled with, and a metric that reads the color of the
        negative and the shapes of the prompts.
        """
        from sfumato_metrics.answering import refuse_what_cannot_be_measured

        pipeline.plan(guidance=self.guidance, negatives=1)
        refuse_what_cannot_be_measured(self, pipeline)

    def run(self, pipeline: Pipeline, seed: int) -> Finding:
        """Samples `prompts` times `samples` pictures, twice.

        Raises:
            ConfigError: the metric finds no color in `negative`, or no shape in `prompts`.
        """
        from sfumato_metrics.answering import negative_prompt

        return negative_prompt(self, pipeline, seed)
