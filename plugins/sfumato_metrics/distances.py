"""Distances between the pictures that are drawn and real ones, by features of both.

Torchmetrics has the Frechet and the kernel distance, too, and tests compare with it; here they are
computed so that a bootstrap of some hundred resamples is affordable, from pictures of any two
numbers, and without touching torch's random state.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato import MetricState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sfumato import Split
    from sfumato_metrics.features import Extractor


class Real:
    """Real pictures, whose features are computed when they are first asked for."""

    def __init__(self, split: Split, name: str, count: int, extractor: Extractor) -> None:
        self._split, self._name, self.extractor = split, name, extractor
        self.count = min(count, len(split))

    @functools.cached_property
    def features(self) -> Tensor:
        """(M, d) float64, of examples evenly spread over the split."""
        places = [k * len(self._split) // self.count for k in range(self.count)]
        pieces = [
            self.extractor.features(torch.stack([self._split.example(k)[0] for k in piece]))
            for piece in (places[first : first + 64] for first in range(0, len(places), 64))
        ]
        return torch.cat(pieces)

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies them."""
        return {**self.extractor.facts, "real": f"{self._name} split", "real_count": self.count}


class DistanceState(MetricState):
    """Keeps the features of pictures."""

    def __init__(self, real: Real) -> None:
        self.real = real
        self._pieces: list[Tensor] = []

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Keeps features."""
        self._pieces.append(self.real.extractor.features(images))

    @property
    def features(self) -> Tensor:
        """(N, d) float64, of all pictures."""
        self._pieces = [torch.cat(self._pieces)]
        return self._pieces[0]

    def facts(self) -> Mapping[str, Any]:
        """Extractor and real pictures, and the floor: half of the real against the other half."""
        return {**self.real.facts, "floor": self.floor()}

    def floor(self) -> Any:
        """The numbers of every other real picture against those between."""
        raise NotImplementedError


def frechet(x: Tensor, y: Tensor) -> float:
    """Between Gaussians with the moments of features (n, d) and (m, d), float64."""
    return _frechet(x, y.mean(dim=0), root(y))


def root(features: Tensor) -> Tensor:
    """The symmetric square root (d, d) of the covariance of features (n, d)."""
    values, vectors = torch.linalg.eigh(features.T.cov())
    found: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return found


def _frechet(x: Tensor, mean: Tensor, root_of_other: Tensor) -> float:
    """Tr (S1 S2)^(1/2) is the sum of the singular values of X R, where X^T X = S1 and R^2 = S2."""
    centred = (x - x.mean(dim=0)) / (len(x) - 1) ** 0.5
    product = centred @ root_of_other
    gram = product.T @ product if len(x) > x.shape[1] else product @ product.T
    shared = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
    between = (x.mean(dim=0) - mean).square().sum()
    return float(between + centred.square().sum() + root_of_other.square().sum() - 2 * shared)


class FrechetState(DistanceState):
    """Moments of the chosen pictures against those of the real ones."""

    biased = frozenset({"frechet_distance"})

    @functools.cached_property
    def _other(self) -> tuple[Tensor, Tensor]:
        return self.real.features.mean(dim=0), root(self.real.features)

    def compute(self, rows: Tensor) -> Mapping[str, float]:
        """Nothing of fewer than two pictures."""
        if len(rows) < 2 or self.real.count < 2:
            return {}
        return {"frechet_distance": _frechet(self.features[rows], *self._other)}

    def floor(self) -> float | None:
        """Between halves of the real pictures; null where there are fewer than four."""
        real = self.real.features
        return frechet(real[::2], real[1::2]) if len(real) >= 4 else None


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / d + 1)^3, (n, m)."""
    return (x @ y.T / x.shape[1] + 1).pow(3)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of features (n, d) and (m, d), float64."""
    return _among(kernel(x, x)) + _among(kernel(y, y)) - 2 * float(kernel(x, y).mean())


def _among(values: Tensor) -> float:
    """The mean over pairs of two."""
    count = len(values)
    return float(values.sum() - values.diagonal().sum()) / (count * (count - 1))


class KernelState(DistanceState):
    """Kernels are computed once; a choice of rows weighs them, and a picture and itself are no
    pair, so that repeats do not move the mean.
    """

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Keeps features; kernels are those of all, and computed anew."""
        super().update(images, prompts)
        self.__dict__.pop("_kernels", None)

    @functools.cached_property
    def _kernels(self) -> tuple[Tensor, Tensor, float]:
        mine, real = self.features, self.real.features
        pairs = kernel(mine, mine)
        return pairs.fill_diagonal_(0), kernel(mine, real).mean(dim=1), _among(kernel(real, real))

    def compute(self, rows: Tensor) -> Mapping[str, float]:
        """Nothing of fewer than two different pictures."""
        times = torch.bincount(rows, minlength=len(self.features)).double()
        pairs = float(times.sum() ** 2 - times.square().sum())
        if pairs == 0 or self.real.count < 2:
            return {}
        among, across, real = self._kernels
        mean = float(times @ among @ times) / pairs
        return {"kernel_distance": mean + real - 2 * float(times @ across) / len(rows)}

    def floor(self) -> float | None:
        """As for the Frechet distance; around 0, as it is unbiased."""
        real = self.real.features
        return kernel_distance(real[::2], real[1::2]) if len(real) >= 4 else None


def covered(points: Tensor, by: Tensor, neighbours: int) -> Tensor:
    """Which points (n, d) lie within the distance of one of `by` (m, d) to its k-th neighbour among
    them: (n,) bool. No point where there are no more than k.
    """
    return _covered(torch.cdist(points, by), torch.cdist(by, by), neighbours)


def _covered(across: Tensor, among: Tensor, neighbours: int) -> Tensor:
    if len(among) <= neighbours:
        return across.new_zeros(len(across), dtype=torch.bool)
    radii = among.kthvalue(neighbours + 1, dim=1).values  # the first is the point itself
    return (across <= radii).any(dim=1)


class PrecisionRecallState(DistanceState):
    """Precision is a score of each picture; recall that of all that are chosen, each once."""

    biased = frozenset({"recall"})

    def __init__(self, real: Real, neighbours: int) -> None:
        super().__init__(real)
        self._neighbours = neighbours

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Keeps features; distances are those of all, and computed anew."""
        super().update(images, prompts)
        self.__dict__.pop("_known", None)

    @functools.cached_property
    def _known(self) -> tuple[Tensor, Tensor, Tensor]:
        mine, real = self.features, self.real.features
        precise = covered(mine, real, self._neighbours).double()
        return precise, torch.cdist(real, mine), torch.cdist(mine, mine)

    def compute(self, rows: Tensor) -> Mapping[str, float]:
        """No recall of so few pictures that one has no k-th neighbour."""
        precise, across, among = self._known
        found = {"precision": float(precise[rows].mean())}
        chosen = torch.unique(rows)
        if len(chosen) > self._neighbours:
            part = _covered(across[:, chosen], among[chosen][:, chosen], self._neighbours)
            found["recall"] = float(part.double().mean())
        return found

    def floor(self) -> dict[str, float]:
        """Of half of the real pictures against the other half: what perfect pictures reach."""
        one, other = self.real.features[::2], self.real.features[1::2]
        return {
            "precision": float(covered(one, other, self._neighbours).double().mean()),
            "recall": float(covered(other, one, self._neighbours).double().mean()),
        }
