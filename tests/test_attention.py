"""Guidance by perturbed networks and weaker models: formulas, costs, peers."""

import attrs
import pytest
import torch
from diffusers import (
    AutoGuidance,
    LayerSkipConfig,
    SmoothedEnergyGuidanceConfig,
)
from diffusers import PerturbedAttentionGuidance as PeerPAG
from diffusers import SkipLayerGuidance as PeerSLG
from diffusers import SmoothedEnergyGuidance as PeerSEG

from sfumato import Against, Branch, GuidanceStep, Guided, solve
from sfumato_guidance import ClassifierFreeGuidance
from sfumato_guidance.attention import (
    NormalizedAttentionGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from sfumato_guidance.weak import Autoguidance

STEP = GuidanceStep(t=0.5, alpha=0.6, sigma=0.8, index=3, steps=10, negatives=0)
PROMPT, NULL = Branch(text="prompt"), Branch(text="null")
WEAK = Branch(text="prompt", model="weak")
ATTENTION = [PerturbedAttentionGuidance, SmoothedEnergyGuidance, SkipLayerGuidance]
EVERY = [*ATTENTION, Autoguidance]


def images(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)


X_T, P, U, PERTURBED = (images(seed) for seed in range(4))


def perturbed(method):
    return Branch(text="prompt", variant=method.name)


def estimates(method):
    eps = {PROMPT: P, NULL: U, perturbed(method): PERTURBED, WEAK: PERTURBED}
    sizes = torch.tensor([0.6, 0.8], dtype=torch.float64)
    return {branch: solve("epsilon", value, X_T, *sizes) for branch, value in eps.items()}


def guide(method, guided=None):
    asked = {branch: estimates(method)[branch] for branch in method.branches(STEP)}
    return method.combine(asked, STEP, guided, None)[0]


def same(guided, eps):
    torch.testing.assert_close(guided.eps, eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(0.6 * guided.x0 + 0.8 * guided.eps, X_T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize(("s", "r"), [(4.0, 3.0), (1.0, 2.0), (7.5, 0.0), (0.0, 1.0)])
def test_attention_guidance_is_the_formula(kind, s, r):
    same(guide(kind(scale=s, perturbed_scale=r)), U + s * (P - U) + r * (P - PERTURBED))


@pytest.mark.parametrize("s", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_autoguidance_is_the_formula(s, parity):
    """D_w = w D_1 + (1 - w) D_0."""
    method, expected = Autoguidance(scale=s), s * P + (1 - s) * PERTURBED
    same(guide(method), expected)
    parity(method, "the formula", "eps, float64", guide(method).eps, expected)


@pytest.mark.parametrize("kind", ATTENTION)
def test_only_what_counts_is_asked_for(kind):
    method = kind()
    assert set(method.branches(STEP)) == {PROMPT, NULL, perturbed(method)}
    assert set(kind(scale=1.0).branches(STEP)) == {PROMPT, perturbed(method)}
    assert set(kind(perturbed_scale=0.0).branches(STEP)) == {PROMPT, NULL}
    assert set(kind(scale=1.0, perturbed_scale=0.0).branches(STEP)) == {PROMPT}


def test_nag_holds_the_prompt_against_each_negative_or_null():
    nag, how = NormalizedAttentionGuidance(scale=2.0), {"scale": 5.0, "tau": 2.5, "alpha": 0.5}

    def held(**other):
        return Branch(text="prompt", variant="nag", against=Against(**other, **how))

    negatives = [held(text="negative", index=index) for index in range(2)]
    assert nag.pulls(STEP) == {held(text="null"): 2.0}
    assert nag.pulls(attrs.evolve(STEP, negatives=2)) == dict.fromkeys(negatives, 1.0)
    assert set(nag.branches(STEP)) == {held(text="null"), NULL}
    assert set(attrs.evolve(nag, scale=1.0).branches(STEP)) == {held(text="null")}
    for off in ({"alpha": 0.0}, {"attention_scale": 1.0}):
        assert set(attrs.evolve(nag, **off).branches(STEP)) == {PROMPT, NULL}


def test_autoguidance_needs_no_null_and_at_one_no_weak_model():
    assert set(Autoguidance().branches(STEP)) == {PROMPT, WEAK}
    assert set(Autoguidance(scale=1.0).branches(STEP)) == {PROMPT}


@pytest.mark.parametrize("kind", EVERY)
def test_in_a_chain_it_adds_what_it_adds_to_the_prompt(kind):
    before = Guided(images(7), images(8))
    alone, chained = guide(kind()), guide(kind(), before)
    torch.testing.assert_close(chained.eps - before.eps, alone.eps - P)
    torch.testing.assert_close(chained.x0 - before.x0, alone.x0 - estimates(kind())[PROMPT].x0)


@pytest.mark.parametrize("kind", ATTENTION)
def test_after_cfg_in_a_chain_it_is_both(kind):
    cfg = guide(ClassifierFreeGuidance(scale=5.0))
    same(
        guide(kind(scale=1.0, perturbed_scale=2.0), cfg),
        guide(kind(scale=5.0, perturbed_scale=2.0)).eps,
    )


LAYERS = LayerSkipConfig(indices=[0], fqn="mid", skip_attention=False, skip_attention_scores=True, skip_ff=False)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "peer"),
    [
        (
            PerturbedAttentionGuidance,
            lambda s, r: PeerPAG(s, r, perturbed_guidance_config=LAYERS),
        ),
        (SkipLayerGuidance, lambda s, r: PeerSLG(s, r, skip_layer_guidance_layers=[0])),
        (
            SmoothedEnergyGuidance,
            lambda s, r: PeerSEG(
                s, r, seg_guidance_config=SmoothedEnergyGuidanceConfig(indices=[0], fqn="mid")
            ),
        ),
    ],
    ids=["pag", "slg", "seg"],
)
def test_attention_guidance_is_that_of_diffusers(kind, peer, parity):
    expected = peer(4.5, 2.5).forward(P, U, PERTURBED).pred
    method = kind(scale=4.5, perturbed_scale=2.5)
    same(guide(method), expected)
    parity(method, "diffusers", "eps, float64", guide(method).eps, expected)


def test_without_cfg_diffusers_counts_the_perturbed_scale_from_one():
    """There r = 1 is off where cfg is, and r = 0 where it is not; ours is r (P - P') in both."""
    theirs = PeerPAG(1.0, 2.5, perturbed_guidance_config=LAYERS).forward(P, None, PERTURBED).pred
    same(guide(PerturbedAttentionGuidance(scale=1.0, perturbed_scale=1.5)), theirs)


def test_autoguidance_is_that_of_diffusers(parity):
    method = Autoguidance(scale=2.5)
    peer = AutoGuidance(2.5, auto_guidance_config=LAYERS, dropout=None)
    expected = peer.forward(P, PERTURBED).pred
    same(guide(method), expected)
    parity(method, "diffusers", "eps, float64", guide(method).eps, expected)
