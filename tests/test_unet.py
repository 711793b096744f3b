import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from sfumato import ConfigError, Space, TextEmbedding
from sfumato_schedules import LinearBeta
from sfumato_unet import UNet
from sfumato_unet.network import sinusoids
from sfumato_unet.transformer import GroupNorm

SMALL = UNet(channels=(16, 32), attention=(False, True), heads=(2,), groups=4)


def space(channels=3, height=8, width=8, text_width=12, pooled_width=10, factor=1):
    return Space(
        factor=factor,
        channels=channels,
        height=height,
        width=width,
        text_width=text_width,
        pooled_width=pooled_width,
        schedule=LinearBeta(),
    )


def text(batch, seed=1, width=12, pooled=10, length=5):
    generator = torch.Generator().manual_seed(seed)
    return TextEmbedding(
        tokens=torch.randn(batch, length, width, generator=generator),
        mask=torch.ones(batch, length, dtype=torch.bool),
        pooled=torch.randn(batch, pooled, generator=generator),
    )


def noise(batch, height=8, width=8, seed=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def times(*steps):
    return torch.tensor(steps, dtype=torch.float64) / 1000


def awake(unet, seed=0):
    """The network of these settings with no parameter left at zero."""
    torch.manual_seed(seed)
    module = unet.build(space())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module.eval()


def peer(unet, **options):
    """diffusers' network of the same settings, without zeros."""
    down = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
    up = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}
    levels = unet.levels()
    return UNet2DConditionModel(
        block_out_channels=unet.channels,
        layers_per_block=unet.layers,
        down_block_types=tuple(down[level.attention] for level in levels),
        up_block_types=tuple(up[level.attention] for level in reversed(levels)),
        transformer_layers_per_block=tuple(level.depth for level in levels),
        attention_head_dim=tuple(level.heads for level in levels),
        norm_num_groups=unet.groups,
        use_linear_projection=unet.linear_projection,
        **options,
    ).eval()


SD1 = {"attention": (True, True, False), "layers": 2, "heads": (4,)}
SD2 = {**SD1, "heads": (1, 2, 4), "linear_projection": True}
SDXL = {"attention": (False, True, True), "depth": (1, 2, 3), "linear_projection": True}


