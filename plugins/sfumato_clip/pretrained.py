"""CLIP from a folder or the hub, or from what a checkpoint kept of it.

Weights are read from safetensors only, and code from the folder is never run. Two files make the
module again without the folder: its `config.json`, and a `tokenizer.json` that pads with the
folder's own token to the model's positions.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedConfig,
)

from sfumato import CheckpointError, ConfigError
from sfumato_clip.encoder import ClipEncoder, ClipTextEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping

# Of OpenAI's training pictures; every CLIP in common use keeps them.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

_MODELS = {
    model.__name__: model for model in (CLIPModel, CLIPTextModel, CLIPTextModelWithProjection)
}
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_LEGACY_END = 2
"""What configurations before 2023 call the end token, meaning the highest id."""


def from_source(source: str) -> ClipTextEncoder:
    """The module with its weights.

    Raises:
        ConfigError: `source` is neither a folder nor an id on the hub.
        CheckpointError: it holds no CLIP that can be read.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        source = str(folder)
    elif not _HUB_ID.fullmatch(source):
        raise ConfigError(
            "there is no such folder",
            place=f"pretrained {source}",
            remedy="give a folder with config.json, model.safetensors and a tokenizer",
        )
    config = _read_config(source)
    model_type = _model_type(config, source)
    model = _read_weights(model_type, source)
    files = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": _read_tokenizer(source, model.config.get_text_config()),
    }
    return _wrap(model, files)


def from_files(files: Mapping[str, bytes]) -> ClipTextEncoder:
    """The architecture, whose weights the checkpoint will fill in."""
    config = json.loads(files["config.json"])
    model_type = _model_type(config, "config.json")
    return _wrap(model_type(model_type.config_class.from_dict(config)), files)


def _wrap(model: Any, files: Mapping[str, bytes]) -> ClipTextEncoder:
    if isinstance(model, CLIPModel):
        return ClipEncoder(model, files, MEAN, STD)
    return ClipTextEncoder(model, files)


def _read_config(source: str) -> dict[str, Any]:
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise _unreadable(source, "config.json", error) from error
    return dict(config)


def _model_type(config: Mapping[str, Any], source: str) -> Any:
    found = config.get("architectures") or ["no config.json that names an architecture"]
    if found[0] not in _MODELS:
        raise CheckpointError(
            f"holds {found[0]}",
            place=f"pretrained {source}",
            remedy=f"clip reads {', '.join(_MODELS)}",
        )
    return _MODELS[found[0]]


def _read_weights(model_type: Any, source: str) -> Any:
    try:
        model, report = model_type.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(source, "model.safetensors", error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"model.safetensors lacks {len(missing)} weights, among them {missing[0]}",
            place=f"pretrained {source}",
            remedy="they must be those of the architecture in config.json",
        )
    return model


def _read_tokenizer(source: str, config: PreTrainedConfig) -> bytes:
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            _tokenizer_source(source), trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _unreadable(source, "the tokenizer", error) from error
    end = config.eos_token_id if config.eos_token_id != _LEGACY_END else config.vocab_size - 1
    # transformers makes an empty tokenizer where it finds no files; its end token gives it away.
    if tokenizer.eos_token_id != end or len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"its tokenizer has {len(tokenizer)} tokens and ends with {tokenizer.eos_token_id}, "
            f"its model {config.vocab_size} and {end}",
            place=f"pretrained {source}",
            remedy="put the model's own vocab.json and merges.txt, or tokenizer.json, beside it",
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.enable_padding(
        length=config.max_position_embeddings,
        pad_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
    )
    return str(backend.to_str()).encode()


def _tokenizer_source(source: str) -> str:
    """The folder itself or, as diffusers lays it out, `tokenizer` beside `text_encoder`."""
    folder = Path(source)
    beside = folder.with_name(folder.name.replace("text_encoder", "tokenizer"))
    here = any((folder / name).exists() for name in ("tokenizer.json", "vocab.json"))
    return str(beside) if beside.is_dir() and not here else source


def _unreadable(source: str, what: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"cannot read {what} ({str(error).strip().splitlines()[0]})",
        place=f"pretrained {source}",
        remedy="give a folder with config.json, model.safetensors and a tokenizer",
    )
