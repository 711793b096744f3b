"""What surviving costs: a checkpoint beside a plain write, and fault handling beside a step.

    python benchmarks/checkpoint.py [--gigabytes 1] [--rounds 7] [--folder DIR]

First, the speed at which a checkpoint reaches the disk (tensors, SHA-256, manifest, sync, rename;
it is not read back) as a share of that of the same bytes written and synced alone. Then, the time
that a step of `demo` spends on being able to survive (two checks, the log, a look at signals, and
its share of a checkpoint every 1000 steps, read back) as a share of the step.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sfumato import checkpoint, plugins
from sfumato.interruption import Interruption
from sfumato.loop import log_line
from sfumato.registry import Registry
from sfumato.runs import Run
from sfumato.training import train

if TYPE_CHECKING:
    from collections.abc import Callable

TENSOR = 1 << 23
"""Float32 numbers of one tensor: 32 MiB, as a large layer has."""
STEPS, EVERY = 60, 1000


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def plain(path: Path, state: dict[str, torch.Tensor]) -> None:
    """The same bytes, written and synced."""
    with path.open("wb") as file:
        for tensor in state.values():
            file.write(tensor.numpy().data)
        file.flush()
        os.fsync(file.fileno())


def writing(folder: Path, gigabytes: float, rounds: int) -> str:
    """The two speeds, in turns."""
    count = round(gigabytes * 1e9 / TENSOR / 4)
    state = {f"layer.{i}": torch.randn(TENSOR) for i in range(count)}
    size = sum(tensor.nbytes for tensor in state.values())
    both = []
    for _ in range(rounds + 1):
        alone = seconds(lambda: plain(folder / "plain", state))
        (folder / "plain").unlink()
        ours = seconds(lambda: checkpoint.write(folder / "step", {"net": state}, {}, {}))
        shutil.rmtree(folder / "step")
        both.append((alone, ours))
    both = both[1:]  # the first round warms up
    alone, ours = (statistics.median(column) for column in zip(*both, strict=True))
    share = statistics.median(alone / ours for alone, ours in both)
    return (
        f"{size / 1e9:.2f} GB: plain {size / alone / 1e6:.0f} MB/s, checkpoint "
        f"{size / ours / 1e6:.0f} MB/s, median share {share:.0%} of {rounds} rounds"
    )


def handling(folder: Path) -> str:
    """Fault handling of one step of each stage of `demo`, beside the step."""
    settings = [f"stages.{stage}.steps={STEPS}" for stage in ("clip", "denoiser")]
    settings += [
        "evaluation={metrics: [], studies: []}",
        "trackers=[]",
        f"checkpoints.every={STEPS - 1}",
    ]
    experiment = Registry.load().experiment("demo", settings)
    steps = list(train(experiment, folder / "run", catalogue=plugins.load()))
    run, asked = Run(folder / "log"), Interruption()
    run.path.mkdir()
    line = log_line(steps[-1], {})

    def survive() -> None:
        finite = math.isfinite(line["loss"]) and math.isfinite(line["gradient_norm"])
        if finite and not asked.asked() and line["step"] % EVERY:
            run.log(line)

    each = statistics.median(seconds(survive) for _ in range(2000))
    newest = run_checkpoint(folder / "run")
    lines = []
    for stage in experiment.stages:
        step = statistics.median(one.seconds for one in steps if one.stage == stage)
        share = (each + newest / EVERY) / step
        lines.append(f"stage {stage}: {share:.2%} of a step of {step * 1e3:.1f} ms")
    return (
        f"{each * 1e6:.0f} us a step, and a checkpoint of {newest * 1e3:.0f} ms every {EVERY}; "
        + ", ".join(lines)
    )


def run_checkpoint(run: Path) -> float:
    """Seconds to write, and to read back, the newest checkpoint within a stage again."""
    path = sorted(run.glob("checkpoints/*"))[-2]
    states, files = checkpoint.read(path)
    again = path.with_name("again")

    def write() -> None:
        checkpoint.write(again, states, files, {})
        checkpoint.verify(again)
        checkpoint.remove(again)

    return statistics.median(seconds(write) for _ in range(5))


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(writing(Path(folder), options.gigabytes, options.rounds))  # noqa: T201
        print(handling(Path(folder)))  # noqa: T201


if __name__ == "__main__":
    main()
