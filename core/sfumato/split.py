"""One part of a data source: examples by number, and what training may make of them.

Evaluation, studies and exports ask for `example`, training for `variation`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Split(ABC):
    """One part of a data source: a map from an index to a captioned picture."""

    dropped: int = 0
    """How many examples were left out, when the split was made, because they could not be used."""
    faults: tuple[str, ...] = ()
    """What is wrong with the first of them."""
    varies: bool = False
    """Whether training sees an example differently each time: see `variation`."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abstractmethod
    def example(self, index: int) -> tuple[Tensor, str]:
        """Picture (3, H, W) float32 in [-1, 1] and caption; the same for the same index.

        Raises:
            DataError: the example cannot be read.
            IndexError: `index` is below 0, or not below the length.
        """

    @abstractmethod
    def caption(self, index: int) -> str:
        """The caption alone, without drawing or reading the picture.

        Raises:
            IndexError: as for `example`.
        """

    def phrasings(self, index: int) -> tuple[str, ...]:
        """Texts that say what the picture shows, `caption(index)` first: all that training may give
        with it.

        Raises:
            IndexError: as for `example`.
        """
        return (self.caption(index),)

    def variation(self, index: int, word: int) -> tuple[Tensor, str]:
        """The example as training sees it once: a function of `index` and `word`, and of nothing
        else.

        Args:
            index: as for `example`.
            word: uniform in [0, 2^64), another one for each row of each training step.

        Returns:
            As for `example`, which it is where nothing `varies`.

        Raises:
            DataError: as for `example`.
            IndexError: as for `example`.
        """
        return self.example(index)

    def texts(self) -> list[str]:
        """The phrasings of all examples, in their order."""
        return [text for index in range(len(self)) for text in self.phrasings(index)]

    def fault(self, index: int) -> str | None:
        """Why `example` gives another one for this index, once it has been asked; None where it
        gives its own.
        """
        return None

    def check_bad(self, replaced: Mapping[int, str]) -> None:
        """Raises DataError where these faults, by index, of all that were asked for, are too many.

        By default there are never too many.
        """
        return None

    def fingerprint(self) -> str:
        """Another text wherever examples of the same settings would be others: what is computed
        from examples is kept under it, and what is trained on them. By default a hash of all
        phrasings, which is enough where the settings alone say what pictures are.
        """
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update("\0".join([*self.phrasings(index), "\0"]).encode())
        return digest.hexdigest()

    def refuse_outside(self, index: int) -> None:
        """Raises the IndexError of `example` and `caption`."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no example {index}; the last is {len(self) - 1}")
