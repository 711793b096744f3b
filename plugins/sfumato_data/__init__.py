"""Captioned pictures: procedural shapes, a folder of one's own, emoji."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import Component, hookimpl
from sfumato_data.image_folder import ImageFolder
from sfumato_data.openmoji import OpenMoji
from sfumato_data.shapes import Shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The data sources of this plugin."""
    return [Shapes, ImageFolder, OpenMoji]
