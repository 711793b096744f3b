"""Linear guidance: which branches are asked for, and the laws of their combination."""

import pytest
import torch

from sfumato import Branch, GuidanceStep, Prediction, solve, target
from sfumato_guidance import ClassifierFreeGuidance, NegativePrompt, NoGuidance

ALPHA, SIGMA = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)


def step(negatives=0):
    return GuidanceStep(t=0.5, alpha=0.6, sigma=0.8, index=3, steps=10, negatives=negatives)


PROMPT, NULL = Branch(text="prompt"), Branch(text="null")


def negative(index):
    return Branch(text="negative", index=index)


def images(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)


X_T = images(0)
EPS = {PROMPT: images(1), NULL: images(2), negative(0): images(3), negative(1): images(4)}


def guide(method, negatives=0, eps=EPS):
    """The guided estimate, from the branches that the method asks for."""
    predictions = {
        branch: solve("epsilon", eps[branch], X_T, ALPHA, SIGMA)
        for branch in method.branches(step(negatives))
    }
    guided, memory = method.combine(predictions, step(negatives), None, None)
    assert memory is None
    return guided


def asked(method, negatives=0):
    return set(method.branches(step(negatives)))


def same(guided, eps):
    torch.testing.assert_close(guided.eps, eps, rtol=0, atol=1e-13)
    torch.testing.assert_close(ALPHA * guided.x0 + SIGMA * guided.eps, X_T, rtol=0, atol=1e-13)


def test_none_is_the_prompt_branch(parity):
    assert asked(NoGuidance()) == asked(NoGuidance(), 2) == {PROMPT}
    parity(
        NoGuidance(), "the prediction itself", "eps, float64", guide(NoGuidance()).eps, EPS[PROMPT]
    )
    assert guide(NoGuidance()).eps.equal(EPS[PROMPT])


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.3, 4.0, 7.5])
def test_cfg_is_the_formula(scale, parity):
    u, p = EPS[NULL], EPS[PROMPT]
    same(guide(ClassifierFreeGuidance(scale=scale)), u + scale * (p - u))
    found = guide(ClassifierFreeGuidance(scale=scale)).eps
    parity(
        ClassifierFreeGuidance(), "the paper's formula", "eps, float64", found, u + scale * (p - u)
    )
    w = scale - 1
    same(guide(ClassifierFreeGuidance(scale=scale)), (1 + w) * p - w * u)


def test_cfg_asks_only_for_what_counts():
    assert asked(ClassifierFreeGuidance()) == {PROMPT, NULL}
    assert asked(ClassifierFreeGuidance(scale=1.0)) == {PROMPT}
    assert asked(ClassifierFreeGuidance(scale=0.0)) == {NULL}
    assert guide(ClassifierFreeGuidance(scale=1.0)).x0.equal(guide(NoGuidance()).x0)


def test_defaults():
    assert ClassifierFreeGuidance().scale == NegativePrompt().positive_scale == 4.0
    assert NegativePrompt().negative_scale == 2.0
    assert NegativePrompt().uses_negatives
    assert not ClassifierFreeGuidance().uses_negatives
    assert not NoGuidance().uses_negatives


def test_the_convention_of_the_paper_stands_in_the_record():
    assert ClassifierFreeGuidance(scale=7.5).w == 6.5
    assert NegativePrompt(positive_scale=3.0).w == 2.0
    assert NoGuidance().w is None


