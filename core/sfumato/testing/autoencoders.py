"""Laws of autoencoders: pixels to latents of the stated shape and back, each picture for itself."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from sfumato.interfaces import Autoencoder
from sfumato.modules import AutoencoderModule
from sfumato.randomness import Draw
from sfumato.testing.laws import expect_close, expect_equal, expect_finite, law, subject
from sfumato.testing.modules import (
    EXACT,
    ROUNDING,
    built,
    expect_different,
    random_state_kept,
    reloaded,
)

SIZE = (4, 6)
"""Height and width of the latents."""


@attrs.frozen(eq=False)
class Subject:
    """The settings, what they build, and three pictures whose sides its factor divides."""

    settings: Autoencoder
    module: AutoencoderModule
    pictures: Tensor

    def encode(self, images: Tensor) -> Tensor:
        """Latents, without a graph."""
        with torch.no_grad():
            return self.module.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images, likewise."""
        with torch.no_grad():
            return self.module.decode(latents)


@subject("autoencoder")
def builds(settings: Autoencoder) -> Subject:
    """It builds a module, and states its factor."""
    draw = Draw(seed=0, stream="autoencoders", examples=torch.arange(3))
    height, width = (side * settings.factor for side in SIZE)
    pictures = draw.normal("pictures", (3, height, width)).clamp(-1, 1)
    return Subject(settings, built(settings.build), pictures)


@law("autoencoder")
def latents_are_as_stated(autoencoder: Subject) -> None:
    """Pictures (B, 3, H, W) become latents (B, channels, H / factor, W / factor), finite and unlike
    each other.
    """
    latents = autoencoder.encode(autoencoder.pictures)
    wanted = (3, autoencoder.settings.channels, *SIZE)
    expect_equal((tuple(latents.shape), latents.dtype), (wanted, torch.float32), "latents")
    expect_finite(latents, "latents")
    expect_different(latents, latents.roll(1, dims=0), "different latents for different pictures")


@law("autoencoder")
def decoding_gives_pictures(autoencoder: Subject) -> None:
    """What comes back is shaped and typed as the pictures, finite, and other for other latents."""
    pictures = autoencoder.pictures
    images = autoencoder.decode(autoencoder.encode(pictures))
    wanted = (tuple(pictures.shape), torch.float32)
    expect_equal((tuple(images.shape), images.dtype), wanted, "decoded pictures")
    expect_finite(images, "decoded pictures")
    expect_different(images, images.roll(1, dims=0), "different pictures for different latents")


@law("autoencoder")
def repeatable(autoencoder: Subject) -> None:
    """In eval mode the same pictures give the same, and nothing is drawn from torch's generator."""
    with random_state_kept():
        first = autoencoder.encode(autoencoder.pictures)
        images = autoencoder.decode(first)
    expect_close(autoencoder.encode(autoencoder.pictures), first, "latents again", EXACT)
    expect_close(autoencoder.decode(first), images, "decoded pictures again", EXACT)


@law("autoencoder")
def examples_are_independent(autoencoder: Subject) -> None:
    """A picture is encoded and decoded alike alone, beside others, and in another order."""
    latents = autoencoder.encode(autoencoder.pictures)
    for name, function, inputs in (
        ("encoded", autoencoder.encode, autoencoder.pictures),
        ("decoded", autoencoder.decode, latents),
    ):
        together, backwards = function(inputs), function(inputs.flip(0)).flip(0)
        expect_close(backwards, together, f"pictures {name} in another order", ROUNDING)
        alone = torch.cat([function(one[None]) for one in inputs])
        expect_close(alone, together, f"pictures {name} alone", ROUNDING)


@law("autoencoder")
def survives_saving(autoencoder: Subject) -> None:
    """Its weights, saved as safetensors and loaded into a fresh module, encode and decode alike."""
    again = Subject(
        autoencoder.settings,
        reloaded(autoencoder.settings.build, autoencoder.module),
        autoencoder.pictures,
    )
    latents = autoencoder.encode(autoencoder.pictures)
    expect_close(again.encode(again.pictures), latents, "latents of the loaded module", EXACT)
    images = autoencoder.decode(latents)
    expect_close(again.decode(latents), images, "pictures of the loaded module", EXACT)
