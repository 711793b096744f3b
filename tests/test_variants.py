"""The UNet's perturbed forms: what changes, what does not, and what diffusers makes of them."""

import math

import attrs
import pytest
import torch
from diffusers import LayerSkipConfig, SmoothedEnergyGuidanceConfig
from diffusers.hooks import apply_layer_skip
from diffusers.hooks import smoothed_energy_guidance_utils as peer_seg

from sfumato import Against, ConfigError, Opposed
from sfumato.compatibility import differences
from sfumato_guidance.attention import NormalizedAttentionGuidance
from sfumato_preconditioning import EDM
from sfumato_unet import UNet
from sfumato_unet.transformer import Context
from sfumato_unet.variants import blurred, gaussian, held_against
from test_unet import awake, noise, peer, space, text, times

UNET = UNet(channels=(16, 32), attention=(False, True), depth=(2,), heads=(2,), groups=4)
MIDDLE = "mid_block.attentions.0.transformer_blocks"
VARIANTS = ["pag", "seg", "slg"]  # nag is told of another text
X, T = noise(3, 16, 12), times(100, 400, 900)


def inputs(dtype=torch.float64):
    return X.to(dtype), T, text(3).map(lambda value: value.to(dtype))


@pytest.fixture(scope="module")
def module():
    return awake(UNET).double()


def said(module, variant=None, given=None):
    with torch.no_grad():
        return module(*(given or inputs()), variant)


def softmax_map(queries, keys):
    """A = softmax(Q K^T / sqrt(d)), (B, heads, N, N)."""
    return (queries @ keys.mT / math.sqrt(queries.shape[-1])).softmax(-1)


def by_hand(block, x, tokens, change_map=lambda a: a, change_queries=lambda q: q):
    """A transformer block written out, with its self-attention map or queries changed."""

    def heads(value):
        return value.unflatten(-1, (block.attn1.heads, -1)).transpose(1, 2)

    def attention(layer, pixels, context, queries, change):
        keys, values = heads(layer.to_k(context)), heads(layer.to_v(context))
        found = change(softmax_map(heads(queries), keys)) @ values
        return layer.to_out(found.transpose(1, 2).flatten(2))

    pixels = block.norm1(x)
    queries = change_queries(block.attn1.to_q(pixels))
    x = x + attention(block.attn1, pixels, pixels, queries, change_map)
    pixels = block.norm2(x)
    x = x + attention(block.attn2, pixels, tokens, block.attn2.to_q(pixels), lambda a: a)
    return x + block.ff(block.norm3(x))


BY_HAND = {
    None: lambda block, x, tokens: by_hand(block, x, tokens),
    "pag": lambda block, x, tokens: by_hand(
        block, x, tokens, change_map=lambda a: torch.eye(a.shape[-1]).expand_as(a).to(a)
    ),
    "seg": lambda block, x, tokens: by_hand(
        block, x, tokens, change_queries=lambda q: q.mean(1, keepdim=True).expand_as(q)
    ),
    "slg": lambda block, x, tokens: x,
}


@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_a_block_is_what_is_written_by_hand(module, variant):
    block = module.get_submodule(f"{MIDDLE}.1")
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 12, 32, generator=generator, dtype=torch.float64)
    tokens = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    form = module.forms[variant].get(block.index)
    with torch.no_grad():
        expected = BY_HAND[variant](block, x, tokens)
        output = block(x, Context(tokens, {block.index: form} if form else {}, time=()), (4, 3))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


def test_variants_differ_from_the_plain_network_and_from_each_other(module):
    outputs = [said(module, variant) for variant in (None, *VARIANTS)]
    assert all(
        (a - b).flatten(1).abs().amax(1).min() > 1e-4
        for i, a in enumerate(outputs)
        for b in outputs[:i]
    )
    assert said(module).equal(outputs[0])  # nothing of them is left behind


