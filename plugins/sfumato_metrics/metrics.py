"""Settings of the metrics, and what they ask of a pipeline's data.

The measuring itself stands in `measuring`, which needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

from sfumato import ConfigError, Metric

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sfumato import MetricState, Pipeline

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
        from sfumato_metrics.measuring import ClipSimilarityState, joint_encoder

        return ClipSimilarityState(joint_encoder(pipeline, "metric.clip_similarity"))


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
