"""A weaker model beside the main one, for guidance away from it: `sampling.weak: RUN[@STEP]`.

It is the denoiser of a checkpoint, whose text encoder and autoencoder have to be the main model's
to the bit: prompts are encoded once for both, and both speak of the same latents. Its architecture,
its prediction type and its noise schedule may be others; times are matched as told in `trajectory`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sfumato import checkpoint, compatibility, runs
from sfumato.errors import CheckpointError, ConfigError
from sfumato.experiment import Trained

if TYPE_CHECKING:
    from sfumato.experiment import PipelineSettings
    from sfumato.modules import DenoiserModule
    from sfumato.plugins import Catalogue
    from sfumato.records import Space

PLACE = "sampling.weak"


@attrs.frozen(eq=False, kw_only=True)
class Weak:
    """A checkpoint whose denoiser fits the settings that name it.

    Attributes:
        path: of the checkpoint.
        trained: what it says of itself.
    """

    path: Path
    trained: Trained

    @classmethod
    def find(cls, settings: PipelineSettings, catalogue: Catalogue) -> Weak | None:
        """The checkpoint that `settings` name, if any; no weights are read.

        Raises:
            ConfigError: there is none, or it does not fit the settings.
            CheckpointError: it cannot be read.
        """
        if settings.sampling.weak is None:
            return None
        stored = runs.Stored.find(settings.sampling.weak, PLACE, catalogue)
        path, trained = stored.path, stored.trained
        if "denoiser" not in trained.slots:
            raise ConfigError(
                f"the denoiser of {path} was never trained",
                place=PLACE,
                remedy="name a checkpoint after a stage that trains it",
            )
        for slot in ("text_encoder", "autoencoder"):
            was, now = getattr(trained, slot), getattr(settings, slot)
            for option, before, after in compatibility.differences(was, now):
                raise ConfigError(
                    f"{path} goes with {slot}.{option} {before!r}, the main model with {after!r}",
                    place=PLACE,
                    remedy=f"name a run with the same {slot}",
                )
        compatibility.check_picture_size(attrs.evolve(settings, denoiser=trained.denoiser))
        return cls(path=path, trained=trained)

    def check_neighbours(self, own: Path) -> None:
        """Raises ConfigError unless text encoder and autoencoder are those of the main model's
        checkpoint, bit by bit.
        """
        mine, theirs = checkpoint.hashes(self.path), checkpoint.hashes(own)
        own_alone = {f"{slot}.safetensors" for slot in ("denoiser", checkpoint.TRAINING)}
        for name in sorted((mine.keys() | theirs.keys()) - own_alone):
            if mine.get(name) != theirs.get(name):
                raise ConfigError(
                    f"{name} of {self.path} is not that of {own}",
                    place=PLACE,
                    remedy="name a run that was trained with the same text encoder and "
                    "autoencoder, such as one with another denoiser and the same seed and stages "
                    "before it",
                )

    def build(self, space: Space) -> DenoiserModule:
        """Its denoiser, with its weights, in eval mode.

        Raises:
            CheckpointError: the weights cannot be used.
        """
        module = self.trained.denoiser.build(space)
        states, _ = checkpoint.read(self.path, without={checkpoint.TRAINING})
        if "denoiser" not in states:
            raise CheckpointError("has no weights for the denoiser", place=str(self.path))
        file = str(self.path / "denoiser.safetensors")
        checkpoint.restore(module, states["denoiser"], file)
        return module.eval().requires_grad_(False)
