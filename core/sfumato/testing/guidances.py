"""Laws of guidance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch

from sfumato import settings
from sfumato.errors import ConfigError
from sfumato.records import Branch, GuidanceStep, Guided, Prediction
from sfumato.testing.laws import expect, expect_close, expect_equal, expect_finite, law

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.interfaces import Guidance

Predictions = Mapping[Branch, Prediction]
SHAPE = (4, 3, 4, 4)


def _steps(guidance: Guidance) -> Iterator[GuidanceStep]:
    """Early, in the middle and late, with as many negatives as it may meet."""
    counts = (0, 1, 2) if guidance.uses_negatives else (0,)
    for (index, t), negatives in itertools.product(enumerate((0.95, 0.5, 0.05)), counts):
        alpha, sigma = (1 - t**2) ** 0.5, t
        yield GuidanceStep(t=t, alpha=alpha, sigma=sigma, index=index, steps=3, negatives=negatives)


def _predictions(guidance: Guidance, step: GuidanceStep, seed: int = 0) -> dict[Branch, Prediction]:
    """Random estimates, float64, that all explain the same x_t."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(SHAPE, generator=generator, dtype=torch.float64)

    x_t = normal()
    x0 = {branch: normal() for branch in sorted(guidance.branches(step), key=repr)}
    return {b: Prediction(x, (x_t - step.alpha * x) / step.sigma) for b, x in x0.items()}


def _mapped(predictions: Predictions, function: Callable[[Tensor], Tensor]) -> Predictions:
    return {b: Prediction(function(p.x0), function(p.eps)) for b, p in predictions.items()}


def _expect_same(got: Prediction, wanted: Prediction, of: str, tolerance: float = 1e-9) -> None:
    expect_close(got.x0, wanted.x0, f"x0 {of}", tolerance)
    expect_close(got.eps, wanted.eps, f"eps {of}", tolerance)


def _trajectory(guidance: Guidance, change: Callable[[Tensor], Tensor]) -> list[Guided]:
    """Its results along the steps, memory passed on, with every prediction changed first."""
    memory: Any = None
    results = []
    for seed, step in enumerate(_steps(guidance)):
        predictions = _mapped(_predictions(guidance, step, seed), change)
        guided, memory = guidance.combine(predictions, step, None, memory)
        results.append(guided)
    return results


@law("guidance")
def asks_for_what_there_is(guidance: Guidance) -> None:
    """At every step it asks for at least one branch, each once, and for negatives only as many as
    there are and if it says that it uses them; asked again, for the same.
    """
    for step in _steps(guidance):
        asked = list(guidance.branches(step))
        expect(len(asked) > 0, "at least one branch", f"none at t = {step.t}")
        expect_equal(len(set(asked)), len(asked), "number of different branches")
        for branch in asked:
            expect(isinstance(branch, Branch), "a Branch", repr(branch))
            if branch.text == "negative":
                most = step.negatives if guidance.uses_negatives else 0
                expect(branch.index < most, f"an index below {most}", f"{branch.index}")
        expect_equal(set(guidance.branches(step)), set(asked), "branches, asked again,")


@law("guidance")
def uses_the_negatives_that_it_claims(guidance: Guidance) -> None:
    """Where it says that negatives reach it, another negative gives another result, unless its
    options switch them off at that step.
    """
    for step in _steps(guidance):
        predictions = _predictions(guidance, step)
        negatives = [branch for branch in predictions if branch.text == "negative"]
        for branch in negatives:
            other = {**predictions, branch: Prediction(*(_shifted(predictions[branch])))}
            before, _ = guidance.combine(predictions, step, None, None)
            after, _ = guidance.combine(other, step, None, None)
            moved = float((after.eps - before.eps).abs().max() + (after.x0 - before.x0).abs().max())
            expect(moved > 0, "a result that the negative changes", f"the same at t = {step.t}")


def _shifted(prediction: Prediction) -> tuple[Tensor, Tensor]:
    return prediction.x0 + 0.5, prediction.eps.flip(-1) + 0.25


