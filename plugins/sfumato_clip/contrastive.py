"""The contrastive loss of CLIP (Radford et al., 2021, arXiv:2103.00020, Figure 3), per example."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from sfumato import Batch, ConfigError, JointEncoderModule, Losses, ObjectiveModule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sfumato import Draw, TextEncoderModule

MAX_LOG_SCALE = math.log(100)


def contrastive_losses(
    images: Tensor, texts: Tensor, scale: Tensor, same: Tensor
) -> tuple[Tensor, Tensor]:
    """Half the cross-entropy of each row plus half that of each column of `scale I T^t`.

    Pure, and in the dtype of `scale` even under autocast: logits up to 100 need the digits.

    Args:
        images: (B, P), of any length.
        texts: like images; row i belongs to image i.
        scale: (), the factor on cosine similarities.
        same: (B, B) bool, symmetric, True on the diagonal and wherever two captions count as one.

    Returns:
        Losses (B,), and 1 where the caption nearest to an image is a right one, else 0, (B,).
    """
    with torch.autocast(images.device.type, enabled=False):
        images = functional.normalize(images.to(scale.dtype), dim=-1)
        texts = functional.normalize(texts.to(scale.dtype), dim=-1)
        logits = scale * images @ texts.T
        target = same / same.sum(dim=1, keepdim=True)
        rows = functional.cross_entropy(logits, target.to(logits), reduction="none")
        columns = functional.cross_entropy(logits.T, target.to(logits), reduction="none")
    right = same.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)
    return (rows + columns) / 2, right.to(logits)


def equal_captions(captions: Sequence[str], device: torch.device) -> Tensor:
    """(B, B) bool: which captions are the same text."""
    number: dict[str, int] = {}
    labels = [number.setdefault(caption, len(number)) for caption in captions]
    label = torch.tensor(labels, device=device)
    return label[:, None] == label[None, :]


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
        """Contrastive losses (B,), with `accuracy` and `logit_scale`; nothing is drawn."""
        images = self.encoder.encode_images(batch.images)
        texts = self.encoder.encode(batch.captions).pooled
        scale = self.encoder.log_scale.exp()
        if self.merge_equal_captions:
            same = equal_captions(batch.captions, images.device)
        else:
            same = torch.eye(len(images), dtype=torch.bool, device=images.device)
        values, right = contrastive_losses(images, texts, scale, same)
        numbers = {"accuracy": right, "logit_scale": scale.detach().expand(len(values))}
        return Losses(values=values, numbers=numbers)

    @torch.no_grad()
    def after_step(self) -> None:
        """Keeps the scale in [1, 100]."""
        self.encoder.log_scale.clamp_(0, MAX_LOG_SCALE)
