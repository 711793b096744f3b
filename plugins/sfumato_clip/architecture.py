"""A `clip` that is trained from nothing: the options of the component in transformers' words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from torch import nn
from transformers import CLIPConfig, CLIPModel

from sfumato import ConfigError
from sfumato_clip.encoder import ClipEncoder
from sfumato_clip.vocabulary import END, START

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sfumato_clip import Clip


def from_options(options: Clip, files: Mapping[str, bytes]) -> ClipEncoder:
    """The untrained module, for the vocabulary that `Clip.fit` learnt."""
    if "tokenizer.json" not in files:
        raise ConfigError(
            "there is no vocabulary to build it with",
            place="text_encoder clip",
            remedy="build it from what fit(captions) returns, or use pretrained_clip",
        )
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": options.positions,
        "bos_token_id": tokenizer.token_to_id(START),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(END),
        **_tower(options, options.width, options.layers, options.heads),
    }
    vision = {
        "image_size": options.image_size,
        "patch_size": options.patch,
        **_tower(options, options.image_width, options.image_layers, options.image_heads),
    }
    config = CLIPConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=options.projection,
        logit_scale_init_value=math.log(1 / 0.07),
    )
    model = CLIPModel(config)
    # As in OpenAI's code; from the 0.02 of transformers a narrow tower is slow to learn shapes.
    places = model.vision_model.embeddings.position_embedding.weight
    nn.init.normal_(places, std=options.image_width**-0.5)
    return ClipEncoder(model, files, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _tower(options: Clip, width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": options.projection,
    }
