"""Other ways to run what is trained: compiled, with activations computed again, dropping by row.

Only `forward` is replaced, on the module itself, and put back by `plain`: weights, their names and
what hooks see stay the same. It knows nothing about diffusion.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato import randomness
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


class RowDropout:
    """From now on what each `nn.Dropout` of a module drops of a row is a function of (seed, stream,
    layer, step, row), on one kind of device: the same in any part of a batch, and on any rank.

    Whatever comes to a layer has the rows first, or pieces of each row, side by side; of anything
    else torch's own generator decides.
    """

    def __init__(self, module: nn.Module, seed: int, stream: str) -> None:
        """Of the layers of `module`, which are known by their names."""
        self.seed, self.stream = seed, stream
        self.step, self.rows = 0, list[int]()
        layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Dropout)}
        self.layers = {name: layer for name, layer in layers.items() if 0 < layer.p < 1}
        for name, layer in self.layers.items():
            _replace(layer, functools.partial(self._dropped, name, layer))

    def begin(self, step: int, rows: Tensor) -> None:
        """From now on `rows` of the global batch of a step are computed."""
        if self.layers:
            self.step, self.rows = step, rows.tolist()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _dropped(self, name: str, layer: nn.Dropout, x: Tensor) -> Tensor:
        if not self.rows or len(x) % len(self.rows):
            return F.dropout(x, layer.p, layer.training)
        return x * self._mask(name, x, 1 - layer.p) if layer.training else x

    def _mask(self, name: str, like: Tensor, kept: float) -> Tensor:
        """What is not dropped, as large as to keep the mean."""
        mask = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        generator = torch.Generator(like.device)
        for row, part in zip(self.rows, mask.chunk(len(self.rows)), strict=True):
            low, high = randomness.key(self.seed, f"{self.stream}/{name}/{self.step}/{row}")
            part.bernoulli_(kept, generator=generator.manual_seed(high << 32 | low))
        return mask.div_(kept)


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
