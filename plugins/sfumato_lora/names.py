"""The names of weights: in our module, in the denoiser inside, in the file that diffusers loads.

`peft` renames what it adapts. A layer `X` of the denoiser inside, whose weights are `X.weight` and
`X.bias`, becomes

    denoiser.X.base_layer.weight   denoiser.X.base_layer.bias     what they were
    denoiser.X.lora_A.ours.weight  denoiser.X.lora_B.ours.weight  A and B

and a weight of any other layer only gets the prefix. Knows nothing about values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ADAPTER = "ours"
"""Which of the adapters that `peft` could hold in a layer."""
PREFIX, BASE = "denoiser.", ".base_layer."
OWN = (f".lora_A.{ADAPTER}.", f".lora_B.{ADAPTER}.")


def own(names: Iterable[str]) -> list[str]:
    """Those of A and B."""
    return [name for name in names if any(part in name for part in OWN)]


def inside(names: Iterable[str]) -> dict[str, str]:
    """The other names, by what the denoiser inside calls each."""
    names = list(names)
    others = set(names) - set(own(names))
    return {name.removeprefix(PREFIX).replace(BASE, "."): name for name in names if name in others}


def shared(name: str) -> str:
    """What diffusers calls a weight of A or B."""
    return "unet." + name.removeprefix(PREFIX).replace(f".{ADAPTER}.", ".")
