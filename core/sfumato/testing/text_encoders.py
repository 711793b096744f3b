"""Laws of text encoders: each prompt for itself, and one null condition.

They are held to prompts of different lengths, with what `fit` learns from these.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.interfaces import TextEncoder
from sfumato.modules import JointEncoderModule, TextEncoderModule
from sfumato.randomness import Draw
from sfumato.testing.laws import (
    expect,
    expect_close,
    expect_equal,
    expect_finite,
    law,
    subject,
)
from sfumato.testing.modules import (
    EXACT,
    ROUNDING,
    built,
    expect_different,
    random_state_kept,
    reloaded,
)

if TYPE_CHECKING:
    from sfumato.records import TextEmbedding

PROMPTS = ("a red circle", "a blue square on black", "triangle")
"""Of different lengths, and short: an encoder may read little."""
CAPTIONS = (*PROMPTS, "a large green triangle", "a yellow circle on a gray background", "red")


@attrs.frozen(eq=False)
class Subject:
    """The settings, what they learn, and what they build from it."""

    settings: TextEncoder
    files: Mapping[str, bytes]
    module: TextEncoderModule

    def __call__(self, *prompts: str) -> TextEmbedding:
        """The prompts, without a graph."""
        with torch.no_grad():
            return self.module.encode(prompts)

    def null(self, batch: int) -> TextEmbedding:
        """The null condition, likewise."""
        with torch.no_grad():
            return self.module.null(batch)


@subject("text_encoder")
def builds(settings: TextEncoder) -> Subject:
    """From what it learns of a few captions it builds a module that reads them."""
    files = settings.fit(CAPTIONS)
    encoder = Subject(settings, files, built(lambda: settings.build(files)))
    encoder(*PROMPTS)
    return encoder


def _expect_row(text: TextEmbedding, row: int, alone: TextEmbedding, of: str) -> None:
    """Raises `Broken` unless a row of a batch says what `alone` does, in the tokens that belong to
    it: padding may differ, and a batch may hold all of them several times.
    """
    got, own = text.tokens[row][text.mask[row]], alone.tokens[0][alone.mask[0]]
    expect_close(got, own.repeat(max(len(got) // len(own), 1), 1), f"tokens of {of}", ROUNDING)
    expect_close(text.pooled[row], alone.pooled[0], f"pooled vector of {of}", ROUNDING)


def _expect_same(got: TextEmbedding, wanted: TextEmbedding, of: str, tolerance: float) -> None:
    expect_equal(got.mask.tolist(), wanted.mask.tolist(), f"mask of {of}")
    expect_close(got.tokens, wanted.tokens, f"tokens of {of}", tolerance)
    expect_close(got.pooled, wanted.pooled, f"pooled vector of {of}", tolerance)


@law("text_encoder")
def shapes_and_dtypes(encoder: Subject) -> None:
    """Tokens are (B, L, width), the mask (B, L) bool with some token in it, pooled (B, pooled
    width); all finite.
    """
    text, module = encoder(*PROMPTS), encoder.module
    length = text.tokens.shape[1]
    expect_equal(tuple(text.tokens.shape), (3, length, module.width), "shape of tokens")
    expect_equal((tuple(text.mask.shape), text.mask.dtype), ((3, length), torch.bool), "mask")
    expect_equal(tuple(text.pooled.shape), (3, module.pooled_width), "shape of pooled")
    expect(bool(text.mask.any(dim=1).all()), "a token of each prompt", "an empty mask")
    for name, value in {"tokens": text.tokens, "pooled": text.pooled}.items():
        expect_equal((len(value), value.dtype), (3, torch.float32), f"length and dtype of {name}")
        expect_finite(value, name)


@law("text_encoder")
def repeatable(encoder: Subject) -> None:
    """In eval mode the same prompts give the same, whatever was encoded in between."""
    first = encoder(*PROMPTS)
    encoder(PROMPTS[1])
    _expect_same(encoder(*PROMPTS), first, "the same prompts again", EXACT)


@law("text_encoder")
def padding_does_not_leak(encoder: Subject) -> None:
    """A prompt alone is encoded as beside a longer one, at the tokens that belong to it."""
    together = encoder(*PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        _expect_row(together, row, encoder(prompt), f"{prompt!r} beside others")


@law("text_encoder")
def order_does_not_matter(encoder: Subject) -> None:
    """Prompts in another order give the same rows in that order."""
    backwards = encoder(*PROMPTS[::-1]).map(lambda tensor: tensor.flip(0))
    _expect_same(backwards, encoder(*PROMPTS), "prompts in another order", ROUNDING)


@law("text_encoder")
def prompts_differ(encoder: Subject) -> None:
    """Different prompts have different tokens and different pooled vectors."""
    text = encoder(*PROMPTS)
    for name, value in (("tokens", text.tokens), ("pooled vectors", text.pooled)):
        expect_different(value, value.roll(1, dims=0), f"different {name} for different prompts")


@law("text_encoder")
def every_word_counts(encoder: Subject) -> None:
    """Prompts that differ in their first or in their last word alone differ.

    Of three other words one is enough, as an encoder may hash words.
    """
    base = encoder("a small red circle").pooled.repeat(3, 1)
    for place, words in (("first", ("one", "the", "no")), ("last", ("square", "house", "cat"))):
        prompts = [
            f"{word} small red circle" if place == "first" else f"a small red {word}"
            for word in words
        ]
        same = bool((encoder(*prompts).pooled - base).abs().max() <= EXACT)
        expect(not same, f"other vectors for another {place} word", f"the same for {prompts}")


@law("text_encoder")
def can_be_trained(encoder: Subject) -> None:
    """Derivatives reach its weights, where it has some."""
    weights = [p for p in encoder.module.parameters() if p.is_floating_point()]
    if not weights:
        return
    asked = [p.requires_grad for p in weights]
    encoder.module.requires_grad_(True)
    text = encoder.module.encode(PROMPTS)
    reached = text.pooled.requires_grad or text.tokens.requires_grad
    for weight, ask in zip(weights, asked, strict=True):
        weight.requires_grad_(ask)
    expect(reached, "embeddings with a derivative by the weights", "detached ones")


@law("text_encoder")
def null_is_one_thing(encoder: Subject) -> None:
    """The null condition is the same in every row and for every batch size."""
    one = encoder.null(1)
    for batch in (2, 3):
        wanted = one.map(lambda row, batch=batch: row.expand(batch, *row.shape[1:]))
        _expect_same(encoder.null(batch), wanted, f"null in a batch of {batch}", EXACT)


@law("text_encoder")
def null_replaces_any_prompt(encoder: Subject) -> None:
    """The null condition can stand in the place of any prompt, and differs from it."""
    text, null = encoder(*PROMPTS), encoder.null(3)
    expect_different(text.pooled, null.pooled, "a null unlike any prompt")
    replaced = text.replaced(torch.tensor([True, False, True]), null)
    for row, wanted in enumerate((encoder.null(1), encoder(PROMPTS[1]), encoder.null(1))):
        _expect_row(replaced, row, wanted, f"row {row}, after null replaced rows 0 and 2")


def _too_long(encoder: Subject) -> str:
    return " ".join(["circle"] * (encoder.module.positions + 1))


@law("text_encoder")
def too_long_is_not_cut_off(encoder: Subject) -> None:
    """A prompt of more tokens than `positions` is refused with a ConfigError, or has more tokens in
    its embedding: nothing is cut off in silence.
    """
    usual = encoder(PROMPTS[0]).tokens.shape[1]
    try:
        length = encoder(_too_long(encoder)).tokens.shape[1]
    except ConfigError:
        return
    got = f"an embedding of {length} tokens, as of {PROMPTS[0]!r}"
    expect(length > usual, "ConfigError, or more tokens", got)


@law("text_encoder")
def check_refuses_what_encode_does(encoder: Subject) -> None:
    """`check` raises a ConfigError for just those prompts that `encode` would refuse."""
    for prompt in (*PROMPTS, _too_long(encoder)):
        said = []
        for call in (encoder.module.check, encoder.module.encode):
            try:
                call([prompt])
                said.append("takes")
            except ConfigError:
                said.append("refuses")
        checked, encoded = said
        expect_equal(checked, encoded, f"of a prompt of {len(prompt)} letters, check")


@law("text_encoder")
def files_build_it_again(encoder: Subject) -> None:
    """The module's `files`, and its weights saved as safetensors, make it again."""
    again = reloaded(lambda: encoder.settings.build(encoder.module.files), encoder.module)
    rebuilt = Subject(encoder.settings, encoder.module.files, again)
    _expect_same(rebuilt(*PROMPTS), encoder(*PROMPTS), "the rebuilt module", EXACT)
    _expect_same(rebuilt.null(1), encoder.null(1), "the rebuilt module's null", EXACT)


