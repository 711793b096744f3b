"""Laws of denoisers: one prediction for each example, from x_t, t and the text alone.

They are held to a small space, with weights that are all moved away from where they start.
"""

from __future__ import annotations

import copy
from typing import Any, get_args

import attrs
import torch
from torch import Tensor

from sfumato import checkpoint
from sfumato.errors import ConfigError
from sfumato.interfaces import Adapter, Denoiser
from sfumato.modules import AdapterModule, DenoiserModule
from sfumato.prediction import PredictionType
from sfumato.randomness import Draw
from sfumato.records import Against, Opposed, Space, TextEmbedding
from sfumato.testing.laws import (
    Broken,
    expect,
    expect_close,
    expect_equal,
    expect_finite,
    law,
    subject,
)
from sfumato.testing.mixture import QuarterCircle
from sfumato.testing.modules import (
    EXACT,
    ROUNDING,
    built,
    expect_different,
    random_state_kept,
    reloaded,
)

SPACE = Space(
    channels=4, height=16, width=16, text_width=12, pooled_width=10, schedule=QuarterCircle()
)
TIMES = (0.15, 0.5, 0.9)
"""One for each example of a batch."""


@attrs.frozen(eq=False)
class Subject:
    """The settings and what they build."""

    settings: Denoiser
    module: DenoiserModule

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Any, variant: str | None = None
    ) -> Tensor:
        """One prediction, without a graph."""
        with torch.no_grad():
            return self.module(x_t, t, condition, variant)  # type: ignore[no-any-return]


@subject("denoiser")
def builds(settings: Denoiser) -> Subject:
    """It builds a module for 4 x 16 x 16, text width 12, pooled width 10, in continuous time."""
    if SPACE.height % settings.multiple:
        raise ConfigError(f"{SPACE.height} pixels are not a multiple of {settings.multiple}")
    return Subject(settings, built(lambda: settings.build(SPACE)))


def _noise(name: str, *shape: int) -> Tensor:
    draw = Draw(seed=0, stream="denoisers", examples=torch.arange(shape[0]))
    return draw.normal(name, shape[1:])


def _text(name: str, batch: int = 3) -> TextEmbedding:
    mask = torch.arange(5).expand(batch, 5) < torch.tensor([5, 2, 3])[:batch, None]
    tokens, pooled = _noise(f"{name} tokens", batch, 5, 12), _noise(f"{name} pooled", batch, 10)
    return TextEmbedding(tokens=tokens, mask=mask, pooled=pooled)


def _inputs() -> tuple[Tensor, Tensor, TextEmbedding]:
    return _noise("x_t", 3, 4, 16, 16), torch.tensor(TIMES, dtype=torch.float64), _text("prompt")


@law("denoiser")
def says_what_it_predicts(denoiser: Subject) -> None:
    """`prediction` is epsilon, x0, v or flow."""
    known = get_args(PredictionType)
    found = denoiser.settings.prediction
    expect(found in known, f"one of {', '.join(known)}", repr(found))


@law("denoiser")
def like_x_t(denoiser: Subject) -> None:
    """The prediction has the shape and dtype of x_t, and is finite."""
    x_t, t, text = _inputs()
    output = denoiser(x_t, t, text)
    expect_equal((tuple(output.shape), output.dtype), (tuple(x_t.shape), x_t.dtype), "prediction")
    expect_finite(output, "the prediction")


@law("denoiser")
def repeatable(denoiser: Subject) -> None:
    """In eval mode the same call gives the same, whatever was called in between."""
    x_t, t, text = _inputs()
    first = denoiser(x_t, t, text)
    denoiser(_noise("between", 1, 4, 16, 16), t[:1], _text("between", 1))
    expect_close(denoiser(x_t, t, text), first, "the prediction of the same call again", EXACT)


@law("denoiser")
def random_state_is_left_alone(denoiser: Subject) -> None:
    """In eval mode nothing is drawn from torch's generator."""
    with random_state_kept():
        denoiser(*_inputs())


