"""An interval of noise levels, as an option of what acts within it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import attrs
from attrs.validators import ge, optional

from sfumato import ConfigError, option

if TYPE_CHECKING:
    from sfumato import GuidanceStep


@attrs.frozen(kw_only=True)
class Levels:
    """low < level <= high, where the level is t, or sigma / alpha: the sigma of EDM.

    Raises:
        ConfigError: it holds no level.
    """

    low: float = option(0.0, "the lowest level, itself outside", ge(0.0))
    high: float | None = option(None, "the highest level; null is no limit", optional(ge(0.0)))
    by: Literal["t", "sigma"] = option("t", "what low and high are: t, or sigma / alpha")

    def __attrs_post_init__(self) -> None:
        if self.high is not None and self.high <= self.low:
            problem = f"no level lies above low = {self.low:g} and up to high = {self.high:g}"
            raise ConfigError(problem, remedy="raise high, or lower low")

    def contain(self, step: GuidanceStep) -> bool:
        """Whether the reverse process stands within."""
        level = step.t
        if self.by == "sigma":
            level = step.sigma / step.alpha if step.alpha else math.inf
        return self.low < level <= (math.inf if self.high is None else self.high)
