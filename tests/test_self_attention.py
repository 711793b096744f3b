"""The UNet whose pixels attend to each other alone: DDPM's and ADM's, beside diffusers' UNet2DModel."""

import math

import attrs
import pytest
import torch
from diffusers import UNet2DModel

from sfumato import ConfigError, Pipeline, exchange, train
from sfumato.testing import conformance
from sfumato_diffusers import Diffusers
from sfumato_unet import UNet
from sfumato_unet.transformer import Context
from test_unet import awake, noise, space, text, times

UNET = UNet(
    channels=(16, 32, 32),
    layers=2,
    attention=(False, True, True),
    attention_block="self_attention",
    heads=(2, 4, 4),
    groups=8,
    pooled=True,
)
DDPM = UNet(
    channels=(128, 256, 256, 256),
    layers=2,
    attention=(False, True, False, False),
    attention_block="self_attention",
    heads=(1,),
)
"""Of Ho et al. (2020) for CIFAR-10."""


def peer(unet, **options):
    """diffusers' network of the same settings, drawn anew; heads of one width at all levels."""
    down = {True: "AttnDownBlock2D", False: "DownBlock2D"}
    up = {True: "AttnUpBlock2D", False: "UpBlock2D"}
    levels = unet.levels()
    (width,) = {level.channels // level.heads for level in levels if level.heads > 1} or {None}
    return UNet2DModel(
        block_out_channels=unet.channels,
        layers_per_block=unet.layers,
        down_block_types=tuple(down[level.attention] for level in levels),
        up_block_types=tuple(up[level.attention] for level in reversed(levels)),
        attention_head_dim=width,
        norm_num_groups=unet.groups,
        **options,
    ).eval()


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "no text"])
@pytest.mark.parametrize("heads", [(2, 4, 4), (1,)], ids=["heads", "one head"])
def test_weights_of_diffusers_load_and_give_its_output(heads, pooled, parity):
    """Its only embedding of a vector with weights is that of a class number's sinusoids."""
    torch.manual_seed(0)
    unet = attrs.evolve(UNET, heads=heads, pooled=pooled)
    theirs = peer(unet, class_embed_type="timestep" if pooled else None)
    width = {"pooled_width": unet.channels[0]} if pooled else {"pooled_width": 0, "text_width": 0}
    ours = unet.build(space(height=8, width=12, **width)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, classes = noise(3, 8, 12), torch.tensor([3, 7, 1])
    words = attrs.evolve(text(3), pooled=theirs.time_proj(classes))

    with torch.no_grad():
        said = {"class_labels": classes} if pooled else {}
        expected = theirs(x, torch.tensor([0, 340, 999]), **said).sample
        output = ours(x, times(1, 341, 1000), words)
        folded = ours(x, times(1, 341, 1000), ours.precompute(words, times(1, 341, 1000)))

    parity(unet, "diffusers", "UNet2DModel with its weights, float32", output, expected)
    assert (output - expected).norm() < 1e-5 * expected.norm()
    assert (folded - expected).norm() < 1e-5 * expected.norm()


def test_ddpm_has_its_number_of_parameters():
    with torch.device("meta"):
        module = DDPM.build(space(height=32, width=32, text_width=0, pooled_width=0))
    assert sum(parameter.numel() for parameter in module.parameters()) == 35_746_307


@pytest.mark.parametrize(
    "unet", [UNET, attrs.evolve(UNET, pooled=False, size_width=4)], ids=["pooled", "sizes"]
)
def test_it_keeps_the_laws_of_denoisers(unet):
    conformance.check(unet, draws=0)


CHANGED = {
    None: (lambda a: a, lambda q: q),
    "pag": (lambda a: torch.eye(a.shape[-1]).expand_as(a).to(a), lambda q: q),
    "seg": (lambda a: a, lambda q: q.mean(1, keepdim=True).expand_as(q)),
}


@pytest.mark.parametrize("variant", [None, "pag", "seg", "slg"])
def test_a_block_and_its_variants_are_what_is_written_by_hand(variant):
    module = awake(UNET).double()
    block = module.mid_block.attentions[0]
    x = torch.randn(2, 32, 4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    form = module.forms[variant].get(block.index)
    with torch.no_grad():
        output = block(x, Context((), {block.index: form} if form else {}, time=()))
        expected = x
        if variant != "slg":
            change_map, change_queries = CHANGED[variant]
            seen = block.group_norm(x).flatten(2).mT
            inward = (change_queries(block.to_q(seen)), block.to_k(seen), block.to_v(seen))
            queries, keys, values = (one.unflatten(-1, (4, 8)).transpose(1, 2) for one in inward)
            attention = change_map((queries @ keys.mT / math.sqrt(8)).softmax(-1))
            found = block.to_out((attention @ values).transpose(1, 2).flatten(2))
            expected = x + found.mT.unflatten(2, (4, 3))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"depth": (1, 2, 2)},
            "unet.depth: is of transformers, and attention_block: self_attention has none; "
            "leave it out, or use attention_block: transformer",
        ),
        (
            {"linear_projection": True},
            "unet.linear_projection: is of transformers, and attention_block: self_attention has "
            "none; leave it out, or use attention_block: transformer",
        ),
        (
            {"pooled": False},
            "unet.pooled: the text has no way into a network of self-attention alone; "
            "set it, or use attention_block: transformer",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_without_effect_and_texts_that_nothing_hears_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        attrs.evolve(UNET, **changes).build(space())
    assert str(error.value) == message


@pytest.fixture(scope="module")
def options():
    return ["denoiser.attention_block=self_attention", "guidance=negative"]


def test_a_network_that_hears_nothing_is_refused_before_anything_is_written(
    registry, options, tmp_path
):
    with pytest.raises(ConfigError, match=r"^unet\.pooled: the text has no way into"):
        list(train(registry.experiment("small", options), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_it_is_trained_through_the_pooled_text_and_hears_prompts_and_negatives(
    registry, options, tmp_path
):
    experiment = registry.experiment("small", [*options, "denoiser.pooled=true"])
    steps = list(train(experiment, tmp_path / "run"))
    assert all(math.isfinite(step.loss) for step in steps)
    pipeline = Pipeline.load(tmp_path / "run")
    drawn = [
        pipeline.sample([prompt], negative=[negative], steps=2)
        for prompt, negative in (
            ("a red circle", "a square"), ("a blue square", "a square"), ("a red circle", "a circle"),
        )
    ]  # fmt: skip
    assert not drawn[0].allclose(drawn[1], atol=1e-4)
    assert not drawn[0].allclose(drawn[2], atol=1e-4)
    with pytest.raises(ConfigError) as error:
        Pipeline.load(tmp_path / "run", ["guidance={use: nag}"]).sample(
            ["a circle"], negative=["a square"]
        )
    assert str(error.value) == (
        "the guidance 'nag' needs a denoiser with variant 'nag'; "
        "the denoiser 'unet' offers: pag, seg, slg"
    )


def test_pipelines_of_diffusers_cannot_hold_it(sd_runs, tmp_path):
    pipeline = Pipeline.load(sd_runs["sd1"])
    snapshot = exchange.Snapshot(
        settings=exchange.stated(attrs.evolve(pipeline.settings, denoiser=UNET)),
        states={"text_encoder": pipeline.text_encoder.state_dict()},
        files=pipeline.text_encoder.files,
    )
    with pytest.raises(ConfigError) as error:
        Diffusers().write(snapshot, tmp_path)
    assert str(error.value) == (
        "denoiser.attention_block: is self_attention, which a folder of diffusers cannot say; "
        "it says transformer"
    )
    assert not list(tmp_path.iterdir())
