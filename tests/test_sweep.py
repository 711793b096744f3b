"""What a sweep is: points from YAML and from the command line, and their names."""

import pytest
import yaml

from sfumato import ConfigError, document, plugins, settings, sweep
from sfumato.registry import Registry
from sfumato.sweep import Sweep
from small import SMALL


def of(text):
    return settings.structure(document.read(text, "sweep.yaml"), Sweep, plugins.load())


def test_a_grid_is_every_combination_and_a_zip_goes_with_each():
    found = of("{grid: {a: [1, 2], seed: [0, 1]}, zip: {b: [x, y], c: [3, 4]}}").points()
    assert len(found) == 8
    assert found[0] == {"a": 1, "seed": 0, "b": "x", "c": 3}
    assert found[1] == {"a": 1, "seed": 0, "b": "y", "c": 4}
    assert found[-1] == {"a": 2, "seed": 1, "b": "y", "c": 4}


def test_a_list_adds_points():
    found = of("{grid: {a: [1, 2]}, list: [{a: 5, b: 6}]}").points()
    assert found == ({"a": 1}, {"a": 2}, {"a": 5, "b": 6})
    assert of("{list: [{a: 5}]}").points() == ({"a": 5},)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{grid: {a: []}}", "a has no values"),
        ("{zip: {a: [1], b: [1, 2]}}", "keys of zip have as many values each, not a 1, b 2"),
        ("{grid: {a: [1]}, zip: {a: [2]}}", "a is swept in two ways"),
        ("{search: {a: {low: 0, high: 1}}}", "search goes with one of maximize and minimize"),
        ("{maximize: x}", "search goes with one of maximize and minimize"),
        ("{search: {a: {low: 0}}, maximize: x}", "expected low and high, or choices"),
        ("{search: {a: {low: 2, high: 1}}, maximize: x}", "low is above high"),
        (
            "{search: {a: {low: 0, high: 1, log: true}}, maximize: x}",
            "with log, low is above 0 and there is no step",
        ),
        ("{gird: {a: [1]}}", "unknown option of Sweep; did you mean 'grid'?"),
    ],
)
def test_what_is_no_sweep_is_refused(text, said):
    with pytest.raises(ConfigError) as error:
        of(text)
    assert str(error.value).endswith(said)


def test_a_point_that_stands_twice_is_refused_unless_a_label_tells_them_apart():
    with pytest.raises(ConfigError) as error:
        of("{grid: {a: [1, 2]}, list: [{a: 2}]}").points()
    assert str(error.value) == (
        'sweep: the point {"a": 2} stands twice; drop one, or tell them apart by a label'
    )
    with pytest.raises(ConfigError, match="stands twice"):
        of("{grid: {a: [1, 1.0]}}").points()
    found = of("{grid: {a: [1, 2]}, list: [{label: again, a: 2}]}").points()
    assert [sweep.overrides(point) for point in found] == [["a=1"], ["a=2"], ["a=2"]]


def test_commas_inside_of_brackets_and_quotes_part_nothing():
    found = sweep.from_arguments(
        ["sampling.size=[16,16],[32,32]", 'name="a,b",c', "guidance={use: cfg, scale: 2},cfg"],
        ["x=1e-4,null", "y=true,no"],
    )
    assert found.grid == {
        "sampling.size": ([16, 16], [32, 32]),
        "name": ("a,b", "c"),
        "guidance": ({"use": "cfg", "scale": 2}, "cfg"),
    }
    assert found.zip == {"x": (1e-4, None), "y": (True, "no")}
    assert len(found.points()) == 16


def test_a_key_that_is_given_twice_is_refused():
    with pytest.raises(ConfigError) as error:
        sweep.from_arguments(["seed=0,1", "a=1", "seed=2,3"], [])
    assert str(error.value) == (
        "--sweep: seed is swept over twice; give all values of a key at once"
    )


@pytest.mark.parametrize("text", ["a", "a=", "=1"])
def test_what_is_no_key_with_values_is_refused(text):
    with pytest.raises(ConfigError) as error:
        sweep.from_arguments([text], [])
    assert str(error.value) == f"--sweep {text}: expected KEY=VALUE,VALUE"


@pytest.mark.parametrize(
    "value",
    [1, 1e-7, -2.5, True, None, "cosine", "no", "true", "1", "a: b", "", [1, [2.0, "x"]],
     {"use": "cfg", "scale": 3}],
)  # fmt: skip
def test_a_value_is_written_as_the_yaml_rules_read_it(value):
    (text,) = sweep.overrides({"a": value})
    assert document.read(text.removeprefix("a="), "").plain() == value
    assert type(document.read(text.removeprefix("a="), "").plain()) is type(value)


def test_names_are_short_readable_and_safe_for_files():
    points = [
        {"guidance.scale": 1.5, "noise_schedule": "linear", "seed": 0},
        {"guidance.scale": 1.5, "noise_schedule": {"use": "linear", "steps": 10}, "seed": 0},
        {"data.folder": "/a/../b", "seed": 0},
    ]
    assert sweep.names(points) == [
        "scale=1.5,noise_schedule=linear,seed=0",
        "scale=1.5,noise_schedule=linear-steps-10,seed=0",
        "folder=a-..-b,seed=0",
    ]


def test_names_differ_where_points_do():
    points = [{"a": "x/y"}, {"a": "x y"}, {"a": "z" * 500}, {"a": "z" * 501}]
    found = sweep.names(points)
    assert len(set(found)) == 4
    assert max(map(len, found)) <= sweep.LONGEST


def test_keys_are_shortened_only_as_far_as_they_stay_apart():
    keys = ["sampling.steps", "stages.denoiser.steps", "guidance.scale", "seed"]
    assert sweep.short_keys(keys) == {
        "sampling.steps": "sampling.steps",
        "stages.denoiser.steps": "denoiser.steps",
        "guidance.scale": "scale",
        "seed": "seed",
    }


def test_the_nearest_sweep_of_an_experiment_is_its_own_or_inherited(tmp_path, catalogue):
    tree = yaml.safe_load(SMALL)
    tree["experiments"]["small"]["sweep"] = {"grid": {"seed": [0, 1]}}
    tree["experiments"]["strong"]["sweep"] = {"grid": {"seed": [2]}}
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(tree))
    registry = Registry.load(tmp_path / "registry.yaml", catalogue)
    assert registry.sweep("cosine") == Sweep(grid={"seed": (0, 1)})
    assert registry.sweep("strong") == Sweep(grid={"seed": (2,)})
    assert "sweep" not in registry.experiment_tree("small").value


def test_a_wrong_sweep_is_an_error_of_its_file(tmp_path, catalogue):
    tree = yaml.safe_load(SMALL)
    tree["experiments"]["small"]["sweep"] = {"gird": {"seed": [0]}}
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match="experiments.small.sweep.gird: unknown option of Sweep"):
        Registry.load(tmp_path / "registry.yaml", catalogue)
