"""`examples/sfumato-karras` as a stranger's package: its own tests, its README, its wheel beside ours."""

import json
import os
import re
import subprocess
import sys
import zipfile

import pytest

from sfumato import document, plugins
from sfumato.registry import Registry
from small import ROOT, SMALL

PACKAGE = ROOT / "examples" / "sfumato-karras"
DEMO = SMALL.replace("  small:", "  demo:").replace("from: small", "from: demo")
README = (PACKAGE / "README.md").read_text()
(SNIPPET,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def with_snippet(registry):
    """A registry with the README's sections added to its own."""
    section, experiments = SNIPPET.split("experiments:\n")
    return registry.replace("guidance:\n", section + "guidance:\n", 1) + experiments


def run(*command, cwd, **environment):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_its_own_tests_pass():
    path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", PACKAGE, "-c", os.devnull]
    assert " passed" in run(sys.executable, *tests, PACKAGE / "tests", cwd=PACKAGE, PYTHONPATH=path)


def test_the_registry_of_its_readme_is_whole(tmp_path):
    document.read(SNIPPET, "README.md")
    (tmp_path / "registry.yaml").write_text(with_snippet(DEMO))
    catalogue = plugins.load([PACKAGE / "sfumato_karras" / "__init__.py"])
    experiment = Registry.load(tmp_path / "registry.yaml", catalogue).experiment("edm")
    assert experiment.noise_schedule.name == "karras_noise"
    assert experiment.time_grid.name == "karras_sigmas"


@pytest.mark.slow
def test_it_is_strictly_typed():
    package = PACKAGE / "sfumato_karras"
    run(sys.executable, "-m", "mypy", "--strict", package, cwd=ROOT, MYPYPATH=str(ROOT / "core"))


def test_its_packaging_is_short():
    assert len((PACKAGE / "pyproject.toml").read_text().splitlines()) <= 15


def wheel(project, name, folder):
    """Builds a wheel: its path, and what is in it."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project,
        cwd=folder)  # fmt: skip
    (path,) = folder.glob(f"{name}-*.whl")
    with zipfile.ZipFile(path) as archive:
        return path, {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_in_a_clean_environment_both_wheels_work_together(tmp_path):
    """As a user gets them: wheels, their dependencies from the index, nothing of this checkout."""
    dist = tmp_path / "dist"
    dist.mkdir()
    ours, held = wheel(ROOT, "sfumato", dist)
    theirs, _ = wheel(PACKAGE, "sfumato_karras", dist)
    templates_of_ours = (ROOT / "core" / "sfumato" / "templates").iterdir()
    templates = {f"sfumato/templates/{path.name}" for path in templates_of_ours}
    assert templates | {"sfumato/py.typed", "sfumato_schedules/py.typed"} <= set(held)
    assert held["sfumato/registry.yaml"] == (ROOT / "registry.yaml").read_bytes()

    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c",
        ROOT / "constraints.txt", f"sfumato[testing] @ {ours.as_uri()}", theirs,
        cwd=tmp_path, PYTHONPATH="")  # fmt: skip

    def sfumato(*arguments):
        return run(tmp_path / "venv" / "bin" / "sfumato", *arguments, cwd=tmp_path, PYTHONPATH="")

    listed = json.loads(sfumato("plugins", "--json"))
    assert listed["broken"] == []
    components = {(one["distribution"], one["kind"], one["name"]) for one in listed["components"]}
    assert ("sfumato-karras", "time_grid", "karras_sigmas") in components
    assert ("sfumato-karras", "noise_schedule", "karras_noise") in components
    assert ("sfumato", "denoiser", "unet") in components

    lines = sfumato("check", "sfumato-karras", "--draws", 5).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "ok noise_schedule karras_noise",
        "ok time_grid karras_sigmas",
    ]
    (tmp_path / "registry.yaml").write_text(with_snippet(DEMO))
    sfumato("train", "edm", "--out", "edm")
    record = json.loads((tmp_path / "edm" / "run.json").read_text())
    assert record["status"] == "completed"
    sfumato("sample", "edm", "a red circle", "--steps", 6, "--out", "edm.png")
    assert (tmp_path / "edm.png").read_bytes().startswith(b"\x89PNG")
    sfumato("new-plugin", "soft-noise", "--kind", "noise_schedule")
    assert (tmp_path / "soft-noise" / "soft_noise" / "__init__.py").is_file()
