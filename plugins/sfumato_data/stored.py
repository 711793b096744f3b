"""What all sources of stored pictures have in common: size, share held out, bad examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
from attrs.validators import ge, le, lt

from sfumato import Data, option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sfumato import Split
    from sfumato_data.examples import Picture


@attrs.frozen(kw_only=True)
class StoredPictures(Data):
    """Pictures that somebody else has stored, and that may be bad."""

    size: int = option(32, "height and width in pixels", ge(1))
    held_out: float = option(
        0.1, "share of the test split, where the source names none", ge(0), lt(1)
    )
    on_bad_example: Literal["error", "skip"] = option(
        "error", "what a bad picture or caption does: stop, or be counted and replaced by the next"
    )
    bad_share: float = option(0.1, "the largest share that may be skipped", ge(0), le(1))

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels, both `size`."""
        return self.size, self.size

    def examples(self, pictures: Sequence[Picture], check_headers: bool = False) -> Split:
        """The split of these pictures.

        Raises:
            DataError: an example is bad, or too many are.
        """
        from sfumato_data.examples import Examples

        return Examples(
            pictures,
            self.size,
            skip=self.on_bad_example == "skip",
            bad_share=self.bad_share,
            check_headers=check_headers,
        )
