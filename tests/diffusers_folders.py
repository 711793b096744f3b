"""Folders that diffusers writes, small and with random weights, and runs that are made of them."""

import functools
import json
import warnings

import diffusers
import torch

from sfumato import export_run, import_run
from sfumato.registry import Registry

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


def exported(run, out, *overrides):
    export_run(run, out, layout="diffusers", overrides=overrides, registry=registry_of())
    return out


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
