"""One training stage under way: its weights, its optimiser and the number of its step.

It knows about optimisers and averages, and nothing about diffusion, run folders or hooks. Order,
times, noise and dropout are functions of (seed, stage, step, row), so `state` is all there is to
keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sfumato import forwards, randomness, shards
from sfumato.compiling import convolutions_tried
from sfumato.errors import SfumatoError
from sfumato.randomness import Draw
from sfumato.records import Losses

if TYPE_CHECKING:
    from torch import nn

    from sfumato.engine import Single
    from sfumato.experiment import Stage
    from sfumato.modules import ObjectiveModule, TrainableModule
    from sfumato.records import Batch

MOMENTS = ("exp_avg", "exp_avg_sq")
MOST_SKIPPED = 20
"""Steps in a row; where more are not finite, the run is lost."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What one optimiser step found; `numbers` are the objective's, in the mean. Where it was
    `skipped`, no weight moved.
    """

    loss: float
    gradient_norm: float
    numbers: Mapping[str, float]
    skipped: bool


class StageRun:
    """A stage from its first step to its last.

    Attributes:
        name: of the stage.
        settings: its loop.
        step: how many optimiser steps are done, the skipped ones too.
        updates: how many of them moved weights.
        skipped: how many were skipped since the last that did.
        module: what is trained, the whole slot.
        parameters: those of it that move, by name.
    """

    def __init__(
        self,
        name: str,
        settings: Stage,
        module: TrainableModule,
        objective: ObjectiveModule,
        engine: Single,
        seed: int,
    ) -> None:
        """Puts `module` in train mode; `objective` is what it is trained with."""
        self.name, self.settings, self.seed = name, settings, seed
        self.step = self.updates = self.skipped = 0
        self.module, self.objective, self.engine = module, objective, engine
        module.train()
        for parameter in module.trainable():
            parameter.requires_grad_(True)
        if settings.compile:
            forwards.channels_last(module)
        self.averaged = None if settings.ema is None else average(module, settings.ema)
        self.dropout = forwards.RowDropout(module, seed, f"{name}/dropout")
        if settings.activation_checkpointing:
            forwards.recomputing(module)
        if settings.compile:
            forwards.compiled(module)
        self.losses = engine.wrap(objective, module, self.averaged)
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            [{"params": group} for group in shards.groups(list(self.parameters.values()))],
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def advance(self, batch: Batch) -> Outcome:
        """One optimiser step; the loss and the norm of its gradient are checked before any weight
        moves.

        Raises:
            SfumatoError: one of them is not finite, and the stage does not skip such steps, or has
                skipped too many.
        """
        rate = learning_rate(self.settings, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tried = convolutions_tried if self.settings.compile else nullcontext
        with tried(self.engine.device):
            losses = self._backward(batch)
        norm = self.engine.clip(list(self.parameters.values()), self.settings.gradient_clip)
        value, numbers = self._means(losses, batch.total)
        gradient_norm = norm.item()
        finite = math.isfinite(value) and math.isfinite(gradient_norm)
        if finite:
            self._move()
        else:
            said = f"loss {value:g} with gradient norm {gradient_norm:g} at learning rate {rate:g}"
            self._skip(f"{said}; {self._suspects(batch, losses)}")
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return Outcome(loss=value, gradient_norm=gradient_norm, numbers=numbers, skipped=not finite)

    def _backward(self, batch: Batch) -> Losses:
        """The losses of each example, after the gradients of their mean were added, part by part of
        the batch.
        """
        parts, done = batch.parts(self.settings.accumulation), []
        with self.engine.seeded(randomness.key(self.seed, f"{self.name}/{self.step}")[0]):
            for part in parts:
                draw = Draw(seed=self.seed, stream=self.name, examples=part.rows, index=self.step)
                self.dropout.begin(self.step, part.rows)
                with self.engine.accumulating(more=part is not parts[-1]):
                    with self.engine.autocast(self.settings.precision):
                        losses = self.losses(part, draw)
                    share = len(part.rows) / batch.total
                    self.engine.backward(losses.values.float().mean() * share)
                done.append(losses)
                del losses
        return _joined(done)

    def _means(self, losses: Losses, total: int) -> tuple[float, dict[str, float]]:
        """Of the losses, and of each of their numbers, over the global batch."""
        rows = [losses.values, *losses.numbers.values()]
        sums = self.engine.summed(torch.stack([one.float().sum() for one in rows]))
        value, *means = (sums / total).tolist()
        return value, dict(zip(losses.numbers, means, strict=True))

    def _suspects(self, batch: Batch, losses: Losses) -> str:
        """Examples whose own loss is not finite, else all: the first eight, with their times."""
        values, examples = self.engine.joined(losses.values), self.engine.joined(batch.examples)
        wrong = ~values.isfinite()
        rows = (wrong if bool(wrong.any()) else torch.ones_like(wrong)).nonzero().flatten()
        more = " ..." if len(rows) > 8 else ""
        text = f"examples {examples[rows[:8]].tolist()}{more}"
        if losses.t is None:
            return text
        times = self.engine.joined(losses.t)[rows[:8]].tolist()
        return f"{text} at t [{', '.join(f'{t:.4g}' for t in times)}]{more}"

    def _move(self) -> None:
        self.optimizer.step()
        self.objective.after_step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.module)
        self.updates, self.skipped = self.updates + 1, 0

    def _skip(self, said: str) -> None:
        """Counts a step that moves nothing.

        Raises:
            SfumatoError: no more is to be skipped.
        """
        self.skipped += 1
        if self.settings.nonfinite == "stop" or self.skipped > MOST_SKIPPED:
            tried = f" (as in {MOST_SKIPPED} steps before)" if self.skipped > MOST_SKIPPED else ""
            raise SfumatoError(
                said + tried,
                place=f"stage {self.name}, step {self.step + 1}",
                remedy="no weight was moved; lower the learning rate, or look at these examples",
            )

    def weights(self) -> Mapping[str, Tensor]:
        """The state of the slot that is worth sampling from: averaged where there is an average."""
        return (self.module if self.averaged is None else self.averaged.module).state_dict()

    def finish(self) -> None:
        """The average takes the place of the weights, and the slot is frozen, in eval mode."""
        weights = self.engine.whole(self.weights(), everywhere=True)
        self.engine.unwrap()
        self.module.load_state_dict(weights)
        forwards.plain(self.module)
        self.module.eval().requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        """What `weights` does not tell: the weights that move, where those are averages, the
        optimiser's moments, and two counts.
        """
        found: dict[str, Tensor] = {"counts": torch.tensor([self.updates, self.skipped])}
        for name, parameter in self.parameters.items():
            if self.averaged is not None:
                found[f"weights.{name}"] = parameter
            # A parameter that has had no gradient yet has no moments.
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{key}.{name}"] = value
        return found

    def restore(
        self, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> None:
        """Goes on where `step` steps had been done; `weights` and `state` are what they were then.

        Raises:
            KeyError: they are those of another stage.
        """
        self.step = step
        self.updates, self.skipped = state["counts"].tolist()
        own = self.module.state_dict()
        placed = {name: shards.alike(weights[name], like) for name, like in own.items()}
        self.module.load_state_dict(placed)
        if self.averaged is not None:
            self.averaged.module.load_state_dict(placed)
            self.averaged.n_averaged.fill_(self.updates)
        self.optimizer.state.clear()
        for name, parameter in self.parameters.items():
            if self.averaged is not None:
                with torch.no_grad():
                    parameter.copy_(shards.alike(state[f"weights.{name}"], parameter))
            if f"step.{name}" in state:
                self.optimizer.state[parameter] = {
                    "step": state[f"step.{name}"].to(parameter.device, copy=True),
                    **{
                        moment: shards.alike(state[f"{moment}.{name}"], parameter)
                        for moment in MOMENTS
                    },
                }

    def roll_back(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Takes weights and moments of an earlier step, and leaves the number of the step: the
        batches since then are passed over.
        """
        step, skipped = self.step, self.skipped
        self.restore(step, weights, state)
        self.skipped = skipped


