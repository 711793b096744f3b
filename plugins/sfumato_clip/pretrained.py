"""CLIP from a folder or the hub, or from what a checkpoint kept of it.

Weights are read from safetensors only, and code from the folder is never run. A few files make the
module again without the folder: its `config.json`, a `tokenizer.json` that pads with the folder's
own token to the model's positions and, where pictures are encoded too, `preprocessor_config.json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedConfig,
)
from transformers.utils import cached_file

from sfumato import CheckpointError, ConfigError
from sfumato_clip import open_clip
from sfumato_clip.encoder import ClipEncoder, ClipTextEncoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sfumato_clip import Layer

# Of OpenAI's training pictures, which most others keep.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

_MODELS = {
    model.__name__: model for model in (CLIPModel, CLIPTextModel, CLIPTextModelWithProjection)
}
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_LEGACY_END = 2
"""What configurations before 2023 call the end token, meaning the highest id."""


def from_source(source: str, layer: Layer) -> ClipTextEncoder:
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
    if (folder / open_clip.CONFIG).is_file() and not (folder / "config.json").is_file():
        config, pictures = open_clip.read_config(folder)
        model = _filled(config, folder)
    else:
        config, pictures = _read_config(source), _read_preprocessor(source)
        model = _read_weights(_model_type(config, source), source)
    files = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": _read_tokenizer(source, model.config.get_text_config()),
    }
    if isinstance(model, CLIPModel):
        files["preprocessor_config.json"] = json.dumps(pictures).encode()
    return _wrap(model, files, layer)


def from_files(files: Mapping[str, bytes], layer: Layer) -> ClipTextEncoder:
    """The architecture, whose weights the checkpoint will fill in."""
    config = json.loads(files["config.json"])
    model_type = _model_type(config, "config.json")
    return _wrap(model_type(model_type.config_class.from_dict(config)), files, layer)


def write_example(folder: Path) -> None:
    """A tiny CLIP for texts, with fresh weights, whose every letter is a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{one}</w>" for one in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = json.dumps({token: index for index, token in enumerate(tokens)})
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        max_position_embeddings=48,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=12,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)


def _wrap(model: Any, files: Mapping[str, bytes], layer: Layer) -> ClipTextEncoder:
    if not isinstance(model, CLIPModel):
        return ClipTextEncoder(model, files, layer)
    pictures = json.loads(files["preprocessor_config.json"])
    mean, std = pictures.get("image_mean", MEAN), pictures.get("image_std", STD)
    return ClipEncoder(model, files, mean, std, layer)


def _read_config(source: str) -> dict[str, Any]:
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise _unreadable(source, "config.json", error) from error
    return dict(config)


def _read_preprocessor(source: str) -> dict[str, Any]:
    """Mean and standard deviation of the pictures that the model knows, where the source says."""
    try:
        path = cached_file(source, "preprocessor_config.json")
    except OSError:
        return {}
    try:
        stated = json.loads(Path(path).read_bytes())
        return {name: stated[name] for name in ("image_mean", "image_std") if name in stated}
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(source, "preprocessor_config.json", error) from error


def _model_type(config: Mapping[str, Any], source: str) -> Any:
    found = config.get("architectures") or ["no config.json that names an architecture"]
    if found[0] not in _MODELS:
        raise CheckpointError(
            f"holds {found[0]}",
            place=f"pretrained {source}",
            remedy=f"pretrained_clip reads {', '.join(_MODELS)}",
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
    _refuse_other(report["missing_keys"], "lacks", source, "model.safetensors", "config.json")
    return model


def _filled(config: dict[str, Any], folder: Path) -> CLIPModel:
    """A model of transformers with the weights that open_clip has written."""
    model = CLIPModel(CLIPConfig.from_dict(config))
    try:
        missing, odd = model.load_state_dict(open_clip.read_weights(folder), strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _unreadable(str(folder), open_clip.WEIGHTS, error) from error
    _refuse_other(missing, "lacks", str(folder), open_clip.WEIGHTS, open_clip.CONFIG)
    _refuse_other(odd, "has, beside its own,", str(folder), open_clip.WEIGHTS, open_clip.CONFIG)
    return model


def _refuse_other(names: Iterable[str], how: str, source: str, weights: str, config: str) -> None:
    names = sorted(names)
    if names:
        raise CheckpointError(
            f"{weights} {how} {len(names)} weights, among them {names[0]}",
            place=f"pretrained {source}",
            remedy=f"they must be those of the architecture in {config}",
        )


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
    lines = map(str.strip, str(error).strip().splitlines())
    said = next((line for line in lines if not line.endswith(":")), type(error).__name__)
    return CheckpointError(
        f"cannot read {what} ({said})",
        place=f"pretrained {source}",
        remedy="give a folder with config.json, model.safetensors and a tokenizer",
    )
