"""A disk that is full: what is needed is said, what was there stays, nothing is left over."""

import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from sfumato import CheckpointError, checkpoint
from survival import checkpoints, record, run

NUMBERS = {"net": {"weight": torch.zeros(100_000)}}


@contextmanager
def limited(size):
    """No file of this process may grow beyond so many bytes: a write ends half-way, as on a full
    disk. (Python ignores the signal, so the write fails with EFBIG.)
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.fault("full disk")
def test_room_is_looked_at_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=400_000))
    with pytest.raises(CheckpointError) as error:
        checkpoint.write(tmp_path / "step-00000002", NUMBERS, {"words": bytes(1000)}, {})
    assert str(error.value) == (
        f"{tmp_path}: needs 466,536 bytes, and the disk has 400,000 left; make room; the "
        "checkpoint before it is whole"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("full disk")
def test_a_disk_that_fills_up_in_the_middle(tmp_path):
    checkpoint.write(tmp_path / "step-00000001", {}, {"words": b"{}"}, {})
    with limited(200_000), pytest.raises(CheckpointError) as error:
        checkpoint.write(tmp_path / "step-00000002", NUMBERS, {}, {})
    assert str(error.value) == (
        f"{tmp_path / 'step-00000002'}: cannot be written: File too large (465,536 bytes are "
        "needed); make room; the checkpoint before it is whole"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    checkpoint.verify(tmp_path / "step-00000001")


@pytest.mark.fault("full disk")
def test_a_run_says_so_in_its_record_and_goes_on_when_there_is_room(registry, tmp_path):
    """The disk has room for the first checkpoint, and for half of the second."""
    out = tmp_path / "run"
    written = checkpoint.write

    def filling(path, *rest):
        with limited(100_000 if path.name == "step-00000004" else 1 << 30):
            written(path, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError) as error:
        patch.setattr("sfumato.checkpoint.write", filling)
        run(registry, out, "checkpoints.every=2")
    assert "step-00000004: cannot be written: File too large (" in str(error.value)
    assert checkpoints(out) == ["step-00000002"]
    assert (record(out)["status"], record(out)["error"]) == ("failed", str(error.value))
    run(registry, out, "checkpoints.every=2", resume=True, stop_before=6)
    assert record(out)["resumed"][0]["step"] == 2
    assert record(out)["error"] is None


@pytest.mark.fault("full disk")
def test_a_run_that_cannot_go_on_for_want_of_room_says_so(registry, tmp_path):
    out = tmp_path / "run"
    run(registry, out, "checkpoints.every=2", stop_before=3)
    settings = (out / "settings.yaml").read_bytes()
    assert (out / "metrics.jsonl").stat().st_size < 1000 < len(settings)
    with limited(1000), pytest.raises(CheckpointError) as error:
        run(registry, out, "checkpoints.every=2", resume=True)
    assert str(error.value) == (
        f"{out / 'settings.yaml'}: cannot be written: File too large; make room; "
        "continue with --resume"
    )
    assert (out / "settings.yaml").read_bytes() == settings
    assert not list(out.glob(".settings*"))


# One megabyte, of which the run leaves too little for a second checkpoint.
TMPFS = """
mount -t tmpfs -o size={size}k tmpfs "$1" || exit 77
cd "$1" && exec "$2" -m sfumato.cli --registry "$3" train small --out run --set checkpoints.every=1
"""


@pytest.mark.slow
@pytest.mark.fault("full disk")
def test_a_small_disk(registry_file, tmp_path):
    """The command on a real file system of its own, which ends with the process."""
    small = tmp_path / "small"
    small.mkdir()
    keep = '; code=$?; cp -r run/run.json "$4"; ls -a run/checkpoints > "$4/listing"; exit $code'
    script = TMPFS.format(size=900).strip().replace("exec ", "") + keep
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", small, sys.executable, registry_file, tmp_path],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.fail("mounting needs root: the other tests of a full disk do not")
    assert done.returncode == 1, done.stderr
    assert "bytes, and the disk has " in done.stderr.splitlines()[-1]
    listing = (tmp_path / "listing").read_text().split()
    assert listing[2:] and not [name for name in listing[2:] if name.startswith(".")]
