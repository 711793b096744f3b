"""The lock: what it records, what counts as drift, and that drift stops a command before anything else."""

import hashlib
import json
import subprocess

import pytest

from sfumato import lock, plugins
from sfumato.errors import ConfigError
from wheels import SCHEDULE, environment, install


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """One distribution in three states: as it was, in a new version, with another source."""
    root = tmp_path_factory.mktemp("wheels")
    changed = SCHEDULE.replace("0.99 *", "0.98 *")
    return {
        "old": install(root / "old", "soft-noise"),
        "new": install(root / "new", "soft-noise", changed, version="1.1"),
        "patched": install(root / "patched", "soft-noise", changed),
        "broken": install(root / "broken", "soft-noise", "import nowhere"),
    }


@pytest.fixture
def locked(sfumato, installed, tmp_path):
    """A folder with a lock that was written while the old version was installed."""
    done = sfumato("lock", env=environment(installed["old"]))
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path / "plugins.lock"


def test_the_lock_says_who_and_which_bytes(locked, installed):
    found = json.loads(locked.read_text())
    assert found["version"] == 1
    (pin,) = [pin for pin in found["plugins"] if pin["distribution"] == "soft-noise"]
    listed = subprocess.run(
        ["sha256sum", "soft_noise/__init__.py"],
        cwd=installed["old"],
        capture_output=True,
        check=True,
    )
    assert pin == {
        "distribution": "soft-noise",
        "version": "1.0",
        "entry_point": "curve = soft_noise",
        "api": 1,
        "sha256": hashlib.sha256(listed.stdout).hexdigest(),
    }
    assert {"sfumato_unet", "sfumato_clip"} <= {
        pin["entry_point"].split(" = ")[1] for pin in found["plugins"]
    }


@pytest.mark.parametrize(
    ("state", "variables", "difference"),
    [
        ("new", {}, "soft-noise: version 1.0 -> 1.1"),
        ("patched", {}, "soft-noise 1.0 (curve = soft_noise): source changed"),
        (None, {}, "soft-noise 1.0 (curve = soft_noise) is missing"),
        ("old", {"SFUMATO_DISABLE_PLUGINS": "soft-noise"},
         "soft-noise 1.0 (curve = soft_noise) is missing: disabled"),
        ("broken", {}, "soft-noise 1.0 (curve = soft_noise) is missing: left out as broken, "
                       "soft_noise: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)  # fmt: skip
def test_train_refuses_drift_before_it_reads_the_registry(
    sfumato, installed, locked, state, variables, difference
):
    env = environment(*([installed[state]] if state else []), **variables)
    done = sfumato("--registry", "none.yaml", "train", "small", "--locked", env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: plugins.lock: {difference}\n"
        "install what the lock names; or, to accept what is installed: "
        "sfumato lock --out plugins.lock\n"
    )
    assert list(locked.parent.iterdir()) == [locked]


def test_sample_refuses_what_the_run_was_not_trained_with(sfumato, installed, small_run):
    env = environment(installed["old"])
    done = sfumato("sample", small_run, "a circle", "--locked", env=env)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {small_run}/plugins.lock: soft-noise 1.0 (curve = soft_noise) is new\n"
    )


def test_what_was_locked_passes_and_a_local_file_is_part_of_it(tmp_path):
    file, path = tmp_path / "mine.py", tmp_path / "plugins.lock"
    file.write_text(SCHEDULE)
    lock.write(path, plugins.load([file]))
    lock.check(path, plugins.load([file]))
    file.write_text(SCHEDULE + "\n")
    with pytest.raises(ConfigError) as error:
        lock.check(path, plugins.load([file]))
    assert str(error.value).splitlines()[0] == f"{path}: mine.py: source changed"
    with pytest.raises(ConfigError) as error:
        lock.check(path, plugins.load())
    assert str(error.value).splitlines()[0] == f"{path}: mine.py is missing; give it with --plugin"


def test_the_hash_covers_names_and_every_module_and_nothing_else(tmp_path):
    source = tmp_path / "package"
    (source / "deep").mkdir(parents=True)
    (source / "__init__.py").write_text("a = 1\n")
    (source / "deep" / "b.py").write_text("b = 1\n")

    def digest():
        return lock.digest(source)

    first = digest()
    (source / "__pycache__").mkdir()
    (source / "__pycache__" / "b.pyc").write_bytes(b"\0")
    assert digest() == first
    (source / "deep" / "b.py").rename(source / "deep" / "c.py")
    renamed = digest()
    (source / "deep" / "c.py").write_text("b = 2\n")
    assert len({first, renamed, digest()}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no lock; write one: sfumato lock --out plugins.lock"),
        ("{", "plugins.lock:1: expected a value, but found the end"),
        ('{"version": 2, "plugins": []}', "plugins.lock:1: version: expected one of 1, got 2"),
        ('{"version": 1, "plugins": [{"distribution": "a"}]}',
         "plugins.lock:1: plugins.0: 'version' is missing; of the distribution; empty for a file"),
    ],
)  # fmt: skip
def test_a_lock_that_cannot_be_read_says_so(tmp_path, monkeypatch, catalogue, text, message):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("plugins.lock").write_text(text)
    with pytest.raises(ConfigError) as error:
        lock.check(Path("plugins.lock"), catalogue)
    assert message in str(error.value)


def test_a_lock_that_cannot_be_written_is_a_message(sfumato):
    done = sfumato("lock", "--out", "none/plugins.lock")
    assert (done.returncode, done.stderr) == (
        2,
        "error: none/plugins.lock: cannot be written: No such file or directory\n",
    )
