"""LoRA: a denoiser is trained through a product of two narrow matrices beside each of its own.

The adapters are those of `peft`, an extra, and what is saved for others is what diffusers loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import attrs
from attrs.validators import ge, gt, lt, min_len

from sfumato import Adapter, Component, Denoiser, hookimpl, option, required

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from sfumato import AdapterModule, PredictionType, Space

SFUMATO_API = 1


@attrs.frozen(kw_only=True)
class LoRA(Adapter):
    """W x becomes W x + alpha / rank B A x, in each layer of the denoiser inside that is a target.

    A has `rank` rows, B `rank` columns; B starts as 0. Training moves A and B alone, and W stays
    what it was to the bit. A target is the end of a layer's name, as in `peft`; by default the
    projections of attention, as in diffusers. `alpha` may be changed after training, which makes
    the adapter weaker or stronger.

    References:
        LoRA: Low-Rank Adaptation of Large Language Models, Hu et al., 2021, arXiv:2106.09685
    """

    name = "lora"
    adjustable = frozenset({"alpha"})
    retrainable = frozenset({"dropout"})

    denoiser: Denoiser = required("the one inside, whose weights stay as they are")
    rank: int = option(8, "rows of A and columns of B", ge(1))
    alpha: float = option(8.0, "strength, over the rank", gt(0))
    targets: tuple[str, ...] = option(
        ("to_q", "to_k", "to_v", "to_out.0"), "layers, by the ends of their names", min_len(1)
    )
    dropout: float = option(0.0, "rate, of what A sees while it is trained", ge(0), lt(1))

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Around a small unet."""
        from sfumato import create

        unet = create("denoiser", "unet", channels=[8, 8], heads=[2], groups=4, pooled=True)
        return cls(denoiser=unet, rank=2, alpha=2.0)

    @property
    def base(self) -> Denoiser:
        """The denoiser inside."""
        return self.denoiser

    @property
    def prediction(self) -> PredictionType:
        """That of the denoiser inside."""
        return self.denoiser.prediction

    @property
    def multiple(self) -> int:
        """That of the denoiser inside."""
        return self.denoiser.multiple

    @property
    def variants(self) -> frozenset[str]:
        """Those of the denoiser inside."""
        return self.denoiser.variants

    def build(self, space: Space) -> AdapterModule:
        """The denoiser inside, with adapters in its targets.

        Raises:
            ConfigError: `peft` is not installed, or a target is no layer that can have an adapter.
        """
        from sfumato_lora.module import LoRAModule

        return LoRAModule(self, space)

    def parted(
        self, state: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, bytes]]:
        """Base weights, and `pytorch_lora_weights.safetensors` as `load_lora_weights` of diffusers
        takes it.
        """
        from sfumato_lora import layout

        return layout.base_state(state), {layout.FILE: layout.file(self, state)}


@hookimpl
def sfumato_components() -> list[type[Component]]:
    """The adapter."""
    return [LoRA]
