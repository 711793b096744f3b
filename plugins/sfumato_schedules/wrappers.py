"""Noise schedules made of another one."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Self

import attrs
from attrs.validators import gt

from sfumato import ConfigError, NoiseSchedule, TableSchedule, required
from sfumato_schedules.betas import LinearBeta
from sfumato_schedules.continuous import RectifiedFlow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    Norm = Callable[[Tensor, Tensor], Tensor]


@functools.lru_cache(maxsize=64)
def norm_of(schedule: NoiseSchedule) -> Norm | None:
    """What of (alpha, sigma) is 1 at every time: their Euclidean norm where variance is preserved,
    their sum on a rectified flow, alpha where variance explodes, or none of these.
    """
    import torch

    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    families: tuple[Norm, ...] = (torch.hypot, torch.add, lambda alpha, sigma: alpha)
    for norm in families:
        if bool(((norm(*schedule.alpha_sigma(t)) - 1).abs() < 1e-9).all()):
            return norm
    return None


@attrs.frozen(kw_only=True)
class Shifted(NoiseSchedule):
    """sigma / alpha times `shift` at every time, so that log SNR falls by 2 log(shift).

    Averaged over pixels, a picture n times as large shows as much as the small one through n times
    the noise: shift = n keeps the task alike. On rectified flow this is Equation 23 of Stable
    Diffusion 3, t -> shift t / (1 + (shift - 1) t); on a variance-preserving schedule it is that of
    simple diffusion, with shift = size / 64. The scale of x_t stays in its family (see `norm_of`).

    References:
        simple diffusion: End-to-end diffusion for high resolution images, 2023, arXiv:2301.11093
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
        arXiv:2403.03206

    Raises:
        ConfigError: the schedule is of no such family.
    """

    name = "shifted"
    schedule: NoiseSchedule = required("what is shifted")
    shift: float = required("above 1: more noise, for larger pictures", gt(0.0))

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Rectified flow by 3, as in Stable Diffusion 3."""
        return cls(schedule=RectifiedFlow(), shift=3.0)

    def __attrs_post_init__(self) -> None:
        if norm_of(self.schedule) is None:
            raise ConfigError(
                f"{self.schedule.name} neither preserves variance nor is a rectified flow, "
                "nor is alpha 1 on it",
                place="noise_schedule shifted",
                remedy="shift another schedule",
            )

    @property
    def points(self) -> int | None:
        """Those of the schedule that is shifted."""
        return self.schedule.points

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, shaped and typed as t."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        sigma, norm = self.shift * sigma, norm_of(self.schedule)
        assert norm is not None  # it was looked for when this was made
        return alpha / norm(alpha, sigma), sigma / norm(alpha, sigma)

    def time_at(self, log_sigma_over_alpha: Tensor) -> Tensor:
        """Where the schedule that is shifted has 1 / shift of the ratio."""
        return self.schedule.time_at(log_sigma_over_alpha.double() - math.log(self.shift))

    def timestep(self, t: Tensor) -> Tensor:
        """That of the schedule that is shifted; on a rectified flow 1000 sigma, as in Stable
        Diffusion 3.
        """
        import torch

        if norm_of(self.schedule) is torch.add:
            return 1000 * self.alpha_sigma(t)[1]
        return self.schedule.timestep(t)


@attrs.frozen(kw_only=True)
class ZeroTerminalSNR(TableSchedule):
    """A table made to end without signal: s <- (s - s_T) s_1 / (s_1 - s_T), s = sqrt(alpha_bar).

    Epsilon prediction says nothing about x0 at t = 1: predict v or x0, or use a grid that does not
    visit it.

    References:
        Common Diffusion Noise Schedules and Sample Steps are Flawed, 2023, arXiv:2305.08891,
        Algorithm 1

    Raises:
        ConfigError: the schedule is no variance-preserving table of at least two entries.
    """

    name = "zero_terminal_snr"
    schedule: NoiseSchedule = required("a table, such as scaled_linear")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Of the linear table."""
        return cls(schedule=LinearBeta())

    def betas(self) -> Sequence[float]:
        """beta_1 ... beta_T; the last is 1."""
        import torch

        points = self.schedule.points or 0
        if points < 2 or norm_of(self.schedule) is not torch.hypot:
            raise ConfigError(
                f"{self.schedule.name} is no variance-preserving table of two or more entries",
                place="noise_schedule zero_terminal_snr",
                remedy="wrap one that is, such as scaled_linear",
            )
        entries = torch.arange(1, points + 1, dtype=torch.float64) / points
        root, _ = self.schedule.alpha_sigma(entries)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        before = torch.cat((torch.ones_like(root[:1]), root[:-1]))
        betas: list[float] = (1 - (root / before) ** 2).tolist()
        return betas