@pytest.mark.parametrize(
    "options", [SD1, SD2, SDXL, {"pooled": True}], ids=["sd1", "sd2", "sdxl", "pooled"]
)
def test_weights_of_diffusers_load_and_give_its_output(options, parity):
    torch.manual_seed(0)
    unet = UNet(channels=(16, 32, 32), groups=8, **options)
    projection = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10}
    theirs = peer(
        unet,
        in_channels=3,
        out_channels=3,
        cross_attention_dim=12,
        **(projection if unet.pooled else {}),
    )
    ours = unet.build(space(height=8, width=12)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, words = noise(3, 8, 12), text(3)

    with torch.no_grad():
        expected = theirs(
            x,
            torch.tensor([0, 340, 999]),
            words.tokens,
            class_labels=words.pooled if unet.pooled else None,
        ).sample
        output = ours(x, times(1, 341, 1000), words)

    parity(unet, "diffusers", "output with its weights, float32", output, expected)
    assert (output - expected).norm() < 1e-5 * expected.norm()


def test_size_conditioning_is_that_of_diffusers(parity):
    torch.manual_seed(0)
    unet = UNet(channels=(16, 32, 32), groups=8, heads=(2, 4, 4), size_width=6, **SDXL)
    theirs = peer(
        unet,
        in_channels=3,
        out_channels=3,
        cross_attention_dim=12,
        addition_embed_type="text_time",
        addition_time_embed_dim=6,
        projection_class_embeddings_input_dim=10 + 6 * 6,
    )
    ours = unet.build(space(height=8, width=12, factor=8)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, words = noise(3, 8, 12), text(3)
    sizes = torch.tensor([[64, 96, 0, 0, 64, 96]]).expand(3, -1)

    def said_by_theirs(sizes):
        added = {"text_embeds": words.pooled, "time_ids": sizes}
        timestep = torch.tensor([0, 340, 999])
        return theirs(x, timestep, words.tokens, added_cond_kwargs=added).sample

    t = times(1, 341, 1000)
    with torch.no_grad():
        expected, other = said_by_theirs(sizes), said_by_theirs(sizes.flip(1))
        output = ours(x, t, words)
        precomputed = ours(x, t, ours.precompute(words, t))

    parity(unet, "diffusers", "output with its weights and sizes, float32", output, expected)
    assert (output - expected).norm() < 1e-5 * expected.norm()
    assert (other - expected).norm() > 1e-3 * expected.norm()
    assert torch.equal(precomputed, output)


def test_latents_of_another_size_than_the_network_tells_itself_are_refused():
    module = UNet(channels=(16, 32), heads=(2,), groups=4, size_width=4).build(space())
    with pytest.raises(ConfigError) as error:
        module(noise(1, 8, 16), times(1), text(1))
    assert str(error.value) == (
        "denoiser: the unet is built for latents of 8 x 8, and tells their size to itself, but "
        "these are 8 x 16; build it for the space of what is drawn (sampling.size)"
    )


@pytest.mark.parametrize(
    ("options", "width", "parameters"),
    [
        ({"attention": (True, True, True, False), "heads": (8,)}, 768, 859_520_964),
        (
            {
                "attention": (True, True, True, False),
                "heads": (5, 10, 20, 20),
                "linear_projection": True,
            },
            1024,
            865_910_724,
        ),
        (
            {
                "channels": (320, 640, 1280),
                "attention": (False, True, True),
                "depth": (1, 2, 10),
                "heads": (5, 10, 20),
                "linear_projection": True,
                "size_width": 256,
            },
            2048,
            2_567_463_684,
        ),
    ],
    ids=["sd1", "sd2", "sdxl"],
)
def test_stable_diffusion_has_its_number_of_parameters(options, width, parameters):
    unet = UNet(**{"channels": (320, 640, 1280, 1280), "layers": 2} | options)
    with torch.device("meta"):
        module = unet.build(
            space(channels=4, height=64, width=64, text_width=width, pooled_width=1280)
        )

    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def test_time_embedding_is_the_formula_in_float64():
    k, width = 998.25, 6
    frequencies = [10000 ** (-2 * i / width) for i in range(3)]
    expected = [math.cos(k * f) for f in frequencies] + [math.sin(k * f) for f in frequencies]

    output = sinusoids(torch.tensor([k], dtype=torch.float64), width)

    assert output[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("pooled", [False, True])
def test_precomputed_text_gives_the_same_output(pooled):
    module = awake(UNet(channels=(16, 32), depth=(2,), heads=(2,), groups=4, pooled=pooled))
    x, t, words = noise(2), times(100, 900), text(2)

    with torch.no_grad():
        direct = module(x, t, words)
        precomputed = module(x, t, module.precompute(words, t))

    torch.testing.assert_close(precomputed, direct)


@pytest.mark.parametrize("pooled", [False, True])
def test_times_of_the_grid_are_looked_up_and_others_computed(pooled):
    module = awake(UNet(channels=(16, 32), depth=(2,), heads=(2,), groups=4, pooled=pooled))
    x, grid, words = noise(2), times(900, 500, 100), text(2)
    with torch.no_grad():
        known = module.precompute(words, grid)
        between = grid[:2].mean()
        direct = {float(t): module(x, t.expand(2), words) for t in (*grid, between)}
        for t in (*grid, between):
            torch.testing.assert_close(
                module(x, t.expand(2), module.at(known, t)), direct[float(t)]
            )

        for parameter in module.time_embedding.parameters():
            parameter.zero_()
        for t in grid:
            torch.testing.assert_close(
                module(x, t.expand(2), module.at(known, t)), direct[float(t)]
            )
        blind = module(x, between.expand(2), module.at(known, between))
        assert not torch.allclose(blind, direct[float(between)])


def test_what_is_folded_follows_the_weights_in_place_and_is_no_state():
    module, x, t, words = awake(SMALL), noise(2), times(500, 500), text(2)
    names = set(module.state_dict())
    with torch.no_grad():
        module.precompute(words, t)
        addresses = {name: value.data_ptr() for name, value in module.named_buffers()}
        assert {name.rpartition(".")[0].rpartition(".")[2] for name in addresses} == {
            "joint",
            "kernel",
        }
        for parameter in module.parameters():
            parameter.mul_(1.5)
        known = module.precompute(words, t)

        torch.testing.assert_close(module(x, t, known), module(x, t, words))
    assert addresses == {name: value.data_ptr() for name, value in module.named_buffers()}
    assert set(module.state_dict()) == names
    SMALL.build(space()).load_state_dict(module.state_dict(), strict=True)


def test_what_is_folded_follows_an_optimiser_that_tells_nobody():
    module, x, t, words = awake(SMALL), noise(2), times(500, 500), text(2)
    optimizer = torch.optim.AdamW(module.parameters(), 0.05, fused=True)
    with torch.no_grad():
        module.precompute(words, t)
    module(x, t, words).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(module(x, t, module.precompute(words, t)), module(x, t, words))


def test_projections_that_are_no_plain_matrices_are_not_folded():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    module, x, t, words = awake(SMALL), noise(2), times(500, 500), text(2)
    attention = module.mid_block.attentions[0].transformer_blocks[0].attn1
    doubled = Doubled(32, 32, bias=False)
    doubled.load_state_dict(attention.to_v.state_dict())
    attention.to_v = doubled
    with torch.no_grad():
        known = module.precompute(words, t)
        assert attention.joint.value is None
        torch.testing.assert_close(module(x, t, known), module(x, t, words))


def test_group_norm_by_channel_is_group_norm_far_from_zero_too():
    generator = torch.Generator().manual_seed(0)
    norm = GroupNorm(4, 12)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    x = 300 + torch.randn(2, 12, 5, 6, generator=generator)
    offset = 10 * torch.randn(2, 12, generator=generator)
    shifted = (x + offset[:, :, None, None]).double()
    exact = torch.nn.functional.group_norm(shifted, 4, norm.weight.double(), norm.bias.double())

    with torch.no_grad():
        by_channel = norm.by_channel(x + offset[:, :, None, None])
        activated = norm(x, offset, silu=True)

    torch.testing.assert_close(by_channel.double(), exact, rtol=1e-3, atol=1e-3)
    silu = torch.nn.functional.silu(exact)
    torch.testing.assert_close(activated.double(), silu, rtol=1e-3, atol=1e-3)


def test_precomputed_text_does_not_read_the_weights_of_the_text_again():
    module = awake(SMALL)
    x, t = noise(2), times(100, 900)
    condition = module.precompute(text(2), t)
    with torch.no_grad():
        before = module(x, t, condition)
        for name, parameter in module.named_parameters():
            if "attn2.to_k" in name or "attn2.to_v" in name:
                parameter.zero_()

        assert torch.equal(module(x, t, condition), before)
        assert not torch.equal(module(x, t, text(2)), before)


def test_examples_do_not_know_their_neighbours():
    module, x, t, words = awake(SMALL), noise(3), times(1, 500, 1000), text(3)

    with torch.no_grad():
        together = module(x, t, words)
        alone = module(x[1:2], t[1:2], words.map(lambda tensor: tensor[1:2]))

    assert torch.allclose(together[1:2], alone, rtol=1e-5, atol=1e-6)


def test_gradients_reach_every_parameter():
    unet = UNet(channels=(16, 32), heads=(2,), groups=4, pooled=True, size_width=4)
    module = awake(unet)

    module(noise(2), times(10, 700), text(2)).square().sum().backward()

    dead = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("changed", ["x_t", "t", "tokens", "pooled"])
def test_every_input_changes_the_output(changed):
    module = awake(UNet(channels=(16, 32), heads=(2,), attention=(False,), groups=4, pooled=True))
    x, t, words, other = noise(2), times(400, 400), text(2), text(2, seed=3)
    inputs = {
        "x_t": (noise(2, seed=4), t, words),
        "t": (x, times(401, 401), words),
        "tokens": (x, t, TextEmbedding(tokens=other.tokens, mask=words.mask, pooled=words.pooled)),
        "pooled": (x, t, TextEmbedding(tokens=words.tokens, mask=words.mask, pooled=other.pooled)),
    }

    with torch.no_grad():
        difference = module(x, t, words) - module(*inputs[changed])

    assert (difference.flatten(1).abs().amax(dim=1) > 1e-5).all()


def test_an_untrained_network_says_zero():
    assert not SMALL.build(space())(noise(2), times(1, 1000), text(2)).any()


def test_weights_come_back_from_a_file(tmp_path):
    module, inputs = awake(SMALL), (noise(2), times(1, 1000), text(2))
    save_file(module.state_dict(), tmp_path / "unet.safetensors")
    again = SMALL.build(space()).eval()
    again.load_state_dict(load_file(tmp_path / "unet.safetensors"))

    with torch.no_grad():
        assert torch.equal(again(*inputs), module(*inputs))


def test_a_text_twice_is_the_text_once():
    """So texts of different lengths share a batch, each repeated up to a common one."""
    module, t, words = awake(SMALL).double(), times(400, 800), text(2).map(lambda x: x.double())
    longer = text(2, length=21).map(lambda x: x.double())
    repeated, other = TextEmbedding.aligned(words, longer)
    assert repeated.tokens.shape[1] == other.tokens.shape[1] > longer.tokens.shape[1]
    x = noise(2).double()

    with torch.no_grad():
        once = module(x, t, words)
        for condition in (repeated, module.precompute(repeated, t)):
            torch.testing.assert_close(module(x, t, condition), once, rtol=0, atol=1e-12)
        assert not torch.allclose(module(x, t, other), once, atol=1e-3)


def test_works_in_bfloat16():
    module, t, words = awake(SMALL), times(400, 800), text(2)

    with torch.no_grad():
        exact = module(noise(2), t, words)
        rounded = module.bfloat16()(noise(2).bfloat16(), t, words.map(lambda x: x.bfloat16()))

    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        (
            UNet(channels=(32, 48), attention=(False, True, True)),
            "unet.attention: 3 values for 2 levels; "
            "give one for all, or one for each of unet.channels",
        ),
        (
            UNet(channels=(64, 48)),
            "unet.groups: 32 groups do not divide 48 channels; change unet.groups or unet.channels",
        ),
        (
            UNet(channels=(64, 64), heads=(4, 5)),
            "unet.heads: 5 heads do not divide 64 channels; change unet.heads or unet.channels",
        ),
        (
            UNet(channels=(64, 32)),
            "unet.groups: 32 groups of one channel each lose the time; "
            "use fewer than the 32 channels of a level",
        ),
    ],
    ids=["levels", "groups", "heads", "time"],
)
def test_settings_that_do_not_fit_are_refused(unet, message):
    with pytest.raises(ConfigError) as error:
        unet.build(space())

    assert str(error.value) == message


def test_an_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match="no variant 'blurred'"):
        SMALL.build(space())(noise(1), times(1), text(1), variant="blurred")
