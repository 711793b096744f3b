"""A denoiser compiled: few kernels in place of many and, on a GPU, one launch for all of them.

At batch 2 a GPU is done with a kernel sooner than the host has launched the next. So there each
kind of call, told apart by the shapes and the variant, is compiled and recorded as a CUDA graph,
which replays on the very addresses it was recorded with: inputs are copied to where it reads. What
`precompute` made is copied once for a sampling call, not at each of its steps.

Knows nothing about schedules and samplers: what they do to latents is too little to be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sfumato.modules import DenoiserModule
    from sfumato.records import Opposed, TextEmbedding

OPTIONS: dict[str, Any] = {"conv_1x1_as_mm": True}
"""Of inductor, on a GPU: 1x1 convolutions are products of matrices."""


@contextmanager
def convolutions_tried(device: torch.device) -> Iterator[None]:
    """On a GPU, cuDNN tries its algorithms for each new shape and keeps the fastest."""
    if device.type != "cuda":
        yield
        return
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Compiled:
    """What stands in for a denoiser in sampling: `precompute`, `at` and the call are its own."""

    def __init__(self, module: DenoiserModule) -> None:
        """Compiles nothing yet: that happens at the first call of each kind."""
        self.module = module
        self._forward: Callable[..., Tensor] = module
        self._recordings: dict[Any, Recording] = {}
        self._addresses: list[int] = []

    def precompute(self, text: TextEmbedding | Opposed, times: Tensor) -> Any:
        """See `DenoiserModule.precompute`. Recordings of weights that have moved are forgotten."""
        condition = self.module.precompute(text, times)
        tensors = (*self.module.parameters(), *self.module.buffers())
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._addresses:
            self._addresses, self._recordings = addresses, {}
            options = OPTIONS if tensors[0].is_cuda else None
            self._forward = torch.compile(self.module, dynamic=False, options=options)
        return condition

    def at(self, condition: Any, t: Tensor) -> Any:
        """See `DenoiserModule.at`."""
        return self.module.at(condition, t)

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Any, variant: str | None = None
    ) -> Tensor:
        """See `DenoiserModule.forward`."""
        # Each batch size and variant is a version of its own; past the limit they would be eager.
        with convolutions_tried(x_t.device), torch._dynamo.config.patch(recompile_limit=64):
            if x_t.device.type != "cuda":
                return self._forward(x_t, t, condition, variant)
            try:
                call = Call.of(x_t, t, condition)
            except Unknown:
                return self._forward(x_t, t, condition, variant)
            key = (variant, call.kind)
            if key not in self._recordings:
                forward = self._forward
                self._recordings[key] = Recording(lambda *args: forward(*args, variant), call)
            return self._recordings[key](call.tensors)


class Unknown(Exception):
    """A condition holds something that cannot be searched for tensors."""


@attrs.frozen(eq=False)
class Call:
    """The tensors of a call, what else tells calls apart, and how to put its arguments together."""

    tensors: list[Tensor]
    kind: tuple[Any, ...]
    rebuild: Callable[[Iterator[Tensor]], Any]

    @classmethod
    def of(cls, *arguments: Any) -> Call:
        """Takes arguments apart.

        Raises:
            Unknown: one is neither a tensor, nor plain data, nor made of these.
        """
        tensors: list[Tensor] = []
        kind: list[Any] = []
        rebuild = _taken_apart(arguments, tensors, kind)
        return cls(tensors, tuple(kind), rebuild)


class Recording:
    """A CUDA graph of one kind of call."""

    def __init__(self, forward: Callable[..., Tensor], call: Call) -> None:
        """Runs the call a few times, by which it is compiled and its kernels chosen, then once
        more to be recorded.
        """
        self._sources: list[Tensor] = call.tensors
        self._inputs = [tensor.clone() for tensor in call.tensors]
        arguments = call.rebuild(iter(self._inputs))
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                forward(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = forward(*arguments)

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        """The output, a tensor of its own."""
        pairs = zip(self._inputs, tensors, self._sources, strict=True)
        changed = [(own, new) for own, new, old in pairs if new is not old]
        if changed:
            own, new = map(list, zip(*changed, strict=True))
            torch._foreach_copy_(own, new)
        self._sources = tensors
        self._graph.replay()
        return self._output.clone()


def _taken_apart(
    value: Any, tensors: list[Tensor], kind: list[Any]
) -> Callable[[Iterator[Tensor]], Any]:
    """Appends the tensors in a value, in order, and what it is apart from their values; what comes
    back makes it again of other tensors.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        kind.append((value.shape, value.stride(), value.dtype, value.device))
        return next
    if value is None or isinstance(value, bool | int | float | str):
        kind.append(value)
        return lambda _: value
    kind.append(type(value))
    if isinstance(value, Mapping):
        kind.append(tuple(value))
        parts = {key: _taken_apart(part, tensors, kind) for key, part in value.items()}
        return lambda source: {key: part(source) for key, part in parts.items()}
    if attrs.has(type(value)):
        named = {
            field.name: _taken_apart(getattr(value, field.name), tensors, kind)
            for field in attrs.fields(type(value))
        }
        return lambda source: attrs.evolve(
            value, **{name: part(source) for name, part in named.items()}
        )
    if type(value) in (tuple, list):
        kind.append(len(value))
        items = [_taken_apart(part, tensors, kind) for part in value]
        return lambda source: type(value)(item(source) for item in items)
    raise Unknown(type(value))
