"""Tensors to pictures and back: grids, PNG files that carry their settings, pictures to edit."""

from __future__ import annotations

import json
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sfumato.errors import ConfigError, cause

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


def facts(path: Path) -> dict[str, Any]:
    """What `save` put into a PNG; empty where that is nothing.

    Raises:
        ConfigError: it is no PNG.
    """
    try:
        with Image.open(path, formats=("PNG",)) as file:
            file.load()  # text may stand behind the pixels
            found = json.loads(getattr(file, "text", {}).get("sfumato", "{}"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(_unreadable(error, "a PNG"), place=str(path)) from error
    return dict(found) if isinstance(found, dict) else {}


def check_writable(path: Path) -> None:
    """Raises ConfigError where `save` could not write a file, before anything is drawn for it."""
    folder = next(one for one in path.absolute().parents if one.exists())
    try:
        if path.exists():
            path.open("r+b").close()
        else:
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", place=str(path)) from error


def read(path: Path, size: tuple[int, int]) -> Tensor:
    """The picture of a PNG or JPEG file, (1, 3, height, width) float32 in [-1, 1].

    Args:
        path: of the file.
        size: height and width. A file of these proportions is resized; nothing is cut or stretched.

    Raises:
        ConfigError: it is no such picture.
    """
    resized = _opened(path, size, Image.Resampling.LANCZOS).convert("RGB")
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
    return pixels.float() / 127.5 - 1


def read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """Where such a picture is brighter than middle gray, (1, 1, height, width) bool."""
    resized = _opened(path, size, Image.Resampling.BOX).convert("L")
    return torch.from_numpy(np.array(resized))[None, None] > 127


def _opened(path: Path, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """Upright and of this size."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            image = ImageOps.exif_transpose(file)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(_unreadable(error, "a PNG or JPEG picture"), place=str(path)) from error
    if image.mode not in ("1", "L", "P", "RGB") or image.has_transparency_data:
        raise ConfigError(
            f"is of mode {image.mode}, or has transparent parts",
            place=str(path),
            remedy="save it as 8-bit RGB or gray, on the background that it should have",
        )
    height, width = size
    if image.width * height != image.height * width:
        raise ConfigError(
            f"is {image.height} x {image.width}, and the pipeline draws {height} x {width}",
            place=str(path),
            remedy="cut it to these proportions: nothing is cut or stretched here",
        )
    return image.convert("RGB").resize((width, height), resampling)


def _unreadable(error: Exception, wanted: str) -> str:
    """Why a file is no picture."""
    if isinstance(error, UnidentifiedImageError):
        return f"is not {wanted}"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"cannot be read ({cause(error)})"
