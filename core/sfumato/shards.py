"""Weights of which each rank holds a shard: FSDP2 of torch (`fully_shard`), and the way back.

A sharded tensor is a `DTensor`; gradients and an optimiser's moments are sharded as their parameter
is. Scalars cannot be, and stay whole on every rank. Knows nothing about diffusion.

References:
    PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, 2023, arXiv:2304.11277
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed.tensor import DTensor

    from sfumato.modules import TrainableModule


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of it only."""
    return hasattr(tensor, "full_tensor")


def own(tensor: Tensor) -> Tensor:
    """What this rank holds."""
    return cast("DTensor", tensor).to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; every rank has to ask."""
    return cast("DTensor", tensor).full_tensor() if is_sharded(tensor) else tensor


def alike(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has, placed, and where need be sharded, as `like` is."""
    if not is_sharded(like):
        return torch.empty_like(like).copy_(tensor)
    from torch.distributed.tensor import distribute_tensor

    there = cast("DTensor", like)
    placed = tensor.to(like.device, like.dtype)
    return distribute_tensor(placed, there.device_mesh, there.placements, src_data_rank=None)


def groups(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Sharded ones and others apart, as one call of an optimiser takes only one kind."""
    kinds = {kind: [one for one in parameters if is_sharded(one) == kind] for kind in (True, False)}
    return [group for group in kinds.values() if group]


def clip(parameters: Sequence[nn.Parameter], norm: float) -> Tensor:
    """The norm of the gradient, (), before it is clipped; gradients of scalars, which
    `fully_shard` leaves to each rank, are averaged first.
    """
    for parameter in parameters:
        if not is_sharded(parameter) and parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()
    parts = [
        nn.utils.get_total_norm([one.grad for one in group if one.grad is not None])
        for group in groups(parameters)
    ]
    total: Tensor = torch.linalg.vector_norm(torch.stack([whole(part) for part in parts]))
    for group in groups(parameters):
        nn.utils.clip_grads_with_norm_(group, norm, total)
    return total


class Sharding:
    """Of modules, each for the time of a stage.

    `fully_shard` changes modules in place and has no way back, so it is noted how they were.
    """

    def __init__(self, device: torch.device) -> None:
        """Over all ranks, which each hold a shard on a device of this type."""
        from torch.distributed.device_mesh import init_device_mesh

        self.mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        self._before: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []

    def shard(self, root: nn.Module, module: TrainableModule) -> nn.Module:
        """Shards `root`: each block of `module`, which it holds, is gathered when it is needed, the
        rest at once. Nothing is cast, so that times stay float64.
        """
        from torch.distributed.fsdp import fully_shard

        self._before += [(part, type(part), _noted(part)) for part in root.modules()]
        scalars = {parameter for parameter in root.parameters() if parameter.ndim == 0}
        for parameter in root.parameters():
            parameter.data = parameter.data.contiguous()  # channels last cannot be cut
        for block in module.blocks():
            fully_shard(block, mesh=self.mesh, ignored_params=scalars)
        fully_shard(root, mesh=self.mesh, ignored_params=scalars)
        return root

    def undo(self) -> None:
        """Modules are as they were, with room for whole weights in place of shards."""
        room: dict[int, nn.Parameter | None] = {}  # a parameter that occurs twice stays one
        for part, kind, state in self._before:
            parameters = dict(part._parameters)
            for one in parameters.values():
                room.setdefault(id(one), _room(one))
            part.__class__ = kind
            vars(part).clear()
            vars(part).update(state)
            part._parameters = {name: room[id(one)] for name, one in parameters.items()}
        self._before = []


def _noted(part: nn.Module) -> dict[str, Any]:
    """What a module has, but for its weights, which would be kept in memory by it."""
    return {
        name: copy.copy(value) if isinstance(value, dict) else value
        for name, value in vars(part).items()
        if name != "_parameters"
    }


def _room(parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or not is_sharded(parameter):
        return parameter
    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=own(parameter).device)
    return nn.Parameter(empty, parameter.requires_grad)
