"""The schema and the strict reader say the same: what one takes the other takes, as far as types go."""

import functools
import json
from typing import get_origin

import attrs
import jsonschema
import pytest

from sfumato import document, plugins, schema, settings
from sfumato.errors import ConfigError
from sfumato.interfaces import KINDS
from sfumato.plugins import Catalogue
from sfumato.registry import Registry
from small import ROOT, SMALL
from test_docs import PAGES, blocks

BUILT_IN = Catalogue(tuple(p for p in plugins.load().plugins if p.origin.distribution == "sfumato"))
COMPONENTS = sorted((offer.component for offer in BUILT_IN.offers), key=lambda c: (c.kind, c.name))
REFRESH = "sfumato schema > docs/registry.schema.json"


def title(component):
    return f"{component.kind}-{component.name}"


@functools.cache
def validator():
    return jsonschema.Draft202012Validator(schema.make(BUILT_IN))


def valid(text):
    return validator().is_valid(document.read(text, "f.yaml").plain())


def loads(text, tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    try:
        Registry.load(path, BUILT_IN)
    except ConfigError:
        return False
    return True


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(schema.make(BUILT_IN))
    jsonschema.Draft202012Validator.check_schema(schema.make(Catalogue(())))


def test_the_file_that_the_registry_names_is_that_of_the_built_in_components():
    first = (ROOT / "registry.yaml").read_text().partition("\n")[0]
    assert first == "# yaml-language-server: $schema=docs/registry.schema.json"
    checked_in = (ROOT / "docs" / "registry.schema.json").read_text()
    assert checked_in == schema.text(BUILT_IN) + "\n", f"refresh it: {REFRESH}"


def test_the_command_prints_it(sfumato):
    done = sfumato("schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == schema.text(plugins.load()) + "\n"


def test_the_shipped_registry_and_the_small_one_are_valid():
    for text in ((ROOT / "registry.yaml").read_text(), SMALL):
        assert not list(validator().iter_errors(document.read(text, "f.yaml").plain()))


def test_registries_in_the_documentation_are_valid_where_they_load(tmp_path):
    texts = [
        block.text
        for page in PAGES
        for block in blocks(page)
        if block.language == "yaml" and block.text.startswith("version:")
    ]
    taken = [loads(text, tmp_path) for text in texts]
    assert [valid(text) for text in texts] == taken
    assert True in taken
    assert False in taken


@pytest.mark.parametrize(
    "lines",
    [
        "noise_schedule: {linear: {use: linear, beta_strat: 1e-4}}",
        "noise_schedule: {linear: {use: linear, steps: 10.5}}",
        'noise_schedule: {linear: {use: linear, steps: "10"}}',
        "noise_schedule: {linear: {use: linear, beta_end: 1.5}}",
        "noise_schedule: {linear: {use: linear, beta_start: 0}}",
        "noise_schedule: {linear: {use: linaer}}",
        "noise_schedule: {linear: {beta_end: 0.02}}",
        "noise_schedule: {linear: linear}",
        "noise_schedule: {linear: {use: cfg}}",
        "noise_schedule: []",
        "guidance: {cfg: {use: cfg, beta_end: 0.02}}",
        "guidance: {cfg: {use: cfg, scale: null}}",
        "sampler: {ddpm: {use: ddpm, variance: medium}}",
        "denoiser: {unet: {use: unet, channels: 64}}",
        "denoiser: {unet: {use: unet, channels: []}}",
        "denoiser: {unet: {use: unet, channels: [64, 1]}}",
        "denoiser: {unet: {use: unet, pooled: 1}}",
        "study: {negative: {use: negative_prompt}}",
        "study: {negative: {use: negative_prompt, guidance: {scale: 2}}}",
        "study: {guidance: {use: guidance, metrics: diversity}}",
        "guidances: {}",
        "pipelines: {one: {}}",
        "pipelines: {one: {schedule: linear}}",
        "experiments: {one: {from: small, steps: 3}}",
        "experiments: {one: {start: 3}}",
        "experiments: {one: {from: small, guidance: cfg}}",
        "experiments: {one: {from: small, seed: -1}}",
        "experiments: {one: {from: small, sampling: {step: 3}}}",
        "experiments: {one: {from: small, sampling: {steps: 0}}}",
        "experiments: {one: {from: small, evaluation: {metrics: shape_attributes}}}",
        "experiments: {one: {from: small, trackers: [{use: progres}]}}",
        "experiments: {one: {from: small, set: {guidanse: cfg}}}",
        "experiments: {one: {from: small, set: {guidance: {scal: 9}}}}",
        "experiments: {one: {from: small, set: {guidance: {scale: nine}}}}",
        "experiments: {one: {from: small, set: {guidance: {use: cfg, scal: 9}}}}",
        "experiments: {one: {from: small, set: {denoiser: {channels: {first: 32}}}}}",
        "experiments: {one: {from: small, stages: {denoiser: {text_dropuot: 0.1}}}}",
        "experiments: {one: {from: small, stages: {denoiser: {text_dropout: 1.1}}}}",
        "experiments: {one: {from: small, stages: {denoiser: {ema: 1}}}}",
        "experiments: {one: {from: small, stages: {denoiser: {decay: linear}}}}",
    ],
)
def test_a_mistake_is_refused_by_both(lines, tmp_path):
    assert merged(SMALL, "") == document.read(SMALL, "f.yaml").plain()
    both = json.dumps(merged(SMALL, lines))  # JSON is YAML
    assert not loads(both, tmp_path)
    assert not valid(both)


@pytest.mark.parametrize(
    "lines",
    [
        "noise_schedule: {linear: {use: 'sfumato:linear', steps: 100}}",
        "study: {negative: {use: negative_prompt, guidance: negative, metric: {use: diversity}}}",
        "denoiser: {wide: {use: unet, channels: [64], groups: 8}}",
        "experiments: {one: {from: small, set: {noise_schedule: 'sfumato:cosine'}}}",
        "experiments: {one: {from: small, set: {guidance: {scale: 9}, loss_weight: p2}}}",
        "experiments: {one: {from: small, set: {loss_weight: null, seed: 4}}}",
        "experiments: {one: {start: runs/gone, stages: {denoiser: {objective: denoising}}}}",
        "experiments: {one: {from: small, set: {noise_schedule: {use: shifted, shift: 3}}}}",
        "experiments: {one: {from: small, set: {denoiser: {channels: {0: 32}}}}}",
        "experiments: {one: {from: small, set: {denoiser: {channels: [8, 8, 8], attention: [true]}}}}",
        "experiments: {one: {from: small, stages: {denoiser: {steps: 3, text_dropout: 0.5}}}}",
        "experiments: {one: {from: small, set: {stages: {denoiser: {objective: {text_dropout: 0}}}}}}",
        "experiments: {one: {from: small, evaluation: {studies: [guidance, {use: clip_similarity}]}}}",
    ],
)
def test_what_the_reader_takes_the_schema_takes(lines, tmp_path):
    both = json.dumps(merged(SMALL, lines))
    assert loads(both, tmp_path)
    assert valid(both)


def merged(base, lines):
    """A registry with further entries."""
    tree = document.read(base, "f.yaml").plain()
    for section, entries in (document.read(lines, "f.yaml").plain() if lines else {}).items():
        entries = entries if isinstance(entries, dict) else {"": entries}
        tree[section] = {**tree.get(section, {}), **entries} if "" not in entries else entries[""]
    return tree


def entry(component, **changes):
    """One entry with every option written out; required ones are those that a component needs."""
    needed = {
        "folder": "photos", "guidance": "cfg", "denoiser": "unet", "schedule": "linear", "shift": 2.0,
        "values": [0.5, 0.25], "parts": ["cfg"], "encoders": ["clip"],
        "scheduler": "HeunDiscreteScheduler", "model": "UNet2DConditionModel",
        "shards": "*.tar", "path": "photos", "data": "shapes",
    }  # fmt: skip
    written = {
        name: needed[name] if field.default is attrs.NOTHING else settings.default(field)
        for name, field in settings.fields(component).items()
    }
    if "values" in written:  # betas: empty by default, and then a file is needed
        written["values"] = needed["values"]
    options = {"use": component.name, **written, **changes}
    return json.dumps({"version": 1, component.kind: {"one": options}})


@pytest.mark.parametrize("component", COMPONENTS, ids=title)
def test_every_option_of_a_component_is_checked_as_the_reader_checks_it(component, tmp_path):
    assert valid(entry(component))
    assert loads(entry(component), tmp_path)
    wrong = {"no_such_option": 1}
    for name, field in settings.fields(component).items():
        hint = settings.bare(field.type)
        if hint in (int, float):
            bounds = settings.bounds(field)
            for value in (bounds.low - (not bounds.low_open), bounds.high + (not bounds.high_open)):
                if abs(value) < float("inf"):
                    wrong[name] = hint(value)
        if get_origin(hint) is dict:
            wrong[name] = ["no mapping"]
        elif hint in (int, float, bool) or settings.is_component(hint) or get_origin(hint):
            wrong.setdefault(name, {"use": "nothing"})
        else:
            wrong[name] = 1
    assert len(wrong) == 1 + len(settings.fields(component))
    for name, value in wrong.items():
        text = entry(component, **{name: value})
        assert not loads(text, tmp_path), (name, value)
        assert not valid(text), (name, value)


def test_options_carry_their_documentation():
    linear = schema.make(BUILT_IN)["$defs"]["noise_schedule.sfumato:linear"]
    assert "arXiv:2006.11239" in linear["description"]
    assert linear["properties"]["use"] == {"enum": ["linear", "sfumato:linear"]}
    assert linear["properties"]["beta_start"] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": linear["properties"]["beta_start"]["description"],
        "default": 1e-4,
    }


def test_a_name_that_two_distributions_offer_has_to_be_qualified():
    schedules = next(p for p in BUILT_IN.plugins if p.module.__name__ == "sfumato_schedules")
    twins = tuple(
        attrs.evolve(schedules, origin=attrs.evolve(schedules.origin, distribution=name))
        for name in ("one", "an other")
    )
    made = jsonschema.Draft202012Validator(schema.make(Catalogue(twins)))
    uses = [made.is_valid({"version": 1, "noise_schedule": {"a": {"use": name}}})
            for name in ("linear", "one:linear", "an other:linear")]  # fmt: skip
    assert uses == [False, True, True]


def test_every_kind_has_a_section():
    known = set(schema.make(BUILT_IN)["properties"])
    assert known == set(KINDS) | {
        "version",
        "pipelines",
        "experiments",
    }
