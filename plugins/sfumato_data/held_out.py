"""Which examples are held out: a function of each example's own name.

A hash, not a shuffle: adding or removing examples moves none of the others between the splits.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from sfumato import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable


class Named(Protocol):
    """Something that a split may hold."""

    @property
    def name(self) -> str:
        """What decides where it belongs."""


T = TypeVar("T", bound=Named)


def is_held_out(name: str, share: float) -> bool:
    """Whether the example of this name is in the test split, which holds `share` of all names."""
    # File names that are no UTF-8 come from the system with surrogates in them.
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def held_apart(
    everything: Iterable[T], split: Literal["train", "test"], share: float, place: object
) -> list[T]:
    """What belongs to one split, at least one.

    Raises:
        DataError: nothing does.
    """
    everything = list(everything)
    found = [one for one in everything if is_held_out(one.name, share) == (split == "test")]
    if not found:
        problem = f"none of its {len(everything)} pictures falls into the {split} split"
        remedy = "change held_out, or name the pictures of each split"
        raise DataError(problem, place=str(place), remedy=remedy)
    return found
