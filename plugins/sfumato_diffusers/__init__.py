"""Folders of diffusers: Stable Diffusion's weights in and out, without diffusers.

    folder      files, and what is not to be read from them
    options     a JSON file of settings, every key of which is accounted for
    unet        UNet2DConditionModel   <-> denoiser `unet`
    vae         AutoencoderKL          <-> autoencoder `kl`
    text        CLIPTextModel          <-> text_encoder `pretrained_clip`
    scheduler, scheduler_file          <-> noise_schedule, time_grid, sampler, prediction
    families    which pipelines there are, and what each is made of
    reading, writing                   the whole folder

Components of ours are named as YAML names them: none is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sfumato import Component, Layout, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import Snapshot

SFUMATO_API = 1


@attrs.frozen(kw_only=True)
class Diffusers(Layout):
    """`model_index.json`, and a folder for each part: what `save_pretrained` of a pipeline writes.

    Weights are safetensors, also in shards; pickles, code and paths that leave the folder are
    refused, as is every setting without a counterpart here. Files are read by our own code.

    References:
        diffusers: State-of-the-art diffusion models, von Platen et al., 2022
    """

    name = "diffusers"
    mark = "model_index.json"

    def recognises(self, folder: Path) -> bool:
        """By its `model_index.json`."""
        return (folder / self.mark).is_file()

    def read(self, folder: Path) -> Snapshot:
        """A StableDiffusionPipeline.

        Raises:
            CheckpointError: something is missing or damaged, or has no counterpart here.
        """
        from sfumato_diffusers import reading

        return reading.read(folder)

    def write(self, snapshot: Snapshot, folder: Path) -> None:
        """A folder that `StableDiffusionPipeline.from_pretrained` opens.

        Raises:
            ConfigError: a component has no counterpart there.
        """
        from sfumato_diffusers import writing

        writing.write(snapshot, folder)

    @classmethod
    def specimen(cls) -> Snapshot:
        """A Stable Diffusion of 32 channels."""
        from sfumato_diffusers import specimen

        return specimen.make()


@hookimpl
def sfumato_components() -> list[type[Component]]:
    """The layout."""
    return [Diffusers]
