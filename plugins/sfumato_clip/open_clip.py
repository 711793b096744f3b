"""CLIP as open_clip writes it: `open_clip_config.json` beside `open_clip_model.safetensors`.

The two towers are those of transformers under other names: keys, queries and values are one matrix,
projections are transposed. Only the plain architecture is read, a vision transformer with a class
token beside a causal text transformer; a configuration that says anything else is refused.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from sfumato import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

_KNOWN = {
    "model_cfg": {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"},
    "vision_cfg": {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
_WITHOUT_EFFECT = {"patch_dropout", "hf_tokenizer_name"}
"""In training alone; the tokenizer stands in the folder."""

_NAMES = {
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
}
_IN_A_LAYER = {
    "ln_1.": "layer_norm1.",
    "attn.out_proj.": "self_attn.out_proj.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_LAYER = re.compile(r"((?:visual\.)?transformer\.resblocks\.)(\d+\.)(.+)")


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What transformers calls `config.json` and `preprocessor_config.json`.

    Raises:
        CheckpointError: the configuration is broken, or that of another architecture.
    """
    try:
        whole = json.loads((folder / CONFIG).read_bytes())
        model, seen = whole["model_cfg"], whole.get("preprocess_cfg", {})
        for part in ("model_cfg", "vision_cfg", "text_cfg"):
            _refuse_unknown(part, model if part == "model_cfg" else model[part], folder)
        return _translated(model), {
            f"image_{name}": seen[name] for name in ("mean", "std") if seen.get(name)
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"cannot read {CONFIG} ({type(error).__name__}: {error})",
            place=f"pretrained {folder}",
            remedy="it is what open_clip writes",
        ) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights under the names and in the shapes of transformers' `CLIPModel`."""
    weights = load_file(folder / WEIGHTS)
    return dict(pair for name, value in weights.items() for pair in _renamed(name, value))


def _refuse_unknown(part: str, options: Mapping[str, Any], folder: Path) -> None:
    odd = sorted(options.keys() - _KNOWN[part] - _WITHOUT_EFFECT)
    if part == "vision_cfg" and isinstance(options.get("layers"), list):
        odd.append("layers")
    if odd:
        raise CheckpointError(
            f"{CONFIG} has {part}.{odd[0]}: {json.dumps(options[odd[0]])}, which no plain CLIP has",
            place=f"pretrained {folder}",
            remedy="two transformers are read, as in ViT-B-32, ViT-L-14 or ViT-H-14",
        )


def _translated(model: Mapping[str, Any]) -> dict[str, Any]:
    """For the defaults see `CLIPTextCfg` and `CLIPVisionCfg` of open_clip."""
    text, vision = model["text_cfg"], model["vision_cfg"]
    vocabulary, vision_width = text.get("vocab_size", 49408), vision.get("width", 768)
    shared = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    return {
        "architectures": ["CLIPModel"],
        "projection_dim": model["embed_dim"],
        "text_config": {
            **shared,
            **_tower(text.get("width", 512), text.get("heads", 8), text.get("layers", 12), text),
            "vocab_size": vocabulary,
            "max_position_embeddings": text.get("context_length", 77),
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
        "vision_config": {
            **shared,
            **_tower(
                vision_width,
                vision_width // vision.get("head_width", 64),
                vision.get("layers", 12),
                vision,
            ),
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 16),
        },
    }


def _tower(width: int, heads: int, layers: int, options: Mapping[str, Any]) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": int(width * options.get("mlp_ratio", 4.0)),
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
    }


def _renamed(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The pairs that a weight becomes: three of one of queries, keys and values together. A name
    that is not open_clip's stays.
    """
    layer = _LAYER.fullmatch(name)
    if layer is None:
        transposed = name in ("text_projection", "visual.proj")
        yield _replaced(name, _NAMES), value.T.contiguous() if transposed else value
        return
    start = _NAMES[layer[1]] + layer[2]
    if layer[3] in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = layer[3].removeprefix("attn.in_proj_")
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            yield f"{start}self_attn.{letter}_proj.{kind}", part
    else:
        yield start + _replaced(layer[3], _IN_A_LAYER), value


def _replaced(name: str, starts: Mapping[str, str]) -> str:
    """The name with the start that it has replaced: a whole name, or one that ends in a dot."""
    for old, new in starts.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name.removeprefix(old)
    return name
