"""One training stage under way: its weights, its optimiser and the number of its step.

It knows about optimisers and averages, and nothing about diffusion, run folders or hooks. Order,
times, noise and dropout are functions of (seed, stage, step, row), so `state` is all there is to
keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sfumato import forwards, randomness
from sfumato.errors import SfumatoError
from sfumato.randomness import Draw

if TYPE_CHECKING:
    from torch import nn

    from sfumato.engine import Single
    from sfumato.experiment import Stage
    from sfumato.modules import ObjectiveModule, TrainableModule
    from sfumato.records import Batch, Losses

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
        moved = {id(parameter) for parameter in module.trainable()}
        self.parameters = {n: p for n, p in module.named_parameters() if id(p) in moved}
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        if settings.compile:
            forwards.channels_last(module)
        self.averaged = None if settings.ema is None else average(module, settings.ema)
        if settings.activation_checkpointing:
            forwards.recomputing(module)
        if settings.compile:
            forwards.compiled(module)

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
        losses, loss = self._losses(batch)
        self.engine.backward(loss)
        norm = self.engine.clip(list(self.parameters.values()), self.settings.gradient_clip)
        value, gradient_norm = loss.item(), norm.item()
        finite = math.isfinite(value) and math.isfinite(gradient_norm)
        if finite:
            self._move()
        else:
            said = f"loss {value:g} with gradient norm {gradient_norm:g} at learning rate {rate:g}"
            self._skip(f"{said}; {_suspects(batch, losses)}")
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        means = {key: number.float().mean().item() for key, number in losses.numbers.items()}
        return Outcome(loss=value, gradient_norm=gradient_norm, numbers=means, skipped=not finite)

    def _losses(self, batch: Batch) -> tuple[Losses, Tensor]:
        """Those of each example, and their mean."""
        draw = Draw(seed=self.seed, stream=self.name, examples=batch.rows, index=self.step)
        with self.engine.seeded(randomness.key(self.seed, f"{self.name}/{self.step}")[0]):
            with self.engine.autocast(self.settings.precision):
                losses = self.objective(batch, draw)
            return losses, losses.values.float().mean()

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
        forwards.plain(self.module)
        self.module.load_state_dict(dict(self.weights()))
        self.module.eval().requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        """What `weights` does not tell: the weights that move, where those are averages, the
        optimiser's moments, and two counts.
        """
        found: dict[str, Tensor] = {"counts": torch.tensor([self.updates, self.skipped])}
        for name, parameter in self.parameters.items():
            if self.averaged is not None:
                found[f"weights.{name}"] = parameter
            if self.updates:
                for moment in MOMENTS:
                    found[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
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
        self.module.load_state_dict(dict(weights))
        if self.averaged is not None:
            self.averaged.module.load_state_dict(dict(weights))
            self.averaged.n_averaged.fill_(self.updates)
        self.optimizer.state.clear()
        for name, parameter in self.parameters.items():
            if self.averaged is not None:
                with torch.no_grad():
                    parameter.copy_(state[f"weights.{name}"])
            if self.updates:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.updates), device=parameter.device),
                    **{
                        moment: torch.empty_like(parameter).copy_(state[f"{moment}.{name}"])
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


def _suspects(batch: Batch, losses: Losses) -> str:
    """The examples whose own loss is not finite, else all, the first eight; with their times."""
    wrong = ~losses.values.detach().isfinite()
    rows = (wrong if bool(wrong.any()) else torch.ones_like(wrong)).nonzero().flatten()
    more = " ..." if len(rows) > 8 else ""
    text = f"examples {batch.examples[rows[:8]].tolist()}{more}"
    if losses.t is None:
        return text
    return f"{text} at t [{', '.join(f'{t:.4g}' for t in losses.t[rows[:8]].tolist())}]{more}"


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
        moved = [i for i, one in enumerate(averaged) if one.data_ptr() != current[i].data_ptr()]
        averaged, current = ([some[i] for i in moved] for some in (averaged, current))
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    averaged = AveragedModel(module, multi_avg_fn=update, use_buffers=False)
    for mine, theirs in zip(averaged.module.parameters(), module.parameters(), strict=True):
        if not theirs.requires_grad:
            mine.data = theirs.data
    return averaged
