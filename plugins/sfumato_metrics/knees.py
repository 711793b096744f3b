"""The front of a trade-off, and where it bends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def front(gains: Sequence[float], others: Sequence[float]) -> list[int]:
    """The places that no other place beats in both, by rising `gains`; more is better in both."""
    places = sorted(range(len(gains)), key=lambda k: (gains[k], others[k]), reverse=True)
    best, found = float("-inf"), []
    for place in places:
        if others[place] > best:
            best = others[place]
            found.append(place)
    return found[::-1]


def knee(gains: Sequence[float], others: Sequence[float]) -> int | None:
    """The place of the front that is farthest above the chord between the front's ends.

    Both axes are brought to [0, 1] first, as in Kneedle (Satopaa et al., "Finding a 'Kneedle' in a
    Haystack", 2011). The chord then falls from (0, 1) to (1, 0), and a point lies x + y - 1 above
    it, but for a constant factor.

    Returns:
        None where no point of the front is above its chord, as where it has only two.
    """
    places = front(gains, others)
    first, last = places[0], places[-1]
    heights = {
        k: (gains[k] - gains[first]) / (gains[last] - gains[first])
        + (others[k] - others[last]) / (others[first] - others[last])
        - 1
        for k in places[1:-1]
    }
    farthest = max(heights, key=lambda k: heights[k], default=None)
    return farthest if farthest is not None and heights[farthest] > 1e-9 else None
