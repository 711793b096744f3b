"""The torch side of the interfaces: what `build` returns, an `nn.Module` with a contract.

Settings (see `interfaces`) are light values that YAML can hold; what they build is here. A module
knows nothing about YAML, plugins, run folders or devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sfumato.randomness import Draw
    from sfumato.records import Batch, Losses, Opposed, TextEmbedding


class TrainableModule(nn.Module, ABC):
    """What a stage can train."""

    def trainable(self) -> Iterable[nn.Parameter]:
        """The parameters that training moves; by default all. An adapter names its own."""
        return self.parameters()

    def blocks(self) -> Iterable[nn.Module]:
        """The parts whose inside need not be kept for the backward pass, as it can be computed
        again from what goes in: by default the members of each `nn.ModuleList` that hold no other.
        """
        for module in self.modules():
            if isinstance(module, nn.ModuleList):
                yield from (block for block in module if not _holds_a_list(block))


class TextEncoderModule(TrainableModule):
    """Prompts to embeddings.

    Attributes:
        width: D, of the tokens.
        pooled_width: P, of the pooled vector.
        positions: the most tokens that are read at once, start and end included.
        files: what, beside the weights, makes this module again (a vocabulary, a configuration), by
            file name. They are stored in the checkpoint and come back through `TextEncoder.build`.
    """

    width: int
    pooled_width: int
    positions: int
    files: Mapping[str, bytes]

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """Embeds B prompts, each independently of its neighbours, on the device of the weights.

        Raises:
            ConfigError: a prompt has more tokens than `positions` and is not encoded in pieces;
                nothing is cut off in silence.
        """

    def check(self, prompts: Iterable[str]) -> None:
        """Raises ConfigError where `encode` would refuse a prompt, without encoding them.

        Called with all captions before training, so that none is found too long on the way.
        """

    def null(self, batch: int) -> TextEmbedding:
        """The null condition, `batch` times: what replaces the text in condition dropout and
        guidance.

        The one definition for training and for sampling. By default it is the empty prompt.
        """
        return self.encode([""]).map(lambda one: one.expand(batch, *one.shape[1:]))


class JointEncoderModule(TextEncoderModule):
    """A text encoder with an image encoder in the same space, such as CLIP."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], of any size, to vectors (B, P), not normalised."""

    @property
    @abstractmethod
    def log_scale(self) -> nn.Parameter:
        """The logarithm of the learnt factor on cosine similarities, ()."""


class DenoiserModule(TrainableModule):
    """Predicts epsilon, x0, v or flow, as `prediction` of its settings says."""

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, condition: Any, variant: str | None = None) -> Tensor:
        """One prediction for each example, independent of the others in the batch.

        Args:
            x_t: (B, C, H, W).
            t: (B,) float64 in [0, 1].
            condition: the `TextEmbedding` of the prompts (`Opposed` where branches are held
                against others, for variant nag), or what `precompute` made of it.
            variant: one of `variants` of its settings; None is the plain form.

        Returns:
            Like x_t.
        """

    def precompute(self, text: TextEmbedding | Opposed, times: Tensor) -> Any:
        """All that does not change from step to step, to be handed to `forward` as its condition.

        Args:
            text: B prompts; only a denoiser with variant nag is given `Opposed`.
            times: (steps,) float64, the times at which `forward` will be called, most of them.
        """
        return text

    def at(self, condition: Any, t: Tensor) -> Any:
        """The condition for one step, where all examples are at the same time.

        Called before `forward`, outside of what is compiled, with a time that the host knows: here
        what was precomputed for it is looked up. A sampler may ask between those times.

        Args:
            condition: what `precompute` returned.
            t: (), float64 on the CPU.
        """
        return condition


class AdapterModule(DenoiserModule):
    """What an `Adapter` builds: a denoiser and, beside its weights, a few of its own."""

    @abstractmethod
    def around(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The state of this module where the denoiser inside has `state`.

        Its own weights are drawn anew from torch's generator, so that they change nothing yet.
        """


class AutoencoderModule(nn.Module, ABC):
    """Pixels to latents and back; `channels` and `factor` are those of its settings."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to scaled latents (B, channels, H / factor, W / factor).

        Nothing is drawn: a variational encoder gives the mode of what it found.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to images, the reverse of `encode`; values may leave [-1, 1]."""


class ObjectiveModule(nn.Module, ABC):
    """What one training stage minimises. Parameters that ask for gradients are trained."""

    @abstractmethod
    def losses(self, batch: Batch, draw: Draw) -> Losses:
        """Losses per example, (B,): the loop reduces them, once.

        Args:
            batch: B rows of the global batch.
            draw: the randomness of these rows at this step; nothing else may be random.
        """

    def forward(self, batch: Batch, draw: Draw) -> Losses:
        """`losses`, through the door that wrappers for many devices hook into."""
        return self.losses(batch, draw)

    def after_step(self) -> None:
        """Called after each optimiser step, to project parameters back where they belong."""


def _holds_a_list(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.ModuleList) and len(inner) for inner in module.modules())
