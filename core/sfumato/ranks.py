"""Many ranks under torchrun: each computes its rows of the global batch, all move the same weights.

Accelerate places and wraps (DDP), and runs the backward pass; FSDP2 is torch's own `fully_shard`.
The loss is a sum over rows divided by the rows of the *global* batch, so a step is that of one
process to rounding, however the rows are shared out. Nothing of the state of a run is in here:
schedules, order and randomness are functions of (seed, step, row).

Knows nothing about diffusion.
"""

from __future__ import annotations

import atexit
import datetime
import importlib.util
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from sfumato import shards
from sfumato.engine import Single
from sfumato.errors import ConfigError, SfumatoError
from sfumato.interruption import Preempted
from sfumato.records import Losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch.optim.swa_utils import AveragedModel

    from sfumato.engine import Loss
    from sfumato.modules import ObjectiveModule, TrainableModule
    from sfumato.randomness import Draw
    from sfumato.records import Batch

K = TypeVar("K")
T = TypeVar("T")
PATIENCE = datetime.timedelta(days=30)
"""How long a rank waits for the first to write or to measure. One that is gone is noticed at once:
its connection closes."""
_FAILED = f"sfumato/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def engine(device: str | None, parallel: Literal["ddp", "fsdp"] = "ddp") -> Single:
    """What the environment asks for: one process, or, under torchrun, one of several.

    Raises:
        ConfigError: there are several, and no accelerate.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return Single(device)
    if importlib.util.find_spec("accelerate") is None:
        raise ConfigError(
            "accelerate is not installed",
            place=f"work on {ranks} ranks",
            remedy="pip install 'sfumato[accelerate]', or start without torchrun",
        )
    return Ranks(device, parallel)


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the global batch: (b, ...) on each to (B, ...).

    For objectives that compare examples with each other. The gradient of what any rank makes of
    them flows back to the rank whose rows they are. In one process it is `rows`.
    """
    if not _several():
        return rows
    return cast("Tensor", _Gathered.apply(rows))  # type: ignore[no-untyped-call]


def _several() -> bool:
    started = distributed.is_available() and distributed.is_initialized()
    return started and distributed.get_world_size() > 1


