"""Other ways to run what is trained: compiled, or with activations computed again.

Only `forward` is replaced, on the module itself, and put back by `plain`: weights, their names and
what hooks see stay the same. It knows nothing about diffusion.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sfumato.modules import TrainableModule


def recomputing(module: TrainableModule) -> None:
    """From now on keeps, of each of its `blocks`, only what goes in: the inside is computed again
    in the backward pass.

    Chen et al., 2016, arXiv:1604.06174.

    Raises:
        ConfigError: it has no blocks.
    """
    for block in _blocks(module):
        _replace(block, functools.partial(checkpoint, block.forward, use_reentrant=False))


def compiled(module: TrainableModule) -> None:
    """From now on runs as compiled code: the whole of it, or, where it is entered by other ways
    than `forward`, as text encoders are, each of its `blocks`.

    Raises:
        ConfigError: it has neither.
    """
    whole = type(module).forward is not nn.Module.forward
    for part in [module] if whole else _blocks(module):
        _replace(part, torch.compile(part.forward, dynamic=False))


def channels_last(module: nn.Module) -> None:
    """From now on kernels of convolutions lie in memory as compiled code wants them."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def plain(module: nn.Module) -> None:
    """Runs as its class says again."""
    for part in module.modules():
        part.__dict__.pop("forward", None)


def _replace(module: nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = forward


def _blocks(module: TrainableModule) -> list[nn.Module]:
    blocks = list(module.blocks())
    if not blocks:
        raise ConfigError(f"{type(module).__name__} names no blocks, which this needs")
    return blocks
