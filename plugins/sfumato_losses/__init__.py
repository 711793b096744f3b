"""What training minimises: losses, weights on them, and the denoising objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import Component, hookimpl
from sfumato_losses.mse import MSE
from sfumato_losses.objectives import Denoising
from sfumato_losses.weights import P2

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [MSE, P2, Denoising]
