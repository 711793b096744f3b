"""Prompts and pictures to vectors, with the models of `transformers`.

The text tower reads `positions` tokens at once, padding included and unmasked, as Stable Diffusion
does. It is causal, so padding never reaches the tokens before it, but what stands at the padding
reaches whoever attends to it. Knows nothing about folders.
"""

from __future__ import annotations

import itertools
import textwrap
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from sfumato import ConfigError, JointEncoderModule, TextEmbedding, TextEncoderModule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenizers import Encoding
    from transformers import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection

    from sfumato_clip import Layer

Chunk = tuple[list[int], int]


class ClipTextEncoder(TextEncoderModule):
    """The text side of CLIP: tokens of one layer, and the last layer's vector at the end token.

    `pooled` is projected where the model has a projection. Parts have the names that they have in
    the files of checkpoints, whatever the version of transformers: `text_model`, `text_projection`.
    """

    text_model: Any
    text_projection: nn.Linear

    def __init__(
        self,
        model: CLIPModel | CLIPTextModel | CLIPTextModelWithProjection,
        files: Mapping[str, bytes],
        layer: Layer = "last",
    ) -> None:
        """Takes a model apart; `files["tokenizer.json"]` pads to its positions and does not
        truncate. For `layer` see `PretrainedClip`.
        """
        super().__init__()
        model = model.float()
        whole = hasattr(model, "text_model")
        for name, part in model.named_children() if whole else [("text_model", model)]:
            self.add_module(name, part)
        self.files, self.layer = files, layer
        self._tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        self._splits = False
        config = model.config.get_text_config()
        self.width = config.hidden_size
        self.positions = config.max_position_embeddings
        self.pooled_width = (
            model.text_projection.out_features if hasattr(model, "text_projection") else self.width
        )

    def split_long_prompts(self) -> None:
        """From now on encodes a prompt of more tokens than `positions` in chunks."""
        self._splits = True

    def check(self, prompts: Iterable[str]) -> None:
        """Raises ConfigError where a prompt is too long and not to be split."""
        prompts = list(prompts)
        for prompt, encoding in zip(prompts, self._tokenizer.encode_batch(prompts), strict=True):
            self._chunks(prompt, encoding)

    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """Tokens (B, L, D), mask True from each start to its end token, pooled (B, P).

        L is `positions`, or a multiple of it where a prompt has several chunks (see
        `TextEmbedding.aligned`).

        Raises:
            ConfigError: a prompt has more tokens than `positions`, and is not to be split.
        """
        encodings = self._tokenizer.encode_batch(list(prompts))
        chunks = list(map(self._chunks, prompts, encodings))
        encoded = self._encode(list(itertools.chain.from_iterable(chunks)))
        if len(encoded) == len(prompts):
            return encoded
        ends = itertools.accumulate(map(len, chunks), initial=0)
        return TextEmbedding.cat(
            *(_in_a_row(encoded, first, end) for first, end in itertools.pairwise(ends))
        )

    def _encode(self, chunks: Sequence[Chunk]) -> TextEmbedding:
        device = self.text_model.embeddings.token_embedding.weight.device
        ids = torch.tensor([ids for ids, _ in chunks], device=device)
        mask = torch.arange(self.positions, device=device) < torch.tensor(
            [[length] for _, length in chunks], device=device
        )
        inner = self.layer == "penultimate"
        hidden = self.text_model(input_ids=ids, output_hidden_states=inner)
        tokens = hidden.hidden_states[-2] if inner else hidden.last_hidden_state
        pooled = hidden.pooler_output
        if hasattr(self, "text_projection"):
            pooled = self.text_projection(pooled)
        return TextEmbedding(tokens=tokens, mask=mask, pooled=pooled)

    def _chunks(self, prompt: str, encoding: Encoding) -> list[Chunk]:
        """What the model reads at once: its `positions` tokens, and how many are no padding."""
        if len(encoding.ids) <= self.positions:
            return [(encoding.ids, sum(encoding.attention_mask))]
        if not self._splits:
            raise ConfigError(
                f"{len(encoding.ids)} tokens with start and end, but the text encoder reads "
                f"{self.positions}",
                place=f"prompt {textwrap.shorten(prompt, 60, placeholder=' ...')!r}",
                remedy="shorten it, or split it: long_prompts=chunks of the text encoder",
            )
        # Truncation by the tokenizer would do it, too, but versions differ in what they keep.
        start, *content, end = encoding.ids
        size, pad = self.positions - 2, (self._tokenizer.padding or {})["pad_id"]
        pieces = (content[first : first + size] for first in range(0, len(content), size))
        return [
            ([start, *piece, end, *(size - len(piece)) * [pad]], len(piece) + 2) for piece in pieces
        ]


def _in_a_row(chunks: TextEmbedding, first: int, end: int) -> TextEmbedding:
    """The chunks `first` to `end` as one prompt; pooled is their mean, so that no word is lost."""
    return TextEmbedding(
        tokens=chunks.tokens[first:end].flatten(0, 1)[None],
        mask=chunks.mask[first:end].flatten()[None],
        pooled=chunks.pooled[first:end].mean(dim=0, keepdim=True),
    )


class ClipEncoder(ClipTextEncoder, JointEncoderModule):
    """Both sides of CLIP."""

    mean: Tensor
    std: Tensor
    vision_model: Any
    visual_projection: nn.Linear
    logit_scale: nn.Parameter

    def __init__(
        self,
        model: CLIPModel,
        files: Mapping[str, bytes],
        mean: Sequence[float],
        std: Sequence[float],
        layer: Layer = "last",
    ) -> None:
        """`mean` and `std` are of the pictures that the model knows: each colour, in [0, 1]."""
        super().__init__(model, files, layer)
        self.logit_scale = model.logit_scale
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], of any size, to vectors (B, P), not normalised."""
        pictures = fit_square(images, self.vision_model.config.image_size)
        pixels = ((pictures + 1) / 2 - self.mean) / self.std
        pooled = self.vision_model(pixel_values=pixels).pooler_output
        return self.visual_projection(pooled)  # type: ignore[no-any-return]

    @property
    def log_scale(self) -> nn.Parameter:
        """The logarithm of the learnt factor on cosine similarities, ()."""
        return self.logit_scale


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
