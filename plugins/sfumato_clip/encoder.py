"""Prompts and pictures to vectors, with the models of `transformers`.

The text tower reads `positions` tokens, padding included and unmasked, as Stable Diffusion does. It
is causal, so padding never reaches the tokens before it, but what stands at the padding reaches
whoever attends to it. Knows nothing about folders.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from sfumato import ConfigError, JointEncoderModule, TextEmbedding, TextEncoderModule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection


class ClipTextEncoder(TextEncoderModule):
    """The text side of CLIP: tokens after the final LayerNorm, pooled at the end token.

    `pooled` is projected where the model has a projection.
    """

    def __init__(
        self,
        model: CLIPModel | CLIPTextModel | CLIPTextModelWithProjection,
        files: Mapping[str, bytes],
    ) -> None:
        """Wraps a model; `files["tokenizer.json"]` pads to its positions and does not truncate."""
        super().__init__()
        self.model = model.float()
        self.files = files
        self._tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        config = model.config.get_text_config()
        self.width = config.hidden_size
        self.positions = config.max_position_embeddings
        self.pooled_width = (
            model.text_projection.out_features if hasattr(model, "text_projection") else self.width
        )

    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """Tokens (B, positions, D), mask True from the start to the end token, pooled (B, P).

        Raises:
            ConfigError: a prompt has more tokens than `positions`.
        """
        ids, mask = self._tokenise(prompts)
        model = self.model
        hidden = getattr(model, "text_model", model)(input_ids=ids)
        pooled = hidden.pooler_output
        if hasattr(model, "text_projection"):
            pooled = model.text_projection(pooled)
        return TextEmbedding(tokens=hidden.last_hidden_state, mask=mask, pooled=pooled)

    def _tokenise(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encodings = self._tokenizer.encode_batch(list(prompts))
        for prompt, encoding in zip(prompts, encodings, strict=True):
            if len(encoding.ids) > self.positions:
                raise ConfigError(
                    f"{len(encoding.ids)} tokens with start and end, but the text encoder reads "
                    f"{self.positions}",
                    place=f"prompt {textwrap.shorten(prompt, 60, placeholder=' ...')!r}",
                    remedy="shorten it",
                )
        device = self.model.device
        ids = torch.tensor([encoding.ids for encoding in encodings], device=device)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], device=device)
        return ids, mask.bool()


class ClipEncoder(ClipTextEncoder, JointEncoderModule):
    """Both sides of CLIP."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: CLIPModel,
        files: Mapping[str, bytes],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """`mean` and `std` are of the pictures that the model knows: each colour, in [0, 1]."""
        super().__init__(model, files)
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], of any size, to vectors (B, P), not normalised."""
        pictures = fit_square(images, self.model.config.vision_config.image_size)
        pixels = ((pictures + 1) / 2 - self.mean) / self.std
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return self.model.visual_projection(pooled)  # type: ignore[no-any-return]

    @property
    def log_scale(self) -> nn.Parameter:
        """The logarithm of the learnt factor on cosine similarities, ()."""
        return self.model.logit_scale  # type: ignore[no-any-return]


def fit_square(images: Tensor, size: int) -> Tensor:
    """Brings the shorter side to `size` and keeps the middle of the longer one.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        size: the side of the square.

    Returns:
        (B, 3, size, size) in [-1, 1].
    """
    height, width = images.shape[-2:]
    if height == width == size:
        return images
    short = min(height, width)
    scaled = (size * height // short, size * width // short)
    # Bicubic overshoots at edges; CLIP was trained on 8-bit pictures, where that is cut off.
    images = functional.interpolate(images, scaled, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return images[..., top : top + size, left : left + size]
