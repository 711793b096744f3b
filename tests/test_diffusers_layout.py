"""Folders of diffusers: the same pictures there and here, in and out, and what is refused."""

import functools
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from relative_error import relative
from sfumato import (
    CheckpointError,
    ConfigError,
    Pipeline,
    Space,
    document,
    export_run,
    import_run,
    settings,
)
from sfumato.cli import app
from sfumato.compatibility import check_training
from sfumato.experiment import Experiment
from sfumato.registry import Registry
from sfumato.runs import Run
from sfumato_diffusers import Diffusers, scheduler, scheduler_file, unet, vae
from sfumato_diffusers.options import Options
from sfumato_diffusers.scheduler import made

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

PROMPT, NEGATIVE = "a red circle on a hill", "blurry, grey"
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False, "steps_offset": 1}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-leading": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    "euler-trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m-heun": ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    "dpmpp_2m-trailing": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm-runge-kutta": ("PNDMScheduler", {"steps_offset": 1}),
    "ddim-zero-snr": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False},
    ),
}


def tokenizer_files(folder):
    """Every byte, at the end of a word and within one, and two merges."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>")]
    tokens = [*letters, *(f"{one}</w>" for one in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    return len(tokens)


def clip(folder, kind, **options):
    """A text encoder and its tokenizer."""
    import transformers

    size = tokenizer_files(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    config = transformers.CLIPTextConfig(
        vocab_size=size,
        intermediate_size=37,
        num_attention_heads=4,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
        **{"hidden_size": 32, "num_hidden_layers": 2, "projection_dim": 24, **options},
    )
    return getattr(transformers, kind)(config).eval(), tokenizer


def unet_of(family, width):
    """A UNet whose answers are as large as noise, so that pictures hang on them."""
    options = {"attention_head_dim": 4}
    if family != "sd1":
        options = {"attention_head_dim": (2, 4), "use_linear_projection": True}
    if family == "sdxl":
        options |= {
            "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 20 + 6 * 8,
        }
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        norm_num_groups=8,
        **options,
    )
    for name, weight in unet.state_dict().items():
        if name.endswith(("attn2.to_out.0.weight", "proj_out.weight")) or name == "conv_out.weight":
            weight.mul_(5)
    return unet


def save_pipeline(folder, family):
    """A Stable Diffusion of a few channels with random weights, saved by diffusers."""
    torch.manual_seed(len(family))
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        **({"scaling_factor": 0.13025} if family == "sdxl" else {}),
    )
    scheduler = diffusers.DDIMScheduler(
        **TABLE,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if family == "sd2" else "epsilon",
    )
    act = {"hidden_act": "quick_gelu" if family == "sd1" else "gelu"}
    encoder, tokenizer = clip(folder.with_name(f"{family}-tokenizer"), "CLIPTextModel", **act)
    parts = {"vae": vae, "text_encoder": encoder, "tokenizer": tokenizer, "scheduler": scheduler}
    if family == "sdxl":
        second, tokenizer_2 = clip(
            folder.with_name(f"{family}-tokenizer-2"),
            "CLIPTextModelWithProjection",
            hidden_size=40,
            num_hidden_layers=3,
            projection_dim=20,
        )
        tokenizer_2.pad_token = "!"
        parts |= {"text_encoder_2": second, "tokenizer_2": tokenizer_2, "unet": unet_of(family, 72)}
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=None)
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **parts,
            unet=unet_of(family, 32),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder of each family."""
    root = tmp_path_factory.mktemp("diffusers")
    return {family: save_pipeline(root / family, family) for family in ("sd1", "sd2", "sdxl")}