def _joined(parts: Sequence[Losses]) -> Losses:
    """The rows of all parts, one after the other, without what made them."""
    times = [part.t for part in parts if part.t is not None]
    return Losses(
        values=torch.cat([part.values.detach() for part in parts]),
        numbers={
            name: torch.cat([part.numbers[name].detach() for part in parts])
            for name in parts[0].numbers
        },
        t=torch.cat(times) if times else None,
    )


def learning_rate(stage: Stage, step: int) -> float:
    """The learning rate at a step, counted from 0: linear warm-up, then constant or half a cosine
    to 0.
    """
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    if stage.decay == "constant":
        return stage.learning_rate
    done = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def average(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights, with decay min(decay, (1 + n) / (10 + n)) at update
    n.

    A constant 0.999 would still hold 30 % of the first weights after 1,200 steps. Weights that do
    not move are shared with the module, so that an adapter's average does not hold its base.
    """

    def update(averaged: Any, current: Any, updates: Any) -> None:
        n = int(updates)
        averaged, current = ([shards.own(one) for one in some] for some in (averaged, current))
        moved = [i for i, one in enumerate(averaged) if one.data_ptr() != current[i].data_ptr()]
        averaged, current = ([some[i] for i in moved] for some in (averaged, current))
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    averaged = AveragedModel(module, multi_avg_fn=update, use_buffers=False)
    for mine, theirs in zip(averaged.module.parameters(), module.parameters(), strict=True):
        if not theirs.requires_grad:
            mine.data = theirs.data
    return averaged
