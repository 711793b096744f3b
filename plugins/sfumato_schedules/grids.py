"""The times that inference visits: N classical indices out of the T of a table, by three spacings.

They are those of Table 2 of Lin et al., "Common Diffusion Noise Schedules and Sample Steps are
Flawed", 2023, arXiv:2305.08891; index i is the time (i + 1) / T. Fractions are rounded once, half
to even.

The last step ends at the grid's `final`: clean, or on the first entry of the table, where Stable
Diffusion stops (known as `set_alpha_to_one=False`). A schedule in continuous time is visited like a
table of a thousand points for each step, so that rounding does not show.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import attrs
from attrs.validators import ge, le

from sfumato import ConfigError, NoiseSchedule, TimeGrid, option

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(kw_only=True)
class IndexGrid(TimeGrid):
    """A grid that is given by the classical indices that it visits."""

    final: Literal["clean", "first"] = option(
        "clean", "where the last step ends: at t = 0, or at 1 / T, the first entry of the table"
    )

    @abstractmethod
    def indices(self, steps: int, points: int) -> list[int]:
        """`steps` falling indices into a table of `points` >= `steps`."""

    def times(self, steps: int, schedule: NoiseSchedule) -> Tensor:
        """(steps + 1,) float64, strictly falling, on the CPU.

        Raises:
            ConfigError: `steps` is below 1 or above `schedule.points`, or the times would leave the
                table or repeat one.
        """
        import torch

        place = f"time_grid.{self.name}"
        points = schedule.points or 1000 * steps
        if steps < 1:
            raise ConfigError(f"{steps} steps", place=place, remedy="ask for at least 1")
        if steps > points:
            raise ConfigError(
                f"{steps} steps on a noise schedule of {points} points",
                place=place,
                remedy=f"ask for at most {points}",
            )
        entries = [index + 1 for index in self.indices(steps, points)]
        entries.append(1 if self.final == "first" else 0)
        if entries[0] > points:
            raise ConfigError(
                f"{steps} steps start at index {entries[0] - 1} of {points} points",
                place=place,
                remedy="ask for fewer steps or use offset: 0",
            )
        if any(later >= earlier for earlier, later in pairwise(entries)):
            raise ConfigError(
                f"{steps} steps that end on the first entry visit an entry twice",
                place=place,
                remedy="use final: clean or fewer steps",
            )
        return torch.tensor(entries, dtype=torch.float64) / points


@attrs.frozen(kw_only=True)
class Leading(IndexGrid):
    """k floor(T / N) + offset for k = N - 1 ... 0. It starts up to a stride below t = 1.

    References:
        Denoising Diffusion Implicit Models, 2020, arXiv:2010.02502
        Common Diffusion Noise Schedules and Sample Steps are Flawed, 2023, arXiv:2305.08891
    """

    name = "leading"
    offset: int = option(0, "added to each index; Stable Diffusion uses 1", ge(0), le(1))

    def __attrs_post_init__(self) -> None:
        if self.final == "first" and self.offset == 0:
            raise ConfigError(
                "it visits the first entry already and cannot end on it",
                place="time_grid leading",
                remedy="use offset: 1, or final: clean",
            )

    def indices(self, steps: int, points: int) -> list[int]:
        """At T = 1000 and N = 50: 980, 960 ... 0."""
        return [k * (points // steps) + self.offset for k in reversed(range(steps))]


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

    def indices(self, steps: int, points: int) -> list[int]:
        """At T = 1000 and N = 50: 999, 979 ... 20, 0. One step starts at T - 1."""
        intervals = max(steps if self.final == "first" else steps - 1, 1)
        return [round((points - 1) * (intervals - k) / intervals) for k in range(steps)]
