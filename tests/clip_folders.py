"""Folders of CLIP as they are found, tiny: transformers' own, with random weights.

SD's tokenizer is a vocab.json and a merges.txt; its end token pads, or "!" as in OpenCLIP's.
"""

import json

import torch
import transformers


def write_tokenizer(folder, pad="<|endoftext|>", positions=12):
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    merges = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")]
    tokens = letters + [letter + "</w>" for letter in letters] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {"pad_token": pad, "model_max_length": positions, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(tokens)


def text_config(size, **changes):
    options = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": size,
        "max_position_embeddings": 12,
        "projection_dim": 16,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "initializer_factor": 5.0,  # so that the outputs are far from each other
    }
    return transformers.CLIPTextConfig(**options | changes)


def make_model(size, model_type=transformers.CLIPTextModel, **changes):
    """`changes` are those of the text tower; the vision tower has its activation."""
    config = text_config(size, **changes)
    if model_type is transformers.CLIPModel:
        vision = transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=2,
            num_hidden_layers=2,
            image_size=16,
            patch_size=4,
            hidden_act=config.hidden_act,
        )
        config = transformers.CLIPConfig(
            text_config=config.to_dict(), vision_config=vision.to_dict(), projection_dim=16
        )
    torch.manual_seed(0)
    return model_type(config).eval()


def write_model(folder, model_type=transformers.CLIPTextModel, pad="<|endoftext|>", **changes):
    size = write_tokenizer(folder, pad, changes.get("max_position_embeddings", 12))
    model = make_model(size, model_type, **changes)
    model.save_pretrained(folder)
    return model


def ids_of(folder, prompts):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    return tokenizer(prompts, padding="max_length", max_length=12, return_tensors="pt")
