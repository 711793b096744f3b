"""Networks of diffusers as denoisers: beside their own call, beside our UNet, trained, and refused."""

import sys

import pytest
import torch

from sfumato import ConfigError, Pipeline, Space, TextEmbedding, train
from sfumato.testing import conformance
from sfumato_bridges import DiffusersModel
from sfumato_schedules import LinearBeta
from sfumato_unet import UNet

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers on numpy 2

SPACE = Space(
    channels=4, height=8, width=12, text_width=12, pooled_width=10, schedule=LinearBeta(), factor=8
)
UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
PIXART = {**SMALL, "cross_attention_dim": 16}
NETWORKS = {
    "AuraFlowTransformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "caption_projection_dim": 16,
    },
    "Lumina2Transformer2DModel": {
        "hidden_size": 24,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "axes_dim_rope": [4, 4, 4],
        "axes_lens": [32, 32, 32],
    },
    "PRXTransformer2DModel": {"hidden_size": 24, "num_heads": 2, "depth": 1, "axes_dim": [6, 6]},
    "PixArtTransformer2DModel": PIXART,
    "SanaTransformer2DModel": {
        **PIXART,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
    },
    "UNet2DConditionModel": UNET,
}


def inputs(batch=3):
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:batch, None]
    text = TextEmbedding(
        tokens=torch.randn(batch, 5, 12, generator=generator),
        mask=mask,
        pooled=torch.randn(batch, 10, generator=generator),
    )
    x_t = torch.randn(batch, 4, 8, 12, generator=generator)
    return x_t, torch.tensor([0.001, 0.341, 1.0], dtype=torch.float64)[:batch], text


def built(**options):
    torch.manual_seed(0)
    module = DiffusersModel(**options).build(SPACE).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return module


TIMESTEPS = torch.tensor([0, 340, 999])  # of the times of `inputs`, on a table of 1000


