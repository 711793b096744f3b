"""What laws of several kinds ask of modules: weights that say something, saving, randomness."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from sfumato import checkpoint
from sfumato.testing.laws import expect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Built = TypeVar("Built", bound=nn.Module)

EXACT = 1e-6
"""Differences between two runs of the same sums in the same order."""
ROUNDING = 1e-4
"""Differences between two orders of the same sums in float32, as they grow in a deep network."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generator starts from a seed, and is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def built(build: Callable[[], Built], seed: int = 0) -> Built:
    """A module in eval mode, with weights that depend on the seed alone and are shaken."""
    with seeded(seed):
        module = build().eval()
    shake(module, seed)
    return module


def shake(module: nn.Module, seed: int = 0) -> None:
    """Moves every parameter away from where it started, by about as much as is usual there.

    Networks often start with a last layer of zeros: what they say would then be no sign of what
    reaches them. More would let rounding grow in deep ones.
    """
    with seeded(seed), torch.no_grad():
        for parameter in module.parameters():
            inputs = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.add_(torch.randn_like(parameter), alpha=0.5 * max(inputs, 1) ** -0.5)


def reloaded(build: Callable[[], Built], module: nn.Module) -> Built:
    """Another module in eval mode, with the weights of `module` by way of safetensors."""
    from safetensors.torch import load, save

    again = built(build, seed=1)
    saved = save({name: value.contiguous() for name, value in module.state_dict().items()})
    checkpoint.restore(again, load(saved), "what was saved")
    return again


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Breaks the law if torch's random state moves."""
    before = torch.get_rng_state()
    yield
    kept = torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    expect(kept, "torch's random state as it was", "another one")


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and buffers."""
    return copy.deepcopy(module.state_dict())


def expect_same_state(module: nn.Module, before: Mapping[str, Tensor], of: str) -> None:
    """Raises `Broken` unless weights and buffers are what they were."""
    changed = [
        name for name, value in module.state_dict().items() if not torch.equal(value, before[name])
    ]
    expect(not changed, f"the weights of {of} as they were", f"another {', '.join(changed[:3])}")


def expect_different(one: Tensor, other: Tensor, of: str) -> None:
    """Raises `Broken` unless each row (the first dimension) of two tensors differs."""
    apart = (one - other).detach().abs().flatten(1).amax(dim=1)
    scale = max(1.0, float(other.detach().abs().max()))
    same = (apart <= EXACT * scale).nonzero().flatten().tolist()
    expect(not same, of, f"the same to {EXACT:g} in rows {same}")
