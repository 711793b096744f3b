"""What an experiment will ask of a machine, told before it is launched.

Modules are built without memory for their weights, and one step of each stage, forward and
backward, runs on tensors that have a shape and no numbers. So the FLOP are those of the very
operations that training will run, and the bytes are of the tensors that would be alive, each
storage once. Nothing is trained, drawn or written.

A batch is computed in as many parts as `accumulation` says, and with a `cache` encoders compute
nothing, though they stay in memory. Left out are the libraries' own working memory, the captions,
and a weaker model for guidance.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from sfumato import checkpoint, compatibility, forwards, plugins
from sfumato.engine import Single
from sfumato.pipeline import MODULES, Pipeline
from sfumato.randomness import Draw
from sfumato.records import Batch
from sfumato.runs import Stored
from sfumato.stage import StageRun

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sfumato.experiment import Experiment, Stage
    from sfumato.plugins import Catalogue


@attrs.frozen(kw_only=True)
class StageFootprint:
    """One stage. All sizes are in bytes.

    Attributes:
        trains: the slot whose weights move.
        parameters: how many of them move.
        steps: optimiser steps.
        batch: examples a step.
        epochs: how often each example is seen.
        flops: floating-point operations a step, forward and backward; a multiply-add is two.
        weights: of all slots.
        gradients: of the parameters that move.
        optimizer: the moments of AdamW.
        average: the averaged weights.
        activations: what else is alive where the backward pass starts, of one part of the batch.
        peak: the most that is alive at once, all of the above considered.
        checkpoint: what is written while the stage is under way, so that it can be resumed.
    """

    trains: str
    parameters: int
    steps: int
    batch: int
    epochs: float
    flops: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    peak: int
    checkpoint: int


@attrs.frozen(kw_only=True)
class Footprint:
    """An experiment: `parameters` by slot, the `examples` of an epoch, the bytes of the last
    `checkpoint`, its `stages` by name.
    """

    parameters: dict[str, int]
    examples: int
    checkpoint: int
    stages: dict[str, StageFootprint]


def measure(experiment: Experiment, catalogue: Catalogue | None = None) -> Footprint:
    """Assembles an experiment as training does, and looks at one step of each stage.

    Args:
        experiment: what would be trained.
        catalogue: what is installed, where it starts from another run; by default loaded anew.

    Raises:
        ConfigError: it could not be trained.
    """
    start = None
    if experiment.start is not None:
        start = Stored.find(experiment.start, "start", catalogue or plugins.load())
    compatibility.check_training(experiment, None, None if start is None else start.trained)
    split = experiment.given_data().split("train")
    compatibility.check_batches(experiment, split)
    captions = [split.caption(i) for i in range(len(split))]
    files = _files(experiment, split.texts(), start)
    with torch.device("meta"):
        pipeline = Pipeline(experiment, files, experiment.seed)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in pipeline.modules().values():
            _give_shapes_a_device(module)
        stages = {
            name: _stage(experiment, pipeline, captions, name, stage)
            for name, stage in experiment.stages.items()
        }
    modules = pipeline.modules()
    return Footprint(
        parameters={slot: sum(p.numel() for p in m.parameters()) for slot, m in modules.items()},
        examples=len(split),
        checkpoint=_checkpoint(pipeline),
        stages=stages,
    )


def _files(
    experiment: Experiment, captions: list[str], start: Stored | None
) -> Mapping[str, bytes]:
    """What the text encoder is built from."""
    if start is not None:
        return checkpoint.read(start.path, without={*MODULES, checkpoint.TRAINING})[1]
    files = experiment.text_encoder.fit(captions)
    # An encoder that comes with weights reads them where it builds without files, which needs
    # memory; with what it then knows of itself it builds empty.
    return files or experiment.text_encoder.build({}).files


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, counts the bytes of what operations make, while anyone holds it.

    Attributes:
        now: how many there are.
        most: how many there were at most.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """The storages of `known` are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary({one.untyped_storage(): None for one in known})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs the operation, and looks at what comes out."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self._known:
                storage = leaf.untyped_storage()
                self._known[storage] = None
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def _stage(
    experiment: Experiment, pipeline: Pipeline, captions: list[str], name: str, stage: Stage
) -> StageFootprint:
    engine, slot = Single("cpu"), getattr(pipeline, stage.objective.trains)
    objective = stage.objective.build(pipeline)
    # An average is a copy, which needs no measuring, and what is compiled could not be measured.
    plain = attrs.evolve(stage, ema=None, compile=False)
    under_way = StageRun(name, plain, slot, objective, engine, experiment.seed)
    held = [tensor for module in pipeline.modules().values() for tensor in _tensors(module)]
    batch = _batch(experiment, captions, stage.batch)
    if stage.cache is not None:
        batch = _encoded(batch, under_way, pipeline)
    given = _given(batch)
    flops, activations, most = _step(under_way, batch, [*held, *given])
    moving = list(under_way.parameters.values())
    under_way.optimizer.step()
    moments = (value for state in under_way.optimizer.state.values() for value in state.values())
    weights, optimizer = _bytes(held), _bytes(moments)
    average = _bytes(moving) if stage.ema is not None else 0
    gradients = _bytes(one.grad for one in moving if one.grad is not None)
    under_way.optimizer.zero_grad(set_to_none=True)
    forwards.plain(slot)
    slot.eval().requires_grad_(False)
    return StageFootprint(
        trains=stage.objective.trains,
        parameters=sum(one.numel() for one in moving),
        steps=stage.steps,
        batch=stage.batch,
        epochs=stage.steps * stage.batch / len(captions),
        flops=flops,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        average=average,
        activations=activations + _bytes(given),
        peak=weights + optimizer + average + _bytes(given) + most,
        checkpoint=_checkpoint(pipeline) + optimizer + average,
    )