@pytest.fixture(scope="session")
def runs(folders, tmp_path_factory):
    """A run of each family."""
    root = tmp_path_factory.mktemp("imported")
    return {family: imported(folder, root / family) for family, folder in folders.items()}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of SD 1.x, to be changed."""
    return shutil.copytree(folders["sd1"], tmp_path / "sd")


def change(path, **values):
    """Other values in a JSON file; those that are ... are taken out."""
    stated = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: v for key, v in stated.items() if v is not ...}))


def scheduled(folder, name):
    """The folder with another scheduler."""
    kind, options = SCHEDULERS[name]
    path = folder / "scheduler" / "scheduler_config.json"
    prediction = json.loads(path.read_text())["prediction_type"]
    scheduler = getattr(diffusers, kind)(**{**TABLE, **options, "prediction_type": prediction})
    scheduler.save_pretrained(folder / "scheduler")
    change(folder / "model_index.json", scheduler=["diffusers", kind])
    return folder


@functools.cache
def registry_of():
    return Registry.load()


def imported(folder, out, name="sd"):
    return import_run(folder, out, name=name, catalogue=registry_of().catalogue).path


def theirs_of(folder):
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipeline = getattr(diffusers, name).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures(theirs, ours, negative, steps=20):
    """Of both, (2, 3, H, W) in [0, 1], from the same noise."""
    noise = torch.randn(2, *ours.latent_shape, generator=torch.Generator().manual_seed(4))
    prompts = [PROMPT, "a blue square"]
    their = theirs(
        prompt=prompts,
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=ours.settings.guidance.positive_scale,
        output_type="pt",
        **({"negative_prompt": [negative] * 2} if negative else {}),
    ).images
    # Theirs in sigma multiply the noise with the first sigma, or with hypot(sigma, 1), as ours all do.
    scale = float(theirs.scheduler.init_noise_sigma)
    if scale != 1:
        scale /= float(theirs.scheduler.sigmas[0] ** 2 + 1) ** 0.5
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*saturated")
        our = ours.sample(prompts, negative=negative, steps=steps, start=noise * scale)
    return their, (our + 1) / 2


SLOW = pytest.mark.slow
BY_NAME = [
    pytest.param(name, marks=() if name in ("ddim", "pndm", "euler", "dpmpp_2m") else SLOW)
    for name in SCHEDULERS
    if name != "ddim-zero-snr"  # which epsilon says nothing about
]
CASES = [
    *(pytest.param("sd1", *name.values, marks=name.marks) for name in BY_NAME),
    ("sd2", "ddim"),
    pytest.param("sd2", "euler", marks=SLOW),
    pytest.param("sd2", "dpmpp_2m", marks=SLOW),
    pytest.param("sd2", "ddim-zero-snr", marks=SLOW),
    ("sdxl", "euler"),
    pytest.param("sdxl", "ddim", marks=SLOW),
]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_picture_of_diffusers(folders, tmp_path, family, name, parity):
    """Both with and without a negative prompt; it changes the picture by more than we differ."""
    folder = scheduled(shutil.copytree(folders[family], tmp_path / "sd"), name)
    theirs, ours = theirs_of(folder), Pipeline.load(imported(folder, tmp_path / "run"))
    drawn = []
    for negative in (NEGATIVE, None):
        their, our = pictures(theirs, ours, negative)
        drawn.append(their)
        what = f"the picture of {family} after 20 steps, float32"
        parity(
            ours.settings.sampler, f"diffusers, {type(theirs.scheduler).__name__}", what, our, their
        )
        assert float((their - our).abs().max()) < 1e-4
    assert float((drawn[0] - drawn[1]).abs().max()) > 0.05


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_each_part_says_what_it_says_in_diffusers(folders, runs, family):
    theirs, ours = theirs_of(folders[family]), Pipeline.load(runs[family])
    hidden = theirs.encode_prompt(
        [PROMPT, ""], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    text = ours.encode([PROMPT, ""])
    assert relative(text.tokens, hidden[0]) < 1e-5
    added = {}
    if family == "sdxl":
        assert relative(text.pooled, hidden[2]) < 1e-5
        sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
        added = {"added_cond_kwargs": {"text_embeds": hidden[2], "time_ids": sizes}}
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        their = theirs.unet(x, torch.tensor([980, 21]), hidden[0], **added).sample
        our = ours.denoiser(x, torch.tensor([0.981, 0.022]).double(), text)
        assert relative(our, their) < 1e-5
        decoded = theirs.vae.decode(x / theirs.vae.config.scaling_factor).sample
        assert relative(ours.autoencoder.decode(x), decoded) < 1e-4


def test_what_the_record_of_an_imported_run_says(runs):
    record = json.loads((runs["sd2"] / "run.json").read_text())
    said = record["imported"]
    assert (record["origin"], record["status"]) == ("imported", "completed")
    assert said["prediction"] == "v"
    assert said["noise_schedule"] == {
        "use": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps": 1000,
    }  # fmt: skip
    assert (said["text_dropout"], said["null_condition"]) == ("unknown", "the empty prompt")
    assert set(said["sources"]) == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert record["parameters"]["denoiser"] > 1e5
    xl = json.loads((runs["sdxl"] / "run.json").read_text())
    assert xl["imported"]["null_condition"] == "zeros"


def exported(run, out, *overrides):
    export_run(run, out, layout="diffusers", overrides=overrides, registry=registry_of())
    return out


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_there_and_back_is_equal_to_the_bit(runs, tmp_path, family):
    first = exported(runs[family], tmp_path / "first")
    again = imported(first, tmp_path / "again")
    assert contents(again / "checkpoints") == contents(runs[family] / "checkpoints")
    assert (again / "settings.yaml").read_bytes() == (runs[family] / "settings.yaml").read_bytes()
    assert contents(exported(again, tmp_path / "second")) == contents(first)


@pytest.mark.parametrize(("family", "name"), [("sd1", "pndm"), ("sdxl", "euler")])
def test_what_is_exported_opens_in_diffusers_with_the_same_picture(folders, tmp_path, family, name):
    folder = scheduled(shutil.copytree(folders[family], tmp_path / "sd"), name)
    run = imported(folder, tmp_path / "run")
    before, after = theirs_of(folder), theirs_of(exported(run, tmp_path / "out"))
    assert type(after.scheduler) is type(before.scheduler)
    ours = Pipeline.load(run)
    assert torch.equal(
        pictures(after, ours, NEGATIVE, 3)[0], pictures(before, ours, NEGATIVE, 3)[0]
    )


@pytest.mark.parametrize("name", BY_NAME)
def test_every_scheduler_comes_back(folders, tmp_path, name):
    folder = scheduled(shutil.copytree(folders["sd1"], tmp_path / "sd"), name)
    written = scheduler_file.write(settings_of(folder), forced=True)
    kind, options = SCHEDULERS[name]
    assert written["_class_name"] == kind
    ours = scheduler.read(Options(written, "written"), forced=True)
    stated = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert ours == scheduler.read(Options(stated, "theirs"), forced=True)
    assert {**written, **options}.items() >= options.items()


def settings_of(folder):
    """Of a pipeline, with all options written out."""
    catalogue = registry_of().catalogue
    tree = document.node({"name": "sd", **Diffusers().read(folder).settings})
    return settings.plain(settings.structure(tree, Experiment, catalogue))


def test_the_command_line_imports_draws_and_exports(folder, tmp_path, monkeypatch):
    change(folder / "model_index.json", safety_checker=["stable_diffusion", "SafetyChecker"])
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines()

    first, second, third = command("import", folder, "--name", "tiny")
    assert first == "safety_checker is left out: it has no say in what is drawn"
    assert second.startswith(f"Imported {folder} (parameters: text_encoder ")
    assert second.endswith(" into runs/tiny")
    assert third.endswith(' sample runs/tiny "A PROMPT"')
    asked = ("--negative", NEGATIVE, "--steps", 3, "--count", 1)
    (picture,) = command("sample", "runs/tiny", PROMPT, *asked)
    assert (tmp_path / picture).is_file()
    grid = "time_grid={use: linspace, skip_last: true}"
    assert command("export", "runs/tiny", "out", "--set", "sampler=dpmpp_2m", "--set", grid) == [
        "out"
    ]
    stated = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert stated["_class_name"] == "DPMSolverMultistepScheduler"


def test_an_imported_run_learns_given_data_and_stages(runs):
    """Nothing else is missing: the loss, the times and the schedule are there."""
    tree = Run.open(runs["sd1"]).settings()
    registry = registry_of()
    stages = "stages={denoiser: {objective: denoising, steps: 1, batch: 1}}"
    ready = registry.override(tree, ["data={use: shapes, size: 16}", stages])
    check_training(registry.structure(ready, "sd"))
    with pytest.raises(ConfigError, match="captioned pictures are needed here"):
        check_training(registry.structure(registry.override(tree, [stages]), "sd"))


# The configurations with which the models were published


CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UNET_1 = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": [CROSS, CROSS, CROSS, PLAIN], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}  # fmt: skip
UNET_2 = {
    **UNET_1, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
    "dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False,
    "sample_size": 96, "upcast_attention": True, "use_linear_projection": True,
}  # fmt: skip
UNET_XL = {
    **UNET_2, "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "class_embed_type": None,
    "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "cross_attention_dim": 2048, "cross_attention_norm": None,
    "down_block_types": [PLAIN, CROSS, CROSS], "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None,
    "projection_class_embeddings_input_dim": 2816, "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False, "resnet_time_scale_shift": "default", "sample_size": 128,
    "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_dim": None,
    "time_embedding_type": "positional", "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
}  # fmt: skip
CLOCK_1 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **TABLE,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
CLOCK_2 = {**CLOCK_1, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
CLOCK_XL = {
    **CLOCK_1, "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear",
    "prediction_type": "epsilon", "sample_max_value": 1.0, "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}  # fmt: skip
SD_GRID = {"use": "leading", "final": "first", "offset": 1}


@pytest.mark.parametrize(
    ("config", "around", "count"),
    [
        (UNET_1, (4, 768, None), 859_520_964),
        (UNET_2, (4, 1024, None), 865_910_724),
        (UNET_XL, (4, 2048, 1280), 2_567_463_684),
    ],
    ids=["sd1", "sd2", "sdxl"],
)
def test_published_unets(config, around, count):
    options = Options(config, "config.json")
    options.take("sample_size", 64)
    component = made("denoiser", unet.read(options, *around))
    space = Space(
        channels=4, height=64, width=64, text_width=around[1], pooled_width=around[2] or 768,
        schedule=made("noise_schedule", {"use": "scaled_linear"}), factor=8,
    )  # fmt: skip
    with torch.device("meta"):
        module = component.build(space)
    assert sum(parameter.numel() for parameter in module.parameters()) == count


@pytest.mark.parametrize(
    ("config", "forced", "sampler", "grid", "prediction"),
    [
        (CLOCK_1, True, {"use": "pndm", "start": "improved_euler"}, SD_GRID, "epsilon"),
        (CLOCK_2, True, {"use": "ddim"}, SD_GRID, "v"),
        (CLOCK_XL, False, {"use": "euler"}, {"use": "leading", "offset": 1}, "epsilon"),
    ],
    ids=["sd1", "sd2", "sdxl"],
)
def test_published_schedulers(config, forced, sampler, grid, prediction):
    found = scheduler.read(Options(config, "scheduler_config.json"), forced=forced)
    assert (found.sampler, found.time_grid, found.prediction) == (sampler, grid, prediction)
    assert found.noise_schedule == {
        "use": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps": 1000,
    }  # fmt: skip


def test_the_published_autoencoder():
    levels = 4
    config = {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.20.0.dev0",
        "_name_or_path": "../sdxl-vae/", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * levels, "force_upcast": True,
        "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
        "out_channels": 3, "sample_size": 1024, "scaling_factor": 0.13025,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }  # fmt: skip
    component = made("autoencoder", vae.read(Options(config, "config.json")))
    assert component == made("autoencoder", {"use": "kl", "scaling": 0.13025})
    with torch.device("meta"):
        module = component.build()
    assert sum(parameter.numel() for parameter in module.parameters()) == 83_653_863


# Other ways to lay the same weights out


def test_shards_half_precision_and_old_names(folder, tmp_path):
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: tensor.half() for name, tensor in load_file(whole).items()}
    whole.unlink()
    names = sorted(state)
    shards = {"a-1-of-2.safetensors": names[::2], "a-2-of-2.safetensors": names[1::2]}
    for shard, its in shards.items():
        save_file({name: state[name] for name in its}, folder / "unet" / shard)
    listed = {name: shard for shard, its in shards.items() for name in its}
    index = {"metadata": {"total_size": 1}, "weight_map": listed}
    path = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    path.write_text(json.dumps(index))

    whole = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {
        name.replace("to_q.", "query.").replace("to_k.", "key.").replace("to_v.", "value.")
        .replace("to_out.0.", "proj_attn."): tensor
        for name, tensor in load_file(whole).items()
    }  # fmt: skip
    latents = load_file(whole)
    save_file(old, whole)
    whole = folder / "text_encoder" / "model.safetensors"
    tower = {f"text_model.{name}": tensor for name, tensor in load_file(whole).items()}
    save_file({**tower, "text_model.embeddings.position_ids": torch.arange(77)[None]}, whole)

    kept = imported(folder, tmp_path / "run") / "checkpoints" / "step-00000000"
    found = load_file(kept / "denoiser.safetensors")
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert found["conv_in.weight"].dtype == torch.float16
    found = load_file(kept / "autoencoder.safetensors")
    assert found.keys() == latents.keys()
    assert all(torch.equal(found[name], latents[name]) for name in latents)
    assert load_file(kept / "text_encoder.safetensors").keys() == tower.keys()
    assert Pipeline.load(tmp_path / "run").dtype == torch.float32


# What is refused, before anything is built


def weights_of(part):
    return f"{part}/{'model' if 'text' in part else 'diffusion_pytorch_model'}.safetensors"


def rewrite(folder, part, change):
    """Other weights in a file."""
    path = folder / weights_of(part)
    state = load_file(path)
    change(state)
    save_file(state, path)


def only_pickles(folder):
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / weights_of("unet")).unlink()


def outside_link(folder):
    (folder / weights_of("vae")).rename(folder.parent / "elsewhere.safetensors")
    (folder / weights_of("vae")).symlink_to(folder.parent / "elsewhere.safetensors")


def outside_index(folder):
    path = folder / weights_of("unet")
    path.rename(folder.parent / "outside.safetensors")
    listed = {"weight_map": {"conv_in.weight": "../../outside.safetensors"}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(listed))


def index_lacks(folder):
    path = folder / weights_of("unet")
    path.rename(path.with_name("a.safetensors"))
    listed = {"weight_map": {"conv_in.weight": "a.safetensors"}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(listed))


def broken_json(folder):
    (folder / "vae" / "config.json").write_text('{"scaling_factor": 0.18215')


def cut_off(folder):
    path = folder / weights_of("unet")
    path.write_bytes(path.read_bytes()[:-100])


BAD_FILES = {
    "a missing configuration": (
        lambda folder: (folder / "unet" / "config.json").unlink(),
        "{}/unet/config.json: is missing",
    ),
    "missing weights": (
        lambda folder: (folder / weights_of("vae")).unlink(),
        "{}/vae/diffusion_pytorch_model.safetensors: is missing",
    ),
    "no vocabulary": (
        lambda folder: [(folder / "tokenizer" / name).unlink() for name in
                        ("tokenizer.json", "vocab.json") if (folder / "tokenizer" / name).exists()],
        "{}/tokenizer/vocab.json: is missing",
    ),
    "pickles": (
        only_pickles,
        "{}/unet: holds its weights as a pickle (diffusion_pytorch_model.bin), which can run any "
        "code; convert it where you trust it: save_pretrained(safe_serialization=True)",
    ),
    "a link to the outside": (
        outside_link,
        "{}/vae/diffusion_pytorch_model.safetensors: leaves the folder; "
        "copy the folder with what its links point to (cp -rL)",
    ),
    "an index to the outside": (
        outside_index,
        "{}/unet/diffusion_pytorch_model.safetensors.index.json: names "
        "'../../outside.safetensors', which is no .safetensors file beside it",
    ),
    "an index that lacks a weight": (
        index_lacks,
        "{}/unet/diffusion_pytorch_model.safetensors.index.json: conv_in.bias is missing in it",
    ),
    "damaged JSON": (
        broken_json,
        "{}/vae/config.json: is not JSON: Expecting ',' delimiter: line 1 column 27 (char 26)",
    ),
    "damaged weights": (
        cut_off,
        "{}/unet/diffusion_pytorch_model.safetensors: is not safetensors: Error while "
        "deserializing header: incomplete metadata, file not fully covered",
    ),
    "a weight that is missing": (
        lambda folder: rewrite(folder, "unet", lambda state: state.pop("conv_out.bias")),
        "{} (denoiser): holds another architecture:\n  conv_out.bias: missing",
    ),
    "a weight too many": (
        lambda folder: rewrite(
            folder, "text_encoder", lambda state: state.update(extra=torch.zeros(1))
        ),
        "{} (text_encoder): holds another architecture:\n  text_model.extra: not in the model",
    ),
    "a weight of another shape": (
        lambda folder: rewrite(
            folder, "unet", lambda state: state.update({"conv_in.weight": torch.zeros(16, 9, 3, 3)})
        ),
        "{} (denoiser): holds another architecture:\n"
        "  conv_in.weight: (16, 9, 3, 3) here, (16, 4, 3, 3) in the model",
    ),
    "a weight that is no number": (
        lambda folder: rewrite(folder, "vae", lambda state: state["quant_conv.bias"].fill_(torch.nan)),
        "{} (autoencoder): quant_conv.bias is not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_refused(folder, tmp_path, case):
    spoil, message = BAD_FILES[case]
    spoil(folder)
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as error:
        imported(folder, tmp_path / "run")
    assert str(error.value) == message.format(folder)
    assert set(tmp_path.iterdir()) == before


UNET, VAE = "unet/config.json", "vae/config.json"
CLOCK, INDEX = "scheduler/scheduler_config.json", "model_index.json"
BAD_VALUES = [
    (INDEX, {"_class_name": "FluxPipeline"}, "_class_name is 'FluxPipeline', which has no counterpart here; "
     "known: StableDiffusionPipeline, StableDiffusionXLPipeline"),
    (INDEX, {"_class_name": ["pipeline", "Mine"]}, "_class_name is ['pipeline', 'Mine'], which has no counterpart "
     "here; code is never read from a folder"),
    (INDEX, {"unet": ["my_unet", "MyUNet"]}, "unet is ['my_unet', 'MyUNet'], which has no counterpart here; "
     "known: diffusers.UNet2DConditionModel"),
    (INDEX, {"text_encoder": [None, None]}, "text_encoder is [None, None], which has no counterpart here; "
     "known: transformers.CLIPTextModel"),
    (INDEX, {"prior": ["diffusers", "PriorTransformer"]}, "prior is ['diffusers', 'PriorTransformer'], which has no "
     "counterpart here; nothing is known of this key"),
    (UNET, {"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel', which has no counterpart here; "
     "known: UNet2DConditionModel"),
    (UNET, {"auto_map": {"AutoModel": "code.Mine"}}, "asks for code of its own (auto_map); "
     "code is never read from a folder: write a plugin instead"),
    ("text_encoder/config.json", {"auto_map": {"AutoModel": "code.Mine"}}, "asks for code of its own (auto_map); "
     "code is never read from a folder: write a plugin instead"),
    ("text_encoder/config.json", {"use_attention_mask": True}, "use_attention_mask is True, which has no counterpart "
     "here; False alone is known"),
    ("tokenizer/tokenizer_config.json", {"trust_remote_code": True}, "asks for code of its own (trust_remote_code); "
     "code is never read from a folder: write a plugin instead"),
    ("tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "tokenizer_class is 'T5Tokenizer', which "
     "has no counterpart here; known: CLIPTokenizer, CLIPTokenizerFast"),
    ("tokenizer/tokenizer_config.json", {"model_max_length": 32}, "model_max_length is 32, which has no counterpart "
     "here; the text encoder reads 77"),
    (UNET, {"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]}, "down_block_types is "
     "'SimpleCrossAttnDownBlock2D', which has no counterpart here; known: CrossAttnDownBlock2D, DownBlock2D"),
    (UNET, {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types is ['UpBlock2D', 'UpBlock2D'], which has "
     "no counterpart here; they must mirror down_block_types"),
    (UNET, {"in_channels": 9}, "in_channels is 9, which has no counterpart here; latents have 4 channels"),
    (UNET, {"cross_attention_dim": 768}, "cross_attention_dim is 768, which has no counterpart here; the text has 32"),
    (UNET, {"act_fn": "gelu"}, "act_fn is 'gelu', which has no counterpart here; 'silu' alone is known"),
    (UNET, {"layers_per_block": [1, 2]}, "layers_per_block is [1, 2], which has no counterpart here; "
     "one number for all levels is needed"),
    (UNET, {"block_out_channels": "32"}, "block_out_channels is '32', expected something like [320, 640, 1280, 1280]"),
    (UNET, {"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier', which has no counterpart here; "
     "'positional' alone is known"),
    (UNET, {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time', which has no counterpart here; "
     "None alone is known"),
    (UNET, {"flavour": 3}, "flavour is 3, which has no counterpart here; nothing is known of this key"),
    (VAE, {"latents_mean": [0.1]}, "latents_mean is [0.1], which has no counterpart here; None alone is known"),
    (VAE, {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "down_block_types is "
     "['DownEncoderBlock2D', 'AttnDownEncoderBlock2D'], which has no counterpart here; "
     "DownEncoderBlock2D for each level alone is known"),
    (CLOCK, {"_class_name": "KDPM2DiscreteScheduler"}, "_class_name is 'KDPM2DiscreteScheduler', which has no "
     "counterpart here; known: DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, "
     "EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, LMSDiscreteScheduler, "
     "PNDMScheduler, UniPCMultistepScheduler"),
    (CLOCK, {"timestep_spacing": "linspace"}, "timestep_spacing is 'linspace', which has no counterpart here; "
     "it steps by T // N there, which is not the grid's distance: use leading"),
    (CLOCK, {"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid', which has no counterpart here; "
     "known: linear, scaled_linear, squaredcos_cap_v2"),
    (CLOCK, {"thresholding": True}, "thresholding is True, which has no counterpart here; False alone is known"),
    (CLOCK, {"_class_name": "EulerDiscreteScheduler", "set_alpha_to_one": ..., "rescale_betas_zero_snr": True},
     "rescale_betas_zero_snr is True, which has no counterpart here; "
     "this scheduler puts a number in the place of 0: use DDIMScheduler"),
    (CLOCK, {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}, "prediction_type is 'v_prediction', "
     "which has no counterpart here; it averages what the network says, and the paper eps: use DDIMScheduler"),
    (CLOCK, {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, "use_karras_sigmas is True, "
     "which has no counterpart here; it rounds the times of these levels: import without, then "
     "--set time_grid=karras"),
    (CLOCK, {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "squaredcos_cap_v2",
             "lambda_min_clipped": -5.1}, "lambda_min_clipped is -5.1, which has no counterpart here; leave it out"),
    (CLOCK, {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction', which has no counterpart "
     "here; known: epsilon, v_prediction, sample"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "values", "message"), BAD_VALUES)
def test_values_that_are_refused(folder, tmp_path, file, values, message):
    if "scheduler" in file and "_class_name" in values:
        change(folder / INDEX, scheduler=["diffusers", values["_class_name"]])
        if values["_class_name"].startswith("KDPM2"):
            change(folder / INDEX, scheduler=["diffusers", "DDIMScheduler"])
    change(folder / file, **values)
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as error:
        imported(folder, tmp_path / "run")
    assert str(error.value) == f"{folder}/{file}: {message}"
    assert set(tmp_path.iterdir()) == before


def test_a_tokenizer_of_another_encoder(folder, tmp_path):
    change(folder / "text_encoder" / "config.json", eos_token_id=7)
    with pytest.raises(CheckpointError) as error:
        imported(folder, tmp_path / "run")
    assert str(error.value) == (
        f"{folder}/tokenizer: has 516 tokens and ends with 515, the text encoder knows 516 and "
        "ends with 7"
    )


def test_folders_that_no_layout_recognises(folder, tmp_path):
    (folder / INDEX).unlink()
    with pytest.raises(ConfigError) as error:
        imported(folder, tmp_path / "run")
    assert str(error.value) == (
        f"{folder}: no layout recognises it; name one with --layout: diffusers"
    )
    with pytest.raises(ConfigError) as error:
        imported(tmp_path / "nowhere", tmp_path / "run")
    assert str(error.value) == f"{tmp_path}/nowhere: there is no such folder"


def test_nothing_is_written_over_and_nothing_is_left_half_written(folder, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError) as error:
        imported(folder, tmp_path / "run")
    assert str(error.value) == f"{tmp_path}/run: is not empty; choose another, or remove it"
    before = {path.name for path in tmp_path.iterdir()}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sfumato.checkpoint.write", full)
    with pytest.raises(ConfigError) as error:
        imported(folder, tmp_path / "other")
    assert str(error.value) == f"{tmp_path}/other: cannot be written: No space left on device"
    assert {path.name for path in tmp_path.iterdir()} == before


REFUSED_RUNS = [
    (["guidance=cfg", "sampler=dpm2"], "sampler: dpm2 on leading is no scheduler of diffusers; "
     "export with another, such as --set sampler=ddim --set time_grid=leading"),
    (["sampler.eta=0.5"], "sampler: ddim on leading is no scheduler of diffusers with these options, on this noise "
     "schedule; export with another, such as --set sampler=ddim --set time_grid=leading"),
    (["noise_schedule=sigmoid"], "noise_schedule: sigmoid is no noise schedule of diffusers; "
     "known: cosine, linear, scaled_linear, betas, zero_terminal_snr"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED_RUNS)
def test_settings_that_no_folder_of_diffusers_can_say(runs, tmp_path, overrides, message):
    with pytest.raises(ConfigError) as error:
        exported(runs["sd1"], tmp_path / "out", *overrides)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_a_run_of_other_components_is_not_exported(small_run, tmp_path):
    with pytest.raises(ConfigError) as error:
        exported(small_run, tmp_path / "out")
    assert str(error.value) == "autoencoder: pixels has no counterpart in diffusers; it knows kl"
    assert not list(tmp_path.iterdir())