@pytest.mark.parametrize("variant", VARIANTS)
def test_precomputed_texts_serve_variants(module, variant):
    x, t, words = inputs()
    condition = module.precompute(words, t)
    precomputed = said(module, variant, (x, t, condition))
    torch.testing.assert_close(precomputed, said(module, variant), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_per_example(module, variant):
    x, t, words = inputs()
    together = said(module, variant)
    for row in range(3):
        one = slice(row, row + 1)
        alone = (x[one], t[one], words.map(lambda value, one=one: value[one]))
        torch.testing.assert_close(said(module, variant, alone), together[one], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("perturbed", "count"), [(("mid_block",), 2), ((f"{MIDDLE}.0", "up_blocks.0"), 5)]
)
def test_only_the_named_blocks_are_changed(perturbed, count):
    """Where the attention map is the identity, no queries are asked for."""
    module = awake(attrs.evolve(UNET, perturbed=perturbed)).double()
    asked = []
    for name, layer in module.named_modules():
        if name.endswith("attn1.to_q"):
            layer.register_forward_hook(lambda *_, name=name: asked.append(name))
    said(module)
    plain = set(asked)
    asked.clear()
    said(module, "pag")
    silent = plain - set(asked)
    assert len(silent) == count
    assert all(any(name.startswith(f"{part}.") for part in perturbed) for name in silent)


def test_a_name_without_attention_is_refused():
    with pytest.raises(ConfigError) as error:
        UNet(channels=(8, 8), attention=(False,), heads=(2,), groups=4, perturbed=("mid",)).build(
            space()
        )
    assert str(error.value) == (
        "unet.perturbed: nothing in 'mid' attends; "
        "blocks that do: mid_block.attentions.0.transformer_blocks.0"
    )


def test_what_variants_do_may_change_after_training():
    changed = attrs.evolve(UNET, perturbed=("up_blocks",), blur=2.0)
    assert list(differences(UNET, changed)) == []
    assert list(differences(EDM(denoiser=UNET), EDM(denoiser=changed))) == []
    other = attrs.evolve(changed, layers=2)
    assert list(differences(UNET, other)) == [("layers", 1, 2)]
    assert list(differences(EDM(denoiser=UNET), EDM(denoiser=other))) == [("denoiser.layers", 1, 2)]


# One text against another.


def heads(attention, value):
    return value.unflatten(-1, (attention.heads, -1)).transpose(1, 2)


def attended(attention, pixels, tokens):
    keys, values = (heads(attention, layer(tokens)) for layer in (attention.to_k, attention.to_v))
    found = softmax_map(heads(attention, attention.to_q(pixels)), keys) @ values
    return found.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("how", [
    Against(scale=5.0, tau=2.5, alpha=0.5),
    Against(scale=5.0, tau=1.0, alpha=1.0),
    Against(scale=1.2, tau=9.0, alpha=0.25),
], ids=["some are shortened", "all", "none"])  # fmt: skip
def test_nag_in_a_block_is_the_formula_of_its_authors(module, how, parity):
    """In their order: extrapolate, scale down to tau by the ratio of L1 norms, blend."""
    block = module.get_submodule(f"{MIDDLE}.1")
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 12, 32, generator=generator, dtype=torch.float64)
    own, other = (torch.randn(2, n, 12, generator=generator, dtype=torch.float64) for n in (5, 7))
    with torch.no_grad():
        pixels = block.norm1(x)
        y = x + block.attn1.to_out(attended(block.attn1, pixels, pixels))
        pixels = block.norm2(y)
        positive, negative = (attended(block.attn2, pixels, tokens) for tokens in (own, other))
        moved = positive * how.scale - negative * (how.scale - 1)
        ratio = moved.norm(p=1, dim=-1, keepdim=True) / positive.norm(p=1, dim=-1, keepdim=True)
        moved = moved * torch.minimum(ratio, torch.full_like(ratio, how.tau)) / ratio
        y = y + block.attn2.to_out(moved * how.alpha + positive * (1 - how.alpha))
        expected = y + block.ff(block.norm3(y))
        heard = [block.attn2.keys_values(tokens) for tokens in (own, other)]
        output = held_against(block, x, own, (4, 3), *heard, how)
    what = "a block of the unet, float64"
    parity(NormalizedAttentionGuidance(), "the authors' formula", what, output, expected)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    parity(
        NormalizedAttentionGuidance(), "the authors' formula", "a transformer block, float64",
        output, expected,
    )  # fmt: skip


def test_nag_acts_in_every_block_and_per_example(module):
    x, t, words = inputs()
    other = text(3, seed=9, length=7).map(lambda value: value.double())
    opposed = Opposed(text=words, against=other, how=Against(scale=5.0, tau=2.5, alpha=0.5))
    together = said(module, "nag", (x, t, opposed))
    condition = module.precompute(opposed, t)
    assert set(condition.opposing) == set(range(len(condition.keys_values)))
    for variant, direct in (("nag", together), (None, said(module))):
        precomputed = said(module, variant, (x, t, condition))
        torch.testing.assert_close(precomputed, direct, rtol=0, atol=1e-12)
    one = slice(1, 2)
    alone = attrs.evolve(
        opposed,
        text=words.map(lambda value: value[one]),
        against=other.map(lambda value: value[one]),
    )
    torch.testing.assert_close(
        said(module, "nag", (x[one], t[one], alone)), together[one], rtol=0, atol=1e-12
    )


