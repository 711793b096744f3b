"""Where it runs. One process on one device; the engine for many (see `ranks`) has the same verbs.

Knows nothing about diffusion.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch.optim.swa_utils import AveragedModel

    from sfumato.modules import ObjectiveModule, TrainableModule
    from sfumato.randomness import Draw
    from sfumato.records import Batch, Losses

    Loss = Callable[[Batch, Draw], Losses]


K = TypeVar("K")
T = TypeVar("T")
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
    """One process, one device.

    Attributes:
        device: where modules and batches are.
        rank: which of the processes of the run this is.
        ranks: how many there are.
    """

    rank, ranks = 0, 1

    def __init__(self, device: str | None = None) -> None:
        """`device` as torch names it; by default the GPU where there is one."""
        self.device = usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    # Who does what: the first rank writes, and measures; all move the weights.

    @property
    def main(self) -> bool:
        """Whether this process writes and measures."""
        return self.rank == 0

    def rows(self, total: int) -> range:
        """The rows of a global batch that are this rank's."""
        return range(total)

    def alone(self, work: Callable[[], T]) -> T:
        """What `work`, done by the first rank alone, returns or raises: on every rank, so it can be
        pickled.
        """
        return work()

    def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` returns here, where the first rank has done it before the others."""
        return work()

    def largest(self, number: int) -> int:
        """The largest of the numbers that the ranks have."""
        return number

    def united(self, found: Mapping[K, T]) -> dict[K, T]:
        """What any rank found, that of the first before that of the next; every rank has to ask."""
        return dict(found)

    def session(self) -> AbstractContextManager[None]:
        """A run: all ranks leave it together."""
        return nullcontext()

    def failing_together(self) -> AbstractContextManager[None]:
        """Inside, the failure of one rank ends the others, with its message."""
        return nullcontext()

    # One step.

    def wrap(
        self, objective: ObjectiveModule, module: TrainableModule, averaged: AveragedModel | None
    ) -> Loss:
        """How to compute losses; `backward` then adds the gradients of the rows of all ranks.

        Args:
            objective: moves to where it runs before.
            module: the slot that it trains.
            averaged: of that slot.
        """
        return objective

    def unwrap(self) -> None:
        """The module that was wrapped is as it was before; its weights have to be loaded."""

    def accumulating(self, more: bool) -> AbstractContextManager[object]:
        """Inside, the forward and backward pass of a part of a batch, of which `more` follows."""
        return nullcontext()

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Inside, torch's own generators begin with `seed`, or, where there are more ranks, each
        with one of its own; they are put back afterwards.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed + self.rank)
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

    def summed(self, numbers: Tensor) -> Tensor:
        """The sum over ranks, elementwise."""
        return numbers

    def joined(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in the order of the global batch."""
        return rows

    def whole(self, state: Mapping[str, Tensor], everywhere: bool = False) -> dict[str, Tensor]:
        """State with nothing missing: on the first rank, or `everywhere`; elsewhere it is empty.

        Every rank has to ask.
        """
        return dict(state)