@torch.no_grad()
def test_a_unet_is_itself_and_ours(parity):
    module, (x_t, t, text) = built(model="UNet2DConditionModel", config=UNET, mask=False), inputs()
    expected = module.network(x_t, TIMESTEPS, text.tokens).sample
    found = module(x_t, t, text)
    settings = DiffusersModel(model="UNet2DConditionModel", config=UNET)
    parity(settings, "diffusers", "UNet2DConditionModel, output, float32", found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    ours = (
        UNet(channels=(16, 32), attention=(False, True), heads=(2,), groups=4).build(SPACE).eval()
    )
    ours.load_state_dict(module.network.state_dict(), strict=True)
    torch.testing.assert_close(ours(x_t, t, text), found, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mask", [True, False])
def test_a_transformer_is_itself(mask, parity):
    model = "PixArtTransformer2DModel"
    module, (x_t, t, text) = built(model=model, config=PIXART, mask=mask), inputs()
    options = {"encoder_attention_mask": text.mask} if mask else {}
    expected = module.network(x_t, text.tokens, TIMESTEPS, **options).sample
    other = module.network(
        x_t, text.tokens, TIMESTEPS, encoder_attention_mask=None if mask else text.mask
    ).sample
    found = module(x_t, t, text)
    settings = DiffusersModel(model=model, config=PIXART)
    parity(settings, "diffusers", f"{model}, output, float32", found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert float((found - other).abs().max()) > 1e-4


@torch.no_grad()
def test_the_learned_variance_is_left():
    model = "PixArtTransformer2DModel"
    module, (x_t, t, text) = built(model=model, config=PIXART, learned_sigma=True), inputs()
    whole = module.network(x_t, text.tokens, TIMESTEPS, encoder_attention_mask=text.mask).sample
    assert whole.shape == (3, 8, 8, 12)
    torch.testing.assert_close(module(x_t, t, text), whole[:, :4])


@torch.no_grad()
def test_the_pooled_vector_and_sdxl_s_sizes():
    x_t, t, text = inputs()
    config = {**UNET, "class_embed_type": "projection"}
    module = built(model="UNet2DConditionModel", config=config, mask=False)
    expected = module.network(x_t, TIMESTEPS, text.tokens, class_labels=text.pooled).sample
    torch.testing.assert_close(module(x_t, t, text), expected, rtol=1e-5, atol=1e-6)

    config = {**UNET, "addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    module = built(model="UNet2DConditionModel", config=config, mask=False)
    ids = torch.tensor([64, 96, 0, 0, 64, 96]).expand(3, 6)
    added = {"text_embeds": text.pooled, "time_ids": ids}
    expected = module.network(x_t, TIMESTEPS, text.tokens, added_cond_kwargs=added).sample
    torch.testing.assert_close(module(x_t, t, text), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", sorted(NETWORKS))
def test_keeps_the_laws_of_denoisers(model):
    conformance.check(DiffusersModel(model=model, config=NETWORKS[model]), draws=0)


def test_the_page_names_these():
    from small import ROOT

    page = (ROOT / "docs" / "bridges.md").read_text()
    assert [name for name in NETWORKS if f"`{name}`" not in page] == []


def test_a_patch_is_what_sizes_must_be_multiples_of():
    sizes = {
        model: DiffusersModel(model=model, config=config).multiple
        for model, config in NETWORKS.items()
    }
    assert sizes["PixArtTransformer2DModel"] == 2
    assert sizes["UNet2DConditionModel"] == 1
    assert DiffusersModel(model="PixArtTransformer2DModel", config={"patch_size": 4}).multiple == 4


def test_a_transformer_trains_and_draws(registry, tmp_path):
    """By name alone; sampled with a scheduler of diffusers too."""
    config = (
        "{num_attention_heads: 2, attention_head_dim: 8, num_layers: 1, cross_attention_dim: 16}"
    )
    experiment = registry.experiment(
        "small",
        [
            f"denoiser={{use: diffusers_model, model: PixArtTransformer2DModel, config: {config}}}",
            "sampler={use: diffusers_scheduler, scheduler: DPMSolverMultistepScheduler,"
            " options: {solver_order: 3, lower_order_final: true}}",
            "evaluation.metrics=[]",
            "stages.denoiser.learning_rate=1e-2",
            "stages.denoiser.steps=12",
        ],
    )
    losses = [step.loss for step in train(experiment, tmp_path / "run") if step.stage == "denoiser"]
    assert min(losses[6:]) < losses[0]
    pipeline = Pipeline.load(tmp_path / "run")
    assert type(pipeline.denoiser.network).__name__ == "PixArtTransformer2DModel"
    pictures = pipeline.sample(["a red circle", "a blue square"], steps=4, seed=0)
    assert pictures.shape == (2, 3, 16, 16)
    again = Pipeline.load(tmp_path / "run", ["sampler.options.solver_order=1"])
    assert not torch.equal(again.sample(["a red circle", "a blue square"], steps=4), pictures)
    with pytest.raises(ConfigError, match="do not go with"):
        Pipeline.load(tmp_path / "run", ["denoiser.config.num_layers=2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "DiTTransformer2DModel"},
         "denoiser diffusers_model: DiTTransformer2DModel is conditioned on classes, not on text; "
         "use one whose forward takes encoder_hidden_states, such as PixArtTransformer2DModel"),
        ({"model": "UNet2DModel"},
         "denoiser diffusers_model: UNet2DModel is conditioned on classes, not on text; "
         "use one whose forward takes encoder_hidden_states, such as PixArtTransformer2DModel"),
        ({"model": "CogView4Transformer2DModel"},
         "denoiser diffusers_model: CogView4Transformer2DModel wants original_size, target_size, crop_coords, "
         "which is not there"),
        ({"model": "Transformer2DModel"},
         "denoiser diffusers_model: Transformer2DModel is a part of networks, which hears no time"),
        ({"model": "StableDiffusionPipeline"},
         f"denoiser diffusers_model: diffusers {diffusers.__version__} has no ModelMixin 'StableDiffusionPipeline'"),
        ({"model": "models.UNet2DConditionModel"},
         f"denoiser diffusers_model: diffusers {diffusers.__version__} has no ModelMixin 'models.UNet2DConditionModel'"),
        ({"model": "UNet2DConditionModel", "config": {"in_channels": 9}},
         "denoiser diffusers_model, config: 'in_channels' follows from the pictures, the autoencoder, the text "
         "encoder and `learned_sigma`; leave it out"),
        ({"model": "UNet2DConditionModel", "config": {"cross_attention_dim": 768}},
         "denoiser diffusers_model, config: 'cross_attention_dim' follows from the pictures, the autoencoder, the "
         "text encoder and `learned_sigma`; leave it out"),
        ({"model": "PixArtTransformer2DModel", "config": {"num_layer": 1}},
         "denoiser diffusers_model, config: unknown option 'num_layer'; did you mean 'num_layers'?"),
        ({"model": "PRXTransformer2DModel", "learned_sigma": True},
         "denoiser diffusers_model: PRXTransformer2DModel has as many channels out as in"),
    ],
    ids=lambda value: value["model"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_refused_says_why(options, message):
    with pytest.raises(ConfigError) as error:
        DiffusersModel(**options).build(SPACE)
    assert str(error.value) == message


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    settings = DiffusersModel(model="UNet2DConditionModel", config=UNET)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError) as error:
        settings.build(SPACE)
    assert str(error.value) == 'diffusers is not installed; pip install "sfumato[diffusers]"'


@torch.no_grad()
@pytest.mark.parametrize("model", ["PixArtTransformer2DModel", "UNet2DConditionModel"])
def test_works_in_bfloat16(model):
    module, (x_t, t, text) = built(model=model, config=NETWORKS[model]), inputs()
    exact = module(x_t, t, text)
    rounded = module.bfloat16()(x_t.bfloat16(), t, text.map(lambda x: x.bfloat16()))
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("PixArtTransformer2DModel", {**SMALL, "cross_attention_dim": 24}),
        ("UNet2DConditionModel", {**UNET, "norm_num_groups": 5}),
        ("FluxTransformer2DModel", {"num_layers": 1, "axes_dims_rope": [2, 2, 4], "num_attention_heads": 2}),
    ],
)  # fmt: skip
def test_what_does_not_run_is_found_before_a_weight_is_made(model, config, monkeypatch):
    monkeypatch.setattr(
        torch.nn.init,
        "kaiming_uniform_",
        lambda w, *_, **__: w if w.is_meta else pytest.fail("made"),
    )
    with pytest.raises(ConfigError, match=f"{model} does not run on 4 x 8 x 12 with this config: "):
        DiffusersModel(model=model, config=config).build(SPACE)
