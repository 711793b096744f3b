"""Settings of the metrics, and what they ask of a pipeline's data.

The measuring itself stands in `measuring`, which needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import attrs
from attrs.validators import ge, optional

from sfumato import ConfigError, Metric, option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sfumato import MetricState, Pipeline
    from sfumato_metrics.distances import Real

RGB = tuple[float, float, float]


@runtime_checkable
class DescribedShapes(Protocol):
    """Data of pictures of one shape on a plain background, whose captions can be parsed."""

    @property
    def palette(self) -> Mapping[str, RGB]:
        """The colors of the shapes, RGB in [-1, 1], by name."""

    @property
    def backgrounds(self) -> Mapping[str, RGB]:
        """The colors of the backgrounds, likewise."""

    def attributes(self, text: str) -> dict[str, str]:
        """What a caption says, by attribute; what it leaves out is absent."""


@attrs.frozen(kw_only=True)
class ShapeAttributes(Metric):
    """The share of pictures whose color, shape and background are those that the prompt names.

    Read off the pixels, so it needs no trained judge: `color_accuracy`, `shape_accuracy` and
    `background_accuracy`, each over the prompts that name the attribute, and absent if none does. A
    picture in which no shape can be found counts as wrong in color and shape.
    """

    name = "shape_attributes"

    def build(self, pipeline: Pipeline) -> MetricState:
        """An empty measurement, with the vocabulary of the pipeline's data."""
        from sfumato_metrics.measuring import ShapeAttributesState

        data = pipeline.settings.given_data()
        if not isinstance(data, DescribedShapes):
            raise ConfigError(
                f"data {data.name!r} has no palette, backgrounds and attributes to compare with",
                place="metric.shape_attributes",
                remedy="use data: shapes, or leave this metric out",
            )
        return ShapeAttributesState(data)


@attrs.frozen(kw_only=True)
class ClipSimilarity(Metric):
    """Mean cosine of the pipeline's embeddings of each picture and its prompt: `clip_similarity`.

    In [-1, 1]; CLIPScore without its factor. It depends on the encoder, so it compares samples of
    pipelines that share one.

    References:
        CLIPScore: A Reference-free Evaluation Metric for Image Captioning, 2021, arXiv:2104.08718
    """

    name = "clip_similarity"

    def build(self, pipeline: Pipeline) -> MetricState:
        """An empty measurement, with the pipeline's encoder."""
        from sfumato_metrics.features import joint_encoder
        from sfumato_metrics.measuring import ClipSimilarityState

        return ClipSimilarityState(joint_encoder("run", pipeline, "metric.clip_similarity"))


SCORER = "the judge: another run or the folder of a CLIP; run: the run's own encoder"


@attrs.frozen(kw_only=True)
class ClipScore(Metric):
    """2.5 max(cosine, 0) of each picture and its prompt, the mean: `clip_score`, in [0, 2.5].

    References:
        CLIPScore: A Reference-free Evaluation Metric for Image Captioning, 2021, arXiv:2104.08718
    """

    name = "clip_score"

    scorer: str = option("run", SCORER)

    def build(self, pipeline: Pipeline) -> MetricState:
        """An empty measurement, with the scorer."""
        from sfumato_metrics.features import scorer
        from sfumato_metrics.measuring import ClipScoreState

        return ClipScoreState(scorer(self.scorer, pipeline, "metric.clip_score"))


@attrs.frozen(kw_only=True)
class Retrieval(Metric):
    """The share of prompts whose most similar picture was drawn for them, `text_to_image`, and of
    pictures whose most similar prompt is their own, `image_to_text`, among all that are measured.

    Equal prompts are one. The more pictures, the harder: compare at equal n.

    References:
        Learning Transferable Visual Models From Natural Language Supervision, 2021,
        arXiv:2103.00020
    """

    name = "retrieval"

    scorer: str = option("run", SCORER)

    def build(self, pipeline: Pipeline) -> MetricState:
        """An empty measurement, with the scorer."""
        from sfumato_metrics.features import scorer
        from sfumato_metrics.measuring import RetrievalState

        return RetrievalState(scorer(self.scorer, pipeline, "metric.retrieval"))


@attrs.frozen(kw_only=True)
class Distance(Metric):
    """What metrics against real pictures share."""

    extractor: str = option(
        "run",
        "whose features: run (its own image encoder), pixels, another run, the folder of a CLIP, "
        "or a TorchScript file",
    )
    resize: int | None = option(
        None,
        "the side that pictures are brought to first; null: 8 for pixels, else as they are",
        optional(ge(1)),
    )
    real: Literal["test", "train"] = option("test", "the split whose pictures are the real ones")
    real_count: int = option(2000, "at most so many of them", ge(2))

    def reals(self, pipeline: Pipeline) -> Real:
        """The real pictures and the extractor."""
        from sfumato_metrics.distances import Real
        from sfumato_metrics.features import extractor

        found = extractor(self.extractor, self.resize, pipeline, f"metric.{self.name}")
        split = pipeline.settings.given_data().split(self.real)
        return Real(split, self.real, self.real_count, found)


@attrs.frozen(kw_only=True)
class FrechetDistance(Distance):
    """|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)) of features of drawn and real pictures:
    `frechet_distance`.

    With Inception's features it is known as FID; by another extractor numbers are others, and only
    those of the same extractor, resize and n compare: few pictures are farther off (the bias falls
    like 1/n). `measured_with` states all of these, and the floor, the distance of one half of the
    real pictures from the other.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017,
        arXiv:1706.08500
    """

    name = "frechet_distance"

    def build(self, pipeline: Pipeline) -> MetricState:
        """An empty measurement."""
        from sfumato_metrics.distances import FrechetState

        return FrechetState(self.reals(pipeline))


@attrs.frozen(kw_only=True)
class KernelDistance(Distance):
    """The squared maximum mean discrepancy of features of drawn and real pictures, with the kernel
    (x . y / d + 1)^3: `kernel_distance`.

    Unbiased, so that it may fall below 0; with Inception's features it is known as KID.

    References:
        Demystifying MMD GANs, 2018, arXiv:1801.01401
    """

    name = "kernel_distance"

    def build(self, pipeline: Pipeline) -> MetricState:
        """An empty measurement."""
        from sfumato_metrics.distances import KernelState

        return KernelState(self.reals(pipeline))


@attrs.frozen(kw_only=True)
class PrecisionRecall(Distance):
    """The share of drawn pictures that lie among the real ones, `precision`, and of real ones among
    the drawn, `recall`: within the distance of one of them to its k-th neighbour.

    Both need many pictures on both sides, and recall falls with n.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models, 2019, arXiv:1904.06991
    """

    name = "precision_recall"

    neighbours: int = option(3, "k", ge(1))

    def build(self, pipeline: Pipeline) -> MetricState:
        """An empty measurement."""
        from sfumato_metrics.distances import PrecisionRecallState

        return PrecisionRecallState(self.reals(pipeline), self.neighbours)


@attrs.frozen(kw_only=True)
class Diversity(Metric):
    """Mean distance between two pictures of the same prompt: `diversity`.

    The distance is the root mean square over pixels and channels; the mean is taken over the pairs
    of a prompt, then over the prompts that have a pair. Absent if none has.
    """

    name = "diversity"

    def build(self, pipeline: Pipeline) -> MetricState:
        """An empty measurement."""
        from sfumato_metrics.measuring import DiversityState

        return DiversityState()
