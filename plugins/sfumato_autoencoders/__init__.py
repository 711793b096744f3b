"""Autoencoders: from pixels to the space where diffusion works, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sfumato import Autoencoder, Component, hookimpl

if TYPE_CHECKING:
    from sfumato import AutoencoderModule

SFUMATO_API = 1


@attrs.frozen(kw_only=True)
class Pixels(Autoencoder):
    """The identity: diffusion works on the pixels themselves."""

    name = "pixels"

    def build(self) -> AutoencoderModule:
        """A module without weights."""
        from sfumato_autoencoders.pixels import PixelsModule

        return PixelsModule()


@hookimpl
def sfumato_components() -> list[type[Component]]:
    """The autoencoders."""
    return [Pixels]
