"""Pillow images to tensors and back, always through 8-bit RGB, so that a PNG loses nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from torch import Tensor


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it on white: upright, its first frame, 8-bit RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16-bit gray: Pillow would clip it at 255. Of 16-bit RGB it takes the high byte, so do we.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) float32 in [-1, 1]: 0 is -1, 255 is 1."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.float() / 127.5 - 1


def to_image(tensor: Tensor) -> Image.Image:
    """The reverse of `to_tensor`, rounding to the nearest of the 256 levels."""
    pixels = ((tensor.clamp(-1, 1) + 1) * 127.5 + 0.5).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
