"""CLIP: text and pictures in one space, and the objective that brings them there.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
arXiv:2103.00020. The models are those of `transformers`, built small and trained from nothing, or
read from somebody's checkpoint; several of them may speak side by side, as in Stable Diffusion XL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import attrs
from attrs.validators import ge, min_len

from sfumato import Component, ConfigError, Objective, TextEncoder, hookimpl, option, required

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from sfumato import ObjectiveModule, Pipeline, TextEncoderModule

SFUMATO_API = 1

LEAST_WIDTH = 3
"""Of a tower: of two channels layer normalisation leaves a sign, of one nothing."""

Layer = Literal["last", "penultimate"]
LongPrompts = Literal["refuse", "chunks"]
LONG_PROMPTS = "what becomes of a prompt of more tokens; may be changed after training"


@attrs.frozen(kw_only=True)
class Clip(TextEncoder):
    """Two transformers, for text and for pictures, whose pooled outputs are projected to one space.

    It starts from nothing, and learns its own byte-level BPE vocabulary from the captions.

    A prompt of more tokens than `positions` is refused, or cut into chunks that fit, each encoded
    on its own with a start and an end; their tokens stand in a row, and their pooled vectors are
    averaged.

    References:
        Learning Transferable Visual Models From Natural Language Supervision, 2021,
        arXiv:2103.00020
    """

    name = "clip"
    adjustable = frozenset({"long_prompts"})

    projection: int = option(128, "P, the width of the space that text and pictures share", ge(1))
    vocabulary: int = option(
        4096, "the most tokens to learn: 256 bytes, start, end, merges", ge(258)
    )
    positions: int = option(77, "the most tokens of a prompt, start and end included", ge(2))
    long_prompts: LongPrompts = option("refuse", LONG_PROMPTS)
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
        from sfumato_clip import vocabulary

        return {"tokenizer.json": vocabulary.learn(captions, self.vocabulary, self.positions)}

    def build(self, files: Mapping[str, bytes]) -> TextEncoderModule:
        """The untrained module.

        Raises:
            ConfigError: no vocabulary was learnt.
        """
        from sfumato_clip import architecture

        module = architecture.from_options(self, files)
        if self.long_prompts == "chunks":
            module.split_long_prompts()
        return module


@attrs.frozen(kw_only=True)
class PretrainedClip(TextEncoder):
    """A CLIP that somebody else has trained: its architecture, its weights and its tokenizer.

    Of a folder as transformers writes it, or diffusers (`text_encoder`, with `tokenizer` beside
    it), or open_clip. A folder without a vision tower makes an encoder of text only. The source is
    read once: a checkpoint of ours holds all that it said, and does not look for it again, so that
    an encoder that came with its checkpoint has none.

    Stable Diffusion 1 and 2 attend to the `last` layer after its LayerNorm (folders of SD 2 are
    already cut to the layer that it was trained with), SDXL to the `penultimate` one, as it is. The
    pooled vector is that of the last layer for both.

    References:
        Learning Transferable Visual Models From Natural Language Supervision, 2021,
        arXiv:2103.00020
        Reproducible scaling laws for contrastive language-image learning, 2022, arXiv:2212.07143
    """

    name = "pretrained_clip"
    adjustable = frozenset({"long_prompts"})

    source: str | None = option(
        None, "a folder, or an id on the hub; null: the files of a checkpoint say all"
    )
    layer: Layer = option("last", "whose tokens: of the last one after its LayerNorm, or before it")
    long_prompts: LongPrompts = option("refuse", LONG_PROMPTS)

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Of a folder that holds one layer of 16 channels."""
        from sfumato_clip import pretrained

        pretrained.write_example(folder)
        return cls(source=str(folder))

    def build(self, files: Mapping[str, bytes]) -> TextEncoderModule:
        """The module, from the files of a checkpoint; without them from the source, with weights.

        Raises:
            ConfigError: there is no such folder, or nothing to build it from.
            CheckpointError: the folder holds no CLIP that can be read.
        """
        from sfumato_clip import pretrained

        if files:
            module = pretrained.from_files(files, self.layer)
        elif self.source is not None:
            module = pretrained.from_source(self.source, self.layer)
        else:
            raise ConfigError(
                "there are no files of a checkpoint to build it from",
                place="text_encoder pretrained_clip",
                remedy="give its source",
            )
        if self.long_prompts == "chunks":
            module.split_long_prompts()
        return module


@attrs.frozen(kw_only=True)
class Concat(TextEncoder):
    """Several encoders side by side: the tokens of each prompt are as wide as theirs together.

    All have to read the same number of tokens. Files and weights have their names, with `0.`, `1.`
    ... before those of files, `encoders.0.`, `encoders.1.` ... before those of weights. Stable
    Diffusion XL hears two CLIPs like that, pools with the second, and its null condition is
    no empty prompt, but zeros in the tokens and in the pooled vector.

    References:
        SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis, 2023,
        arXiv:2307.01952, Section 2.1
    """

    name = "concat"

    encoders: tuple[TextEncoder, ...] = required("in the order of their channels", min_len(1))
    pooled: Literal["last", "all"] = option("last", "whose pooled vectors: of the last, or of all")
    null_condition: Literal["empty", "zeros"] = option("empty", "the empty prompt, or zeros")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Two small ones, the second wider."""
        small = Clip.example(folder)
        return cls(encoders=(small, attrs.evolve(small, width=24, projection=10)))

    def fit(self, captions: Iterable[str]) -> Mapping[str, bytes]:
        """What each of them learns."""
        captions = list(captions)
        return {
            f"{index}.{name}": content
            for index, encoder in enumerate(self.encoders)
            for name, content in encoder.fit(captions).items()
        }

    def build(self, files: Mapping[str, bytes]) -> TextEncoderModule:
        """All of them, each from its own files.

        Raises:
            ConfigError: one of them refuses, or they read different numbers of tokens.
        """
        from sfumato_clip.concat import ConcatModule

        return ConcatModule(self, files)


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
    compares = True
    reads = frozenset({"text_encoder"})

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
    """CLIP, alone and side by side, and its objective."""
    return [Clip, PretrainedClip, Concat, Contrastive]
