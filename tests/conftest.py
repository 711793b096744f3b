"""What tests share: the catalogue, a small registry, a small run, the command, a book of errors."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from relative_error import relative
from sfumato import plugins
from sfumato.cli import main
from sfumato.registry import Registry
from small import SMALL

# Trackio keeps all runs of a machine in one place, which it looks up once.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def sd_folders(tmp_path_factory):
    """A small folder of diffusers for each family of Stable Diffusion."""
    from diffusers_folders import save_pipeline

    root = tmp_path_factory.mktemp("diffusers")
    return {family: save_pipeline(root / family, family) for family in ("sd1", "sd2", "sdxl")}


@pytest.fixture(scope="session")
def sd_runs(sd_folders, tmp_path_factory):
    """What is imported of each."""
    from diffusers_folders import imported

    root = tmp_path_factory.mktemp("imported")
    return {family: imported(folder, root / family) for family, folder in sd_folders.items()}


@pytest.fixture
def sd_folder(sd_folders, tmp_path):
    """A copy of SD 1.x, to be changed."""
    return shutil.copytree(sd_folders["sd1"], tmp_path / "sd")


@pytest.fixture
def sfumato(tmp_path):
    """Runs the command in a process of its own, in an empty folder."""

    def run(*arguments, cwd=tmp_path, **options):
        command = [sys.executable, "-m", "sfumato.cli", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, timeout=300, **options
        )

    return run


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in an empty folder: (code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


ERRORS = pytest.StashKey[dict]()
FAULTS = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--parity", metavar="FILE", help="write what `parity` was told, as JSON")
    parser.addoption("--faults", metavar="FILE", help="write how tests of faults ended, as JSON")


def pytest_configure(config):
    config.stash[ERRORS] = {}
    config.stash[FAULTS] = {}
    config.addinivalue_line(
        "markers",
        "fault(row): proves a row of docs/reliability.md, which benchmarks/reliability.py makes",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    for mark in item.iter_markers("fault"):
        test = item.nodeid.partition("[")[0]
        ended = item.config.stash[FAULTS].setdefault((mark.args[0], test), {})
        worst = ("passed", "skipped", "failed")
        ended[item.nodeid] = max(report.outcome, ended.get(item.nodeid, "passed"), key=worst.index)
    return report


def pytest_sessionfinish(session):
    if file := session.config.getoption("--parity"):
        rows = [[*key, error] for key, error in sorted(session.config.stash[ERRORS].items())]
        Path(file).write_text(json.dumps(rows))
    if file := session.config.getoption("--faults"):
        ended = session.config.stash[FAULTS]
        rows = [[*key, list(cases.values())] for key, cases in sorted(ended.items())]
        Path(file).write_text(json.dumps(rows))


@pytest.fixture
def parity(request):
    """`parity(component, peer, what, ours, theirs)` is the largest relative error, and stands in
    docs/parity.md when `benchmarks/parity.py` has run.
    """

    def record(component, peer, what, ours, theirs):
        error = relative(ours, theirs)
        book = request.config.stash[ERRORS]
        key = (component.kind, component.name, peer, what)
        book[key] = max(error, book.get(key, 0.0))
        return error

    return record