@law("guidance")
def finite_and_shaped(guidance: Guidance) -> None:
    """x0 and eps are finite, of the shape and dtype of the predictions."""
    for dtype in (torch.float32, torch.float64):
        for guided in _trajectory(guidance, lambda value, dtype=dtype: value.to(dtype)):  # type: ignore[misc]
            for value in (guided.x0, guided.eps):
                expect_equal((tuple(value.shape), value.dtype), (SHAPE, dtype), "x0 and eps of")
                expect_finite(value, "x0 and eps")


@law("guidance")
def per_example(guidance: Guidance) -> None:
    """What it does to an example does not depend on the others, along a whole trajectory."""
    order = torch.tensor([2, 0, 3, 1])
    plain = _trajectory(guidance, lambda value: value)
    permuted = _trajectory(guidance, lambda value: value[order])
    alone = _trajectory(guidance, lambda value: value[:1])
    for whole, other, one in zip(plain, permuted, alone, strict=True):
        _expect_same(other, Guided(whole.x0[order], whole.eps[order]), "of a permuted batch")
        _expect_same(one, Guided(whole.x0[:1], whole.eps[:1]), "of an example alone")


@law("guidance")
def pure(guidance: Guidance) -> None:
    """It writes into nothing that it is given and remembers nothing but `memory`."""
    first = _trajectory(guidance, lambda value: value)
    again = _trajectory(guidance, lambda value: value)
    for one, other in zip(first, again, strict=True):
        _expect_same(other, one, "the second time", 0)
    for step in _steps(guidance):
        predictions = _predictions(guidance, step)
        copies = _mapped(predictions, torch.clone)
        guidance.combine(predictions, step, None, None)
        for branch, prediction in predictions.items():
            _expect_same(prediction, copies[branch], "of a branch afterwards", 0)


@law("guidance")
def others_do_not_matter(guidance: Guidance) -> None:
    """Predictions that it did not ask for, as of another link of a chain, change nothing."""
    stranger = Branch(text="prompt", variant="another link's")
    for step in _steps(guidance):
        predictions = _predictions(guidance, step)
        extra = {stranger: Prediction(torch.ones(SHAPE).double(), torch.ones(SHAPE).double())}
        plain, _ = guidance.combine(predictions, step, None, None)
        crowded, _ = guidance.combine({**predictions, **extra}, step, None, None)
        _expect_same(crowded, plain, "beside a stranger's prediction", 0)


@law("guidance")
def equal_branches_stay(guidance: Guidance) -> None:
    """Where all branches say the same, so does the result, unless it says that it works on the
    result itself.
    """
    if not guidance.keeps_agreement:
        return
    for step in _steps(guidance):
        predictions = _predictions(guidance, step)
        one = next(iter(predictions.values()))
        guided, _ = guidance.combine(dict.fromkeys(predictions, one), step, None, None)
        _expect_same(guided, one, "of equal branches")


@law("guidance")
def explains_x_t_where_claimed(guidance: Guidance) -> None:
    """Where it claims that x0 and eps explain x_t, they do, along a whole trajectory."""
    if not guidance.explains_x_t:
        return
    for seed, (step, guided) in enumerate(
        zip(_steps(guidance), _trajectory(guidance, lambda value: value), strict=True)
    ):
        one = next(iter(_predictions(guidance, step, seed).values()))
        x_t, explained = (step.alpha * p.x0 + step.sigma * p.eps for p in (one, guided))
        expect_close(explained, x_t, "alpha x0 + sigma eps and x_t", 1e-9)


@law("guidance")
def the_head_of_a_chain_changes_the_prompt(guidance: Guidance) -> None:
    """What it makes of the prompt's prediction, handed to it by a chain, is what it makes at the
    head.
    """
    for step in _steps(guidance):
        predictions = _predictions(guidance, step)
        prompt = predictions.setdefault(Branch(), next(iter(predictions.values())))
        head, _ = guidance.combine(predictions, step, None, None)
        link, _ = guidance.combine(predictions, step, Guided(prompt.x0, prompt.eps), None)
        _expect_same(link, head, "after the prompt's prediction")


