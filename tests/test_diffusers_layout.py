"""Folders of diffusers: the same pictures there and here, in and out, in every way to lay them out."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from diffusers_folders import (
    NEGATIVE,
    PROMPT,
    SCHEDULERS,
    TABLE,
    change,
    exported,
    imported,
    pictures,
    registry_of,
    scheduled,
    theirs_of,
)
from relative_error import relative
from sfumato import Pipeline, Space, document, settings
from sfumato.cli import app
from sfumato.experiment import Experiment
from sfumato_diffusers import Diffusers, scheduler, scheduler_file, unet, vae
from sfumato_diffusers.options import Options
from sfumato_diffusers.scheduler import made

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


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
def test_the_picture_of_diffusers(sd_folders, tmp_path, family, name, parity):
    """Both with and without a negative prompt; it changes the picture by more than we differ."""
    folder = scheduled(shutil.copytree(sd_folders[family], tmp_path / "sd"), name)
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
def test_each_part_says_what_it_says_in_diffusers(sd_folders, sd_runs, family):
    theirs, ours = theirs_of(sd_folders[family]), Pipeline.load(sd_runs[family])
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


def test_what_the_record_of_an_imported_run_says(sd_runs):
    record = json.loads((sd_runs["sd2"] / "run.json").read_text())
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
    xl = json.loads((sd_runs["sdxl"] / "run.json").read_text())
    assert xl["imported"]["null_condition"] == "zeros"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_there_and_back_is_equal_to_the_bit(sd_runs, tmp_path, family):
    first = exported(sd_runs[family], tmp_path / "first")
    again = imported(first, tmp_path / "again")
    assert contents(again / "checkpoints") == contents(sd_runs[family] / "checkpoints")
    assert (again / "settings.yaml").read_bytes() == (
        sd_runs[family] / "settings.yaml"
    ).read_bytes()
    assert contents(exported(again, tmp_path / "second")) == contents(first)
    assert len({path.stat().st_mode for path in first.rglob("*") if path.is_file()}) == 1


@pytest.mark.parametrize(("family", "name"), [("sd1", "pndm"), ("sdxl", "euler")])
def test_what_is_exported_opens_in_diffusers_with_the_same_picture(
    sd_folders, tmp_path, family, name
):
    folder = scheduled(shutil.copytree(sd_folders[family], tmp_path / "sd"), name)
    run = imported(folder, tmp_path / "run")
    before, after = theirs_of(folder), theirs_of(exported(run, tmp_path / "out"))
    assert type(after.scheduler) is type(before.scheduler)
    ours = Pipeline.load(run)
    assert torch.equal(
        pictures(after, ours, NEGATIVE, 3)[0], pictures(before, ours, NEGATIVE, 3)[0]
    )


@pytest.mark.parametrize("name", BY_NAME)
def test_every_scheduler_comes_back(sd_folders, tmp_path, name):
    folder = scheduled(shutil.copytree(sd_folders["sd1"], tmp_path / "sd"), name)
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


def test_the_command_line_imports_draws_and_exports(sd_folder, tmp_path, monkeypatch):
    change(sd_folder / "model_index.json", safety_checker=["stable_diffusion", "SafetyChecker"])
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines()

    first, second, third = command("import", sd_folder, "--name", "tiny")
    assert first == "safety_checker is left out: it has no say in what is drawn"
    assert second.startswith(f"Imported {sd_folder} (parameters: text_encoder ")
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


def test_shards_come_before_another_precision(sd_folder, tmp_path):
    whole = sd_folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    whole.unlink()
    save_file(state, whole.with_name("a-1-of-1.safetensors"))
    index = {"weight_map": dict.fromkeys(state, "a-1-of-1.safetensors")}
    whole.with_name(whole.name + ".index.json").write_text(json.dumps(index))
    half = {name: tensor.half() for name, tensor in state.items()}
    save_file(half, whole.with_name("diffusion_pytorch_model.fp16.safetensors"))
    found = Pipeline.load(imported(sd_folder, tmp_path / "run")).denoiser.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_shards_half_precision_and_old_names(sd_folder, tmp_path):
    whole = sd_folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: tensor.half() for name, tensor in load_file(whole).items()}
    whole.unlink()
    names = sorted(state)
    shards = {"a-1-of-2.safetensors": names[::2], "a-2-of-2.safetensors": names[1::2]}
    for shard, its in shards.items():
        save_file({name: state[name] for name in its}, sd_folder / "unet" / shard)
    listed = {name: shard for shard, its in shards.items() for name in its}
    index = {"metadata": {"total_size": 1}, "weight_map": listed}
    path = sd_folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    path.write_text(json.dumps(index))

    whole = sd_folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {
        name.replace("to_q.", "query.").replace("to_k.", "key.").replace("to_v.", "value.")
        .replace("to_out.0.", "proj_attn."): tensor
        for name, tensor in load_file(whole).items()
    }  # fmt: skip
    latents = load_file(whole)
    save_file(old, whole)
    whole = sd_folder / "text_encoder" / "model.safetensors"
    tower = {f"text_model.{name}": tensor for name, tensor in load_file(whole).items()}
    save_file({**tower, "text_model.embeddings.position_ids": torch.arange(77)[None]}, whole)

    kept = imported(sd_folder, tmp_path / "run") / "checkpoints" / "step-00000000"
    found = load_file(kept / "denoiser.safetensors")
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert found["conv_in.weight"].dtype == torch.float16
    found = load_file(kept / "autoencoder.safetensors")
    assert found.keys() == latents.keys()
    assert all(torch.equal(found[name], latents[name]) for name in latents)
    assert load_file(kept / "text_encoder.safetensors").keys() == tower.keys()
    assert Pipeline.load(tmp_path / "run").dtype == torch.float32
