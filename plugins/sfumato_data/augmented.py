"""Training pictures that are never quite the same twice: cropped, mirrored, said otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import attrs
from attrs.validators import deep_iterable, ge, gt, le, matches_re, min_len, optional

from sfumato import ConfigError, Data, option, required

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import Split


@attrs.frozen(kw_only=True)
class Augmented(Data):
    """Another source, whose training split varies; what is held out stays as it is.

    Each time that training sees an example, it shows a square (an upright part of the picture's own
    shape) of at least the share `crop` of its area, anywhere; with `flip`, mirrored half of the
    times; and, with the probability `captions`, one of its phrasings, drawn evenly, in one of the
    `templates`. A picture is never mirrored where one of its phrasings holds a digit, or a word
    that tells of a direction, of writing or of a flag: left, arrow, clock, letter, waxing.

    All of it is a function of (seed, stage, step, row): resuming, workers and ranks change nothing.
    Stages that vary cannot be cached. Pictures are cut from 8 bits a channel with a Lanczos filter;
    give `size` with a source that is larger, and crops are as sharp as the whole.
    """

    name = "augmented"

    data: Data = required("whose training pictures vary")
    size: int | None = option(
        None, "height and width, reduced from larger ones; null: those of the data", optional(ge(1))
    )
    crop: float = option(1.0, "the smallest share of the area that is shown", gt(0), le(1))
    flip: bool = option(False, "mirror half of the pictures, where that does no harm")
    captions: float = option(0.0, "share of captions that are put in other words", ge(0), le(1))
    templates: tuple[str, ...] = option(
        ("{}",),
        "other words: sentences around a phrasing, which stands for {}",
        min_len(1),
        deep_iterable(matches_re(r"[^{}]*\{\}[^{}]*")),
    )
    keep: bool = option(
        False, "decode pictures once and hold them in memory, of which all workers have a part"
    )

    def __attrs_post_init__(self) -> None:
        height, width = self.data.picture_size
        if self.size is not None and not self.size <= height == width:
            raise ConfigError(
                f"size {self.size} cannot be reduced from {height} x {width}",
                place="augmented.size",
                remedy="leave it out, or make the pictures of the data larger squares",
            )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """All that it does, to a few shapes."""
        from sfumato_data.shapes import Shapes

        templates = ("{}", "a picture of {}")
        shapes = Shapes(size=20, count=32, held_out=8)
        return cls(
            data=shapes, size=16, crop=0.8, flip=True, captions=0.5, templates=templates, keep=True
        )

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels: `size` twice, or those of the data."""
        return self.data.picture_size if self.size is None else (self.size, self.size)

    def split(self, name: Literal["train", "test"]) -> Split:
        """The split of the data, reduced to `size`; that to train on varies.

        Raises:
            DataError: as for the data.
        """
        from sfumato_data.varied import Reduced, Varied

        inner = self.data.split(name)
        if name == "train":
            return Varied(inner, self)
        return inner if self.size is None else Reduced(inner, self.picture_size)
