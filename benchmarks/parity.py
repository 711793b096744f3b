"""How near each component is to its peer: docs/parity.md, made from tests that run.

A test that compares a component with a peer tells the fixture `parity` of tests/conftest.py. This
runs all tests that do, which must pass, and writes what was told:

    python benchmarks/parity.py
"""

from __future__ import annotations

import datetime
import itertools
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = ("torch", "diffusers", "k-diffusion", "transformers", "scipy")

PAGE = """# Beside the peers

{made}

For each component: what it was compared with, what of it, and the largest relative error over all
cases of the test, which varies options, schedules and numbers of steps. Numbers of a list (betas,
levels, weights) are each compared with their own size, pictures with their largest value. 0 means
equal to the bit. A test has a bound of its own, and fails above it.

In float64, where a peer computes in it, formulas agree to rounding. In float32 deterministic steps
stay within 1e-5 and trajectories with the same noise within 1e-4, but where a peer's own float32
table is the larger error: `1 - alpha_bar` of an alpha_bar near 1 errs by up to 2e-4 there, and
"its table in float64" is the same step without that. A component without a peer stands beside its
paper's formula, written out in the test.

## Where a peer errs

There the test shows its error and the closed form, each in one of `tests/test_*.py`.

- `noise_schedule laplace`: diffusers takes alpha for alpha_bar (`test_schedules.py`).
- `time_grid beta`: diffusers spaces noise levels where the paper spaces times
  (`test_time_grids.py`).
- `sampler dpmpp_3m_sde`: k-diffusion, diffusers and the authors' code give the second-order term
  half of its weight, and diffusers' SDE a wrong sign too (`test_samplers_peers.py`).
- `sampler dpmpp_sde`: k-diffusion correlates the halves of a step otherwise than the SDE does
  (`test_samplers_peers.py`); it is compared given the SDE's noise.
- `sampler euler`: the cleanest entry of diffusers' float32 table is off by 8.3e-5
  (`test_samplers_peers.py`).
- `guidance seg`: diffusers takes the mean query where sigma is finite, and blurs where it is not
  (`test_variants.py`).
- `loss_weight cosmap`: diffusers' scripts put one weight on whichever loss they compute
  (`test_loss_weights.py`).

{tables}
"""


def measured() -> list[tuple[str, str, str, str, float]]:
    """(kind, name, peer, what, error) as the tests tell."""
    tests = [
        str(path)
        for path in sorted(ROOT.joinpath("tests").glob("test_*.py"))
        if "parity" in path.read_text() and path.stem != "test_parity"
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "errors.json"
        command = [sys.executable, "-m", "pytest", "-q", "--parity", str(file), *tests]
        subprocess.run(command, cwd=ROOT, check=True)
        return [tuple(row) for row in json.loads(file.read_text())]


def table(kind: str, rows: list[tuple[str, str, str, str, float]]) -> str:
    """The components of a kind, a line for each comparison."""
    lines = [
        f"## {kind.replace('_', ' ').capitalize()}",
        "",
        "| component | beside | what | largest relative error |",
        "| --- | --- | --- | --- |",
    ]
    for _, name, peer, what, error in rows:
        lines.append(f"| `{name}` | {peer} | {what} | {f'{error:.1e}' if error else '0'} |")
    return "\n".join(lines)


def made(today: datetime.date) -> str:
    """When, and with which versions."""
    versions = ", ".join(f"{peer} {metadata.version(peer)}" for peer in PEERS)
    return f"Made by `python benchmarks/parity.py` on {today} with\n{versions}."


def main() -> None:
    """Runs, writes."""
    groups = itertools.groupby(measured(), key=lambda row: row[0])
    tables = "\n\n".join(table(kind, list(rows)) for kind, rows in groups)
    page = PAGE.format(made=made(datetime.date.today()), tables=tables)
    ROOT.joinpath("docs", "parity.md").write_text(page)


if __name__ == "__main__":
    main()