# The blur.


@pytest.mark.parametrize(("length", "sigma"), [(1, 2.0), (2, 0.5), (7, 1.0), (8, 0.3), (5, 40.0)])
def test_a_blur_keeps_what_is_constant_and_what_is_symmetric(length, sigma):
    matrix = gaussian(length, sigma)
    torch.testing.assert_close(matrix.sum(1), torch.ones(length).double())
    assert (matrix >= 0).all()
    assert matrix.flip(0, 1).allclose(matrix)


def test_a_blur_goes_from_nothing_to_the_mean():
    tokens = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0)).double()
    assert blurred(tokens, (4, 3), 0.01).allclose(tokens)
    mean = blurred(tokens, (4, 3), None)
    assert mean.equal(tokens.mean(1, keepdim=True).expand_as(tokens))
    distances = [(blurred(tokens, (4, 3), s) - mean).norm() for s in (0.01, 0.5, 1.0, 2.0)]
    assert distances == sorted(distances, reverse=True)
    wide = blurred(tokens, (4, 3), 50.0)  # every place is then the same mean
    assert (wide - wide[:, :1]).abs().max() < 1e-3


@pytest.mark.parametrize("sigma", [0.4, 0.75, 1.0, 1.3])
def test_the_blur_of_diffusers_is_ours_once_its_two_cases_are_swapped(sigma):
    """Its condition is inverted: it blurs where sigma is above the threshold for infinity."""
    tokens = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(1)).double()
    kernel = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    theirs = peer_seg._gaussian_blur_2d(tokens.clone(), kernel, sigma, sigma_threshold_inf=0.0)
    torch.testing.assert_close(blurred(tokens, (8, 8), sigma), theirs, rtol=0, atol=1e-6)
    as_called = peer_seg._gaussian_blur_2d(tokens.clone(), kernel, sigma, 9999.9)
    torch.testing.assert_close(as_called, blurred(tokens, (8, 8), None), rtol=0, atol=1e-12)


# Whole networks beside diffusers.


@pytest.fixture
def pair():
    """diffusers' network and ours, of one set of weights."""
    torch.manual_seed(0)
    theirs = peer(UNET, in_channels=3, out_channels=3, cross_attention_dim=12)
    ours = UNET.build(space(height=16, width=16)).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def expect_theirs(theirs, ours, variant, parity):
    x, words = noise(3, 16, 16), text(3)
    with torch.no_grad():
        expected = theirs(x, torch.tensor([99, 399, 899]), words.tokens).sample
        output = ours(x, times(100, 400, 900), words, variant)
        plain = ours(x, times(100, 400, 900), words)
    assert (output - expected).norm() < 1e-5 * expected.norm()
    assert (output - plain).norm() > 1e-3 * plain.norm()
    parity(UNET, "diffusers", f"output of variant {variant}, float32", output, expected)


def test_pag_is_that_of_diffusers(pair, parity):
    apply_layer_skip(
        pair[0],
        LayerSkipConfig(
            indices=[0, 1], fqn=MIDDLE, skip_attention=False, skip_attention_scores=True,
            skip_ff=False,
        ),
    )  # fmt: skip
    expect_theirs(*pair, "pag", parity)


def test_slg_is_that_of_diffusers(pair, parity):
    apply_layer_skip(pair[0], LayerSkipConfig(indices=[0, 1], fqn=MIDDLE))
    expect_theirs(*pair, "slg", parity)


@pytest.mark.parametrize(("blur", "their_sigma"), [(None, 1.0), (0.7, 0.7)])
def test_seg_is_that_of_diffusers(pair, monkeypatch, blur, their_sigma, parity):
    """For a finite sigma its inverted condition is put right."""
    theirs, ours = pair
    if blur is not None:
        right = peer_seg._gaussian_blur_2d
        monkeypatch.setattr(
            peer_seg,
            "_gaussian_blur_2d",
            lambda query, kernel, sigma, _: right(query, kernel, sigma, 0),
        )
    config = SmoothedEnergyGuidanceConfig(indices=[0, 1], fqn=MIDDLE)
    peer_seg._apply_smoothed_energy_guidance_hook(theirs, config, their_sigma)
    again = attrs.evolve(UNET, blur=blur).build(space(height=16, width=16)).eval()
    again.load_state_dict(ours.state_dict())
    expect_theirs(theirs, again, "seg", parity)
