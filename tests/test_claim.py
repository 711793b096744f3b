"""A run folder is one process's alone, and says whose."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sfumato import ConfigError, claim
from survival import run

HOLDER = """
import os
import sys
from pathlib import Path
from sfumato.claim import claimed
with claimed(Path(sys.argv[1])):
    if os.fork() == 0:  # as a worker of a loader, which outlives a run that is killed by a moment
        print("held", flush=True)
        sys.stdin.read()
        os._exit(0)
    os.wait()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder `run`, with a child that does not."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()  # which ends the child too


@pytest.mark.fault("run folder")
@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_in_one_folder(registry, tmp_path, other, resume):
    if resume:
        (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ConfigError) as error:
        run(registry, tmp_path / "run", resume=resume)
    assert str(error.value) == (
        f"{tmp_path / 'run'}: is in use by process {other.pid} on {socket.gethostname()}; "
        "wait for it or end it, or choose another --out"
    )


@pytest.mark.fault("run folder")
def test_a_killed_process_leaves_no_claim(tmp_path, other):
    other.kill()
    other.wait()  # while its child lives on
    with claim.claimed(tmp_path / "run"):
        pass


@pytest.mark.fault("run folder")
def test_a_read_only_folder(registry):
    """As another user where we are root, to whom nothing is read-only."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "runs"
        folder.mkdir()
        folder.chmod(0o555)
        folder.parent.chmod(0o755)
        experiment, user = registry.experiment("small"), os.geteuid()
        assert experiment.denoiser.build  # all that is imported later is imported as ourselves
        run(registry, folder.parent / "imports", stop_before=2)
        os.seteuid(65534 if user == 0 else user)
        try:
            with pytest.raises(ConfigError) as error:
                run(registry, folder / "run")
        finally:
            os.seteuid(user)
        assert str(error.value) == f"{folder / 'run'}: cannot be written: Permission denied"
        assert list(folder.iterdir()) == []


@pytest.mark.fault("run folder")
@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)]
)
def test_modes_are_those_of_the_umask(registry, tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        run(registry, tmp_path / "run", "checkpoints.every=1", stop_before=4)
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*")}
    assert {mode for path, mode in found.items() if path.is_file()} == {file}
    assert {mode for path, mode in found.items() if path.is_dir()} == {folder}
    assert any(path.name == "training.safetensors" for path in found)
