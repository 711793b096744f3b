"""Tensors to pictures: grids, and PNG files that carry their settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

LEGIBLE = 96
"""Pictures below this many pixels are enlarged in a grid, each pixel to a square."""


def picture(image: Tensor) -> Image.Image:
    """One image (3, H, W) in [-1, 1], rounded to 8 bits."""
    levels = ((image.float().cpu().clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def grid(images: Tensor, columns: int, gap: int = 4) -> Image.Image:
    """Images (B, 3, H, W) in rows of `columns` on white; small ones enlarged, unsmoothed."""
    height, width = images.shape[-2:]
    zoom = max(1, LEGIBLE // max(height, width))
    rows = -(-len(images) // columns)
    cell = (width * zoom + gap, height * zoom + gap)
    sheet = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap), "white")
    for i, image in enumerate(images):
        shown = picture(image).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        sheet.paste(shown, (gap + i % columns * cell[0], gap + i // columns * cell[1]))
    return sheet


def save(image: Image.Image, path: Path, facts: Mapping[str, Any]) -> None:
    """Writes a PNG with `facts` as JSON in its text chunk `sfumato`.

    Raises:
        ConfigError: it cannot be written.
    """
    info = PngInfo()
    info.add_itxt("sfumato", json.dumps(facts))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="PNG", pnginfo=info)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", place=str(path)) from error
