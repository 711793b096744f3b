"""Folders of diffusers that are refused, each with its literal message, before anything is built."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_folders import change, exported, imported
from sfumato import CheckpointError, ConfigError


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
def test_files_that_are_refused(sd_folder, tmp_path, case):
    spoil, message = BAD_FILES[case]
    spoil(sd_folder)
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as error:
        imported(sd_folder, tmp_path / "run")
    assert str(error.value) == message.format(sd_folder)
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
    ("text_encoder/config.json", {"attn_implementation": "someone/kernels"}, "attn_implementation is "
     "'someone/kernels', which has no counterpart here; nothing is known of this key"),
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
def test_values_that_are_refused(sd_folder, tmp_path, file, values, message):
    if "scheduler" in file and "_class_name" in values:
        change(sd_folder / INDEX, scheduler=["diffusers", values["_class_name"]])
        if values["_class_name"].startswith("KDPM2"):
            change(sd_folder / INDEX, scheduler=["diffusers", "DDIMScheduler"])
    change(sd_folder / file, **values)
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as error:
        imported(sd_folder, tmp_path / "run")
    assert str(error.value) == f"{sd_folder}/{file}: {message}"
    assert set(tmp_path.iterdir()) == before


def test_settings_too_large_to_be_built_take_no_memory(sd_folder, tmp_path):
    change(sd_folder / UNET, block_out_channels=[2**40, 2**41])
    with pytest.raises(CheckpointError, match=r"\(denoiser\)|describes what cannot be built"):
        imported(sd_folder, tmp_path / "run")


def test_a_tokenizer_of_another_encoder(sd_folder, tmp_path):
    change(sd_folder / "text_encoder" / "config.json", eos_token_id=7)
    with pytest.raises(CheckpointError) as error:
        imported(sd_folder, tmp_path / "run")
    assert str(error.value) == (
        f"{sd_folder}/tokenizer: has 516 tokens and ends with 515, the text encoder knows 516 and "
        "ends with 7"
    )


def test_folders_that_no_layout_recognises(sd_folder, tmp_path):
    (sd_folder / INDEX).unlink()
    with pytest.raises(ConfigError) as error:
        imported(sd_folder, tmp_path / "run")
    assert str(error.value) == (
        f"{sd_folder}: no layout recognises it: there is no model_index.json (diffusers); give the folder "
        "that holds it, or name a layout with --layout: diffusers"
    )
    with pytest.raises(ConfigError) as error:
        imported(tmp_path / "nowhere", tmp_path / "run")
    assert str(error.value) == f"{tmp_path}/nowhere: there is no such folder"


def test_nothing_is_written_over_and_nothing_is_left_half_written(sd_folder, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError) as error:
        imported(sd_folder, tmp_path / "run")
    assert str(error.value) == f"{tmp_path}/run: is not empty; choose another, or remove it"
    before = {path.name for path in tmp_path.iterdir()}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sfumato.checkpoint.write", full)
    with pytest.raises(ConfigError) as error:
        imported(sd_folder, tmp_path / "other")
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
def test_settings_that_no_folder_of_diffusers_can_say(sd_runs, tmp_path, overrides, message):
    with pytest.raises(ConfigError) as error:
        exported(sd_runs["sd1"], tmp_path / "out", *overrides)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_a_run_of_other_components_is_not_exported(small_run, tmp_path):
    with pytest.raises(ConfigError) as error:
        exported(small_run, tmp_path / "out")
    assert str(error.value) == "autoencoder: pixels has no counterpart in diffusers; it knows kl"
    assert not list(tmp_path.iterdir())
