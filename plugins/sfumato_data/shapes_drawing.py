"""Draws the scenes of `shapes` and words their captions.

All choices of a split are one table of Philox words, made at once; a picture is drawn when it is
asked for, in a tenth of a millisecond, so nothing is cached. An edge pixel is mixed by how much of
it the shape covers, estimated from the distance of its middle to the edge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
import numpy as np
import torch
from torch import Tensor

from sfumato import Draw, Split
from sfumato_data.shapes import BACKGROUNDS, COLORS, POSITIONS, SIZES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

T = TypeVar("T")

_SIZE_JITTER = 0.015
_POSITION_JITTER = 0.02
_NAMED: Mapping[str, float] = {
    "color": 0.75,
    "shape": 0.75,
    "size": 0.5,
    "position": 0.5,
    "background": 0.5,
}
"""How often a partial caption names an attribute."""


@attrs.frozen(kw_only=True)
class Scene:
    """What one picture shows: the words, and the lengths as shares of the picture."""

    color: str
    shape: str
    background: str
    size: str
    position: str
    x: float
    y: float
    radius: float

    def picture(self, pixels: int) -> Tensor:
        """(3, pixels, pixels) float32 in [-1, 1]."""
        middles = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels
        inside = distance_inside(self.shape, middles - self.x, middles - self.y, self.radius)
        coverage = (inside * pixels + 0.5).clip(0, 1)
        ground, figure = _rgb(BACKGROUNDS[self.background]), _rgb(COLORS[self.color])
        return torch.from_numpy(ground + coverage * (figure - ground))

    def caption(self, named: frozenset[str]) -> str:
        """The sentence that says the `named` attributes and no others."""
        place = "in" if self.position == "center" else "at"
        phrases = {
            "size": self.size,
            "color": self.color,
            "shape": self.shape if "shape" in named else "shape",
            "position": f"{place} the {self.position}",
            "background": f"on a {self.background} background",
        }
        said = named | {"shape"}
        return " ".join(["a", *(phrase for key, phrase in phrases.items() if key in said)])


def distance_inside(shape: str, x: NDArray[Any], y: NDArray[Any], radius: float) -> NDArray[Any]:
    """How far inside the edge a point lies, (H, W), in the unit of the arguments; negative outside.

    Outside a corner it is the distance to the line of the farther edge, a little too short.

    Args:
        shape: a circle, a square, or a triangle that points up, as high as it is wide.
        x: (W,), to the right of the middle of the shape.
        y: (H,), below it.
        radius: half the width of the shape.
    """
    across, down = abs(x), y[:, None]
    inside: NDArray[Any]
    if shape == "circle":
        inside = radius - np.sqrt(across**2 + down**2)
    elif shape == "square":
        inside = radius - np.maximum(across, abs(down))
    else:
        inside = np.minimum((down + radius - 2 * across) / 5**0.5, radius - down)
    return inside


class ShapesSplit(Split):
    """`count` scenes whose colour and shape are one of `pairs`."""

    def __init__(
        self,
        *,
        size: int,
        seed: int,
        name: Literal["train", "test"],
        count: int,
        pairs: Sequence[tuple[str, str]],
        full: float,
    ) -> None:
        self._size = size
        self._full = full
        self._pairs = pairs
        draw = Draw(seed=seed, stream=f"shapes/{name}", examples=torch.arange(count))
        self._scenes = draw.bits("scene", 7).numpy().astype(np.uint32)
        self._captions = draw.bits("caption", 6).numpy().astype(np.uint32)

    def __len__(self) -> int:
        return len(self._scenes)

    def example(self, index: int) -> tuple[Tensor, str]:
        """Picture and caption."""
        scene = self.scene(index)
        return scene.picture(self._size), self._caption(index, scene)

    def caption(self, index: int) -> str:
        """The caption alone."""
        return self._caption(index, self.scene(index))

    def scene(self, index: int) -> Scene:
        """What the picture shows, said or not."""
        self.refuse_outside(index)
        words = self._scenes[index].tolist()
        color, shape = _pick(self._pairs, words[0])
        size, position = _pick(tuple(SIZES), words[1]), _pick(tuple(POSITIONS), words[2])
        dx, dy, dr = (2 * word / 2**32 - 1 for word in words[4:])
        return Scene(
            color=color,
            shape=shape,
            background=_pick(tuple(BACKGROUNDS), words[3]),
            size=size,
            position=position,
            x=POSITIONS[position][0] + _POSITION_JITTER * dx,
            y=POSITIONS[position][1] + _POSITION_JITTER * dy,
            radius=SIZES[size] + _SIZE_JITTER * dr,
        )

    def _caption(self, index: int, scene: Scene) -> str:
        """The caption of the scene, in one of three styles, as often as `Shapes` states."""
        style, *chances = (word / 2**32 for word in self._captions[index].tolist())
        if style < 0.05:
            return scene.color if chances[0] < 0.5 else scene.shape
        if style < 0.05 + self._full:
            return scene.caption(frozenset(_NAMED))
        shares = zip(_NAMED.items(), chances, strict=True)
        return scene.caption(frozenset(key for (key, share), u in shares if u < share))


def _pick(choices: Sequence[T], word: int) -> T:
    """One of the choices, from 32 uniform bits."""
    return choices[word * len(choices) >> 32]


def _rgb(color: tuple[float, float, float]) -> NDArray[Any]:
    return np.array(color, dtype=np.float32)[:, None, None]
