"""What happens under each fault, and the tests that show it: docs/reliability.md, made from a run.

A test that proves a row carries the marker `fault("ROW")`. This runs all of them, the slow ones
too, none of which may fail or be skipped, and writes how each ended:

    python benchmarks/reliability.py
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = {
    "resume": (
        "a run in pieces: 17 + 23 steps, 11 + 11 + 18, left in an evaluation, with 0 or 2 workers",
        "log, weights and what is measured are those of the run in one piece, bit for bit",
    ),
    "SIGKILL": (
        "SIGKILL at random moments of a run that saves at every step",
        "`--resume` finds the newest valid checkpoint; the last weights are those of a run that "
        "nobody disturbed",
    ),
    "full disk": (
        "a disk that is full, or fills up while a checkpoint is written",
        "an error with the bytes needed; the checkpoint before is whole, nothing is left over, and "
        "the record says so",
    ),
    "damaged checkpoint": (
        "a checkpoint truncated, empty, with a flipped bit (in its manifest too), a huge or "
        "overlapping header, a pickle, another architecture, a path that leads out, a link",
        "refused with file and reason; `--resume` sets it aside with a warning and takes the one "
        "before; nothing is removed before the next was read back",
    ),
    "run folder": (
        "two processes in one run folder, a read-only folder, an odd umask",
        "an error that names the other process, or says what is denied; modes as the umask says",
    ),
    "signals": (
        "SIGTERM, SIGINT or SIGUSR1 during a step, a save, an evaluation",
        "the step ends, one checkpoint, status `preempted`, exit code 143 or 130; a second signal "
        "ends at once with the checkpoint valid, but for SIGTERM that a launcher passes on",
    ),
    "two ranks": (
        "two ranks: SIGTERM to one, to torchrun, or to all; one that raises; data that no batch "
        "divides",
        "both stop at the same step with one checkpoint; the job fails with that rank's error, "
        "which the record has too; no rank runs out of examples, and none is seen twice",
    ),
    "world size": (
        "one process and two ranks, with whole weights or shards, at the same global batch: a "
        "small experiment with dropout, and both stages of `demo`",
        "gradients from equal weights and the losses of 20 steps to 1e-6 (shards: 1e-5), learning "
        "rates equal, metrics within their intervals; a run goes on from two ranks to one and back",
    ),
    "not finite": (
        "NaN in a batch, a learning rate of 1e10, an overflow of the gradient alone",
        "no weight moves; the message names step, rate, times and examples; or the step is left "
        "out and counted, or the weights go back; a checkpoint never holds such a value",
    ),
    "broken components": (
        "a schedule that returns NaN, rises in SNR or has the wrong length; a denoiser of the "
        "wrong shape; a sampler that never ends",
        "the message names component, expected and got",
    ),
    "samples": (
        "0 steps, a NaN start, requests that cannot be meant, pictures at the limits",
        "an error, or a flagged picture",
    ),
    "one seed": (
        "the same seed alone, in a batch, in another order",
        "noise equal to the bit for each example, pictures within 1e-5",
    ),
    "bad pictures": (
        "broken, empty or mislabelled files, odd modes, rotation, animation, captions that are "
        "missing, empty, huge or not UTF-8; all bad",
        "converted where there is one right way, else an error, or counted and left out: once "
        "each, with any number of workers and ranks and after a resume, up to a set share",
    ),
    "trackers": (
        "a tracker that raises or cannot start",
        "one warning, it is switched off, and the numbers are those without it",
    ),
    "broken plugins": (
        "a plugin that raises or exits at import, misspells a hook, returns the wrong thing, or "
        "breaks half-way",
        "it alone is left out, named with distribution, version and cause",
    ),
    "colliding plugins": (
        "two plugins with one name, one entry point or one module; one for another API",
        "an error or an exclusion that names both, and the way out",
    ),
    "numbers in YAML": ("`1e-4`, `1E3`, `5e-6`", "numbers"),
    "mistakes in YAML": (
        "a key that stands twice or is misspelt, a wrong type, NaN, a value out of range",
        "all errors of the file at once, each with line, path and suggestion",
    ),
    "hostile files": (
        "aliases, 100,000 brackets, NUL, a huge, binary or empty file, several documents",
        "one clean error, in bounded memory",
    ),
    "code in YAML": (
        "`!!python/...`, `_target_`, `trust_remote_code` and other arguments of loaders",
        "refused; nothing is imported, nothing runs",
    ),
}

PAGE = """# What happens when

{made}

Each row: a fault, what sfumato does, and the tests that show it, with the number of their cases.
They run as root on two cores, and none is skipped. A test belongs to a row by its marker
`@pytest.mark.fault`; its row is written in `benchmarks/reliability.py`.

| fault | what happens | shown by |
| --- | --- | --- |
{rows}

Resuming, checkpoints, signals and numbers that are not finite are told in
[Training](concepts/training.md) and [Runs](concepts/runs.md).
"""


def ended() -> list[tuple[str, str, list[str]]]:
    """(row, test, how each of its cases ended), as the tests tell."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "faults.json"
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-m", "fault", "--faults", str(file)]
        subprocess.run(command, cwd=ROOT, check=True)
        return [tuple(row) for row in json.loads(file.read_text())]


def line(row: str, tests: list[tuple[str, list[str]]]) -> str:
    """A line of the table.

    Raises:
        SystemExit: a case was not run.
    """
    for test, cases in tests:
        if set(cases) != {"passed"}:
            raise SystemExit(f"{test}: {sorted(set(cases))}")
    shown = "<br>".join(
        f"`{test.removeprefix('tests/')}`" + (f" ({len(cases)})" if len(cases) > 1 else "")
        for test, cases in tests
    )
    fault, what = ROWS[row]
    return f"| {fault} | {what} | {shown} |"


def main() -> None:
    """Runs, writes."""
    found = ended()
    lines = [
        line(row, [(test, cases) for told, test, cases in found if told == row]) for row in ROWS
    ]
    count = sum(map(len, {test: cases for _, test, cases in found}.values()))
    made = (
        f"Made by `python benchmarks/reliability.py` on {datetime.date.today()}, Python "
        f"{platform.python_version()}, as {'root' if os.geteuid() == 0 else 'a user'}: {count} "
        "cases passed."
    )
    page = PAGE.format(made=made, rows="\n".join(lines))
    ROOT.joinpath("docs", "reliability.md").write_text(page)


if __name__ == "__main__":
    main()
