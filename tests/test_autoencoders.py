import attrs
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file

from sfumato import ConfigError, Pipeline, train
from sfumato_autoencoders import KL, Patches, Pixels, Tiny

SMALL = KL(widths=(8, 16, 16), groups=4)
SMALL_TINY = Tiny(width=8, blocks=(1, 2, 2))


def pictures(batch=2, height=16, width=24):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, height, width, generator=generator) * 2 - 1


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def opened(settings, peer, folder):
    """Our module with the weights of the folder that diffusers writes of its own."""
    peer.save_pretrained(folder)
    module = settings.build().eval().requires_grad_(False)
    module.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return module


def test_pixels_are_their_own_latents(parity):
    pixels = Pixels()
    module = pixels.build()
    images = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))

    assert torch.equal(module.encode(images), images)
    parity(pixels, "the identity", "latents, float32", module.encode(images), images)
    assert torch.equal(module.decode(images), images)
    assert (pixels.channels, pixels.factor) == (3, 1)
    assert not module.state_dict()


def test_patches_hold_the_pixels_of_their_square(parity):
    patches = Patches(side=2)
    module = patches.build()
    images = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    latents = module.encode(images)

    assert latents.shape == (2, patches.channels, 4 // patches.factor, 6 // patches.factor)
    assert torch.equal(latents[1, :4, 1, 2], images[1, 0, 2:4, 4:6].flatten())
    assert torch.equal(module.decode(latents), images)
    parity(patches, "the identity", "decoded latents, float32", module.decode(latents), images)
    assert not module.state_dict()


def kl_peer(kl):
    """diffusers' autoencoder of the same settings."""
    levels = len(kl.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=kl.widths,
        layers_per_block=kl.layers,
        latent_channels=kl.channels,
        norm_num_groups=kl.groups,
        use_quant_conv=kl.quant_conv,
        use_post_quant_conv=kl.quant_conv,
        scaling_factor=kl.scaling,
        shift_factor=kl.shift,
    ).eval()


@pytest.mark.parametrize(
    "kl",
    [
        SMALL,
        KL(widths=(8, 12, 16, 16), groups=4, layers=1, scaling=0.13025),
        KL(widths=(8, 16), groups=4, channels=16, quant_conv=False, scaling=1.5305, shift=0.0609),
    ],
    ids=["sd", "sdxl", "sd3"],
)
@torch.no_grad()
def test_kl_opens_the_weights_of_diffusers_and_gives_its_output(kl, tmp_path, parity):
    torch.manual_seed(0)
    peer = kl_peer(kl)
    module = opened(kl, peer, tmp_path)
    images = pictures()

    mode = peer.encode(images).latent_dist.mode()
    latents = (mode - peer.config.shift_factor) * peer.config.scaling_factor
    assert latents.shape == (2, kl.channels, 16 // kl.factor, 24 // kl.factor)
    assert parity(kl, "diffusers", "latents, float32", module.encode(images), latents) < 1e-5

    sharp = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    wanted = peer.decode(sharp / kl.scaling + peer.config.shift_factor).sample
    assert parity(kl, "diffusers", "pictures, float32", module.decode(sharp), wanted) < 1e-5


def test_kl_is_that_of_stable_diffusion_by_default():
    with torch.device("meta"):
        module = KL().build()

    assert parameters(module) == 83_653_863
    assert (KL().channels, KL().factor) == (4, 8)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError) as error:
        KL(widths=(64, 100)).build()

    assert str(error.value) == (
        "kl.groups: 32 groups do not divide 100 channels; change kl.groups or kl.widths"
    )


@pytest.mark.parametrize("settings", [SMALL, SMALL_TINY], ids=["kl", "tiny"])
@torch.no_grad()
def test_slices_hold_so_many_pixels_and_change_nothing(settings):
    module = settings.build().eval().double()
    whole = module.encode(images := pictures(5).double())
    decoded = module.decode(whole)
    seen = []
    for half in (module.encoder, module.decoder):
        half.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))

    for pixels, sizes in ((2 * 16 * 24, [2, 2, 1]), (2 * 16 * 24 - 1, [1] * 5), (1, [1] * 5)):
        module.options = attrs.evolve(settings, slice_pixels=pixels)
        torch.testing.assert_close(module.encode(images), whole, rtol=0, atol=1e-12)
        torch.testing.assert_close(module.decode(whole), decoded, rtol=0, atol=1e-12)
        assert seen == 2 * sizes
        seen.clear()


