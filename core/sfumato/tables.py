"""A table of betas on the continuous clock.

A table of T betas stands at t = i / T for i = 1 ... T, with a clean entry added at t = 0. Between
entries log(sigma / alpha) is linear in t; below 1 / T, sigma / alpha is. Where the last entry holds
no signal (zero terminal SNR) that logarithm is infinite, and up to it, mirrored, alpha / sigma is
linear. So a model trained on the table sees the table, and every time between has a well-defined
noise level. The table is float64; `alpha_sigma` computes in the dtype of t.
"""

from __future__ import annotations

import functools
import itertools
import sys
from abc import abstractmethod
from typing import TYPE_CHECKING

import attrs

from sfumato.errors import ConfigError
from sfumato.interfaces import NoiseSchedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor


@attrs.frozen(kw_only=True)
class TableSchedule(NoiseSchedule):
    """A schedule given by betas: a subclass says `betas`, all else follows.

    Raises:
        ConfigError: the betas leave no signal before the last of several entries, or one of them
            adds no noise.
    """

    def __attrs_post_init__(self) -> None:
        entries = itertools.pairwise((1.0, *self.alpha_bars))
        for index, (before, after) in enumerate(entries, start=1):
            terminal = after == 0 and 1 < index == self.points
            if after >= before or (after < sys.float_info.min and not terminal):
                problem = "no noise is added" if after >= before else "no signal is left"
                raise ConfigError(
                    f"{problem} at step {index} of {self.points} (alpha_bar {after:g})",
                    place=f"noise_schedule {self.name}",
                    remedy="every beta must lie in (0, 1), and their product of 1 - beta above 0; "
                    "only the last may be 1",
                )

    @abstractmethod
    def betas(self) -> Sequence[float]:
        """beta_1 ... beta_T, each in (0, 1); the last may be 1."""

    @property
    def points(self) -> int:
        """T."""
        return len(self.alpha_bars)

    @functools.cached_property
    def alpha_bars(self) -> tuple[float, ...]:
        """alpha_bar_1 ... alpha_bar_T, the running product of 1 - beta."""
        return tuple(itertools.accumulate((1 - beta for beta in self.betas()), lambda a, b: a * b))

    @property
    def _terminal(self) -> bool:
        """Whether the last entry holds no signal."""
        return self.alpha_bars[-1] == 0

    @functools.cached_property
    def _log_ratios(self) -> Tensor:
        """log(sigma / alpha) of the entries; for a last one without signal, that before it."""
        import torch

        alpha_bars = torch.tensor(self.alpha_bars, dtype=torch.float64)
        if self._terminal:
            alpha_bars[-1] = alpha_bars[-2]
        return 0.5 * ((1 - alpha_bars).log() - alpha_bars.log())

    @functools.cached_property
    def _placed(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def _table(self, t: Tensor) -> Tensor:
        place = (t.device, t.dtype)
        if place not in self._placed:
            self._placed[place] = self._log_ratios.to(t)
        return self._placed[place]

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at t, interpolated as the module says."""
        table, position = self._table(t), t * self.points
        low = position.detach().floor().clamp(1, max(self.points - 1, 1)).long()
        high = (low + 1).clamp(max=self.points)
        share = position.clamp(min=1) - low
        log_ratio = table[low - 1] * (1 - share) + table[high - 1] * share
        log_ratio = log_ratio + position.clamp(max=1).log()
        if self._terminal:
            log_ratio = log_ratio - (self.points - position).clamp(max=1).log()
        return (-2 * log_ratio).sigmoid().sqrt(), (2 * log_ratio).sigmoid().sqrt()

    def time_at(self, log_sigma_over_alpha: Tensor) -> Tensor:
        """The inverse, in closed form."""
        import torch

        wanted = log_sigma_over_alpha.double()
        table = self._table(wanted)
        inside = wanted.clamp(table[0], table[-1])
        low = torch.searchsorted(table, inside, right=True).clamp(1, max(self.points - 1, 1))
        high = (low + 1).clamp(max=self.points)
        width = (table[high - 1] - table[low - 1]).clamp(min=torch.finfo(torch.float64).tiny)
        position = low + (inside - table[low - 1]) / width
        if self._terminal:
            position = position - (table[-1] - wanted).clamp(max=0).expm1()
        return position * (wanted - table[0]).clamp(max=0).exp() / self.points
