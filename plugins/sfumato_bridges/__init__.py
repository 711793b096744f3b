"""Bridges: samplers and denoisers of other libraries as components of ours, and ours in theirs.

    diffusers_scheduler   a scheduler of diffusers as a sampler    (`schedulers`, `conventions`)
    diffusers_model       a network of diffusers as a denoiser     (`models`)
    k_diffusion           the convention `model(x, sigma)`, both ways: two functions, no components

The first two need the extra: `pip install "sfumato[diffusers]"`. Nothing is downloaded: networks
are built from their configuration, with fresh weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import attrs

from sfumato import (
    Component,
    Denoise,
    Denoiser,
    NoiseSchedule,
    PredictionType,
    Sampler,
    SampleStep,
    Space,
    hookimpl,
    option,
    required,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from sfumato import DenoiserModule

SFUMATO_API = 1


@attrs.frozen(kw_only=True)
class DiffusersScheduler(Sampler):
    """A scheduler of diffusers, walking our time grid on our noise schedule with our noise.

    The levels of the grid are its table, so it makes no grid of its own, and any schedule will do:
    x is brought to the scale that it expects. Noise comes from the pipeline's stream. It claims no
    order, so it does not invert.

    Raises:
        ConfigError: the scheduler, or an option, is none that is supported; diffusers is missing.
    """

    name = "diffusers_scheduler"

    scheduler: str = required("the class, such as DPMSolverMultistepScheduler")
    options: dict[str, Any] = option(
        attrs.Factory(dict), "of its constructor or its `step`, by diffusers' names and defaults"
    )

    def __attrs_post_init__(self) -> None:
        from sfumato_bridges.schedulers import check

        check(self.scheduler, self.options)

    @classmethod
    def example(cls, folder: Path) -> Self:
        """DDIM without clipping."""
        return cls(scheduler="DDIMScheduler", options={"clip_sample": False})

    def run(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        x: Tensor,
        times: Tensor,
        noise: Callable[[], Tensor],
    ) -> Iterator[SampleStep]:
        """Asks and steps as often as the scheduler wants in each interval.

        Raises:
            ConfigError: the scheduler cannot begin, or end, where the grid does.
        """
        from sfumato_bridges.schedulers import walk

        return walk(self, denoise, schedule, x, times, noise)


@attrs.frozen(kw_only=True)
class DiffusersModel(Denoiser):
    """A network of diffusers that takes text: UNets and transformers on pictures (B, C, H, W).

    Its `forward` says what it is given: text tokens, their mask, the pooled vector, the timestep.
    Channels, size and the widths of the text come from its neighbours, not from `config`.

    Raises:
        ConfigError: on `build`, where there is no such network, it takes no text, wants something
            that there is not, or does not fit its configuration.
    """

    name = "diffusers_model"

    model: str = required("the class, such as UNet2DConditionModel or PixArtTransformer2DModel")
    config: dict[str, Any] = option(
        attrs.Factory(dict), "of its constructor, by diffusers' names and defaults"
    )
    prediction: PredictionType = option("epsilon", "what the network says")
    mask: bool = option(
        True, "keep attention off the padding of the text; Stable Diffusion's UNets do not"
    )
    learned_sigma: bool = option(
        False,
        "the network has 2C channels of output, of which the second half, a variance, is left",
    )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """A transformer of one block."""
        config = {
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
        }
        return cls(model="PixArtTransformer2DModel", config=config)

    @property
    def multiple(self) -> int:
        """The side of a patch, of a network that has patches."""
        from sfumato_bridges.models import patch

        return patch(self)

    def build(self, space: Space) -> DenoiserModule:
        """The network, for this space, with fresh weights."""
        from sfumato_bridges.models import DiffusersModule

        return DiffusersModule(self, space)


@hookimpl
def sfumato_components() -> list[type[Component]]:
    """The components of this plugin."""
    return [DiffusersScheduler, DiffusersModel]