@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_negative_prompt_is_the_formula(negatives, parity):
    u, p = EPS[NULL], EPS[PROMPT]
    away = sum(EPS[negative(i)] - u for i in range(negatives))
    method = NegativePrompt(positive_scale=5.0, negative_scale=1.5)
    assert asked(method, negatives) == {PROMPT, NULL, *map(negative, range(negatives))}
    expected = u + 5 * (p - u) - 1.5 * away
    parity(method, "the formula", "eps, float64", guide(method, negatives).eps, expected)
    same(guide(method, negatives), u + 5 * (p - u) - 1.5 * away)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_negative_prompt_without_negative_part_is_cfg(scale):
    cfg = ClassifierFreeGuidance(scale=scale)
    without = NegativePrompt(positive_scale=scale)
    switched_off = NegativePrompt(positive_scale=scale, negative_scale=0.0)
    assert asked(without) == asked(switched_off, 2) == asked(cfg)
    assert guide(without).eps.equal(guide(cfg).eps)
    assert guide(switched_off, 2).eps.equal(guide(cfg).eps)


@pytest.mark.parametrize("negative_scale", [0.5, 2.0, 3.0])
def test_a_null_negative_is_cfg_for_every_negative_scale(negative_scale):
    method = NegativePrompt(positive_scale=4.0, negative_scale=negative_scale)
    null = {**EPS, negative(0): EPS[NULL], negative(1): EPS[NULL]}
    same(guide(method, 2, null), guide(ClassifierFreeGuidance(scale=4.0)).eps)


def test_the_prompt_as_negative_is_cfg_of_the_difference():
    method = NegativePrompt(positive_scale=4.0, negative_scale=1.5)
    same(
        guide(method, 1, {**EPS, negative(0): EPS[PROMPT]}),
        guide(ClassifierFreeGuidance(scale=2.5)).eps,
    )


@pytest.mark.parametrize("positive_scale", [1.3, 2.2, 4.0, 7.5])
def test_customary_negative_prompt_needs_no_null_branch(positive_scale):
    method = NegativePrompt(
        positive_scale=positive_scale, negative_scale=round(positive_scale - 1, 1)
    )
    assert asked(method, 1) == {PROMPT, negative(0)}
    n, p = EPS[negative(0)], EPS[PROMPT]
    same(guide(method, 1), n + positive_scale * (p - n))


METHODS = [NoGuidance(), ClassifierFreeGuidance(), NegativePrompt()]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_examples_do_not_see_each_other(method):
    order = torch.tensor([2, 0, 3, 1])
    whole = {b: Prediction(EPS[b] + 1, EPS[b]) for b in method.branches(step(2))}
    permuted = {b: Prediction(p.x0[order], p.eps[order]) for b, p in whole.items()}
    one = method.combine(whole, step(2), None, None)[0]
    other = method.combine(permuted, step(2), None, None)[0]
    assert other.x0.equal(one.x0[order])
    assert other.eps.equal(one.eps[order])


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_guiding_any_prediction_type_is_the_same(method, kind):
    """Guidance of what the network says, turned into x0 and eps, is guidance of x0 and eps."""
    outputs = {}
    for branch in method.branches(step(2)):
        x0, eps = solve("epsilon", EPS[branch], X_T, ALPHA, SIGMA).x0, EPS[branch]
        output = target(kind, x0, eps, ALPHA, SIGMA)
        outputs[branch] = Prediction(output, output)
    output = method.combine(outputs, step(2), None, None)[0].x0
    solved = solve(kind, output, X_T, ALPHA, SIGMA)
    guided = guide(method, 2)
    torch.testing.assert_close(guided.x0, solved.x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(guided.eps, solved.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_dtype_is_kept(method):
    predictions = {
        b: Prediction(EPS[b].bfloat16(), EPS[b].bfloat16()) for b in method.branches(step(1))
    }
    guided, _ = method.combine(predictions, step(1), None, None)
    assert guided.x0.dtype == guided.eps.dtype == torch.bfloat16


def test_scales_out_of_bounds():
    with pytest.raises(ValueError, match=r"^'scale' must be >= 0\.0: -1\.0$"):
        ClassifierFreeGuidance(scale=-1.0)
    with pytest.raises(ValueError, match=r"^'negative_scale' must be >= 0\.0: -2\.0$"):
        NegativePrompt(negative_scale=-2.0)
