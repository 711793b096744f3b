"""The text-conditional UNet: residual blocks, and transformers that attend to the text.

These are the settings; the network is in `network`. Options alone lead from a net that trains on a
laptop to DDPM and Stable Diffusion, all of it with the default `groups`:

    SD 1.x   channels 320, 640, 1280, 1280; layers 2; attention at all but the last; heads 8
    SD 2.x   the same with heads 5, 10, 20, 20 and linear_projection
    SDXL     channels 320, 640, 1280; layers 2; attention at all but the first; depth 1, 2, 10;
             heads 5, 10, 20; linear_projection; size_width 256
    DDPM     attention_block self_attention; channels 128, 256, 256, 256; layers 2; attention at the
             second; heads 1
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import attrs
from attrs.validators import deep_iterable, ge, gt, le, lt, min_len, optional

from sfumato import Component, ConfigError, Denoiser, PredictionType, Space, hookimpl, option

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import DenoiserModule

SFUMATO_API = 1


@attrs.frozen
class Level:
    """One resolution: its channels, whether it attends, in how many blocks with how many heads."""

    channels: int
    attention: bool
    depth: int
    heads: int


@attrs.frozen(kw_only=True)
class UNet(Denoiser):
    """A UNet of residual blocks and attention, conditioned on time and text.

    Each level halves the picture of the one before it. `attention`, `depth` and `heads` have a
    value for each level, or a single one for all; the block in the middle has the last level's, and
    always attends. Padding of the text is attended to, as in Stable Diffusion. Where pixels attend
    to each other alone (`self_attention`), the text is heard through `pooled` or `size_width`.
    Parameters have the names and shapes of diffusers' `UNet2DConditionModel`, or `UNet2DModel`,
    whose weights load as they are.

    References:
        Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239
        Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv:2105.05233
        High-Resolution Image Synthesis with Latent Diffusion Models, 2021, arXiv:2112.10752
    """

    name = "unet"
    adjustable = frozenset({"perturbed", "blur"})
    retrainable = frozenset({"dropout", "prediction"})

    channels: tuple[int, ...] = option(
        (64, 128, 128), "channels of each level", min_len(1), deep_iterable(ge(2))
    )
    layers: int = option(1, "residual blocks of each level on the way down; up has one more", ge(1))
    attention: tuple[bool, ...] = option((True,), "whether pixels attend, by level", min_len(1))
    attention_block: Literal["transformer", "self_attention"] = option(
        "transformer", "what attends: with the text (SD), or pixels among themselves (DDPM, ADM)"
    )
    depth: tuple[int, ...] = option(
        (1,), "transformer blocks in a row, by level", min_len(1), deep_iterable(ge(1))
    )
    heads: tuple[int, ...] = option(
        (4,), "number of attention heads, by level", min_len(1), deep_iterable(ge(1))
    )
    linear_projection: bool = option(
        False, "shape the projections around a transformer as matrices (SD 2), not 1x1 convolutions"
    )
    groups: int = option(32, "groups of GroupNorm, fewer than the channels of any level", ge(1))
    pooled: bool = option(False, "add the pooled text vector to the time embedding")
    size_width: int | None = option(
        None,
        "add it with the picture's size, as SDXL does: width of the sinusoids of each number (256)",
        optional(ge(2)),
    )
    dropout: float = option(0.0, "dropout rate inside residual blocks", ge(0.0), lt(1.0))
    prediction: PredictionType = option("epsilon", "what the network says")
    perturbed: tuple[str, ...] = option(
        ("mid_block",), "parts of the network whose attention blocks the variants change"
    )
    blur: float | None = option(
        None, "of variant seg: sigma, pixels of a level; null: the mean", optional([gt(0), le(64)])
    )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Two levels of 8 channels, the second of which attends, and the pooled vector."""
        return cls(channels=(8, 8), attention=(False, True), heads=(2,), groups=4, pooled=True)

    @property
    def time_width(self) -> int:
        """The width of the time embedding."""
        return 4 * self.channels[0]

    @property
    def multiple(self) -> int:
        """2 for each level below the first, which halves the picture."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def variants(self) -> frozenset[str]:
        """Forms of the blocks in `perturbed` (identity attention, blurred queries, skipped), and of
        all that attend to the text, which hold one text against another.
        """
        perturbing = frozenset({"pag", "seg", "slg"})
        return perturbing | {"nag"} if self.attention_block == "transformer" else perturbing

    def levels(self) -> tuple[Level, ...]:
        """The levels from the finest to the coarsest.

        Raises:
            ConfigError: an option has neither one value nor one for each level, does not divide
                the channels of its level, leaves a channel alone in its group, or belongs to
                transformers where there are none.
        """
        self._refuse_idle()
        named = map(self._by_level, ("attention", "depth", "heads"))
        levels = tuple(map(Level, self.channels, *named))
        for level in levels:
            for name, divisor in (("groups", self.groups), ("heads", level.heads)):
                if level.channels % divisor:
                    raise ConfigError(
                        f"{divisor} {name} do not divide {level.channels} channels",
                        place=f"unet.{name}",
                        remedy=f"change unet.{name} or unet.channels",
                    )
            if level.channels == self.groups:
                # The time is added to each channel as one number, and a norm of the channel alone
                # takes that away again.
                raise ConfigError(
                    f"{self.groups} groups of one channel each lose the time",
                    place="unet.groups",
                    remedy=f"use fewer than the {level.channels} channels of a level",
                )
        return levels

    def _refuse_idle(self) -> None:
        """Raises ConfigError where an option would have no effect."""
        if self.attention_block == "transformer":
            return
        given = {"depth": {*self.depth} != {1}, "linear_projection": self.linear_projection}
        for name, meant in given.items():
            if meant:
                raise ConfigError(
                    "is of transformers, and attention_block: self_attention has none",
                    place=f"unet.{name}",
                    remedy="leave it out, or use attention_block: transformer",
                )

    def _by_level(self, name: str) -> tuple[Any, ...]:
        values, count = getattr(self, name), len(self.channels)
        if len(values) not in (1, count):
            raise ConfigError(
                f"{len(values)} values for {count} levels",
                place=f"unet.{name}",
                remedy="give one for all, or one for each of unet.channels",
            )
        return tuple(values) if len(values) == count else tuple(values) * count

    def build(self, space: Space) -> DenoiserModule:
        """The network, for this space.

        Raises:
            ConfigError: the options disagree.
        """
        from sfumato_unet.network import UNetModule

        return UNetModule(self, space)


@hookimpl
def sfumato_components() -> list[type[Component]]:
    """The UNet."""
    return [UNet]
