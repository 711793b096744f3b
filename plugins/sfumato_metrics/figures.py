"""Pictures of what a study found: a heat map, and a table of samples.

They are drawn on a canvas of their own (no pyplot, no global state) at a whole number of dots for a
pixel, so that small pictures stay crisp.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sfumato import ConfigError

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError as error:
    raise ConfigError(
        "studies draw their pictures with matplotlib, which is not installed",
        remedy="pip install 'sfumato[plots]'",
    ) from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

DPI = 160
_UNIT = 0.6
"""Inches that one picture of a table is wide: 96 dots, a multiple of 16 and 32 pixels."""
_GAP = 1 / 16
"""Between pictures, in units. All lengths of a table are multiples of it, so whole dots."""
INK, EDGE, _FRAME = "#222222", "#bbbbbb", "#ff8c00"


def heat_map(images: Tensor, captions: Sequence[str], cosines: Tensor, title: str) -> Image.Image:
    """Cosines (captions, B) with the pictures (B, 3, H, W) above and the captions at the left.

    A ring marks the most similar caption of each picture.
    """
    rows, columns = cosines.shape
    cell, left, right, top, bottom = 0.35, 3.9, 1.0, 0.85, 0.15  # inches
    width, height = left + columns * cell + right, top + rows * cell + bottom
    figure = Figure(figsize=(width, height), dpi=DPI)
    box = (left / width, bottom / height, columns * cell / width, rows * cell / height)
    axes = figure.add_axes(box)
    shown = axes.imshow(cosines.numpy(), cmap="magma", aspect="auto", interpolation="nearest")
    axes.set_yticks(range(rows), captions, fontsize=8, color=INK)
    axes.set_xticks([])
    axes.tick_params(length=0)
    best = cosines.argmax(dim=0).tolist()
    axes.plot(range(columns), best, "o", mfc="none", mec="#00d0ff", mew=1.2, ms=7)
    strip = figure.add_axes((box[0], box[1] + box[3], box[2], cell / height))
    side = 6 / 7  # 48 dots, for the same crispness as in a table
    for place, image in enumerate(images):
        _place(strip, image, place + (1 - side) / 2, (1 - side) / 2, side)
    strip.set(xlim=(0, columns), ylim=(1, 0), aspect="auto")
    strip.axis("off")
    bar = figure.add_axes((1 - (right - 0.2) / width, box[1], 0.15 / width, box[3]))
    figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=8)
    bar.set_title("cosine", fontsize=8, color=INK)
    heading = f"{title} (rings: the most similar caption)"
    figure.text(box[0], 1 - 0.2 / height, heading, fontsize=11, va="center", color=INK)
    return rendered(figure)


def picture_table(
    images: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    together: int,
    framed: Tensor | None = None,
) -> Image.Image:
    """A table of pictures with labels.

    Args:
        images: (rows, columns, S, 3, H, W), S pictures side by side in a cell.
        rows: labels at the left; long ones are wrapped.
        columns: labels above, of any number of lines.
        title: above all.
        together: how many rows form a group, set apart from the next.
        framed: (rows, columns, S) bool, pictures to draw a frame around.
    """
    per_cell = images.shape[2]
    pitch, left, lines = 1 + _GAP, 80 * _GAP, max(len(label.splitlines()) for label in columns)
    top = (12 + 5 * lines) * _GAP
    x = [left + column * (per_cell * pitch + 6 * _GAP) for column in range(len(columns))]
    y = [top + row * pitch + row // together * 4 * _GAP for row in range(len(rows))]
    width, height = x[-1] + per_cell * pitch + 3 * _GAP, y[-1] + pitch + 3 * _GAP
    figure = Figure(figsize=(width * _UNIT, height * _UNIT), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.text(4 * _GAP, 6 * _GAP, title, fontsize=12, va="center", color=INK)
    for start, label in zip(x, columns, strict=True):
        middle = start + per_cell * pitch / 2
        axes.text(middle, top - 2 * _GAP, label, fontsize=9, ha="center", va="bottom", color=INK)
    for start, label in zip(y, rows, strict=True):
        text = textwrap.fill(label, 36)
        axes.text(
            left - _GAP * 3, start + 0.5, text, fontsize=9, ha="right", va="center", color=INK
        )
    for row, column, k in np.ndindex(*images.shape[:3]):
        corner = (x[column] + k * pitch, y[row])
        _place(axes, images[row, column, k], *corner, 1)
        if framed is not None and framed[row, column, k]:
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=_FRAME, lw=2.5))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.axis("off")
    return rendered(figure)


def _place(axes: Any, image: Tensor, x: float, y: float, side: float) -> None:
    """Draws an image (3, H, W) in [-1, 1] with its top left corner at (x, y), y pointing down."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5 + 0.5).byte().permute(1, 2, 0)
    extent = (x, x + side, y + side, y)
    axes.imshow(pixels.numpy(), extent=extent, interpolation="nearest", aspect="auto")
    axes.add_patch(Rectangle((x, y), side, side, fill=False, ec=EDGE, lw=0.5))


def chart(width: float, height: float) -> Any:
    """A figure of so many inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def rendered(figure: Any) -> Image.Image:
    """A figure as a picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
