"""The measurements of the metrics under way. They know nothing about how pictures were made."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from sfumato import MetricState, Scores
from sfumato_metrics.features import embeddings
from sfumato_metrics.shape_reading import SHAPES, read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from sfumato import JointEncoderModule
    from sfumato_metrics.features import Scorer
    from sfumato_metrics.metrics import DescribedShapes


class ShapeAttributesState(Scores):
    """Whether what was named is what was shown."""

    def __init__(self, data: DescribedShapes) -> None:
        super().__init__()
        self._data = data

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Reads the pictures and compares."""
        data = self._data
        reading = read(images, data.palette, data.backgrounds)
        shown = {
            "color": _words(reading.color, list(data.palette)),
            "shape": _words(reading.shape, SHAPES),
            "background": _words(reading.background, list(data.backgrounds)),
        }
        named = [data.attributes(prompt) for prompt in prompts]
        self.add(
            {
                f"{attribute}_accuracy": torch.tensor(
                    [
                        float(word == said[attribute]) if attribute in said else torch.nan
                        for word, said in zip(words, named, strict=True)
                    ]
                )
                for attribute, words in shown.items()
            }
        )


def _words(indices: Tensor, vocabulary: Sequence[str]) -> list[str | None]:
    """The words at these places; None at -1."""
    return [None if index < 0 else vocabulary[index] for index in indices.tolist()]


class ClipSimilarityState(Scores):
    """A cosine for each picture."""

    def __init__(self, encoder: JointEncoderModule) -> None:
        super().__init__()
        self._encoder = encoder

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Embeds and compares."""
        texts, pictures = embeddings(self._encoder, prompts, images)
        self.add({"clip_similarity": (texts * pictures).sum(dim=1, dtype=torch.float64)})


class ClipScoreState(ClipSimilarityState):
    """Cosines as the paper scales them."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer.encoder)
        self._scorer = scorer

    def facts(self) -> Mapping[str, Any]:
        """The scorer."""
        return self._scorer.facts

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Embeds and compares."""
        texts, pictures = embeddings(self._encoder, prompts, images)
        cosines = (texts * pictures).sum(dim=1, dtype=torch.float64)
        self.add({"clip_score": 2.5 * cosines.clamp(min=0)})


class RetrievalState(MetricState):
    """Keeps the vectors of all prompts and pictures."""

    biased = frozenset({"text_to_image", "image_to_text"})

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._texts: list[Tensor] = []
        self._pictures: list[Tensor] = []
        self._prompts: list[str] = []

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Embeds."""
        texts, pictures = embeddings(self._scorer.encoder, prompts, images)
        self._texts.append(texts.double())
        self._pictures.append(pictures.double())
        self._prompts += prompts

    def compute(self, rows: Tensor) -> Mapping[str, float]:
        """Among the chosen, each of which is one candidate however often it was chosen."""
        chosen, place = torch.unique(rows, return_inverse=True)
        self._texts, self._pictures = [torch.cat(self._texts)], [torch.cat(self._pictures)]
        cosines = self._texts[0][chosen] @ self._pictures[0][chosen].T
        known = {prompt: k for k, prompt in enumerate(dict.fromkeys(self._prompts))}
        prompt = torch.tensor([known[self._prompts[row]] for row in chosen.tolist()])
        right = {
            "text_to_image": prompt[cosines.argmax(dim=1)] == prompt,
            "image_to_text": prompt[cosines.argmax(dim=0)] == prompt,
        }
        return {name: float(hits[place].double().mean()) for name, hits in right.items()}

    def facts(self) -> Mapping[str, Any]:
        """The scorer."""
        return self._scorer.facts


class DiversityState(MetricState):
    """Keeps the pictures, and the distances of all pairs of one prompt."""

    biased = frozenset({"diversity"})

    def __init__(self) -> None:
        self._pictures: list[Tensor] = []
        self._groups: defaultdict[str, list[int]] = defaultdict(list)
        self._known: tuple[Tensor, Tensor, Tensor] | None = None

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Keeps the pictures."""
        for row, prompt in enumerate(prompts, start=len(self._pictures)):
            self._groups[prompt].append(row)
        self._pictures += images.flatten(1).double().unbind()
        self._known = None

    def compute(self, rows: Tensor) -> Mapping[str, float]:
        """The mean over prompts of the mean over pairs; a picture and itself are no pair."""
        self._known = self._known or self._pairs()
        pairs, group, distance = self._known
        times = torch.bincount(rows, minlength=len(self._pictures)).double()
        weight = times[pairs].prod(dim=0)
        total = weight.new_zeros(2, len(self._groups))
        total.index_add_(1, group, torch.stack([weight * distance, weight]))
        means = total[0, total[1] > 0] / total[1, total[1] > 0]
        return {"diversity": float(means.mean())} if len(means) else {}

    def _pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows (2, pairs) of each pair, its group (pairs,), and its distance (pairs,)."""
        pairs, groups, distances = [], [], []
        for place, group in enumerate(self._groups.values()):
            rows = torch.tensor(group)
            pictures = torch.stack([self._pictures[row] for row in group])
            found = torch.combinations(rows).T
            pairs.append(found)
            groups.append(torch.full_like(found[0], place))
            distances.append(torch.pdist(pictures) / pictures.shape[1] ** 0.5)
        return torch.cat(pairs, dim=1), torch.cat(groups), torch.cat(distances)
