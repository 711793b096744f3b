"""Captioned pictures: procedural, one's own in folders, tars and tables, emoji; and varied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import Component, hookimpl
from sfumato_data.augmented import Augmented
from sfumato_data.hf_dataset import HfDataset
from sfumato_data.image_folder import ImageFolder
from sfumato_data.openmoji import OpenMoji
from sfumato_data.shapes import Shapes
from sfumato_data.web_dataset import WebDataset

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The data sources of this plugin."""
    return [Shapes, ImageFolder, WebDataset, HfDataset, OpenMoji, Augmented]
