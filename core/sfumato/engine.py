"""Where it runs. One process on one device; an engine for many ranks has the same verbs.

Knows nothing about diffusion.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager


_DRAWS = (
    Tensor.uniform_,
    Tensor.normal_,
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
)
"""What fills weights; those of `nn.init` that are not here end in a method of Tensor that is."""


def usable(device: str) -> torch.device:
    """The device that torch calls this.

    Raises:
        ConfigError: there is none, or this torch cannot use it.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        remedy = f"usable here: {', '.join(['cpu', *gpus])}"
        raise ConfigError("cannot be used", place=f"device {device}", remedy=remedy) from error
    return torch.device(device)


class Undrawn(TorchFunctionMode):
    """Inside, modules are built without drawing their weights, which is what takes long: those of a
    checkpoint follow.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Leaves a tensor that was to be filled at random as it is."""
        named = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


class Single:
    """One process, one device."""

    def __init__(self, device: str | None = None) -> None:
        """`device` as torch names it; by default the GPU where there is one."""
        self.device = usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Inside, torch's own generators begin with `seed`; they are put back afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    def autocast(self, precision: Literal["float32", "bfloat16"]) -> AbstractContextManager[object]:
        """The context of the forward pass."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"
        )

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, parameters: list[nn.Parameter], norm: float | None) -> Tensor:
        """The norm of the gradient, (), before it is clipped to `norm`."""
        largest = float("inf") if norm is None else norm
        return nn.utils.clip_grad_norm_(parameters, largest)
