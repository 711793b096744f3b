"""A batch through one half of an autoencoder, a few pictures at a time.

The layers next to the pictures work at their full size, so their memory is what bounds the batch;
and from a million pixels on, a larger one is no faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


def in_slices(network: nn.Module, x: Tensor, positions: int) -> Tensor:
    """The output for x (B, C, H, W), in its dtype, from slices of at most `positions` of its B H W,
    or else of one picture.

    Computed in the dtype of the weights; but in float32 where that is float16, whose largest number
    is 65504: activations of SDXL's decoder exceed it.
    """
    weights = {
        name: weight.float()
        for name, weight in network.named_parameters()
        if weight.dtype == torch.float16
    }
    dtype = torch.float32 if weights else next(network.parameters()).dtype
    pictures = max(1, positions // (x.shape[2] * x.shape[3]))
    parts = [
        functional_call(network, weights, (part.to(dtype),)) for part in torch.split(x, pictures)
    ]
    return torch.cat(parts).to(x.dtype)