def _step(under_way: StageRun, batch: Batch, held: list[Tensor]) -> tuple[int, int, int]:
    """FLOP of both passes, and bytes beside what is held: between the passes, and at most."""
    between = 0
    with FlopCounterMode(display=False) as counter, Alive(held) as alive:
        for part in batch.parts(under_way.settings.accumulation):
            gradients = alive.now  # of the parts before
            draw = Draw(seed=under_way.seed, stream=under_way.name, examples=part.rows)
            with under_way.engine.autocast(under_way.settings.precision):
                losses = under_way.objective(part, draw)
            loss = losses.values.float().mean()
            between = max(between, alive.now - gradients)
            under_way.engine.backward(loss)
            del losses, loss
    return counter.get_total_flops(), between, alive.most


def _checkpoint(pipeline: Pipeline) -> int:
    """The bytes of all weights and files."""
    states = (module.state_dict().values() for module in pipeline.modules().values())
    return sum(map(_bytes, states)) + sum(map(len, pipeline.text_encoder.files.values()))


def _batch(experiment: Experiment, captions: list[str], size: int) -> Batch:
    """A batch whose captions are those of the data, and whose pictures are not read."""
    rows = torch.arange(size)
    return Batch(
        images=torch.empty(size, 3, *experiment.picture_size),
        captions=tuple(captions[:size]),
        examples=rows,
        rows=rows,
        total=size,
    )


def _encoded(batch: Batch, under_way: StageRun, pipeline: Pipeline) -> Batch:
    """The batch as a cache has it."""
    with under_way.engine.autocast(under_way.settings.precision):
        latents, text = pipeline.encoded(batch)
    return attrs.evolve(batch, images=batch.images[..., :0, :0].clone(), latents=latents, text=text)


def _given(batch: Batch) -> list[Tensor]:
    """The tensors that a step is given, but for numbers of rows."""
    text = [] if batch.text is None else [batch.text.tokens, batch.text.mask, batch.text.pooled]
    return [batch.images, *([] if batch.latents is None else [batch.latents]), *text]


def _give_shapes_a_device(module: nn.Module) -> None:
    """Turns tensors on the meta device into fake ones of the CPU.

    Some operations ask where a tensor is, to choose what runs there (autocast, attention), or to
    combine it with one that has numbers; on the meta device they would refuse.
    """
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if old is not None and id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    is_parameter = isinstance(old, nn.Parameter)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if is_parameter else new
                if old is not None:
                    tensors[name] = made[id(old)]  # type: ignore[assignment]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of their storages, each once."""
    storages = {id(one.untyped_storage()): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())