class _Gathered(torch.autograd.Function):
    """Concatenation over ranks, which may have different numbers of rows."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        ranks, rank = distributed.get_world_size(), distributed.get_rank()
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(ranks)]
        distributed.all_gather(counts, torch.full_like(counts[0], len(rows)))
        context.counts, context.rank = [int(count) for count in counts], rank
        padded = rows.new_zeros(max(context.counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(ranks)]
        distributed.all_gather(parts, padded)
        pairs = zip(parts, context.counts, strict=True)
        return torch.cat([part[:count] for part, count in pairs])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        start = sum(context.counts[: context.rank])
        return gradient[start : start + context.counts[context.rank]]


class _Door(nn.Module):
    """An objective whose losses come out as plain containers, in which wrappers find tensors."""

    def __init__(self, objective: ObjectiveModule) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch, draw: Draw) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        losses = self.objective(batch, draw)
        return losses.values, dict(losses.numbers), losses.t


class Ranks(Single):
    """One process of several."""

    def __init__(self, device: str | None, parallel: Literal["ddp", "fsdp"]) -> None:
        """`device` is "cpu" or "cuda", of which each rank takes its own; by default the GPU where
        there is one.
        """
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        # Parameters that a step leaves alone keep no gradient, as in one process.
        wrapping = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available() if device is None else device.startswith("cpu"),
            mixed_precision="no",  # it knows one precision for all stages; see `autocast`
            kwargs_handlers=[wrapping],
        )
        super().__init__(str(self.accelerator.device))
        self.parallel = parallel
        self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
        self.control = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self.board = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
        )
        self._model: nn.Module | None = None
        self._sharding: shards.Sharding | None = None

    # Who does what.

    def rows(self, total: int) -> range:
        """The rows of a global batch that are this rank's: a contiguous share."""
        return range(total * self.rank // self.ranks, total * (self.rank + 1) // self.ranks)

    def alone(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises on the first rank, which alone does it; the others wait."""
        outcome: T | None = None
        error: BaseException | None = None
        if self.main:
            try:
                outcome = work()
            except BaseException as raised:
                error = raised
        self._wait()
        said: list[Any] = [outcome, error]
        distributed.broadcast_object_list(said, src=0, group=self.control)
        if said[1] is not None:
            raise error or said[1]
        return cast("T", said[0])

    def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` returns on each rank, after the first has done it."""
        results: list[T] = []
        self.alone(lambda: results.append(work()))
        return results[0] if self.main else work()

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        found = torch.tensor(number)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self.control)
        return int(found)

    def united(self, found: Mapping[K, T]) -> dict[K, T]:
        """What any rank found; what is found is pickled, and mostly there is nothing."""
        if not self.largest(len(found)):
            return {}
        parts: list[Any] = [None] * self.ranks
        distributed.all_gather_object(parts, dict(found), group=self.control)
        return {key: value for part in parts for key, value in part.items()}

    @contextmanager
    def session(self) -> Iterator[None]:
        """A run. No rank leaves before all are through: torchrun ends the others when one has
        gone with an exit code.
        """
        atexit.unregister(distributed.destroy_process_group)
        try:
            yield
        except (Preempted, GeneratorExit):  # which all ranks have
            self._wait()
            raise
        self._wait()
        atexit.register(distributed.destroy_process_group)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Where a rank fails, the others, which find its connection closed, say why."""
        try:
            yield
        except Exception as error:
            if not self.board.check([_FAILED]):
                self.board.set(_FAILED, f"rank {self.rank}: {error}")
            elif not isinstance(error, SfumatoError):
                first = self.board.get(_FAILED).decode()
                raise SfumatoError(f"ended, because another rank failed: {first}") from error
            raise

    def _wait(self) -> None:
        """Until all ranks are here. Python runs signal handlers between the looks."""
        arrival = distributed.barrier(group=self.control, async_op=True)
        while not arrival.is_completed():
            time.sleep(0.005)
        arrival.wait()

    # One step.

    def wrap(
        self, objective: ObjectiveModule, module: TrainableModule, averaged: AveragedModel | None
    ) -> Loss:
        """How to compute losses so that `backward` adds the gradients of all ranks' rows."""
        door = _Door(objective)
        if self.parallel == "ddp":
            model = self.accelerator.prepare_model(door)
            assert isinstance(model, nn.parallel.DistributedDataParallel), "it may find no ranks"
        else:
            self._sharding = shards.Sharding(self.device)
            model = self._sharding.shard(door, module)
            if averaged is not None:
                shadow = cast("TrainableModule", averaged.module)
                self._sharding.shard(shadow, shadow)
        self._model = model

        def losses(batch: Batch, draw: Draw) -> Losses:
            values, numbers, t = model(batch, draw)
            return Losses(values=values, numbers=numbers, t=t)

        return losses

    def unwrap(self) -> None:
        """The module that was wrapped is as it was before, with room for whole weights."""
        self._model = None
        self.accelerator._models.clear()  # else the buckets of its gradients stay in memory
        if self._sharding is not None:
            self._sharding.undo()
            self._sharding = None

    def accumulating(self, more: bool) -> AbstractContextManager[object]:
        """Where `more` of the same step follows, DDP does not exchange gradients yet; FSDP2 does,
        as no rank has room for all of them.
        """
        return self.accelerator.no_sync(self._model) if more else super().accumulating(more)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of the sum of all ranks' losses: what wrappers exchange is a mean."""
        self.accelerator.backward(loss * self.ranks)

    def clip(self, parameters: list[nn.Parameter], norm: float | None) -> Tensor:
        """The norm of the gradient of all ranks' rows, (), before it is clipped to `norm`."""
        if self.parallel == "ddp":
            return super().clip(parameters, norm)
        return shards.clip(parameters, float("inf") if norm is None else norm)

    def summed(self, numbers: Tensor) -> Tensor:
        """The sum over ranks, elementwise."""
        found = numbers.detach().clone()
        distributed.all_reduce(found)
        return found

    def joined(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, on the CPU; for messages, not for speed."""
        parts: list[Any] = [None] * self.ranks
        distributed.all_gather_object(parts, rows.detach().cpu(), group=self.control)
        return torch.cat(parts)

    def whole(self, state: Mapping[str, Tensor], everywhere: bool = False) -> dict[str, Tensor]:
        """Shards are put together one after the other, on the CPU, as no device might hold all."""
        found = {}
        for name, tensor in state.items():
            full = shards.whole(tensor).cpu() if shards.is_sharded(tensor) else tensor
            if self.main or everywhere:
                found[name] = full
        return found
