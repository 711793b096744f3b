"""The times that inference visits, by N classical indices out of the T of a table.

Index i is the time (i + 1) / T. `leading`, `trailing` and `linspace` are those of Table 2 of Lin et
al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, arXiv:2305.08891, their
fractions rounded once, half to even.

The last step ends at the grid's `final`: clean, or on the first entry of the table, where Stable
Diffusion stops (known as `set_alpha_to_one=False`). A schedule in continuous time is visited like a
table of a thousand points for each step, so that rounding does not show.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

import attrs
from attrs.validators import ge, le

from sfumato import ConfigError, NoiseSchedule, TimeGrid, option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


SKIP_LAST = "lay out an index more and leave the last one out, as diffusers' DPM-Solver does"


@attrs.frozen(kw_only=True)
class CheckedGrid(TimeGrid):
    """A grid whose number of steps and whose fall are checked; a subclass says where it stops."""

    TOO_MANY: ClassVar[str] = "use fewer steps"

    @abstractmethod
    def visited(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        """The `steps` falling times at which the denoiser is asked, in (0, 1]."""

    def last(self, points: int) -> float:
        """The time at which the picture is done, on a schedule of that many points."""
        return 0.0

    def times(self, steps: int, schedule: NoiseSchedule) -> Tensor:
        """(steps + 1,) float64, strictly falling, on the CPU.

        Raises:
            ConfigError: `steps` is below 1 or above `schedule.points`, or the times would leave the
                schedule or repeat one.
        """
        import torch

        if steps < 1:
            raise self.refusal(f"{steps} steps", "ask for at least 1")
        points = schedule.points or 1000 * steps
        if steps > points:
            raise self.refusal(
                f"{steps} steps on a noise schedule of {points} points",
                f"ask for at most {points}",
            )
        times = [*self.visited(steps, schedule), self.last(points)]
        for before, after in pairwise(times):
            if after >= before:
                raise self.refusal(f"{steps} steps visit t = {after:g} twice", self.TOO_MANY)
        return torch.tensor(times, dtype=torch.float64)

    def refusal(self, problem: str, remedy: str) -> ConfigError:
        """An error that names the grid."""
        return ConfigError(problem, place=f"time_grid.{self.name}", remedy=remedy)


@attrs.frozen(kw_only=True)
class IndexGrid(CheckedGrid):
    """A grid that is given by the classical indices that it visits."""

    TOO_MANY = "use final: clean or fewer steps"

    final: Literal["clean", "first"] = option(
        "clean", "where the last step ends: at t = 0, or at 1 / T, the first entry of the table"
    )

    @abstractmethod
    def indices(self, steps: int, points: int) -> Sequence[float]:
        """`steps` falling indices into a table of `points` >= `steps`."""

    def visited(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        """(i + 1) / T."""
        points = schedule.points or 1000 * steps
        indices = self.indices(steps, points)
        if indices[0] >= points:
            raise self.refusal(
                f"{steps} steps start at index {indices[0]} of {points} points",
                "ask for fewer steps or use offset: 0",
            )
        return [(index + 1) / points for index in indices]

    def last(self, points: int) -> float:
        """0 or 1 / T."""
        return 1 / points if self.final == "first" else 0.0


@attrs.frozen(kw_only=True)
class Leading(IndexGrid):
    """k floor(T / N) + offset for k = N - 1 ... 0. It starts up to a stride below t = 1.

    With `skip_last` k floor(T / (N + 1)) + offset for k = N ... 1.

    References:
        Denoising Diffusion Implicit Models, 2020, arXiv:2010.02502
        Common Diffusion Noise Schedules and Sample Steps are Flawed, 2023, arXiv:2305.08891
    """

    name = "leading"
    offset: int = option(0, "added to each index; Stable Diffusion uses 1", ge(0), le(1))
    skip_last: bool = option(False, SKIP_LAST)

    def __attrs_post_init__(self) -> None:
        if self.final == "first" and self.offset == 0 and not self.skip_last:
            raise ConfigError(
                "it visits the first entry already and cannot end on it",
                place="time_grid leading",
                remedy="use offset: 1, or final: clean",
            )

    def indices(self, steps: int, points: int) -> list[int]:
        """At T = 1000 and N = 50: 980, 960 ... 0."""
        spare = int(self.skip_last)
        stride = points // (steps + spare)
        return [(k + spare) * stride + self.offset for k in reversed(range(steps))]


@attrs.frozen(kw_only=True)
class Trailing(IndexGrid):
    """round(k T / N) - 1 for k = N ... 1. It starts at t = 1 for every N.

    References:
        Common Diffusion Noise Schedules and Sample Steps are Flawed, 2023, arXiv:2305.08891
    """

    name = "trailing"

    def indices(self, steps: int, points: int) -> list[int]:
        """At T = 1000 and N = 50: 999, 979 ... 19."""
        return [round(k * points / steps) - 1 for k in range(steps, 0, -1)]


@attrs.frozen(kw_only=True)
class Linspace(IndexGrid):
    """Even from T - 1 to 0, both included; with `final: first` that 0 is where the last step ends.

    References:
        Improved Denoising Diffusion Probabilistic Models, 2021, arXiv:2102.09672
        Common Diffusion Noise Schedules and Sample Steps are Flawed, 2023, arXiv:2305.08891
    """

    name = "linspace"
    skip_last: bool = option(False, SKIP_LAST)
    rounded: bool = option(True, "to entries of the table; diffusers' Euler goes between them")

    def indices(self, steps: int, points: int) -> Sequence[float]:
        """At T = 1000 and N = 50: 999, 979 ... 20, 0. One step starts at T - 1."""
        unvisited = self.skip_last or self.final == "first"
        intervals = max(steps if unvisited else steps - 1, 1)
        exact = [(points - 1) * (intervals - k) / intervals for k in range(steps)]
        return list(map(round, exact)) if self.rounded else exact


@attrs.frozen(kw_only=True)
class SGMUniform(IndexGrid):
    """floor((T - 1) k / N) for k = N ... 1: like `linspace`, without the first entry for N < T.

    References:
        SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis, 2023,
        arXiv:2307.01952, in the authors' `generative-models`
    """

    name = "sgm_uniform"

    def indices(self, steps: int, points: int) -> list[int]:
        """At T = 1000 and N = 50: 999, 979 ... 19."""
        return [(points - 1) * k // steps for k in range(steps, 0, -1)]
