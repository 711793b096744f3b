"""Which examples are held out: a function of each example's own name.

A hash, not a shuffle: adding or removing examples moves none of the others between the splits.
"""

from __future__ import annotations

import hashlib


def is_held_out(name: str, share: float) -> bool:
    """Whether the example of this name is in the test split, which holds `share` of all names."""
    # File names that are no UTF-8 come from the system with surrogates in them.
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64
