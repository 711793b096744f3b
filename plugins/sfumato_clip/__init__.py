"""CLIP: text and pictures in one space, and the objective that brings them there.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
arXiv:2103.00020. The models are those of `transformers`, built small and trained from nothing, or
read from a folder or the hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import attrs
from attrs.validators import ge

from sfumato import Component, ConfigError, Objective, TextEncoder, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from sfumato import ObjectiveModule, Pipeline, TextEncoderModule
    from sfumato_clip.encoder import ClipTextEncoder

SFUMATO_API = 1

LEAST_WIDTH = 3
"""Of a tower: of two channels layer normalisation leaves a sign, of one nothing."""


@attrs.frozen(kw_only=True)
class Clip(TextEncoder):
    """Two transformers, for text and for pictures, whose pooled outputs are projected to one space.

    From nothing it learns its own byte-level BPE vocabulary from the captions. With `pretrained`
    the architecture, the weights and the tokenizer are those of the folder, and no option that says
    what is built may be changed; a folder without a vision tower, such as Stable Diffusion's
    `text_encoder`, makes an encoder of text only.

    A prompt of more tokens than `positions` is refused, or cut into chunks that fit, each encoded
    on its own with a start and an end; their tokens stand in a row, and the first is pooled.

    References:
        Learning Transferable Visual Models From Natural Language Supervision, 2021,
        arXiv:2103.00020
    """

    name = "clip"
    adjustable = frozenset({"long_prompts"})

    pretrained: str | None = option(None, "a folder, or an id on the hub, to read instead")
    projection: int = option(128, "P, the width of the space that text and pictures share", ge(1))
    vocabulary: int = option(
        4096, "the most tokens to learn: 256 bytes, start, end, merges", ge(258)
    )
    positions: int = option(77, "the most tokens of a prompt, start and end included", ge(2))
    long_prompts: Literal["refuse", "chunks"] = option(
        "refuse", "what becomes of a prompt of more tokens; may be changed after training"
    )
    width: int = option(128, "width of the text tower", ge(LEAST_WIDTH))
    layers: int = option(3, "layers of the text tower", ge(1))
    heads: int = option(4, "attention heads of the text tower", ge(1))
    image_size: int = option(32, "side of the picture that the vision tower sees", ge(1))
    patch: int = option(4, "side of a patch of it", ge(1))
    image_width: int = option(128, "width of the vision tower", ge(LEAST_WIDTH))
    image_layers: int = option(3, "layers of the vision tower", ge(1))
    image_heads: int = option(4, "attention heads of the vision tower", ge(1))

    @classmethod
    def example(cls, folder: Path) -> Self:
        """One layer of 16 channels in each tower."""
        return cls(
            projection=12, vocabulary=280, positions=32,
            width=16, layers=1, heads=2,
            image_size=16, patch=8, image_width=16, image_layers=1, image_heads=2,
        )  # fmt: skip

    def __attrs_post_init__(self) -> None:
        changed = [
            field.name
            for field in attrs.fields(type(self))
            if field.name not in self.adjustable and getattr(self, field.name) != field.default
        ]
        if self.pretrained is not None and len(changed) > 1:
            raise ConfigError(
                f"clip has {', '.join(changed)}, but pretrained alone says what is built",
                remedy="drop pretrained, or the others",
            )
        if self.long_prompts == "chunks" and self.positions == 2:
            raise ConfigError(
                "clip has long_prompts: chunks, but 2 positions hold a start and an end alone",
                remedy="change positions",
            )
        for whole, part in (
            ("width", "heads"),
            ("image_width", "image_heads"),
            ("image_size", "patch"),
        ):
            size, divisor = getattr(self, whole), getattr(self, part)
            if size % divisor:
                raise ConfigError(
                    f"clip has {whole} {size}, which {part} {divisor} does not divide",
                    remedy=f"change {whole} or {part}",
                )

    def fit(self, captions: Iterable[str]) -> Mapping[str, bytes]:
        """Learns the vocabulary, `tokenizer.json`; the order of the captions does not matter."""
        if self.pretrained is not None:
            return {}
        from sfumato_clip import vocabulary

        return {"tokenizer.json": vocabulary.learn(captions, self.vocabulary, self.positions)}

    def build(self, files: Mapping[str, bytes]) -> TextEncoderModule:
        """The module; with `pretrained` and no files its weights too.

        Raises:
            ConfigError: there is no such folder, or no vocabulary was learnt.
            CheckpointError: the folder holds no CLIP that can be read.
        """
        from sfumato_clip import architecture, pretrained

        if self.pretrained is None:
            module: ClipTextEncoder = architecture.from_options(self, files)
        elif files:
            module = pretrained.from_files(files)
        else:
            module = pretrained.from_source(self.pretrained)
        if self.long_prompts == "chunks":
            module.split_long_prompts()
        return module


@attrs.frozen(kw_only=True)
class Contrastive(Objective):
    """Half the sum of the cross-entropies over the rows and the columns of s I T^t.

    I and T are the vectors of pictures and captions, L2-normalised; s is learnt in log space,
    starts at 1/0.07 and stays in [1, 100]. A caption that occurs twice in a batch fits both
    pictures, yet the formula counts one of the two as wrong; with `merge_equal_captions` the target
    is spread evenly over equal captions. Where captions are distinct that changes nothing.

    References:
        Learning Transferable Visual Models From Natural Language Supervision, 2021,
        arXiv:2103.00020, Figure 3
        Unified Contrastive Learning in Image-Text-Label Space, 2022, arXiv:2204.03610
    """

    name = "contrastive"
    trains: ClassVar[Literal["text_encoder", "denoiser"]] = "text_encoder"

    merge_equal_captions: bool = option(True, "equal captions of a batch are right answers alike")

    def build(self, pipeline: Pipeline) -> ObjectiveModule:
        """The text encoder of the pipeline, to be trained.

        Raises:
            ConfigError: it has no image encoder.
        """
        from sfumato_clip.contrastive import ContrastiveModule

        return ContrastiveModule(pipeline.text_encoder, self.merge_equal_captions)


@hookimpl
def sfumato_components() -> list[type[Component]]:
    """CLIP and its objective."""
    return [Clip, Contrastive]
