"""Whether a GPU draws what the CPU draws: integers bit for bit, normals to 1e-6.

    python benchmarks/randomness.py [DEVICE]

compares, for several seeds, streams, examples (some beyond 32 bits) and draws, on the CPU and on
DEVICE, by default `cuda`, and ends with 1 where they differ.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch

from sfumato.randomness import Draw

SEEDS = (0, 1, 2**63 - 1)
STREAMS = ("denoiser", "sample")
EXAMPLES = (0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**62)
DRAWS = (0, 1, 2200, 2**32 - 1)
SHAPE = (4, 64, 64)


def compared(device: str) -> dict[str, Any]:
    """How many values there were, how many words differ, and the largest difference of normals."""
    words = different = 0
    largest = 0.0
    for seed, stream, index in itertools.product(SEEDS, STREAMS, DRAWS):
        here, there = (
            Draw(seed=seed, stream=stream, examples=torch.tensor(EXAMPLES, device=on), index=index)
            for on in ("cpu", device)
        )
        mine, theirs = here.bits("words", 4096), there.bits("words", 4096).cpu()
        words += mine.numel()
        different += int((mine != theirs).sum())
        different += int((here.uniform("t") != there.uniform("t").cpu()).sum())
        normals = here.normal("noise", SHAPE), there.normal("noise", SHAPE).cpu()
        largest = max(largest, float((normals[0] - normals[1]).abs().max()))
    return {"words": words, "different": different, "largest difference of normals": largest}


def main() -> None:
    """Prints what was found."""
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here; name another device to compare with")
    found = compared(device)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    print(f"cpu and {name}, torch {torch.__version__}: {found}")  # noqa: T201
    sys.exit(found["different"] > 0 or found["largest difference of normals"] > 1e-6)


if __name__ == "__main__":
    main()
