"""Folders of diffusers: the same pictures there and here, in and out, and what is refused."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from relative_error import relative
from sfumato import CheckpointError, ConfigError, Pipeline, exchange, plugins
from sfumato.registry import Registry

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


def save_pipeline(folder, *, version=1):
    """A Stable Diffusion of 32 channels with random weights, saved by diffusers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(version)
    size = tokenizer_files(folder.with_name(f"{folder.name}-tokenizer"))
    tokenizer = CLIPTokenizer.from_pretrained(
        folder.with_name(f"{folder.name}-tokenizer"), model_max_length=77
    )
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
        hidden_act="quick_gelu" if version == 1 else "gelu",
        projection_dim=32,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
        attention_head_dim=4 if version == 1 else (2, 4),
        use_linear_projection=version == 2,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    scheduler = diffusers.DDIMScheduler(
        **TABLE,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon" if version == 1 else "v_prediction",
    )
    diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder of each family, by its version."""
    root = tmp_path_factory.mktemp("diffusers")
    return {version: save_pipeline(root / f"sd{version}", version=version) for version in (1, 2)}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of SD 1.x, to be changed."""
    return shutil.copytree(folders[1], tmp_path / "sd")


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


def imported(folder, out, name="sd"):
    run, _ = exchange.import_run(folder, out, plugins.load(), name=name)
    return run.path


def theirs_of(folder):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures(theirs, ours, negative, steps=20):
    """Of both, (2, 3, H, W) in [0, 1], from the same noise."""
    noise = torch.randn(2, *ours.latent_shape, generator=torch.Generator().manual_seed(4))
    told = {"negative_prompt": [negative] * 2} if negative else {}
    their = theirs(
        prompt=[PROMPT, "a blue square"],
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=7.5,
        output_type="pt",
        **told,
    ).images
    # In diffusers unit noise is scaled to the first sigma, or to hypot(sigma, 1); ours are at VP's scale.
    sigmas = getattr(theirs.scheduler, "sigmas", None)
    start = noise
    if sigmas is not None and theirs.scheduler.init_noise_sigma != 1:
        start = noise * float(theirs.scheduler.init_noise_sigma) / float(sigmas[0] ** 2 + 1) ** 0.5
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*saturated")
        our = ours.sample([PROMPT, "a blue square"], negative=negative, steps=steps, start=start)
    return their, (our + 1) / 2


CASES = [(1, name) for name in SCHEDULERS] + [(2, "ddim"), (2, "euler"), (2, "dpmpp_2m")]


@pytest.mark.parametrize(("version", "name"), CASES, ids=lambda v: str(v))
def test_the_picture_of_diffusers(folders, tmp_path, version, name):
    folder = scheduled(shutil.copytree(folders[version], tmp_path / "sd"), name)
    theirs, ours = theirs_of(folder), Pipeline.load(imported(folder, tmp_path / "run"))
    for negative in (NEGATIVE, None):
        their, our = pictures(theirs, ours, negative)
        print(name, version, negative, float((their - our).abs().max()), float(their.std()))
        assert float((their - our).abs().max()) < 1e-3
        assert float(their.std()) > 0.02
