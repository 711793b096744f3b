"""Kills at random moments leave a run that goes on, to the same weights."""

import json
import os
import subprocess
import sys

import pytest

from small import ROOT


@pytest.mark.fault("SIGKILL")
@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments(tmp_path):
    kills = 200
    script = ROOT / "tests" / "sigkills.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(kills), "0"],
        capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    sys.stdout.write(f"{counts}\n")
    assert sum(counts["kills"].values()) == kills
    assert counts["unusable"] == 0, done.stderr
    assert counts["equal"] == counts["finished"] > 0, done.stderr
    assert counts["kills"]["saving"] >= 20
