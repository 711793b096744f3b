"""Procedural pictures of one coloured shape, with captions from a small grammar.

A caption is `a [SIZE] [COLOR] NOUN [POSITION] [BACKGROUND]`, for example

    a small red circle at the left on a gray background

and leaves attributes out at random (`Shapes` states how often), so that a prompt that says nothing
of the colour, and a negative prompt such as "a red shape", are in distribution. No word is both a
colour and a background. `HELD_OUT_PAIRS` never occur in training: the test split asks whether a
model can combine what it knows, as the diagnostic data set CLEVR does at a size beyond a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import attrs
from attrs.validators import ge, le

from sfumato import Data, option

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import Split

RGB = tuple[float, float, float]

SHAPES = ("circle", "square", "triangle")
COLORS: Mapping[str, RGB] = MappingProxyType(
    {
        "red": (0.8, -0.8, -0.8),
        "green": (-0.8, 0.4, -0.8),
        "blue": (-0.8, -0.6, 0.9),
        "yellow": (0.9, 0.8, -0.8),
        "purple": (0.5, -0.7, 0.8),
        "cyan": (-0.8, 0.8, 0.9),
    }
)
BACKGROUNDS: Mapping[str, RGB] = MappingProxyType(
    {"black": (-0.9, -0.9, -0.9), "gray": (0.0, 0.0, 0.0), "white": (0.9, 0.9, 0.9)}
)
SIZES: Mapping[str, float] = MappingProxyType({"small": 0.2, "large": 0.3})
"""Half the width of the shape, as a share of the picture's."""
POSITIONS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "center": (0.5, 0.5),
        "left": (0.35, 0.5),
        "right": (0.65, 0.5),
        "top": (0.5, 0.35),
        "bottom": (0.5, 0.65),
    }
)
"""The middle of the shape, x and y from the top left corner, as shares of the picture."""
HELD_OUT_PAIRS = (("blue", "triangle"), ("green", "square"), ("yellow", "circle"))
"""Colour and shape that no training picture combines, though each occurs with others."""

_FIGURE = {
    word: attribute
    for attribute, words in (
        ("size", SIZES),
        ("color", COLORS),
        ("shape", SHAPES),
        ("position", POSITIONS),
    )
    for word in words
}
_GROUND = {
    **dict.fromkeys(POSITIONS, "position"),
    **dict.fromkeys(BACKGROUNDS, "background"),
}


@attrs.frozen(kw_only=True)
class Shapes(Data):
    """One circle, square or triangle on a plain background: a function of (seed, split, index).

    Pairs of one of six colours and one of three shapes, all equally likely but for
    `HELD_OUT_PAIRS`, which occur in the test split only; three backgrounds, two sizes and five
    positions, equally likely too, with jitter in size and position.

    Of the captions a share, `full`, names all five attributes, and 5 % are one bare word, a colour
    or a shape; the others name colour and shape with probability 3/4 each ("shape" stands for an
    unnamed one), and size, position and background with 1/2 each.

    References:
        CLEVR: A Diagnostic Dataset for Compositional Language and Elementary Visual Reasoning,
        2017, arXiv:1612.06890
    """

    name = "shapes"
    palette: ClassVar[Mapping[str, RGB]] = COLORS
    """RGB in [-1, 1] of the shapes, by name."""
    backgrounds: ClassVar[Mapping[str, RGB]] = BACKGROUNDS
    """RGB in [-1, 1] of the backgrounds, by name."""

    size: int = option(32, "height and width in pixels", ge(12))
    count: int = option(20_000, "number of training examples", ge(1))
    held_out: int = option(2_000, "number of test examples", ge(1))
    test_pairs: Literal["all", "seen", "unseen"] = option(
        "all", "which pairs of color and shape the test split holds: unseen are HELD_OUT_PAIRS"
    )
    full: float = option(0.45, "share of captions that name all five attributes", ge(0), le(0.95))
    seed: int = option(0, "of all examples")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """A few dozen pictures of 16 x 16."""
        return cls(size=16, count=32, held_out=8)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels, both `size`."""
        return self.size, self.size

    def split(self, name: Literal["train", "test"]) -> Split:
        """`count` examples without the held-out pairs, or `held_out` examples of `test_pairs`."""
        from sfumato_data.shapes_drawing import ShapesSplit

        wanted = "seen" if name == "train" else self.test_pairs
        pairs = [
            (color, shape)
            for color in COLORS
            for shape in SHAPES
            if wanted in ("all", "unseen" if (color, shape) in HELD_OUT_PAIRS else "seen")
        ]
        count = self.count if name == "train" else self.held_out
        return ShapesSplit(
            size=self.size, seed=self.seed, name=name, count=count, pairs=pairs, full=self.full
        )

    def attributes(self, text: str) -> dict[str, str]:
        """The words of a caption by "color", "shape", "background", "size" and "position".

        What the caption leaves out is absent. A colour stands before "on", a background after it.
        """
        figure, _, ground = text.lower().partition(" on ")
        return {
            meaning[word]: word
            for part, meaning in ((figure, _FIGURE), (ground, _GROUND))
            for word in re.findall(r"[a-z]+", part)
            if word in meaning
        }
