import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "sd.py"


@pytest.mark.slow
def test_the_race_against_diffusers_runs_on_a_cpu_at_small_size():
    options = "--device cpu --size tiny --how eager --work sampling --rounds 1".split()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    ready = {line["ready"]: line for line in lines if "ready" in line}
    assert ready["ours eager"]["error"] < 1e-5
    assert ready["diffusers eager"]["error"] < 1e-5
    timed = {(line["work"], line["who"]): line for line in lines if "work" in line}
    assert set(timed) == {
        (work, who) for work in ("forward", "sample") for who in ("ours eager", "diffusers eager")
    }
    ours = timed["sample", "ours eager"]
    assert 0 < ours["ms"] and ours["over diffusers eager"] > 0
