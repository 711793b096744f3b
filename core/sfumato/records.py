"""The nouns that components hand to each other. Records are frozen and know nothing about how they
are made.

Shape letters, here and in every docstring of the project:

    B batch      C H W the diffused tensor      L text tokens      D token width      P pooled width

Time `t` is continuous in [0, 1]: 0 is clean, 1 is noise. The forward process is `x_t = alpha x0 +
sigma eps`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from sfumato.interfaces import NoiseSchedule


@attrs.frozen(eq=False, kw_only=True)
class TextEmbedding:
    """What a text encoder says of B prompts.

    Attributes:
        tokens: (B, L, D), for cross-attention.
        mask: (B, L) bool, True at the tokens that belong to the prompt.
        pooled: (B, P), one vector for the whole prompt.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def map(self, function: Callable[..., Tensor], *others: TextEmbedding) -> TextEmbedding:
        """Applies `function` field by field, to the tensors of self and of `others`."""
        return TextEmbedding(
            tokens=function(self.tokens, *(other.tokens for other in others)),
            mask=function(self.mask, *(other.mask for other in others)),
            pooled=function(self.pooled, *(other.pooled for other in others)),
        )

    def rows(self, start: int, end: int) -> TextEmbedding:
        """The prompts from `start` to before `end`."""
        return self.map(lambda one: one[start:end])

    def replaced(self, rows: Tensor, by: TextEmbedding) -> TextEmbedding:
        """With those prompts taken from `by` where `rows` (B,) bool is True."""

        def pick(own: Tensor, other: Tensor) -> Tensor:
            return other.where(rows.reshape(-1, *(1,) * (own.dim() - 1)), own)

        own, other = TextEmbedding.aligned(self, by)
        return own.map(pick, other)

    @staticmethod
    def cat(*embeddings: TextEmbedding) -> TextEmbedding:
        """One batch of all prompts in their order."""
        import torch

        first, *rest = TextEmbedding.aligned(*embeddings)
        return first.map(lambda *parts: torch.cat(parts), *rest)

    @staticmethod
    def aligned(*embeddings: TextEmbedding) -> list[TextEmbedding]:
        """The same with one L, the least common multiple: the tokens of each are repeated whole.

        Attention over n copies of the keys weighs each with 1/n of its weight: what it returns is
        that of one copy, for any mask. So no prompt depends on the length of its neighbours, as it
        would through padding. A denoiser that gives text tokens a place of its own breaks that.
        """
        lengths = [embedding.tokens.shape[1] for embedding in embeddings]
        copies = [math.lcm(*lengths) // length for length in lengths]
        return [
            attrs.evolve(one, tokens=one.tokens.repeat(1, n, 1), mask=one.mask.repeat(1, n))
            if n > 1
            else one
            for one, n in zip(embeddings, copies, strict=True)
        ]


@attrs.frozen(kw_only=True)
class Space:
    """What its neighbours impose on a denoiser: the tensor it works on, the text it hears, the
    clock it lives by. `factor` is how many pixels one latent is high and wide.
    """

    channels: int
    height: int
    width: int
    text_width: int
    pooled_width: int
    schedule: NoiseSchedule
    factor: int = 1


@attrs.frozen(eq=False, kw_only=True)
class Batch:
    """Captioned pictures of one training step: images (B, 3, H, W) float32 in [-1, 1].

    `rows` (B,) int64 are the places in the *global* batch of `total` rows, so that nothing depends
    on how many ranks share it; `examples` (B,) int64 are indices into the data, and `replaced` says
    of the broken ones, in whose place others stand, what is wrong.

    Where latents (B, C, h, w) and `text` were computed before, pictures are (B, 3, 0, 0): see
    `Pipeline.encoded`.
    """

    images: Tensor
    captions: tuple[str, ...]
    examples: Tensor
    rows: Tensor
    total: int
    latents: Tensor | None = None
    text: TextEmbedding | None = None
    replaced: Mapping[int, str] = attrs.field(factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return attrs.evolve(
            self,
            images=self.images.to(device),
            examples=self.examples.to(device),
            rows=self.rows.to(device),
            latents=None if self.latents is None else self.latents.to(device),
            text=None if self.text is None else self.text.map(lambda one: one.to(device)),
        )

    def parts(self, count: int) -> list[Batch]:
        """The rows in `count` pieces of about the same size."""
        ends = [len(self.captions) * k // count for k in range(count + 1)]
        return [
            attrs.evolve(
                self,
                images=self.images[start:end],
                captions=self.captions[start:end],
                examples=self.examples[start:end],
                rows=self.rows[start:end],
                latents=None if self.latents is None else self.latents[start:end],
                text=None if self.text is None else self.text.rows(start, end),
            )
            for start, end in itertools.pairwise(ends)
        ]


@attrs.frozen(eq=False, kw_only=True)
class Noised:
    """After the forward process: x_t, x0, eps (B, C, H, W); t, alpha, sigma (B,) float64."""

    x_t: Tensor
    x0: Tensor
    eps: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


@attrs.frozen(eq=False, kw_only=True)
class Losses:
    """What an objective returns: `values` (B,) to be minimised in the mean, `numbers` (B,) each, to
    be logged in the mean, and the times `t` (B,), where it draws some, for messages.
    """

    values: Tensor
    numbers: Mapping[str, Tensor] = attrs.field(factory=dict)
    t: Tensor | None = None


@attrs.frozen(kw_only=True)
class Against:
    """A text that a branch's own is held against inside attention, by a denoiser with variant nag.

    Where the pixels' queries find z+ in the own text and z- in this one, z = s z+ - (s - 1) z- is
    shortened to at most tau times the L1 norm of z+, and alpha z + (1 - alpha) z+ goes on.

    Attributes:
        text: which.
        index: which of the negatives, where `text` is "negative".
        scale: s; 1 is off.
        tau: the largest ratio of norms.
        alpha: the share of the result; 0 is off.
    """

    text: Literal["negative", "null"] = "null"
    index: int = 0
    scale: float
    tau: float
    alpha: float


@attrs.frozen(eq=False, kw_only=True)
class Opposed:
    """Texts of B prompts, and the texts that they are held against, B too: a denoiser's condition
    where branches ask for that. L may differ.
    """

    text: TextEmbedding
    against: TextEmbedding
    how: Against


@attrs.frozen(kw_only=True)
class Branch:
    """One prediction that a guidance asks for.

    Attributes:
        text: which text conditions it.
        index: which of the negatives, where `text` is "negative".
        variant: which perturbed form of the denoiser (see `Denoiser.variants`); None is the
            plain one.
        model: which denoiser of the pipeline: "main" or "weak".
        against: the text that its own is held against, where `variant` is "nag".
    """

    text: Literal["prompt", "negative", "null"] = "prompt"
    index: int = 0
    variant: str | None = None
    model: Literal["main", "weak"] = "main"
    against: Against | None = None

    @property
    def texts(self) -> tuple[Branch | Against, ...]:
        """What names the texts that it needs."""
        return (self,) if self.against is None else (self, self.against)


@attrs.frozen(eq=False)
class Prediction:
    """One branch's estimate of x0 and eps, (B, C, H, W) each, with `x_t = alpha x0 + sigma eps`."""

    x0: Tensor
    eps: Tensor


class Guided(Prediction):
    """What a guidance made of the branches. x0 and eps may differ on purpose: CFG++ renoises with
    the unconditional eps.
    """


@attrs.frozen(kw_only=True)
class GuidanceStep:
    """Where the reverse process stands, in host numbers, so that a branch can be left out.

    `index` is the interval, of `steps`, counted from the noisiest; each prompt has `negatives`
    negative texts.
    """

    t: float
    alpha: float
    sigma: float
    index: int
    steps: int
    negatives: int


@attrs.frozen(eq=False, kw_only=True)
class SampleStep:
    """One finished step of a sampler: `x` at the time `t` that it arrived at, and the `x0` estimate
    that led there.
    """

    index: int
    t: float
    x: Tensor
    x0: Tensor


@attrs.frozen(kw_only=True)
class TrainStart:
    """A stage is about to train `parameters` numbers for `steps` optimiser steps."""

    run: Path
    stage: str
    steps: int
    parameters: int


@attrs.frozen(kw_only=True)
class TrainStep:
    """One optimiser step. `step` counts across stages from 1, `stage_step` within the stage;
    `numbers` are the objective's. A step that is `skipped` moved no weight: its loss or gradient
    was not finite.
    """

    stage: str
    step: int
    stage_step: int
    stage_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    numbers: Mapping[str, float] = attrs.field(factory=dict)
    skipped: bool = False


@attrs.frozen(kw_only=True)
class CheckpointSaved:
    """A checkpoint is complete on disk."""

    path: Path
    step: int


@attrs.frozen(kw_only=True)
class PictureSaved:
    """A picture that explains the run is on disk as a PNG: the sheet of an evaluation's samples, or
    what a study drew.
    """

    name: str
    path: Path
    step: int


@attrs.frozen(kw_only=True)
class TrainEnd:
    """A stage has ended, or the run has (`stage` is then None, and `results` holds what was
    measured).
    """

    run: Path
    stage: str | None
    results: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(eq=False, kw_only=True)
class Snapshot:
    """A system between a run folder and a foreign one: what it is made of, and its weights.

    Attributes:
        settings: a pipeline as YAML has it: a component in each slot, named with `use`.
        states: weights by slot, under the names that the modules give them.
        files: what the text encoder needs beside its weights, by file name.
        facts: what else the record of a run should say, such as its null condition.
        sources: the SHA-256 of each file that weights came from, by its name in the foreign folder.
        remarks: what was left out, one line each.
    """

    settings: Mapping[str, Any]
    states: Mapping[str, Mapping[str, Tensor]]
    files: Mapping[str, bytes]
    facts: Mapping[str, Any] = attrs.field(factory=dict)
    sources: Mapping[str, str] = attrs.field(factory=dict)
    remarks: tuple[str, ...] = ()


@attrs.frozen(eq=False, kw_only=True)
class Finding:
    """What a study found: numbers for `run.json`, which may be `Measured` and nested; more detail
    for the JSON beside the picture; and the picture.
    """

    numbers: Mapping[str, Any]
    details: Mapping[str, Any] = attrs.field(factory=dict)
    picture: Image | None = None