@law("text_encoder")
def fit_is_a_function_of_the_captions(encoder: Subject) -> None:
    """`fit` learns the same bytes again, and from the captions in another order."""
    fit = encoder.settings.fit
    expect(fit(CAPTIONS) == encoder.files, "the same files again", "others")
    expect(fit(CAPTIONS[::-1]) == encoder.files, "the same files in another order", "others")


@law("text_encoder")
def random_state_is_left_alone(encoder: Subject) -> None:
    """In eval mode nothing is drawn from torch's generator."""
    with random_state_kept():
        encoder(*PROMPTS)
        encoder.null(2)
        if isinstance(encoder.module, JointEncoderModule):
            encoder.module.encode_images(_pictures(16, 16))


@law("text_encoder")
def frozen_is_frozen(encoder: Subject) -> None:
    """With frozen parameters nothing that it returns asks for gradients."""
    module = copy.deepcopy(encoder.module).requires_grad_(False)
    for text in (module.encode(PROMPTS), module.null(2)):
        asking = text.tokens.requires_grad or text.pooled.requires_grad
        expect(not asking, "no graph", "one")


def _pictures(height: int, width: int) -> Tensor:
    draw = Draw(seed=0, stream="pictures", examples=torch.arange(3))
    return draw.normal("noise", (3, height, width)).clamp(-1, 1)


@law("text_encoder")
def pictures_share_the_space(encoder: Subject) -> None:
    """A joint encoder makes of pictures of any size vectors as wide as the pooled ones, each
    picture for itself.
    """
    module = encoder.module
    if not isinstance(module, JointEncoderModule):
        return
    expect_equal(tuple(module.log_scale.shape), (), "shape of log_scale")
    for height, width in ((16, 16), (24, 40)):
        pictures = _pictures(height, width)
        with torch.no_grad():
            together = module.encode_images(pictures)
            backwards = module.encode_images(pictures.flip(0)).flip(0)
            alone = torch.cat([module.encode_images(picture[None]) for picture in pictures])
        expect_equal(tuple(together.shape), (3, module.pooled_width), "shape of their vectors")
        expect_finite(together, "their vectors")
        expect_close(backwards, together, "vectors in another order", ROUNDING)
        expect_close(alone, together, "the vector of a picture alone", ROUNDING)
        expect_different(together, together.roll(1, dims=0), "different vectors for pictures")
