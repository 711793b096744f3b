"""Noise schedules given by a table of betas, in plain Python floats (float64).

beta_i is the variance of the noise that step i of T adds,

    x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) eps

alpha^2 is alpha_bar_i, the product of all 1 - beta up to i, and sigma^2 is 1 - alpha_bar_i, for
which `TableSchedule` cares.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Self

import attrs
from attrs.validators import deep_iterable, ge, gt, le, lt

from sfumato import ConfigError, TableSchedule, option

if TYPE_CHECKING:
    from collections.abc import Sequence


def evenly(first: float, last: float, count: int) -> list[float]:
    """`count` >= 2 numbers from `first` to `last`, both included."""
    return [first + (last - first) * i / (count - 1) for i in range(count)]


@attrs.frozen(kw_only=True)
class LinearBeta(TableSchedule):
    """Variances in even steps: beta_i from beta_start to beta_end.

    References:
        Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239
    """

    name = "linear"
    beta_start: float = option(1e-4, "variance of the first step", gt(0.0), lt(1.0))
    beta_end: float = option(0.02, "variance of the last step", gt(0.0), lt(1.0))
    steps: int = option(1000, "T, the length of the table", ge(2))

    def betas(self) -> Sequence[float]:
        """beta_1 ... beta_T."""
        return evenly(self.beta_start, self.beta_end, self.steps)


@attrs.frozen(kw_only=True)
class ScaledLinearBeta(TableSchedule):
    """Deviations in even steps: sqrt(beta_i) from sqrt(beta_start) to sqrt(beta_end).

    The schedule of Stable Diffusion.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models, 2021, arXiv:2112.10752
    """

    name = "scaled_linear"
    beta_start: float = option(8.5e-4, "variance of the first step", gt(0.0), lt(1.0))
    beta_end: float = option(0.012, "variance of the last step", gt(0.0), lt(1.0))
    steps: int = option(1000, "T, the length of the table", ge(2))

    def betas(self) -> Sequence[float]:
        """beta_1 ... beta_T."""
        roots = evenly(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.steps)
        return [root**2 for root in roots]


@attrs.frozen(kw_only=True)
class Cosine(TableSchedule):
    """alpha_bar(t) = f(t) / f(0), f(t) = cos^2(pi/2 (t + s) / (1 + s)), each beta up to beta_max.

    References:
        Improved Denoising Diffusion Probabilistic Models, 2021, arXiv:2102.09672
    """

    name = "cosine"
    offset: float = option(0.008, "s, which keeps the first betas from being too small", ge(0.0))
    beta_max: float = option(0.999, "no beta is above it: f(1) = 0", gt(0.0), lt(1.0))
    steps: int = option(1000, "T, the length of the table", ge(1))

    def betas(self) -> Sequence[float]:
        """beta_1 ... beta_T (Equation 17 and the text below it)."""
        f = [self._f(i / self.steps) for i in range(self.steps + 1)]
        return [min(1 - f[i + 1] / f[i], self.beta_max) for i in range(self.steps)]

    def _f(self, t: float) -> float:
        return math.cos(math.pi / 2 * (t + self.offset) / (1 + self.offset)) ** 2


@attrs.frozen(kw_only=True)
class Sigmoid(TableSchedule):
    """Variances on a logistic curve: beta_i = beta_start + (beta_end - beta_start) sigmoid(z_i),
    z_i in even steps from -reach to reach.

    References:
        GeoDiff: A Geometric Diffusion Model for Molecular Conformation Generation, 2022,
        arXiv:2203.02923
    """

    name = "sigmoid"
    beta_start: float = option(1e-4, "the lower asymptote", ge(0.0), lt(1.0))
    beta_end: float = option(0.02, "the upper asymptote", gt(0.0), lt(1.0))
    reach: float = option(6.0, "how far the curve is followed to either side", gt(0.0), le(30.0))
    steps: int = option(1000, "T, the length of the table", ge(2))

    def betas(self) -> Sequence[float]:
        """beta_1 ... beta_T."""
        rise = self.beta_end - self.beta_start
        curve = evenly(-self.reach, self.reach, self.steps)
        return [self.beta_start + rise / (1 + math.exp(-z)) for z in curve]


@attrs.frozen(kw_only=True)
class Betas(TableSchedule):
    """The betas that are listed, here or in a file.

    A file is read once, and its numbers take the place of its name: so a run records the betas
    themselves. `.json` holds one list, `.txt` numbers between blanks, commas or line ends.

    Raises:
        ConfigError: there are no betas, or two sources of them; the file cannot be read.
    """

    name = "betas"
    values: tuple[float, ...] = option((), "beta_1 ... beta_T", deep_iterable([gt(0), le(1)]))
    file: str | None = option(None, "a .json or .txt file of them, instead of `values`")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Ten of them, rising."""
        return cls(values=tuple(evenly(0.01, 0.4, 10)))

    def __attrs_post_init__(self) -> None:
        if (self.file is None) == (not self.values):
            raise ConfigError(
                "expected either values or a file",
                place="noise_schedule betas",
                remedy="give `values: [...]`, or `file: PATH`",
            )
        if self.file is not None:
            object.__setattr__(self, "values", read_numbers(Path(self.file)))
            object.__setattr__(self, "file", None)
        TableSchedule.__attrs_post_init__(self)

    def betas(self) -> Sequence[float]:
        """beta_1 ... beta_T."""
        return self.values


def read_numbers(path: Path) -> tuple[float, ...]:
    """The numbers of a .json list or a .txt file.

    Raises:
        ConfigError: the file is missing, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else text.replace(",", " ").split()
        return tuple(float(item) for item in found)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"no numbers can be read from it ({error})",
            place=str(path),
            remedy="a .json file holds one list of numbers, a .txt file numbers between blanks",
        ) from error
