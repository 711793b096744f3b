"""Which examples are held out: a function of each example's own name.

A hash, not a shuffle: adding or removing examples moves none of the others between the splits.
"""

from __future__ import annotations

import hashlib
import os


def is_held_out(name: str, share: float) -> bool:
    """Whether the example of this name is in the test split, which holds `share` of all names."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64
