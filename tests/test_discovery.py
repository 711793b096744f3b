"""Plugins as they are met in the wild: wheels that are built, installed and listed by the command."""

import functools
import json
import re

import pytest

from sfumato import __version__
from wheels import SCHEDULE, environment, install

BROKEN = {
    "import-error": ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
    "syntax-error": ("def f(:", "SyntaxError: invalid syntax (__init__.py, line 1)"),
    "system-exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "misspelt-hook": (
        SCHEDULE.replace("def sfumato_components", "def sfumato_componets"),
        "there is no hook 'sfumato_componets'; did you mean 'sfumato_components'?",
    ),
    "wrong-return": (
        SCHEDULE.replace("return [Curve]", "return [Curve, 'curve']"),
        "sfumato_components returned 'curve', not a component class",
    ),
    "half-way": (
        SCHEDULE.replace("return [Curve]", "yield Curve\n    raise OSError('half-way')"),
        "OSError: half-way",
    ),
    "newer-api": (
        SCHEDULE.replace("API = 1", "API = 2"),
        "was built for plugin API 2, and this sfumato serves 1; "
        "upgrade sfumato: pip install --upgrade sfumato",
    ),
    "older-api": (
        SCHEDULE.replace("API = 1", "API = 0"),
        "was built for plugin API 0, and this sfumato serves 1; "
        "upgrade older-api: pip install --upgrade older-api",
    ),
    "no-api": (
        SCHEDULE.replace("SFUMATO_API = 1", ""),
        "states no SFUMATO_API; write SFUMATO_API = 1, the plugin API that it was written for",
    ),
    "panic": (
        "class Panic(BaseException): pass\nraise Panic('out of range')",
        "Panic: out of range",
    ),
    "name-twice": (
        SCHEDULE.replace("return [Curve]", "return [Curve, Curve]"),
        "Curve and Curve are both the noise_schedule 'curve' of one distribution; rename one",
    ),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Installs a distribution once for all tests of this module."""
    root = tmp_path_factory.mktemp("wheels")

    @functools.cache
    def make(name, source=SCHEDULE, **options):
        return install(root, name, source, **options)

    return make


def curves(done):
    """The distributions of all schedules that are named `curve` in what `sfumato plugins` printed."""
    return re.findall(r"^noise_schedule  curve +(\S+)", done.stdout, re.MULTILINE)


@pytest.mark.fault("broken plugins")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_distribution_is_left_out_alone_and_named(sfumato, wheel, name):
    source, cause = BROKEN[name]
    broken = wheel(name, source)
    done = sfumato("plugins", env=environment(broken, wheel("good-noise")))
    assert done.stderr == f"left out: {name} 1.0: {name.replace('-', '_')}: {cause}\n"
    assert done.returncode == 0
    assert curves(done) == ["good-noise"]
    assert "noise_schedule  linear" in done.stdout


@pytest.mark.fault("broken plugins")
def test_entry_points_that_cannot_be_read_hide_no_others(sfumato, wheel):
    broken = wheel("no-equals")
    (entry_points,) = broken.glob("*.dist-info/entry_points.txt")
    entry_points.write_text("[sfumato]\ncurve no_equals\n")
    done = sfumato("plugins", env=environment(broken, wheel("good-noise")))
    assert done.stderr.startswith("left out: no-equals 1.0: entry_points.txt cannot be read: ")
    assert (done.returncode, curves(done)) == (0, ["good-noise"])


def test_what_a_plugin_prints_is_not_our_output(sfumato, wheel):
    chatty = wheel("chatty", "print('hello')\n" + SCHEDULE)
    done = sfumato("plugins", "--json", env=environment(chatty))
    assert done.stderr == "hello\n"
    assert "curve" in {one["name"] for one in json.loads(done.stdout)["components"]}


def test_asking_for_a_component_of_a_broken_distribution_says_why_it_is_missing(sfumato, wheel):
    broken = wheel("import-error", BROKEN["import-error"][0])
    done = sfumato("describe", "noise_schedule", "linnear", env=environment(broken))
    assert done.returncode == 2
    assert done.stderr == (
        "error: noise_schedule: no noise_schedule is named 'linnear'; did you mean 'linear'? "
        "(left out as broken: import-error 1.0 (import_error: ModuleNotFoundError: No module named "
        "'nowhere'))\n"
    )


@pytest.mark.fault("colliding plugins")
def test_two_distributions_may_use_one_entry_point_name(sfumato, wheel):
    done = sfumato("plugins", env=environment(wheel("good-noise"), wheel("other-noise")))
    assert done.stderr == ""
    assert curves(done) == ["good-noise", "other-noise"]


@pytest.mark.fault("colliding plugins")
def test_two_distributions_with_one_module_are_both_named(sfumato, wheel):
    both = [wheel(name, module="shared") for name in ("first-noise", "second-noise")]
    done = sfumato("plugins", env=environment(*both))
    assert done.stderr == (
        "left out: second-noise 1.0: shared: is the same module as that of first-noise 1.0 "
        "(curve = shared); uninstall one of the two\n"
    )
    assert curves(done) == ["first-noise"]


def test_damaged_metadata_does_not_stop_discovery(sfumato, wheel, tmp_path):
    facts = tmp_path / "damaged" / "damaged-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "entry_points.txt").write_text("[sfumato]\nx = not a module\n")
    done = sfumato("plugins", env=environment(facts.parent, wheel("good-noise")))
    assert done.returncode == 0
    assert done.stderr.startswith("left out: unknown: not a module: AttributeError: ")
    assert curves(done) == ["good-noise"]


def test_a_disabled_distribution_is_not_imported_and_said_to_be_disabled(sfumato, wheel):
    loud = wheel("loud-noise", "raise RuntimeError('imported')")
    env = environment(loud, wheel("good-noise"), SFUMATO_DISABLE_PLUGINS="Loud_Noise, god-noise")
    warning = "warning: SFUMATO_DISABLE_PLUGINS: 'god-noise' brings no plugin; did you mean 'good-noise'?\n"
    done = sfumato("plugins", env=env)
    assert done.stderr == warning + "disabled: loud-noise 1.0\n"
    assert curves(done) == ["good-noise"]
    listed = json.loads(sfumato("plugins", "--json", env=env).stdout)
    assert listed["disabled"] == [{"distribution": "loud-noise", "version": "1.0"}]
    assert listed["broken"] == []
    done = sfumato("describe", "noise_schedule", "loud-noise:curve", env=env)
    assert done.returncode == 2
    assert done.stderr == warning + (
        "error: noise_schedule: no noise_schedule is named 'loud-noise:curve'; did you mean "
        "'good-noise:curve'? (disabled: loud-noise 1.0; to enable, take the name out of "
        "SFUMATO_DISABLE_PLUGINS)\n"
    )
    done = sfumato("doctor", env=env)
    assert "disabled       loud-noise 1.0, by SFUMATO_DISABLE_PLUGINS\n" in done.stdout
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all is well")


def test_tracing_shows_what_each_plugin_brings_and_the_traceback_of_a_broken_one(sfumato, wheel):
    broken = wheel("import-error", BROKEN["import-error"][0])
    env = environment(broken, wheel("good-noise"), SFUMATO_TRACE_PLUGINS="1")
    done = sfumato("plugins", "--json", env=env)
    json.loads(done.stdout)
    shown = re.sub(r": \d+\.\d ms:", ": N ms:", done.stderr)
    assert "plugin good-noise 1.0: curve = good_noise: N ms: noise_schedule curve\n" in shown
    assert f"plugin sfumato {__version__}: unet = sfumato_unet: N ms: denoiser unet\n" in shown
    assert (
        "plugin import-error 1.0: curve = import_error: N ms: left out: ModuleNotFoundError: "
        "No module named 'nowhere'\nTraceback (most recent call last):\n"
    ) in shown
    assert 'import_error/__init__.py", line 1, in <module>\n    import nowhere\n' in shown


@pytest.mark.slow
def test_a_run_opens_again_while_two_distributions_collide(sfumato, wheel, registry_file, tmp_path):
    env = environment(wheel("good-noise"), wheel("other-noise"))
    done = sfumato("show", "small", "--set", "noise_schedule=curve", env=env)
    assert (done.returncode, done.stderr) == (
        2,
        "error: --set: noise_schedule: two plugins offer the noise_schedule 'curve'; "
        "write 'good-noise:curve' or 'other-noise:curve'\n",
    )
    assert sfumato("lock", env=env).returncode == 0
    done = sfumato(
        "train", "small", "--out", "run", "--locked", "--set", "noise_schedule=other-noise:curve",
        "--set", "stages.clip.steps=1", "--set", "stages.denoiser.steps=1",
        "--set", "evaluation.metrics=[]", env=env,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    written = (tmp_path / "run" / "settings.yaml").read_text()
    assert written.startswith("noise_schedule:\n  use: other-noise:curve\n")
    assert "\nsampler:\n  use: ddim\n" in written
    assert (tmp_path / "run" / "plugins.lock").read_text() == (
        tmp_path / "plugins.lock"
    ).read_text()
    again = ["sample", "run", "a circle", "--count", "1", "--steps", "2", "--locked"]
    done = sfumato(*again, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    changed = environment(wheel("good-noise"))
    done = sfumato(*again, env=changed)
    assert (done.returncode, done.stderr) == (
        2,
        "error: run/plugins.lock: other-noise 1.0 (curve = other_noise) is missing\n"
        "install what the lock names\n",
    )