@law("denoiser")
def runs_where_its_weights_are(denoiser: Subject) -> None:
    """Moved to another device, it runs there on inputs of that device: no tensor stays behind."""
    for device in ("meta", *(["cuda"] if torch.cuda.is_available() else [])):
        moved = Subject(denoiser.settings, copy.deepcopy(denoiser.module).to(device))
        x_t, t, text = _inputs()
        text = text.map(lambda tensor, there=device: tensor.to(there))
        try:
            output = moved(x_t.to(device), t.to(device), text)
        except NotImplementedError:
            continue  # on meta, an operation whose result depends on values
        except RuntimeError as error:
            if "device cpu" in str(error) or "same device" in str(error):
                raise Broken(f"all tensors on {device}", str(error)) from error
            continue  # likewise, a value that was asked for
        expect_equal(output.device.type, device, "device of the prediction")


@law("denoiser")
def examples_are_independent(denoiser: Subject) -> None:
    """An example is predicted alike alone, beside others, and in another order."""
    x_t, t, text = _inputs()
    together = denoiser(x_t, t, text)
    backwards = denoiser(x_t.flip(0), t.flip(0), text.map(lambda tensor: tensor.flip(0)))
    expect_close(backwards.flip(0), together, "predictions in another order", ROUNDING)
    for row in range(3):
        one = slice(row, row + 1)
        alone = denoiser(x_t[one], t[one], text.map(lambda tensor, one=one: tensor[one]))
        expect_close(alone, together[one], "the prediction of an example alone", ROUNDING)


@law("denoiser")
def text_matters(denoiser: Subject) -> None:
    """Another text gives another prediction: the denoiser does not ignore the text."""
    x_t, t, text = _inputs()
    other = denoiser(x_t, t, _text("other"))
    expect_different(denoiser(x_t, t, text), other, "another prediction for another text")


@law("denoiser")
def time_matters(denoiser: Subject) -> None:
    """Another t gives another prediction: the denoiser does not ignore the time."""
    x_t, t, text = _inputs()
    other = denoiser(x_t, 1 - t / 2, text)
    expect_different(denoiser(x_t, t, text), other, "another prediction at another t")


@law("denoiser")
def x_t_matters(denoiser: Subject) -> None:
    """Another x_t gives another prediction."""
    x_t, t, text = _inputs()
    other = denoiser(_noise("other x_t", *x_t.shape), t, text)
    expect_different(denoiser(x_t, t, text), other, "another prediction from another x_t")


@law("denoiser")
def inputs_are_left_alone(denoiser: Subject) -> None:
    """x_t, t and the text are not written to."""
    given, kept = _inputs(), _inputs()
    denoiser(*given)
    expect_close(given[0], kept[0], "x_t after the call", 0)
    expect_close(given[1], kept[1], "t after the call", 0)
    expect_close(given[2].tokens, kept[2].tokens, "tokens after the call", 0)
    expect_close(given[2].pooled, kept[2].pooled, "the pooled vector after the call", 0)


@law("denoiser")
def replaced_text_is_null(denoiser: Subject) -> None:
    """Condition dropout is the null condition: replacing the text of some examples by null changes
    these to the prediction for null, and no others.
    """
    x_t, t, text = _inputs()
    null = _text("null", 1).map(lambda one: one.expand(3, *one.shape[1:]))
    rows = torch.tensor([True, False, True])
    dropped = denoiser(x_t, t, text.replaced(rows, null))
    wanted = denoiser(x_t, t, null).where(rows[:, None, None, None], denoiser(x_t, t, text))
    expect_close(dropped, wanted, "predictions with some texts replaced", ROUNDING)


@law("denoiser")
def precompute_changes_nothing(denoiser: Subject) -> None:
    """What `precompute` makes of a text serves, at all its times, between them, and over and over,
    as the text, with `at` and without.
    """
    x_t, _, text = _inputs()
    times = torch.tensor(TIMES[::-1], dtype=torch.float64)
    with torch.no_grad():
        condition = denoiser.module.precompute(text, times)
    for time in (*times, times[:2].mean(), times[0]):
        t = time.expand(3)
        wanted = denoiser(x_t, t, text)
        expect_close(denoiser(x_t, t, condition), wanted, "the precomputed prediction", ROUNDING)
        with torch.no_grad():
            here = denoiser.module.at(condition, time)
        expect_close(denoiser(x_t, t, here), wanted, "the prediction precomputed at t", ROUNDING)


