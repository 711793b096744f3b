"""Laws of objectives: losses per example, random by `draw` alone, of what is trained alone.

They are held to the kit's small pipeline, made ready as the training loop does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from sfumato.interfaces import Objective
from sfumato.modules import ObjectiveModule
from sfumato.pipeline import Pipeline
from sfumato.randomness import Draw
from sfumato.testing import assembly
from sfumato.testing.laws import expect, expect_close, expect_equal, expect_finite, law, subject
from sfumato.testing.modules import (
    EXACT,
    ROUNDING,
    expect_same_state,
    random_state_kept,
    state_of,
)

if TYPE_CHECKING:
    from torch import nn

    from sfumato.records import Losses

BATCH = 6


@attrs.frozen(eq=False)
class Subject:
    """The settings, a pipeline of its own, and the module on it."""

    settings: Objective
    pipeline: Pipeline
    module: ObjectiveModule

    @property
    def trained(self) -> nn.Module:
        """The module of the slot that is trained."""
        return self.pipeline.modules()[self.settings.trains]

    def losses(self, draw: Draw | None = None, size: int = BATCH) -> Losses:
        """Of the first examples; without dropout inside modules, of which the loop takes care."""
        self.trained.eval()
        return self.module(assembly.batch(size), draw or _draw(size=size))  # type: ignore[no-any-return]


def _draw(index: int = 3, size: int = BATCH) -> Draw:
    return Draw(seed=0, stream="objective", examples=torch.arange(size), index=index)


@attrs.frozen(eq=False, kw_only=True)
class _Noted(Draw):
    """Randomness that notes whether anyone asked for it."""

    asked: list[str] = attrs.field(factory=list)

    def bits(self, name: str, count: int) -> Tensor:
        self.asked.append(name)
        return super().bits(name, count)


@subject("objective")
def builds(settings: Objective) -> Subject:
    """It builds a module on a small pipeline."""
    pipeline = assembly.pipeline()
    module = settings.build(pipeline)
    pipeline.modules()[settings.trains].requires_grad_(True)
    return Subject(settings, pipeline, module)


@law("objective")
def losses_are_per_example(objective: Subject) -> None:
    """Losses and numbers are (B,), floating and finite: only the loop reduces them."""
    losses = objective.losses()
    for name, value in {"losses": losses.values, **losses.numbers}.items():
        expect_equal(tuple(value.shape), (BATCH,), f"shape of {name}")
        expect(value.is_floating_point(), f"{name} floating", f"{name} {value.dtype}")
        expect_finite(value, name)


@law("objective")
def a_batch_of_one_works(objective: Subject) -> None:
    """A batch of one example has one finite loss."""
    values = objective.losses(size=1).values
    expect_equal(tuple(values.shape), (1,), "shape of losses")
    expect_finite(values, "losses")


@law("objective")
def rows_can_be_computed_in_parts(objective: Subject) -> None:
    """A row's loss needs no other row of the batch, unless the settings say `compares`."""
    if objective.settings.compares:
        return
    objective.trained.eval()
    parts = assembly.batch(BATCH).parts(2)
    draws = [attrs.evolve(_draw(), examples=part.rows) for part in parts]
    pairs = zip(parts, draws, strict=True)
    apart = torch.cat([objective.module(part, draw).values for part, draw in pairs])
    expect_close(apart, objective.losses().values, "losses of a batch in parts", ROUNDING)


@law("objective")
def the_same_draw_gives_the_same(objective: Subject) -> None:
    """The same examples and the same draw have the same losses."""
    first = objective.losses().values
    expect_close(objective.losses().values, first, "losses of the same draw again", EXACT)


@law("objective")
def another_draw_gives_others(objective: Subject) -> None:
    """Where anything is drawn, another draw gives other losses."""
    draw = _Noted(seed=0, stream="objective", examples=torch.arange(BATCH), index=3)
    first = objective.losses(draw).values
    if draw.asked:
        other = objective.losses(_draw(4)).values
        expect(not torch.equal(first, other), "other losses at another draw", "the same")


@law("objective")
def only_the_draw_is_random(objective: Subject) -> None:
    """Nothing is drawn from torch's generator, so that a step is a function of seed and number."""
    with random_state_kept():
        objective.losses()


@law("objective")
def it_trains_what_it_says(objective: Subject) -> None:
    """Gradients reach the slot that `trains` names, through parameters that the module has."""
    torch.autograd.backward(objective.losses().values.mean())
    reached = {
        name: parameter
        for name, parameter in objective.trained.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }
    expect(bool(reached), f"gradients in the {objective.settings.trains}", "none")
    held = {id(parameter) for parameter in objective.module.parameters()}
    missing = [name for name, parameter in reached.items() if id(parameter) not in held]
    expect(not missing, "all of them among the module's parameters", f"not {missing[:3]}")
    for name, parameter in reached.items():
        expect_finite(parameter.grad, f"the gradient of {name}")  # type: ignore[arg-type]


@law("objective")
def it_trains_nothing_else(objective: Subject) -> None:
    """The rest of the pipeline stays as it is: frozen, in eval mode, without gradients, unmoved."""
    rest = {
        slot: module
        for slot, module in objective.pipeline.modules().items()
        if slot != objective.settings.trains
    }
    before = {slot: state_of(module) for slot, module in rest.items()}
    torch.autograd.backward(objective.losses().values.mean())
    for slot, module in rest.items():
        expect(not module.training, f"the {slot} in eval mode", "train mode")
        for name, parameter in module.named_parameters():
            frozen = not parameter.requires_grad and parameter.grad is None
            expect(frozen, f"the {slot} frozen", f"a trainable {name}")
        expect_same_state(module, before[slot], f"the {slot}")


@law("objective")
def it_looks_at_what_it_says(objective: Subject) -> None:
    """Unless `looks_at_pictures`, latents and embeddings are all that it needs of a batch."""
    if objective.settings.looks_at_pictures:
        return
    objective.trained.eval()
    batch = assembly.batch(BATCH)
    latents, text = objective.pipeline.encoded(batch)
    without = attrs.evolve(batch, images=batch.images[..., :0, :0], latents=latents, text=text)
    values = objective.module(without, _draw()).values
    expect_close(values, objective.losses().values, "losses without pictures", EXACT)


@law("objective")
def text_dropout_is_a_share(objective: Subject) -> None:
    """`text_dropout` lies in [0, 1], or is None where it has no meaning."""
    share = objective.settings.text_dropout
    expect(share is None or 0 <= share <= 1, "a number in [0, 1], or None", repr(share))


@law("objective")
def after_a_step_all_is_finite(objective: Subject) -> None:
    """`after_step` leaves finite parameters, and may be called again without a change."""
    objective.module.after_step()
    once = state_of(objective.trained)
    for name, value in once.items():
        if value.is_floating_point():
            expect_finite(value, name)
    objective.module.after_step()
    expect_same_state(objective.trained, once, f"the {objective.settings.trains} after two calls")
