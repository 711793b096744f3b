"""What tests share: the installed catalogue, a small registry, a small run, the command."""

import subprocess
import sys

import pytest

from sfumato import plugins
from sfumato.registry import Registry
from small import SMALL


@pytest.fixture(scope="session")
def catalogue():
    return plugins.load()


@pytest.fixture
def registry_file(tmp_path):
    path = tmp_path / "registry.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def registry(registry_file, catalogue):
    return Registry.load(registry_file, catalogue)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, catalogue):
    """A finished run of the small experiment."""
    from sfumato.training import train

    folder = tmp_path_factory.mktemp("small")
    path = folder / "registry.yaml"
    path.write_text(SMALL)
    for _ in train(Registry.load(path, catalogue).experiment("small"), folder / "run"):
        pass
    return folder / "run"


@pytest.fixture
def sfumato(tmp_path):
    """Runs the command in a process of its own, in an empty folder."""

    def run(*arguments, cwd=tmp_path, **options):
        command = [sys.executable, "-m", "sfumato.cli", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, timeout=300, **options
        )

    return run