@pytest.mark.parametrize("settings", [SMALL, SMALL_TINY], ids=["kl", "tiny"])
@torch.no_grad()
def test_weights_of_half_width_give_pictures_of_the_width_that_came(settings):
    torch.manual_seed(0)
    module = settings.build().eval()
    decoded = module.decode(latents := module.encode(images := pictures()))

    for dtype, apart in ((torch.float16, 0.02), (torch.bfloat16, 0.2)):
        module.to(dtype)
        assert module.encode(images).dtype == module.decode(latents).dtype == torch.float32
        torch.testing.assert_close(module.decode(latents), decoded, rtol=0, atol=apart)
        assert module.decode(latents.to(dtype)).dtype == dtype


@torch.no_grad()
def test_activations_that_float16_cannot_hold_do_no_harm():
    torch.manual_seed(0)
    module = SMALL.build().eval()
    module.decoder.conv_in.weight *= 1e5
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    decoded = module.decode(latents)

    module.half()

    assert not module.decoder(latents.half() / SMALL.scaling).isfinite().any()
    torch.testing.assert_close(module.decode(latents), decoded, rtol=0, atol=0.02)


def tiny_peer(tiny):
    """diffusers' autoencoder of the same settings."""
    widths = (tiny.width,) * len(tiny.blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=tiny.blocks,
        num_decoder_blocks=tiny.blocks[::-1],
        latent_channels=tiny.channels,
    ).eval()


@pytest.mark.parametrize("tiny", [Tiny(), SMALL_TINY, Tiny(width=8, channels=16)])
@torch.no_grad()
def test_tiny_opens_the_weights_of_diffusers_and_gives_its_output(tiny, tmp_path, parity):
    torch.manual_seed(0)
    peer = tiny_peer(tiny)
    module = opened(tiny, peer, tmp_path)
    images = pictures()

    latents = peer.encode(images).latents
    assert latents.shape == (2, tiny.channels, 16 // tiny.factor, 24 // tiny.factor)
    assert parity(tiny, "diffusers", "latents, float32", module.encode(images), latents) < 1e-5

    loud = 4 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    wanted = peer.decode(loud).sample
    assert parity(tiny, "diffusers", "pictures, float32", module.decode(loud), wanted) < 1e-5


def test_tiny_is_taesd_by_default():
    assert parameters(Tiny().build()) == parameters(AutoencoderTiny()) == 2_445_063


SLOT = "autoencoder={use: kl, widths: [8, 8, 8], groups: 4, layers: 1, scaling: 2}"


def test_a_denoiser_learns_in_the_latents_of_kl_and_its_steps_are_previewed(registry, tmp_path):
    changes = [SLOT, "stages.denoiser.steps=2", "evaluation={metrics: []}", "stages.denoiser.ema=0"]
    run = tmp_path / "run"
    for step in train(registry.experiment("small", changes), run):
        assert step.loss > 0
    pipeline = Pipeline.load(run, registry=registry)
    preview = SMALL_TINY.build().eval()

    *_, last = pipeline.sample_steps(["a red circle", "a blue square"], steps=2)
    drawn = pipeline.sample(["a red circle", "a blue square"], steps=2)

    assert last.x.shape == (2, 4, 4, 4)
    with torch.no_grad():
        assert torch.equal(pipeline.autoencoder.decode(last.x).clamp(-1, 1), drawn)
        assert preview.decode(last.x0).shape == drawn.shape == (2, 3, 16, 16)

    sliced = Pipeline.load(run, ["autoencoder.slice_pixels=1"], registry=registry)
    again = sliced.sample(["a red circle", "a blue square"], steps=2)
    torch.testing.assert_close(again, drawn, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError) as error:
        Pipeline.load(run, ["autoencoder=tiny"], registry=registry)
    assert str(error.value) == (
        "autoencoder: the weights were trained with 'kl' and do not go with 'tiny'; "
        "leave it as it is, or train again"
    )
