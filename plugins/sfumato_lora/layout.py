"""The two parts of a LoRA's weights, and the file of adapters that diffusers loads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safetensors.torch import save

from sfumato_lora import names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sfumato_lora import LoRA

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""Under which diffusers looks for what weights do not tell."""


def base_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the denoiser inside."""
    return {inner: state[name] for inner, name in names.inside(state).items()}


def file(lora: LoRA, state: Mapping[str, Tensor]) -> bytes:
    """A and B, with rank and alpha, as `pipe.load_lora_weights` takes them."""
    tensors = {names.shared(name): state[name].contiguous() for name in names.own(state)}
    about = {
        "unet.r": lora.rank,
        "unet.lora_alpha": lora.alpha,
        "unet.target_modules": list(lora.targets),
    }
    return save(tensors, metadata={"format": "pt", METADATA: json.dumps(about, sort_keys=True)})
