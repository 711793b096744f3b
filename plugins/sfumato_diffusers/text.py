"""CLIP's text tower and its tokenizer, as the text encoder `pretrained_clip` keeps them.

What is known of the configuration goes to transformers as it is, as diffusers does with it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers import CLIPTokenizer

from sfumato import CheckpointError
from sfumato_diffusers.options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from sfumato_diffusers.families import Family
    from sfumato_diffusers.folder import Folder

PLAIN, PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
NUMBERS = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
    "hidden_size": 512,
    "projection_dim": 512,
}
"""Of a configuration, with what they are where it does not say."""

STATED = (
    "hidden_act",
    "layer_norm_eps",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "attention_dropout",
    "initializer_factor",
    "initializer_range",
    "bos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
)
"""What else it may say; transformers knows what to make of it."""

UNUSED = (
    "architectures",
    "model_type",
    "dropout",
    "transformers_version",
    "chunk_size_feed_forward",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
)
"""What the pipeline says, and what transformers does not look at."""

LEGACY_END = 2
"""What configurations before 2023 call the end token, meaning the highest id."""

TOWER, PROJECTION = "text_model.", "text_projection."


def read(
    folder: Folder, part: str, tokenizer: str, kind: str
) -> tuple[dict[str, bytes], dict[str, Tensor]]:
    """The files and the weights of an encoder.

    Args:
        folder: that holds both.
        part: of the encoder, such as `text_encoder`.
        tokenizer: its part, such as `tokenizer`.
        kind: its class, which diffusers takes from the pipeline and not from the configuration.

    Raises:
        CheckpointError: something is missing or damaged, or has no counterpart here.
    """
    options = Options(folder.json(f"{part}/config.json"), str(folder.path(f"{part}/config.json")))
    config = configuration(options, kind)
    files = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": read_tokenizer(folder, tokenizer, config),
    }
    return files, weights(folder.weights(part, "model"))


def configuration(options: Options, kind: str) -> dict[str, Any]:
    """What is known of a configuration, in one order, for an encoder of this class.

    Raises:
        CheckpointError: there is more to it.
    """
    options.fixed(use_attention_mask=False, quantization_config=None)
    numbers = {key: options.count(key, default) for key, default in NUMBERS.items()}
    stated = {key: value for key in STATED if (value := options.raw(key)) is not None}
    options.ignore(*UNUSED)
    options.close()
    return {"architectures": [kind], "model_type": "clip_text_model", **numbers, **stated}


def widths(family: Family, files: Mapping[str, bytes]) -> tuple[int, int | None]:
    """D, of the tokens of all encoders, and P where the pooled vector is heard."""
    if not family.stacked:
        return _number(files["config.json"], "hidden_size"), None
    configs = [files[f"{index}.config.json"] for index in range(len(family.encoders))]
    tokens = sum(_number(config, "hidden_size") for config in configs)
    return tokens, _number(configs[-1], "projection_dim")


def _number(config: bytes, key: str) -> int:
    return int(json.loads(config).get(key, NUMBERS[key]))


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names of the module. transformers 5 leaves the tower's prefix out of some files."""
    return {
        name if name.startswith((TOWER, PROJECTION)) else TOWER + name: tensor
        for name, tensor in state.items()
        if not name.endswith("embeddings.position_ids")  # 0, 1, 2, ...: no weight
    }


def read_tokenizer(folder: Folder, part: str, config: Mapping[str, Any]) -> bytes:
    """A `tokenizer.json` that pads to the encoder's positions, and does not truncate.

    Args:
        folder: that holds it.
        part: its own, such as `tokenizer`.
        config: of the encoder.

    Raises:
        CheckpointError: it is missing, or not the encoder's.
    """
    place = str(folder.path(part))
    positions, size = config["max_position_embeddings"], config["vocab_size"]
    named = folder.json(f"{part}/tokenizer_config.json")
    options = Options(named, f"{place}/tokenizer_config.json")
    options.choice("tokenizer_class", TOKENIZERS[0], TOKENIZERS)
    longest = options.count("model_max_length", positions)
    if longest != positions:
        raise options.refusal("model_max_length", longest, f"the text encoder reads {positions}")
    tokenizer = _tokenizer(folder, part)
    end = size - 1 if config["eos_token_id"] == LEGACY_END else config["eos_token_id"]
    if tokenizer.eos_token_id != end or len(tokenizer) > size:
        raise CheckpointError(
            f"has {len(tokenizer)} tokens and ends with {tokenizer.eos_token_id}, the text encoder "
            f"knows {size} and ends with {end}",
            place=place,
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.enable_padding(
        length=positions, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token
    )
    return str(backend.to_str()).encode()


def _tokenizer(folder: Folder, part: str) -> CLIPTokenizer:
    """By transformers, from files that are there and do not lead elsewhere."""
    if not folder.has(f"{part}/tokenizer.json"):
        for name in ("vocab.json", "merges.txt"):
            folder.bytes(f"{part}/{name}")
    path = folder.path(part)
    for file in path.iterdir():
        folder.path(f"{part}/{file.name}")
    try:
        return CLIPTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower
        first = str(error).strip().splitlines()[0]
        problem = f"holds no tokenizer that can be read: {first}"
        raise CheckpointError(problem, place=str(path)) from error


def write(files: Mapping[str, bytes], part: Path, tokenizer: Path) -> None:
    """The configuration of an encoder and its tokenizer, as transformers reads them.

    Args:
        files: as `read` returned them.
        part: the encoder's folder.
        tokenizer: the tokenizer's.

    Raises:
        CheckpointError: the configuration says more than `read` knows.
    """
    known = json.loads(files["config.json"])
    config = configuration(Options(known, "config.json"), known["architectures"][0])
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    built = json.loads(files["tokenizer.json"])
    model, padding = built["model"], built["padding"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    start, end = _ends(built)
    special = {
        "bos_token": start,
        "eos_token": end,
        "unk_token": model.get("unk_token") or end,
        "pad_token": padding["pad_token"],
    }
    stated = {
        "tokenizer_class": TOKENIZERS[0],
        "model_max_length": config["max_position_embeddings"],
        "add_prefix_space": False,
        "do_lower_case": True,
        **special,
    }
    texts = {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer.json": files["tokenizer.json"].decode(),
        "tokenizer_config.json": json.dumps(stated, indent=2, ensure_ascii=False),
        "special_tokens_map.json": json.dumps(special, indent=2, ensure_ascii=False),
    }
    for name, text in texts.items():
        (tokenizer / name).write_text(text, encoding="utf-8")


def _ends(tokenizer: Mapping[str, Any]) -> tuple[str, str]:
    """The start and the end token, of what post-processing puts around a text."""
    after = tokenizer["post_processor"]
    return after["cls"][0], after["sep"][0]
