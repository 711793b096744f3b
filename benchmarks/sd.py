"""Speed against diffusers: the same UNet with the same weights, in one run, outputs compared first.

    python benchmarks/sd.py                          Stable Diffusion 1.x on a GPU, some six minutes
    python benchmarks/sd.py --device cpu --size 60m  on a CPU; other sizes are demo and tiny

Work: a forward pass of the UNet, 50 DDIM steps with guidance (latents only), a training step with
AdamW (fp32 weights under bf16 autocast). Precision is bfloat16 on a GPU, float32 on a CPU.
diffusers is compiled as it runs best: channels last, queries, keys and values fused,
`reduce-overhead`; ours as `sampling.compile` does. Every contender is a process of its own
(`contenders.py`): all are compiled at once, then they take turns. Times are medians (of CUDA events
on a GPU), ratios are medians of the ratios of neighbouring rounds. The error is that of a forward
pass relative to diffusers in float32; nothing is timed where it is above the bound, unless
diffusers' own is too. Prints one line of JSON for each result.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import torch
from contenders import SIZES, Contender, timed

BOUND = {"cuda": 1e-2, "cpu": 1e-4}


class Starter:
    """The other end of a contender's process."""

    def __init__(self, contender: Contender) -> None:
        told = json.dumps(attrs.asdict(contender))
        self.contender, self.facts = contender, dict[str, Any]()
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("contenders.py")), told],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def hear(self) -> dict[str, Any]:
        """What it says next.

        Raises:
            RuntimeError: it ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.contender} failed")
        return dict(json.loads(line))

    def run(self, work: str) -> dict[str, Any]:
        """Has it done once: milliseconds, and the most memory so far."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{work}\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        """Lets it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compete(contenders: list[Contender], rounds: int) -> None:
    """Starts all, compares their outputs, times them in turns and reports."""
    starters = [Starter(contender) for contender in contenders]
    try:
        for starter in starters:
            starter.facts = starter.hear()
            report(ready=name(starter.contender), **starter.facts)
        theirs = [s.facts.get("error", 0) for s in starters if s.contender.side != "ours"]
        for starter in starters:
            bound = max([BOUND[starter.contender.device], *theirs])
            if not starter.facts.get("error", 0) <= bound:
                raise RuntimeError(f"{starter.contender} is off by {starter.facts['error']:g}")
        for work in ("forward", "sample", "train"):
            for batch in sorted({contender.batch for contender in contenders}):
                racing = [
                    starter
                    for starter in starters
                    if starter.contender.batch == batch and work in starter.contender.works
                ]
                if racing:
                    race(work, racing, rounds)
    finally:
        for starter in starters:
            starter.end()


def race(work: str, starters: list[Starter], rounds: int) -> None:
    """One work at one batch."""
    for starter in starters:
        starter.run(work)
    found = [[starter.run(work) for starter in starters] for _ in range(rounds)]
    times = {
        starter.contender: [turn[place]["ms"] for turn in found]
        for place, starter in enumerate(starters)
    }
    for place, (contender, own) in enumerate(times.items()):
        memory = {"GiB": round(found[-1][place]["GiB"], 2)} if "GiB" in found[-1][place] else {}
        ratios = {
            f"over {name(other)}": round(
                statistics.median(b / a for a, b in zip(own, theirs, strict=True)), 3
            )
            for other, theirs in times.items()
            if contender.side == "ours" != other.side
        }
        ms = round(statistics.median(own), 3)
        report(work=work, batch=contender.batch, who=name(contender), ms=ms, **memory, **ratios)


def name(contender: Contender) -> str:
    """Side and mode."""
    return f"{contender.side} {contender.how}"


def report(**facts: Any) -> None:
    """A line of JSON."""
    print(json.dumps(facts), flush=True)  # noqa: T201


def ceiling() -> float:
    """TFLOP/s of an 8192-cubed bf16 product of random numbers."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = [timed(lambda: a @ b, a.device) for _ in range(13)][3:]
    return 2 * 8192**3 / statistics.median(times) / 1e9


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--size", default=None, choices=list(SIZES))
    parser.add_argument("--how", default="eager,compiled", help="eager, compiled or both")
    parser.add_argument("--work", default="sampling,training", help="sampling, training or both")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    device = options.device
    chosen = options.size or ("sd1" if device == "cuda" else "tiny")
    size, hows = SIZES[chosen], options.how.split(",")
    facts = {"torch": torch.__version__, "python": platform.python_version(), "size": chosen}
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "matmul_tflops": round(ceiling(), 1)}
        torch.cuda.empty_cache()
    report(**facts)
    sides = [(side, how) for how in hows for side in ("diffusers", "ours")]
    if "sampling" in options.work:
        batches = [(side, how, batch) for batch in size.batches for side, how in sides]
        compete([Contender(*one, False, chosen, device) for one in batches], options.rounds)
    if "training" in options.work and size.train:
        trains = [(side, how) for side, how in sides if how == hows[-1]]
        compete(
            [Contender(*one, size.train, True, chosen, device) for one in trains], options.rounds
        )


if __name__ == "__main__":
    main()
