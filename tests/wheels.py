"""Distributions for tests: a wheel is built by hatchling and unpacked into a folder of its own, which
is what `pip install --target` does. Which of them are installed is a matter of the path.
"""

import contextlib
import os
import zipfile

from hatchling.build import build_wheel

SCHEDULE = '''
import attrs
from sfumato import NoiseSchedule, hookimpl

SFUMATO_API = 1

@attrs.frozen(kw_only=True)
class Curve(NoiseSchedule):
    """sigma = 0.99 t."""

    name = "curve"

    def alpha_sigma(self, t):
        return (1 - (0.99 * t) ** 2).sqrt(), 0.99 * t

@hookimpl
def sfumato_components():
    return [Curve]
'''
"""A plugin that offers the noise schedule `curve`."""

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "{version}"
[project.entry-points.sfumato]
{point} = "{module}"
[tool.hatch.build.targets.wheel]
packages = ["{package}"]
"""


def install(root, name, source=SCHEDULE, *, version="1.0", module=None, point="curve"):
    """Installs a distribution with one package and one entry point, and returns its folder."""
    module = module or name.replace("-", "_")
    package = module.split(".")[0]
    project = root / f"{name}-{version}"
    code = project.joinpath(*module.split("."))
    code.mkdir(parents=True)
    (code / "__init__.py").write_text(source)
    (project / "pyproject.toml").write_text(
        PROJECT.format(name=name, version=version, point=point, module=module, package=package)
    )
    with contextlib.chdir(project):
        wheel = build_wheel(str(project / "dist"))
    with zipfile.ZipFile(project / "dist" / wheel) as archive:
        archive.extractall(project / "installed")
    return project / "installed"


def environment(*folders, **variables):
    """What a process sees where the distributions in these folders are installed."""
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **variables}
