"""The pipelines of diffusers that we know, and what they are made of."""

from __future__ import annotations

from typing import Any

import attrs

from sfumato_diffusers import scheduler, text, unet, vae

INDEX, STEM = "model_index.json", "diffusion_pytorch_model"

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that have no say in a picture from a text."""


@attrs.frozen(kw_only=True)
class Family:
    """One class of pipelines.

    Attributes:
        encoders: the parts of each text encoder, those of its tokenizer, and its class.
        layer: whose tokens are attended to; see the text encoder `pretrained_clip`.
        forced: whether the pipeline sets `steps_offset` and `clip_sample` of its scheduler itself.
        scale: of guidance, where it is not told another.
        steps: likewise.
    """

    encoders: tuple[tuple[str, str, str], ...]
    layer: str
    forced: bool
    scale: float
    steps: int = 50

    @property
    def stacked(self) -> bool:
        """Whether there are several encoders, and the UNet hears the pooled vector and sizes."""
        return len(self.encoders) > 1

    @property
    def parts(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """By part, the library that its class is of, and which classes are known."""
        found: dict[str, tuple[str, tuple[str, ...]]] = {
            "unet": ("diffusers", (unet.CLASS,)),
            "vae": ("diffusers", (vae.CLASS,)),
            "scheduler": ("diffusers", tuple(sorted(scheduler.READERS))),
        }
        for part, tokenizer, kind in self.encoders:
            found[part] = ("transformers", (kind,))
            found[tokenizer] = ("transformers", text.TOKENIZERS)
        return found

    def encoder(self, null: str) -> dict[str, Any]:
        """The settings of the text encoder, with its null condition: the empty prompt or zeros."""
        one = {"use": "pretrained_clip", "layer": self.layer}
        if not self.stacked:
            return one
        return {
            "use": "concat",
            "encoders": [one] * len(self.encoders),
            "pooled": "last",
            "null_condition": null,
        }


FAMILIES = {
    "StableDiffusionPipeline": Family(
        encoders=(("text_encoder", "tokenizer", text.PLAIN),), layer="last", forced=True, scale=7.5
    ),
    "StableDiffusionXLPipeline": Family(
        encoders=(
            ("text_encoder", "tokenizer", text.PLAIN),
            ("text_encoder_2", "tokenizer_2", text.PROJECTED),
        ),
        layer="penultimate",
        forced=False,
        scale=5.0,
    ),
}
