"""A signal at any moment ends the step, leaves one checkpoint and says so; a second ends at once."""

import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from processes import start
from sfumato import Pipeline, checkpoint
from sfumato.engine import Single
from sfumato.interruption import Interruption
from survival import checkpoints, record

pytestmark = pytest.mark.filterwarnings("ignore:.* pictures are saturated")
SHORT = ["--out", "run", "--set", "evaluation.count=2"]


def raised_in(monkeypatch, owner, name, number, at=1):
    """The signal comes in the midst of the `at`-th call."""
    original, calls = getattr(owner, name), []

    def interrupted(*arguments, **options):
        calls.append(name)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.fault("signals")
@pytest.mark.parametrize(
    ("moment", "number", "code", "ended", "saved"),
    [
        # the backward pass of the first step of the second stage
        ((Single, "backward", 5), signal.SIGTERM, 143, "run, step 5", [3, 4, 5]),
        ((Single, "backward", 1), signal.SIGINT, 130, "run, step 1", [1]),
        # the save at step 3, and the step after it is the last before the end
        ((checkpoint, "write", 1), signal.SIGUSR1, 143, "run, step 4", [3, 4]),
        ((checkpoint, "sealed", 2), signal.SIGTERM, 143, "run, step 4", [3, 4]),
        # encoding of the texts of a step, sampling for the evaluation
        ((Pipeline, "encoded", 1), signal.SIGINT, 130, "run, step 5", [3, 4, 5]),
        ((Pipeline, "sample", 1), signal.SIGTERM, 143, "evaluation", [4, 9, 10]),
    ],
)  # fmt: skip
def test_the_step_ends_with_one_checkpoint(
    call, registry_file, tmp_path, monkeypatch, moment, number, code, ended, saved
):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    raised_in(monkeypatch, *moment[:2], number, moment[2])
    due = ["--set", "checkpoints.every=3"]
    found, out, err = call("train", "small", *SHORT, *due)
    assert (found, out) == (code, f"Go on: {shlex.join([sys.argv[0]])} train run --resume\n")
    assert err == f"{ended}: ended by {number.name}; continue with --resume\n"
    assert record(tmp_path / "run")["status"] == "preempted"
    assert checkpoints(tmp_path / "run") == [f"step-{step:08d}" for step in saved]
    after = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert after == before
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert call("train", "small", *SHORT, *due, "--resume")[0] == 0
    assert record(tmp_path / "run")["status"] == "completed"


def waiting_for(path, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


@pytest.mark.fault("signals")
def test_a_process_that_is_told_to_end_ends_well(registry_file, tmp_path):
    process = start(tmp_path, "train", "small", *SHORT, "--set", "stages.clip.steps=100000")
    waiting_for(tmp_path / "run" / "metrics.jsonl")
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    said = (tmp_path / "output.txt").read_text()
    assert ": ended by SIGTERM; continue with --resume\n" in said
    assert said.endswith("Go on: sfumato train run --resume\n")
    assert "Traceback" not in said
    assert record(tmp_path / "run")["status"] == "preempted"
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    checkpoint.verify(saved)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert saved.name == f"step-{len(lines):08d}"


HANGING = """
import time
from pathlib import Path
from sfumato import hookimpl, interruption

interruption.GRACE = 2

@hookimpl
def sfumato_on_train_step(step):
    if step.step == 3:
        Path("hangs").touch()
        while True:
            time.sleep(1)
"""

LONG = """
import time
from pathlib import Path
from sfumato import hookimpl

@hookimpl
def sfumato_on_train_step(step):
    if step.step == 3:
        Path("long").touch()
        while Path("long").exists():
            time.sleep(0.01)
"""


@pytest.mark.fault("signals")
@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGTERM, signal.SIGINT, 130),
        (signal.SIGINT, signal.SIGINT, 130),
        pytest.param(signal.SIGUSR1, signal.SIGTERM, 143, marks=pytest.mark.slow),
        (signal.SIGTERM, signal.SIGTERM, 143),  # after more than the grace
    ],
)
def test_a_second_signal_ends_at_once(registry_file, tmp_path, first, second, code):
    """A watcher hangs, so that the step never ends; the checkpoint before it is whole."""
    (tmp_path / "hanging.py").write_text(HANGING)
    due = ["--set", "checkpoints.every=2"]
    process = start(tmp_path, "--plugin", "hanging.py", "train", "small", *SHORT, *due)
    waiting_for(tmp_path / "hangs")
    os.kill(process.pid, first)
    process.join(0.5 if first is not second or first is signal.SIGINT else 2.5)
    assert process.is_alive()
    os.kill(process.pid, second)
    process.join(30)
    assert process.exitcode == code
    assert checkpoints(tmp_path / "run") == ["step-00000002"]
    checkpoint.verify(tmp_path / "run" / "checkpoints" / "step-00000002")


@pytest.mark.fault("signals")
def test_a_signal_that_a_launcher_passes_on_is_the_same_request(registry_file, tmp_path):
    """As where a scheduler tells both; the step is long, so that it is not over between them."""
    (tmp_path / "long.py").write_text(LONG)
    process = start(tmp_path, "--plugin", "long.py", "train", "small", *SHORT)
    waiting_for(tmp_path / "long")
    for _ in range(3):
        os.kill(process.pid, signal.SIGTERM)
        process.join(0.2)
        assert process.is_alive()
    (tmp_path / "long").unlink()
    process.join(60)
    assert process.exitcode == 143
    assert record(tmp_path / "run")["status"] == "preempted"
    assert checkpoints(tmp_path / "run") == ["step-00000003"]


def test_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="wrong"), Interruption().handlers():
        assert signal.getsignal(signal.SIGTERM) != before
        raise ValueError("wrong")
    assert signal.getsignal(signal.SIGTERM) == before


def children(parent):
    """Process ids; the parent's is the second field after the name in parentheses."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == parent:
            yield int(stat.parent.name)


def test_workers_of_a_loader_leave_signals_to_their_parent(registry_file, tmp_path):
    """The signal goes to the whole group, as from a keyboard or a scheduler."""
    process = start(
        tmp_path, "train", "small", *SHORT, "--set", "stages.clip.steps=100000", "--set", "workers=2"
    )  # fmt: skip
    waiting_for(tmp_path / "run" / "metrics.jsonl")
    workers = list(children(process.pid))
    assert len(workers) == 2
    for pid in (*workers, process.pid):
        os.kill(pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    assert record(tmp_path / "run")["status"] == "preempted"
    assert len(checkpoints(tmp_path / "run")) == 1
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
