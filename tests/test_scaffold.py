"""`new-plugin` and `check`: what is written works at once, and what cannot be is refused whole."""

import csv
import json
import os
import resource
import subprocess
import sys
import time
import tomllib

import attrs
import pytest

from sfumato import ConfigError, PluginError, export_run, import_run, interfaces, plugins
from sfumato.cli import check, new_plugin
from sfumato.registry import Registry
from sfumato.testing import conformance
from sfumato.training import train
from small import ROOT, SMALL

KINDS = new_plugin.kinds()
DEMO = SMALL.replace("  small:", "  demo:").replace("from: small", "from: demo")
"""The small registry under the names of the shipped one."""
LINES_OF_A_SCHEDULE, LINES_OF_PACKAGING = 35, 15
BROKEN = """
import attrs
from sfumato import NoiseSchedule, hookimpl

@attrs.frozen(kw_only=True)
class Stained(NoiseSchedule):
    name = "stained"

    def alpha_sigma(self, t):
        return 1 - t, 0.1 + 0.9 * t

@attrs.frozen(kw_only=True)
class Straight(NoiseSchedule):
    name = "straight"

    def alpha_sigma(self, t):
        return 1 - t, t

@hookimpl
def sfumato_components():
    return [Straight, Stained]
"""


@attrs.frozen
class Package:
    folder: object
    module: str

    @property
    def file(self):
        return self.folder / self.module / "__init__.py"

    def component(self):
        (offer,) = plugins.load([self.file], entry_points=[]).offers
        return offer.component


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A package for each kind, as the command writes it."""
    folder = tmp_path_factory.mktemp("packages")
    found = {}
    for kind in KINDS:
        names = new_plugin.Names(distribution=f"my-{kind.replace('_', '-')}")
        new_plugin.write(folder / names.distribution, new_plugin.contents(names, kind))
        found[kind] = Package(folder / names.distribution, names.module)
    return found


def test_every_kind_has_a_template():
    kinds = {
        value.kind
        for value in vars(interfaces).values()
        if isinstance(value, type) and hasattr(value, "kind")
    }
    assert set(KINDS) == kinds


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_clean(kind, packages):
    # src as for a stranger, to whom sfumato is one of many packages
    options = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), "--config", "src=['.']"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options, "."],
            cwd=packages[kind].folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_its_component_loads_as_a_file_and_keeps_the_laws(kind, packages):
    component = packages[kind].component()
    assert (component.kind, component.name) == (kind, packages[kind].module)
    assert conformance.check(component, draws=3).laws


@pytest.mark.parametrize("kind", KINDS)
def test_the_experiment_of_its_readme_trains(kind, packages, tmp_path):
    package = packages[kind]
    _, _, text = (package.folder / "README.md").read_text().partition("```yaml\nexperiments:\n")
    line, _, _ = text.partition("```")
    (tmp_path / "registry.yaml").write_text(DEMO + line)
    catalogue = plugins.load([package.file])
    registry = Registry.load(tmp_path / "registry.yaml", catalogue)
    experiment = registry.experiment(package.folder.name, ["stages.denoiser.steps=2"])
    steps = list(train(experiment, tmp_path / "run", catalogue=catalogue))

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "completed"
    if kind == "layout":
        export_run(tmp_path / "run", tmp_path / "out", layout=package.module, registry=registry)
        again = import_run(tmp_path / "out", tmp_path / "in", catalogue=catalogue)
        assert again.record()["imported"]["layout"] == package.module
    else:
        assert f"use: {package.module}" in (tmp_path / "run" / "settings.yaml").read_text()
    if kind == "metric":
        assert record["results"][package.module]["value"] > 0
    if kind == "study":
        assert record["results"][package.module] > 0
    if kind == "tracker":
        rows = list(csv.DictReader((tmp_path / "run" / f"{package.module}.csv").open()))
        assert [float(row["loss"]) for row in rows] == [step.loss for step in steps]


@pytest.mark.slow
def test_what_is_written_is_strictly_typed(packages):
    files = [str(package.file) for package in packages.values()]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *files],
        capture_output=True, text=True, env={**os.environ, "MYPYPATH": str(ROOT / "core")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


SECONDS = 90


@pytest.mark.slow
def test_from_nothing_to_a_training_run_in_90_seconds(tmp_path):
    """The command, pip, its own test and training, each a process, and no edit outside the package."""
    (tmp_path / "registry.yaml").write_text(DEMO)
    site = tmp_path / "site"
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}

    def python(*arguments, cwd=tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    began = time.monotonic()
    python("sfumato.cli", "new-plugin", "soft-noise", "--kind", "noise_schedule")
    python("pip", "install", "--quiet", "--disable-pip-version-check", "--no-build-isolation",
           "--no-deps", "--target", site, "./soft-noise")  # fmt: skip
    assert "1 passed" in python("pytest", "-p", "no:cacheprovider", cwd=tmp_path / "soft-noise")
    python("sfumato.cli", "train", "demo", "--set", "noise_schedule=soft_noise", "--out", "run")
    seconds = time.monotonic() - began

    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "completed"
    assert "use: soft-noise:soft_noise" in (tmp_path / "run" / "settings.yaml").read_text()
    listed = json.loads(python("sfumato.cli", "plugins", "--json"))
    ours = [one for one in listed["components"] if one["distribution"] == "soft-noise"]
    assert [(one["kind"], one["name"]) for one in ours] == [("noise_schedule", "soft_noise")]
    assert seconds < SECONDS, f"{seconds:.0f} s"


def test_a_schedule_and_its_packaging_are_short(packages):
    package = packages["noise_schedule"]
    assert len(package.file.read_text().splitlines()) <= LINES_OF_A_SCHEDULE
    packaging = (package.folder / "pyproject.toml").read_text()
    assert len(packaging.splitlines()) <= LINES_OF_PACKAGING
    assert tomllib.loads(packaging)["project"]["license"] == "Apache-2.0"


def test_the_command_writes_where_it_says(call, tmp_path):
    code, out, err = call("new-plugin", "Soft.Noise", "--kind", "noise_schedule")
    assert (code, err) == (0, "")
    assert out == (
        "Soft.Noise: the noise_schedule 'soft_noise' in soft_noise/__init__.py\n"
        "Next: pip install -e Soft.Noise, then sfumato check Soft.Noise\n"
    )
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "Soft.Noise/README.md",
        "Soft.Noise/pyproject.toml",
        "Soft.Noise/soft_noise/__init__.py",
        "Soft.Noise/soft_noise/py.typed",
        "Soft.Noise/tests/test_conformance.py",
    }
    (tmp_path / "empty").mkdir()
    assert call("new-plugin", "other", "--kind", "loss", "--out", "empty")[0] == 0
    assert (tmp_path / "empty" / "other" / "__init__.py").is_file()


def test_the_tutorial_shows_what_is_written():
    names = new_plugin.Names(distribution="soft-noise")
    files = new_plugin.contents(names, "noise_schedule")
    page = (ROOT / "docs" / "write-a-plugin.md").read_text()
    assert f"```toml\n{files['pyproject.toml']}```" in page
    assert f"```python\n{files['soft_noise/__init__.py']}```" in page


REMEDY = "; use another name"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("x", "noise_schedul", "--kind: no kind is named 'noise_schedul'; did you mean 'noise_schedule'?"),
        ("x", "xyz", "--kind: no kind is named 'xyz'; known: " + ", ".join(KINDS)),
        ("soft noise", "loss", "'soft noise' is no name of a distribution; use letters, digits and, between them, - _ or ."),
        ("../up", "loss", "'../up' is no name of a distribution; use letters, digits and, between them, - _ or ."),
        ("3d", "loss", "'3d' gives the module '3d', which Python cannot import; begin with a letter, and use no keyword"),
        ("class", "loss", "'class' gives the module 'class', which Python cannot import; begin with a letter, and use no keyword"),
        ("none", "loss", "'none' gives the module 'none', which Python cannot import; begin with a letter, and use no keyword"),
        ("Sfumato-CLIP", "loss", "a module 'sfumato_clip' is installed already" + REMEDY),
        ("cosine", "noise_schedule", "there is a noise_schedule 'cosine' already" + REMEDY),
        ("component", "loss", "'component' gives the class 'Component', a name that the module needs itself" + REMEDY),
        ("held", "loss", "held: is there and is no empty folder; name another folder with --out"),
        ("taken", "loss", "taken: is there and is no empty folder; name another folder with --out"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(name, kind, message, call, tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "mine.txt").write_text("mine")
    (tmp_path / "taken").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert call("new-plugin", name, "--kind", kind) == (2, "", f"error: {message}\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_left_half_written(call, sfumato, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = call("new-plugin", "soft", "--kind", "loss", "--out", "file/soft")
    assert (code, err) == (2, "error: file/soft: cannot be written: Not a directory\n")

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))

    done = sfumato("new-plugin", "soft", "--kind", "loss", preexec_fn=small_files)
    assert (done.returncode, done.stderr) == (2, "error: soft: cannot be written: File too large\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_check_says_what_was_held_to_what(call, packages):
    found = len(conformance.laws("noise_schedule"))
    file = packages["noise_schedule"].file
    code, out, err = call("check", file, "--draws", 5)
    assert (code, err) == (0, "")
    assert out == f"ok noise_schedule my_noise_schedule: {found} laws, 6 option sets\n"
    code, out, _ = call("check", "sfumato:trailing", "--draws", 0)
    assert (code, out.startswith("ok time_grid trailing: ")) == (0, True)
    assert out.endswith(" laws, 1 option set\n")


def test_check_shows_broken_laws_and_ends_with_1(call, tmp_path):
    (tmp_path / "mine.py").write_text(BROKEN)
    code, out, err = call("check", "mine.py", "--draws", 0)
    assert (code, err) == (1, "")
    assert (
        "noise_schedule stained breaks the law clean_at_zero: At t = 0 there is no noise and some signal.\n"
        "  options:  none\n"
        "  expected: sigma(0) = 0 and alpha(0) > 0\n"
        "  got:      sigma 0.1, alpha 1\n"
    ) in out
    found = len(conformance.laws("noise_schedule"))
    assert f"ok noise_schedule straight: {found} laws, 1 option set\n" in out


def test_check_names_what_is_installed(call):
    assert call("check", "sfumatto") == (
        2, "", "error: no plugin 'sfumatto' is installed; did you mean 'sfumato'?\n",
    )  # fmt: skip
    assert call("check", "torch") == (
        2, "", "error: no plugin 'torch' is installed; known: sfumato\n",
    )  # fmt: skip
    assert call("check", "sfumato:ddi") == (
        2, "", "error: sfumato offers no component 'ddi'; did you mean 'ddim'?\n",
    )  # fmt: skip
    assert call("check", "mine.py") == (2, "", "error: mine.py: there is no such file\n")


def test_check_says_when_the_testing_extra_is_missing(call, packages, monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert call("check", packages["loss"].file) == (
        2, "", "error: the conformance kit needs Hypothesis; pip install 'sfumato[testing]'\n",
    )  # fmt: skip


def test_a_distribution_is_found_however_it_is_spelt_and_says_why_where_it_is_left_out(packages):
    (loaded,) = plugins.load([packages["loss"].file], entry_points=[]).plugins
    soft = attrs.evolve(loaded.origin, distribution="Soft_Loss")
    bad = attrs.evolve(loaded.origin, distribution="bad-one", version="1.2")
    catalogue = plugins.Catalogue(
        (attrs.evolve(loaded, origin=soft),),
        (plugins.Broken(origin=bad, cause="bad_one: ImportError: no"),),
        (attrs.evolve(bad, distribution="quiet"),),
    )
    for name in ("soft-loss", "Soft_Loss", "soft.loss:my_loss"):
        assert check.offered(name, catalogue) == list(catalogue.offers)
    with pytest.raises(PluginError, match="^bad-one 1.2: bad_one: ImportError: no$"):
        check.offered("bad-one", catalogue)
    with pytest.raises(
        ConfigError, match="^quiet 1.2: is disabled; take the name out of SFUMATO_DISABLE_PLUGINS$"
    ):
        check.offered("quiet", catalogue)
    with pytest.raises(ConfigError, match="^Soft_Loss offers no component 'x'; known: my_loss$"):
        check.offered("Soft_Loss:x", catalogue)
