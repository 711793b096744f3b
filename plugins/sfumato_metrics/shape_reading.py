"""Reads colour, shape and background off the pixels of a picture of one shape.

It knows nothing about how such pictures are drawn. The background b is the median of the border. A
pixel x is taken as a mixture b + k (c - b) with a colour c of the palette; the colour is the one
that leaves the least squared residual over the picture, and its k is how much of the pixel the
shape covers. The shape is the one of equal area and equal centroid that differs least from this
coverage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

SHAPES = ("circle", "square", "triangle")
_AREAS = (torch.pi, 4.0, 2.0)
"""Of the shapes of half width 1."""

_LEAST_AREA = 0.015
"""As a share of the picture: with less there is no shape to read."""
_TOLERANCE = 0.2
"""How far k may be from 0 or 1 and still count as such, so that noise does not add up to area."""


@attrs.frozen(eq=False, kw_only=True)
class Reading:
    """What B pictures show, as indices (B,) int64; color and shape are -1 where there is no shape.

    Attributes:
        color: into the palette.
        shape: into `SHAPES`.
        background: into the backgrounds.
    """

    color: Tensor
    shape: Tensor
    background: Tensor


def read(
    images: Tensor,
    palette: Mapping[str, tuple[float, float, float]],
    backgrounds: Mapping[str, tuple[float, float, float]],
) -> Reading:
    """Reads images (B, 3, H, W) in [-1, 1]."""
    ground = border_median(images)
    mixed, residual = unmix(images, ground, images.new_tensor(list(palette.values())))
    color = residual.argmin(dim=1)
    coverage = mixed[torch.arange(len(images)), color]
    coverage = ((coverage - _TOLERANCE) / (1 - 2 * _TOLERANCE)).clamp(0, 1)
    blank = coverage.mean(dim=(1, 2)) < _LEAST_AREA
    distance = torch.cdist(ground, images.new_tensor(list(backgrounds.values())))
    return Reading(
        color=color.masked_fill(blank, -1),
        shape=misfits(coverage).argmin(dim=1).masked_fill(blank, -1),
        background=distance.argmin(dim=1),
    )


def border_median(images: Tensor) -> Tensor:
    """The median color (B, 3) of the outermost pixels of images (B, 3, H, W)."""
    rows, columns = images[:, :, [0, -1], :], images[:, :, 1:-1, [0, -1]]
    return torch.cat((rows.flatten(2), columns.flatten(2)), dim=2).median(dim=2).values


def unmix(images: Tensor, ground: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel as a mixture of the ground and each of N colors, by least squares.

    Args:
        images: (B, 3, H, W).
        ground: (B, 3).
        colors: (N, 3).

    Returns:
        The share k of the color, (B, N, H, W) in [0, 1], and the mean squared residual (B, N).
    """
    offset = images - ground[:, :, None, None]
    towards = colors[None] - ground[:, None]
    along = torch.einsum("bchw,bnc->bnhw", offset, towards)
    length = towards.square().sum(dim=2)[:, :, None, None]
    share = (along / length).clamp(0, 1)
    # |offset - k towards|^2, expanded so that no (B, N, 3, H, W) is made.
    residual = offset.square().sum(dim=1)[:, None] - 2 * share * along + share.square() * length
    return share, residual.mean(dim=(2, 3))


def misfits(coverage: Tensor) -> Tensor:
    """How much a coverage (B, H, W) differs from each shape of its area and centroid: (B, shapes).

    Mean squared differences. The triangle points up and is as high as it is wide.
    """
    height, width = coverage.shape[1:]
    y = torch.arange(height, device=coverage.device)[None, :, None] + 0.5
    x = torch.arange(width, device=coverage.device)[None, None, :] + 0.5
    area = coverage.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    across = (x - (coverage * x).sum(dim=(1, 2), keepdim=True) / area).abs()
    down = y - (coverage * y).sum(dim=(1, 2), keepdim=True) / area
    circle, square, triangle = ((area / unit).sqrt() for unit in _AREAS)
    # The centroid of a triangle lies a third of its height above its base.
    foot, apex = 2 / 3 * triangle - down, 4 / 3 * triangle + down
    inside = (
        circle - (across.square() + down.square()).sqrt(),
        square - torch.maximum(across, down.abs()),
        torch.minimum(foot, (apex - 2 * across) / 5**0.5),
    )
    drawn = torch.stack([(distance + 0.5).clamp(0, 1) for distance in inside], dim=1)
    return (drawn - coverage[:, None]).square().mean(dim=(2, 3))
