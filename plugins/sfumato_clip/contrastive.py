"""The contrastive loss of CLIP (Radford et al., 2021, arXiv:2103.00020, Figure 3), per example."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from sfumato import Batch, ConfigError, JointEncoderModule, Losses, ObjectiveModule, gathered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sfumato import Draw, TextEncoderModule

MAX_LOG_SCALE = math.log(100)


def contrastive_losses(
    images: Tensor, texts: Tensor, scale: Tensor, same: Tensor, own: slice | None = None
) -> tuple[Tensor, Tensor]:
    """Half the cross-entropy of each row plus half that of each column of `scale I T^t`, for some
    examples of a batch.

    Pure, and in the dtype of `scale` even under autocast: logits up to 100 need the digits.

    Args:
        images: (B, P), of any length.
        texts: like images; row i belongs to image i.
        scale: (), the factor on cosine similarities.
        same: (B, B) bool, symmetric, True on the diagonal and wherever two captions count as one.
        own: the b examples whose losses are wanted, by default all; the others are only compared
            with.

    Returns:
        Losses (b,), and 1 where the caption nearest to an image is a right one, else 0, (b,).
    """
    with torch.autocast(images.device.type, enabled=False):
        images = functional.normalize(images.to(scale.dtype), dim=-1)
        texts = functional.normalize(texts.to(scale.dtype), dim=-1)
        scaled = scale * images
        if own is None:
            of_images = scaled @ texts.T
            of_texts = of_images.T
        else:
            of_images, of_texts, same = scaled[own] @ texts.T, texts[own] @ scaled.T, same[own]
        target = (same / same.sum(dim=1, keepdim=True)).to(of_images)
        rows = functional.cross_entropy(of_images, target, reduction="none")
        columns = functional.cross_entropy(of_texts, target, reduction="none")
    right = same.gather(1, of_images.argmax(dim=1, keepdim=True)).squeeze(1)
    return (rows + columns) / 2, right.to(of_images)


def labels(captions: Sequence[str]) -> Tensor:
    """(B,) int64, equal where captions are the same text: a hash, so that ranks agree."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in captions)
    return torch.tensor([int.from_bytes(one, "little", signed=True) for one in digests])


def _span(rows: Tensor) -> slice:
    """Neighbouring places (b,) as a slice."""
    first = int(rows[0])
    return slice(first, first + len(rows))


class ContrastiveModule(ObjectiveModule):
    """Trains a joint encoder."""

    def __init__(self, encoder: TextEncoderModule, merge_equal_captions: bool) -> None:
        super().__init__()
        if not isinstance(encoder, JointEncoderModule):
            raise ConfigError(
                f"it trains text and image encoder together, but {type(encoder).__name__} has no "
                "image encoder",
                place="objective contrastive",
                remedy="use a text_encoder that has one, such as clip",
            )
        self.encoder = encoder
        self.merge_equal_captions = merge_equal_captions

    def losses(self, batch: Batch, draw: Draw) -> Losses:
        """Contrastive losses (B,), with `accuracy` and `logit_scale`; nothing is drawn.

        Each example is compared with all of the global batch, on whatever rank they are.
        """
        images = gathered(self.encoder.encode_images(batch.images))
        texts = gathered(self.encoder.encode(batch.captions).pooled)
        scale = self.encoder.log_scale.exp()
        if self.merge_equal_captions:
            label = gathered(labels(batch.captions).to(images.device))
            same = label[:, None] == label[None, :]
        else:
            same = torch.eye(len(images), dtype=torch.bool, device=images.device)
        own = None if len(batch.rows) == batch.total else _span(batch.rows)
        values, right = contrastive_losses(images, texts, scale, same, own)
        numbers = {"accuracy": right, "logit_scale": scale.detach().expand(len(values))}
        return Losses(values=values, numbers=numbers)

    @torch.no_grad()
    def after_step(self) -> None:
        """Keeps the scale in [1, 100]."""
        self.encoder.log_scale.clamp_(0, MAX_LOG_SCALE)