@law("guidance")
def a_link_builds_on_what_came_before(guidance: Guidance) -> None:
    """Handed another estimate by a chain, it makes another of it, unless it says that it works on
    the result itself.
    """
    moved = 0.0
    for step in _steps(guidance) if guidance.keeps_agreement else ():
        predictions = _predictions(guidance, step)
        one = predictions.setdefault(Branch(), next(iter(predictions.values())))
        before = Guided(one.x0 + 0.5, one.eps - 0.5 * step.alpha / step.sigma)
        head, _ = guidance.combine(predictions, step, None, None)
        link, _ = guidance.combine(predictions, step, before, None)
        moved = max(moved, float((link.x0 - head.x0).abs().max()))
    expect(moved > 0 or not guidance.keeps_agreement, "another x0 after another link", "the same")


@law("guidance")
def finite_without_signal(guidance: Guidance) -> None:
    """Where alpha is 0, so that eps is x_t and x0 may be anything, it is finite, or refused with a
    ConfigError.
    """
    for step in _steps(guidance):
        step = attrs.evolve(step, t=1.0, alpha=0.0, sigma=1.0)
        try:
            predictions = _predictions(guidance, step)
            guided, _ = guidance.combine(predictions, step, None, None)
        except ConfigError:
            continue
        expect_finite(guided.x0, "x0 where alpha is 0")
        expect_finite(guided.eps, "eps where alpha is 0")


@law("guidance")
def scale_one_is_off(guidance: Guidance) -> None:
    """At scale 1, where w = s - 1 is 0, the prompt's prediction passes unchanged if there are no
    negatives, unless it says that it works on the result itself.
    """
    for off in _switched_off(guidance):
        for step in _steps(off):
            if step.negatives:
                continue
            predictions = _predictions(off, step)
            expect(Branch() in predictions, "the prompt's branch", f"{list(predictions)}")
            guided, _ = off.combine(predictions, step, None, None)
            _expect_same(guided, predictions[Branch()], "at scale 1")


def _switched_off(guidance: Guidance) -> Iterator[Guidance]:
    """The same guidance with w = 0: the number that w moves with set to 1 or, where it is read as
    w, to 0.
    """
    cls: Any = type(guidance)
    numbers = [name for name, field in settings.fields(cls).items() if field.type is float]
    usable = guidance.w is not None and guidance.keeps_agreement
    for name, scale in itertools.product(numbers if usable else (), (0.0, 1.0)):
        try:
            off, on = (attrs.evolve(guidance, **{name: value}) for value in (scale, scale + 1))  # type: ignore[misc]
        except (ConfigError, ValueError):
            continue
        if off.w == 0 and on.w != 0:
            yield off


@law("guidance")
def linear_where_claimed(guidance: Guidance) -> None:
    """Where it claims to be linear: the result of a weighted sum of predictions is the weighted sum
    of the results, with the same weights on x0 as on eps.
    """
    if not guidance.linear:
        return
    for step in _steps(guidance):
        one, other = _predictions(guidance, step, 1), _predictions(guidance, step, 2)
        mixed = {
            b: Prediction(0.3 * one[b].x0 - 2 * other[b].x0, 0.3 * one[b].eps - 2 * other[b].eps)
            for b in one
        }
        (a, _), (b, _), (both, _) = (
            guidance.combine(each, step, None, None) for each in (one, other, mixed)
        )
        wanted = Guided(0.3 * a.x0 - 2 * b.x0, 0.3 * a.eps - 2 * b.eps)
        _expect_same(both, wanted, "of a weighted sum", 1e-8)
        same = {branch: Prediction(p.eps, p.eps) for branch, p in one.items()}
        guided, _ = guidance.combine(same, step, None, None)
        expect_close(guided.x0, guided.eps, "weights on x0 and eps", 1e-9)