@law("denoiser")
def gradients_reach_every_parameter(denoiser: Subject) -> None:
    """Every parameter that can be trained gets a finite gradient that is not 0."""
    module = copy.deepcopy(denoiser.module)
    x_t, t, text = _inputs()
    (module(x_t, t, text) * _noise("direction", *x_t.shape)).sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            if parameter.grad is None or not parameter.grad.any():
                raise Broken("a gradient for every parameter", f"none for {name}")
            expect_finite(parameter.grad, f"the gradient of {name}")


@law("denoiser")
def survives_saving(denoiser: Subject) -> None:
    """Its weights, saved as safetensors and loaded into a fresh module, predict the same."""
    again = reloaded(lambda: denoiser.settings.build(SPACE), denoiser.module)
    loaded = Subject(denoiser.settings, again)(*_inputs())
    expect_close(loaded, denoiser(*_inputs()), "the prediction of the loaded module", EXACT)


@law("denoiser")
def adapters_hold_what_is_inside(denoiser: Subject) -> None:
    """An adapter, where it is one: put around weights of the denoiser inside it predicts what that
    predicts; its state gives these weights back, beside files; and it trains none of them.
    """
    settings, module = denoiser.settings, denoiser.module
    if not isinstance(settings, Adapter):
        return
    expect(isinstance(module, AdapterModule), "an AdapterModule", type(module).__name__)
    inside = built(lambda: settings.base.build(SPACE), seed=1)
    around = built(lambda: settings.build(SPACE), seed=2)
    checkpoint.restore(around, around.around(inside.state_dict()), "the state put around")
    wanted = Subject(settings.base, inside)(*_inputs())
    expect_close(Subject(settings, around)(*_inputs()), wanted, "the prediction at first", ROUNDING)
    weights, files = settings.parted(around.state_dict())
    checkpoint.restore(inside, weights, "the weights inside")
    expect_close(Subject(settings.base, inside)(*_inputs()), wanted, "that of the weights", EXACT)
    expect(bool(files), "the adapter as a file", "none")
    moved, held, own = (
        sum(parameter.numel() for parameter in some)
        for some in (around.trainable(), inside.parameters(), around.parameters())
    )
    expect(0 < moved <= own - held, f"at most {own - held} parameters to be trained", str(moved))


@law("denoiser")
def variants_are_as_named(denoiser: Subject) -> None:
    """Every one of `variants` predicts something of the right shape; any other is refused."""
    x_t, t, text = _inputs()
    for variant in sorted(denoiser.settings.variants):
        output = denoiser(x_t, t, text, variant)
        expect_equal(tuple(output.shape), tuple(x_t.shape), f"shape of variant {variant}")
        expect_finite(output, f"variant {variant}")
    try:
        denoiser(x_t, t, text, "no such variant")
    except ConfigError:
        return
    raise Broken("ConfigError for an unknown variant", "a prediction")


@law("denoiser")
def texts_are_held_against_each_other(denoiser: Subject) -> None:
    """With variant nag, where it is offered: another text that the prompt's is held against gives
    another prediction, also from what `precompute` made of both; against itself, or at scale 1, it
    is the plain prediction.
    """
    if "nag" not in denoiser.settings.variants:
        return
    x_t, t, text = _inputs()
    how = Against(scale=3.0, tau=2.5, alpha=0.5)
    plain, first, second = (
        denoiser(x_t, t, Opposed(text=text, against=other, how=how), "nag")
        for other in (text, _text("other"), _text("third"))
    )
    expect_close(plain, denoiser(x_t, t, text), "the prediction against itself", ROUNDING)
    expect_different(first, plain, "another prediction against another text")
    expect_different(second, first, "another prediction against a third text")
    opposed = Opposed(text=text, against=_text("other"), how=attrs.evolve(how, scale=1.0))
    expect_close(denoiser(x_t, t, opposed, "nag"), plain, "the prediction at scale 1", ROUNDING)
    opposed = attrs.evolve(opposed, how=how)
    for time, row in zip(t, range(3), strict=True):
        with torch.no_grad():
            condition = denoiser.module.precompute(opposed, t.sort(descending=True).values)
        found = denoiser(x_t, time.expand(3), condition, "nag")[row]
        expect_close(found, first[row], "the precomputed prediction", ROUNDING)
