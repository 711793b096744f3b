"""Discovery: isolation of broken plugins, collisions, local files, hooks that watch."""

import importlib.metadata
import sys

import pytest

from sfumato import PluginError, hookimpl, plugins
from sfumato.errors import ConfigError

GOOD = """
import attrs
from sfumato import NoiseSchedule, hookimpl

SFUMATO_API = 1

@attrs.frozen(kw_only=True)
class Straight(NoiseSchedule):
    name = "straight"

    def alpha_sigma(self, t):
        return 1 - t, t

@hookimpl
def sfumato_components():
    return [Straight]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Writes modules and gives their entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(**sources):
        entries = []
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
            sys.modules.pop(name, None)
            entries.append(importlib.metadata.EntryPoint(name, name, "sfumato"))
        return entries

    return make


def test_the_installed_entry_points_are_the_folders_of_plugins():
    from small import ROOT

    folders = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()}
    entries = importlib.metadata.entry_points(group="sfumato")
    installed = {e.value for e in entries if e.dist and e.dist.name == "sfumato"}
    assert installed == folders, "a new entry point needs a reinstall: pip install -e ."


def test_everything_that_ships_is_whole(catalogue):
    assert not catalogue.broken
    assert {"linear", "scaled_linear", "cosine"} <= set(catalogue.names("noise_schedule"))


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def f(:", "SyntaxError: invalid syntax (bad.py, line 1)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (GOOD.replace("SFUMATO_API = 1", ""), "states no SFUMATO_API; this sfumato speaks 1"),
        (GOOD.replace("API = 1", "API = 2"), "was built for plugin API 2; this sfumato speaks 1"),
        (GOOD.replace("def sfumato_components", "def sfumato_componets"),
         "PluginValidationError: unknown hook 'sfumato_componets'"),
        (GOOD.replace("return [Straight]", "return ['straight']"),
         "sfumato_components returned 'straight', not a component class"),
        (GOOD.replace("return [Straight]", "raise OSError('half-way')"), "OSError: half-way"),
        (GOOD.replace("@hookimpl", ""), "implements no hook; mark each with @hookimpl"),
        (GOOD.replace("return [Straight]", "[Straight]"),
         "sfumato_components returned nothing; return a list of classes"),
        (GOOD.replace("@attrs.frozen(kw_only=True)", ""),
         "Straight is not an attrs class (attrs.frozen(kw_only=True))"),
        (GOOD.replace('name = "straight"', 'name = "straight"\n    end: Nothing = None'),
         "NameError: name 'Nothing' is not defined"),
        (GOOD.replace('name = "straight"', ""), "Straight states no name, or derives from no interface"),
        (GOOD.replace("def alpha_sigma", "def alpha"), "Straight does not implement alpha_sigma"),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_left_out_alone_and_named(install, source, cause):
    catalogue = plugins.load(entry_points=install(good=GOOD, bad=source))
    assert [offer.component.name for offer in catalogue.offers] == ["straight"]
    (broken,) = catalogue.broken
    assert broken.cause.startswith(f"bad: {cause}")


def test_asking_for_what_a_broken_plugin_may_offer_says_so(install):
    catalogue = plugins.load(entry_points=install(good=GOOD, bad="import nowhere"))
    with pytest.raises(ConfigError) as error:
        catalogue.find("noise_schedule", "strait")
    assert str(error.value) == (
        "noise_schedule: no noise_schedule is named 'strait'; did you mean 'straight'? (left out as "
        "broken:   (bad: ModuleNotFoundError: No module named 'nowhere'))"
    )


def test_two_offers_of_one_name_are_an_error_that_names_the_way_out(tmp_path):
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(GOOD)
    catalogue = plugins.load([tmp_path / "one.py", tmp_path / "two.py"], entry_points=[])
    with pytest.raises(ConfigError) as error:
        catalogue.find("noise_schedule", "straight")
    assert str(error.value) == (
        "noise_schedule: two plugins offer the noise_schedule 'straight'; "
        "write 'one.py:straight' or 'two.py:straight'"
    )
    found = catalogue.find("noise_schedule", "two.py:straight")
    assert found is catalogue.offers[1].component


def test_a_local_file_is_a_plugin_and_its_failure_is_an_error(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD.replace("SFUMATO_API = 1", ""))  # a file need not state the API
    assert plugins.load([path], entry_points=[]).find("noise_schedule", "straight")
    path.write_text("import nowhere")
    with pytest.raises(
        PluginError, match="mine.py: ModuleNotFoundError: No module named 'nowhere'"
    ):
        plugins.load([path], entry_points=[])
    with pytest.raises(PluginError, match="other.py: there is no such file"):
        plugins.load([tmp_path / "other.py"], entry_points=[])


class Counting:
    def __init__(self):
        self.steps = []

    @hookimpl
    def sfumato_on_train_step(self, step):
        self.steps.append(step)


class Raising:
    @hookimpl
    def sfumato_on_train_step(self, step):
        raise RuntimeError("no disk")


def test_a_watcher_that_cannot_start_is_left_out_with_one_warning():
    def fail():
        raise OSError("no server")

    watchers = plugins.Watchers()
    with pytest.warns(
        UserWarning, match="^tracker far failed to start and is left out: OSError: no server$"
    ):
        watchers.add("tracker far", fail)
    watchers.notify("sfumato_on_train_step", step=1)


def test_a_failing_watcher_is_switched_off_with_one_warning():
    counting = Counting()
    watchers = plugins.Watchers([Raising(), counting])
    with pytest.warns(UserWarning) as warned:
        for step in range(3):
            watchers.notify("sfumato_on_train_step", step=step)
    assert counting.steps == [0, 1, 2]
    assert [str(w.message) for w in warned] == [
        "Raising failed in sfumato_on_train_step and is switched off: RuntimeError: no disk"
    ]
