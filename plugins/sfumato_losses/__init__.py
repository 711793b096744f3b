"""What training minimises: losses, and the denoising objective that uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import Component, hookimpl
from sfumato_losses.mse import MSE
from sfumato_losses.objectives import Denoising

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [MSE, Denoising]
