"""Discovery: isolation of broken plugins, collisions, local files, plugin APIs."""

import importlib.metadata
import sys

import pytest

from sfumato import PluginError, admission, plugins
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


@pytest.mark.fault("broken plugins")
@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def f(:", "SyntaxError: invalid syntax (bad.py, line 1)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (GOOD.replace("SFUMATO_API = 1", ""), "states no SFUMATO_API; write SFUMATO_API = 1, the"),
        (GOOD.replace("API = 1", "API = 2"), "was built for plugin API 2, and this sfumato serves 1;"),
        (GOOD.replace("API = 1", "API = '1'"), "states SFUMATO_API = '1'; expected a whole number"),
        (GOOD.replace("def sfumato_components", "def sfumato_componets"),
         "there is no hook 'sfumato_componets'; did you mean 'sfumato_components'?"),
        (GOOD.replace("sfumato_components()", "sfumato_components(what)"),
         "hookimpl definition: sfumato_components(what), Argument(s) {'what'} are declared in the "
         "hookimpl but can not be found in the hookspec"),
        (GOOD.replace('name = "straight"', 'name = "null"'),
         "Straight is named 'null', which YAML does not read as text"),
        (GOOD.replace('name = "straight"', 'name = "a:b"'),
         "Straight is named 'a:b', and a name is a word that begins with a letter"),
        (GOOD.replace('name = "straight"', 'name = "straight"\n    kind = "sampler"'),
         "Straight states no name, or derives from no interface"),
        (GOOD.replace('name = "straight"', 'name = "straight"\n    use: int = 1'),
         "option 'use' of Straight: in YAML `use` names the component; rename it"),
        (GOOD.replace('name = "straight"', 'name = "straight"\n    end: "Nowhere" = 1'),
         "NameError: name 'Nowhere' is not defined"),
        (GOOD.replace('name = "straight"', 'name = "straight"\n    end: int = '
                      'attrs.field(default=-1, validator=attrs.validators.ge(0))'),
         "option 'end' of Straight: its default is refused: 'end' must be >= 0: -1"),
        (GOOD.replace("[Straight]", "[Straight, type('Bent', (Straight,), {'name': 'straight'})]"),
         "Bent is not an attrs class"),
        (GOOD.replace("[Straight]", "[Straight, Straight]"),
         "Straight and Straight are both the noise_schedule 'straight' of one distribution; rename one"),
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


@pytest.mark.fault("broken plugins")
def test_asking_for_what_a_broken_plugin_may_offer_says_so(install):
    catalogue = plugins.load(entry_points=install(good=GOOD, bad="import nowhere"))
    with pytest.raises(ConfigError) as error:
        catalogue.find("noise_schedule", "strait")
    assert str(error.value) == (
        "noise_schedule: no noise_schedule is named 'strait'; did you mean 'straight'? (left out as "
        "broken: unknown (bad: ModuleNotFoundError: No module named 'nowhere'))"
    )


@pytest.mark.fault("colliding plugins")
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
    with pytest.raises(ConfigError, match="other.py: there is no such file"):
        plugins.load([tmp_path / "other.py"], entry_points=[])


def test_two_files_of_one_name_are_refused(tmp_path):
    files = [tmp_path / folder / "mine.py" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text(GOOD)
    with pytest.raises(PluginError) as error:
        plugins.load(files, entry_points=[])
    assert str(error.value) == f"{files[1]}: another plugin file has this name; rename one of them"


@pytest.mark.fault("colliding plugins")
@pytest.mark.parametrize(
    ("api", "problem"),
    [
        (1, "was built for plugin API 1, and this sfumato serves 2 to 3; upgrade unknown: pip install --upgrade unknown"),
        (2, None),
        (3, None),
        (4, "was built for plugin API 4, and this sfumato serves 2 to 3; "
            "upgrade sfumato: pip install --upgrade sfumato"),
    ],
)  # fmt: skip
def test_a_range_of_plugin_apis_is_served(install, monkeypatch, api, problem):
    monkeypatch.setattr(admission, "API", 3)
    monkeypatch.setattr(admission, "OLDEST_API", 2)
    source = GOOD.replace("API = 1", f"API = {api}")
    catalogue = plugins.load(entry_points=install(aged=source))
    assert [b.cause for b in catalogue.broken] == ([f"aged: {problem}"] if problem else [])
    assert [p.api for p in catalogue.plugins] == ([] if problem else [api])


def test_the_documentation_says_which_plugin_apis_are_served():
    from small import ROOT

    page = (ROOT / "docs" / "plugin-api.md").read_text()
    table = page.partition("| API |")[2].partition("\n\n")[0]
    served = [int(line.split("|")[1]) for line in table.splitlines()[2:]]
    assert served == list(range(admission.OLDEST_API, admission.API + 1))


def test_a_hook_that_a_later_sfumato_may_have_can_be_optional(install):
    source = GOOD + "\n@hookimpl(optionalhook=True)\ndef sfumato_on_full_moon(): pass\n"
    assert not plugins.load(entry_points=install(early=source)).broken


def test_use_is_plain_for_files_until_two_collide(tmp_path, catalogue):
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(GOOD)
    one = plugins.load([tmp_path / "one.py"])
    assert one.use(one.find("noise_schedule", "straight")) == "straight"
    both = plugins.load([tmp_path / "one.py", tmp_path / "two.py"])
    first, second = (o for o in both.offers if o.component.name == "straight")
    assert both.use(first.component) == "one.py:straight"
    assert both.use(second.component) == "two.py:straight"
    assert both.use(both.find("noise_schedule", "linear")) == "linear"


def test_every_use_leads_back_to_its_component(catalogue):
    for offer in catalogue.offers:
        used = catalogue.use(offer.component)
        assert catalogue.find(offer.component.kind, used) is offer.component
