"""The denoiser with its adapters, as `peft` makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from sfumato import AdapterModule, ConfigError
from sfumato_lora import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from sfumato import Opposed, Space, TextEmbedding
    from sfumato_lora import LoRA


class LoRAModule(AdapterModule):
    """See `LoRA`."""

    def __init__(self, lora: LoRA, space: Space) -> None:
        super().__init__()
        self.denoiser = lora.denoiser.build(space)
        self.layers = _adapted(self.denoiser, lora)

    def trainable(self) -> Iterable[nn.Parameter]:
        """A and B of each layer."""
        named = dict(self.named_parameters())
        return [named[name] for name in names.own(named)]

    def around(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `AdapterModule.around`: A is drawn, B is 0."""
        for layer in self.layers:
            layer.reset_lora_parameters(names.ADAPTER, init_lora_weights=True)
        held = self.state_dict()
        given = names.inside(held)
        return {
            **{name: held[name] for name in names.own(held)},
            **{given.get(name, name): value for name, value in state.items()},
        }

    def precompute(self, text: TextEmbedding | Opposed, times: Tensor) -> Any:
        """That of the denoiser inside."""
        return self.denoiser.precompute(text, times)

    def at(self, condition: Any, t: Tensor) -> Any:
        """That of the denoiser inside."""
        return self.denoiser.at(condition, t)

    def forward(self, x_t: Tensor, t: Tensor, condition: Any, variant: str | None = None) -> Tensor:
        """That of the denoiser inside, with its adapters; see `DenoiserModule.forward`."""
        return self.denoiser(x_t, t, condition, variant)  # type: ignore[no-any-return]


def _adapted(denoiser: nn.Module, lora: LoRA) -> list[Any]:
    """Puts adapters into the targets: the layers that hold them.

    Raises:
        ConfigError: `peft` is not installed, or a target is no layer that can have an adapter.
    """
    try:
        import peft
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        remedy = "pip install 'sfumato[peft]'"
        raise ConfigError("needs peft", place="denoiser lora", remedy=remedy) from error
    targets = _targets(denoiser, lora.targets)
    named = {name: module for name, module in denoiser.named_modules() if name in targets}
    name = min(named, key=lambda name: min(named[name].weight.flatten(1).shape))
    most = min(named[name].weight.flatten(1).shape)
    if lora.rank > most:
        raise ConfigError(
            f"is {lora.rank}, and the matrix of {name}, which it goes around, has at most {most}",
            place="lora.rank",
            remedy=f"use {most} or less: more only repeats itself",
        )
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
    )
    peft.inject_adapter_in_model(config, denoiser, names.ADAPTER)
    return [module for module in denoiser.modules() if isinstance(module, LoraLayer)]


def _targets(denoiser: nn.Module, ends: Iterable[str]) -> list[str]:
    """The full names of the layers whose names end like this.

    Only plain layers count: one that computes something else with its weight would not do so beside
    an adapter.

    Raises:
        ConfigError: an end is that of no such layer.
    """
    plain = [n for n, m in denoiser.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]
    found: list[str] = []
    for end in ends:
        ending = [name for name in plain if f".{name}".endswith(f".{end}")]
        if not ending:
            known = sorted({name.rpartition(".")[2] for name in plain if not name[-1].isdigit()})
            raise ConfigError(
                f"no layer whose name ends in {end!r} can have an adapter",
                place="lora.targets",
                remedy=f"ends of layers that can: {', '.join(known)}",
            )
        found += ending
    return found
