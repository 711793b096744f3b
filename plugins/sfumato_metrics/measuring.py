"""The measurements of the metrics under way. They know nothing about how pictures were made."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from sfumato import ConfigError, JointEncoderModule, MetricState
from sfumato_metrics.shape_reading import SHAPES, read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from sfumato import Pipeline
    from sfumato_metrics.metrics import DescribedShapes


class ShapeAttributesState(MetricState):
    """Counts what was named and what was shown."""

    def __init__(self, data: DescribedShapes) -> None:
        self._data = data
        self._named: Counter[str] = Counter()
        self._right: Counter[str] = Counter()

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Reads the pictures and compares."""
        data = self._data
        reading = read(images, data.palette, data.backgrounds)
        shown = {
            "color": _words(reading.color, list(data.palette)),
            "shape": _words(reading.shape, SHAPES),
            "background": _words(reading.background, list(data.backgrounds)),
        }
        for place, prompt in enumerate(prompts):
            named = data.attributes(prompt)
            for attribute, words in shown.items():
                if attribute in named:
                    self._named[attribute] += 1
                    self._right[attribute] += words[place] == named[attribute]

    def compute(self) -> Mapping[str, float]:
        """The share that is right, for each attribute that some prompt named."""
        return {f"{key}_accuracy": self._right[key] / self._named[key] for key in self._named}


def _words(indices: Tensor, vocabulary: Sequence[str]) -> list[str | None]:
    """The words at these places; None at -1."""
    return [None if index < 0 else vocabulary[index] for index in indices.tolist()]


class ClipSimilarityState(MetricState):
    """A running mean of cosines."""

    def __init__(self, encoder: JointEncoderModule) -> None:
        self._encoder = encoder
        self._total, self._count = 0.0, 0

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Adds one cosine for each picture."""
        texts, pictures = embeddings(self._encoder, prompts, images)
        self._total += float((texts * pictures).sum(dtype=torch.float64))
        self._count += len(prompts)

    def compute(self) -> Mapping[str, float]:
        """The mean, if there was a picture."""
        return {"clip_similarity": self._total / self._count} if self._count else {}


class DiversityState(MetricState):
    """Keeps the pictures, by prompt."""

    def __init__(self) -> None:
        self._pictures: defaultdict[str, list[Tensor]] = defaultdict(list)

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Keeps the pictures."""
        for image, prompt in zip(images, prompts, strict=True):
            self._pictures[prompt].append(image.flatten().double())

    def compute(self) -> Mapping[str, float]:
        """The mean over prompts of the mean over pairs."""
        groups = [torch.stack(group) for group in self._pictures.values() if len(group) > 1]
        means = [torch.pdist(group).mean() / group.shape[1] ** 0.5 for group in groups]
        return {"diversity": float(torch.stack(means).mean())} if means else {}


def joint_encoder(pipeline: Pipeline, place: str) -> JointEncoderModule:
    """The pipeline's encoder of texts and pictures.

    Raises:
        ConfigError: it encodes texts only.
    """
    encoder = pipeline.text_encoder
    if not isinstance(encoder, JointEncoderModule):
        raise ConfigError(
            f"the text encoder {type(encoder).__name__} has no image encoder beside it",
            place=place,
            remedy="use a joint text_encoder such as clip, or leave this out",
        )
    return encoder


@torch.no_grad()
def embeddings(
    encoder: JointEncoderModule, captions: Sequence[str], images: Tensor
) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, P) float32 on the CPU for captions and for images (B, 3, H, W)."""
    texts = encoder.encode(captions).pooled
    pictures = encoder.encode_images(images.to(texts.device))
    return functional.normalize(texts.float().cpu()), functional.normalize(pictures.float().cpu())
