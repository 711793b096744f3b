"""Kills a run that saves at every step, at random moments, and lets it go on, again and again.

    python tests/sigkills.py FOLDER KILLS SEED

Each process is forked from this one, which has trained the run that nobody disturbs, on one thread,
so that everything is imported. A run that gets to its end is compared with it, and another begins.
One kill in four comes at any time before the first save of its process, the others within the
three steps after that begins. Prints one JSON object of counts.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from sfumato import plugins, training
from sfumato.registry import Registry
from small import SMALL
from survival import checkpoints, fingerprint

SETTINGS = [
    "stages.clip.steps=4", "stages.denoiser.steps=8", "evaluation.count=1",
    "checkpoints={every: 1, keep_last: 2}",
]  # fmt: skip


def steps_of(experiment, catalogue, out):
    return training.train(experiment, out, catalogue=catalogue, resume=True)


def trained(experiment, catalogue, out):
    """The process id of a child that trains."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        list(steps_of(experiment, catalogue, out))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait_for_save(out, child):
    """Until the process has begun to save, or ended."""
    while not list(out.glob(f"checkpoints/.*.{child}")):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


def moment(out):
    """What a kill interrupted, as far as the folder shows."""
    if not (out / "run.json").exists():
        return "before the run began"
    if not (out / "checkpoints").exists():
        return "before the first checkpoint"
    return "saving" if any(name.startswith(".") for name in checkpoints(out)) else "between saves"


def main(folder, kills, seed):
    """Counts of kills by moment, of runs that went on, and of what went wrong."""
    torch.set_num_threads(1)
    (folder / "registry.yaml").write_text(SMALL)
    catalogue = plugins.load()
    experiment = Registry.load(folder / "registry.yaml", catalogue).experiment("small", SETTINGS)
    list(steps_of(experiment, catalogue, folder / "undisturbed"))
    began = time.monotonic()
    seen = [time.monotonic() - began for _ in steps_of(experiment, catalogue, folder / "again")]
    first, step = seen[0], (seen[-1] - seen[0]) / (len(seen) - 1)
    wanted, waits = fingerprint(folder / "undisturbed"), random.Random(seed)
    counts = {"kills": {}, "finished": 0, "equal": 0, "unusable": 0}
    out = folder / "run"
    while sum(counts["kills"].values()) < kills or out.exists():
        child = trained(experiment, catalogue, out)
        if sum(counts["kills"].values()) < kills:
            if waits.random() < 0.25:
                time.sleep(waits.uniform(0, first))
            else:
                wait_for_save(out, child)
                time.sleep(waits.uniform(0, 3 * step))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            where = moment(out)
            counts["kills"][where] = counts["kills"].get(where, 0) + 1
            continue
        counts["finished"] += 1
        if os.WEXITSTATUS(status):
            counts["unusable"] += 1
        elif (found := fingerprint(out)) == wanted:
            counts["equal"] += 1
        else:
            sys.stderr.write(f"found {found}\nwanted {wanted}\n")
        shutil.rmtree(out)
    return counts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))) + "\n")
