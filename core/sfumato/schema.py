"""The registry language as a JSON Schema: what an editor completes, explains and underlines.

Made from the same fields, types and bounds as the strict reader (see `settings`), for the
components that are installed. It never refuses what the reader takes; what depends on other lines,
such as whether a name is an entry or which component a change reaches, is left to the reader.

A component may stand in three ways, each a definition:

    KIND.use    {use: NAME, options}, as an entry of a section
    KIND        that, or a name, as in a slot of a pipeline
    KIND.set    that, or a mapping of options to change, as in an experiment; what goes around a
                component of its own kind need not say around which
"""

from __future__ import annotations

import inspect
import json
import math
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin
from urllib.parse import quote

import attrs

from sfumato import settings
from sfumato.experiment import Experiment, PipelineSettings, Stage
from sfumato.interfaces import KINDS, Component
from sfumato.registry import BODY, SLOTS, SWEEP, VERSION
from sfumato.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sfumato.plugins import Catalogue, Offer
    from sfumato.settings import Bounds

    Fields = Mapping[str, attrs.Attribute[Any]]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""Identifies draft 2020-12; nothing opens it."""

Schema = dict[str, Any] | bool

SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string"}


def text(catalogue: Catalogue) -> str:
    """The schema as JSON."""
    return json.dumps(make(catalogue), indent=1, ensure_ascii=False)


def make(catalogue: Catalogue) -> dict[str, Any]:
    """The schema of a registry file that may name any component of the catalogue."""
    interfaces = [KINDS[kind] for kind in sorted(KINDS)]
    definitions: dict[str, Schema] = {}
    for interface in interfaces:
        offers = [o for o in catalogue.offers if o.component.kind == interface.kind]
        definitions |= _kind(interface, sorted(offers, key=lambda offer: offer.qualified))
    objectives = [o.component for o in catalogue.offers if o.component.kind == "objective"]
    definitions |= {"Stage": _stage(objectives), "Experiment": _experiment()}
    slots = {name: settings.fields(PipelineSettings)[name] for name in SLOTS}
    sections = {i.kind: _named(_ref(f"{i.kind}.use"), _summary(i)) for i in interfaces}
    return {
        "$schema": DIALECT,
        "title": "sfumato registry",
        "type": "object",
        "properties": {
            "version": {"const": VERSION, "description": "of this language"},
            **sections,
            "pipelines": _named(_mapping(slots), "A component in each slot."),
            "experiments": _named(_ref("Experiment"), "A pipeline and what is done with it."),
        },
        "required": ["version"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _kind(interface: type[Component], offers: list[Offer]) -> dict[str, Schema]:
    """The definitions of a kind, and of each of its components."""
    kind = interface.kind
    names = [offer.component.name for offer in offers]
    known: list[str] = []
    components: dict[str, Schema] = {}
    wrappers: list[Schema] = []
    for offer in offers:
        unique = names.count(offer.component.name) == 1
        ways = [offer.component.name, offer.qualified] if unique else [offer.qualified]
        known.append(ways[0])
        components[f"{kind}.{offer.qualified}"] = _component(offer.component, ways)
        if inside := settings.goes_around(offer.component, interface):
            wrappers.append(_component(offer.component, ways, without=inside))
    name = {"type": "string", "description": _summary(interface), "examples": known}
    change = _change([offer.component for offer in offers])
    return components | {
        f"{kind}.use": _any(_ref(component) for component in components),
        kind: _any([name, _ref(f"{kind}.use")]),
        f"{kind}.set": _any([_ref(kind), *wrappers, _closed(change)]),
    }


def _component(
    component: type[Component], ways: list[str], without: Iterable[str] = ()
) -> dict[str, Any]:
    """A component with `use`; options in `without` may be left out although they are required."""
    mapping = _mapping(settings.fields(component))
    mapping["properties"] = {"use": {"enum": ways}, **mapping["properties"]}
    mapping["required"] = ["use", *(name for name in mapping["required"] if name not in without)]
    about = inspect.cleandoc(component.__doc__ or "")
    return {"title": f"{component.kind} {component.name}", "description": about, **mapping}


def _change(components: Iterable[type[Component]]) -> dict[str, Schema]:
    """What may be said of the options of one of `components`, whichever it is."""
    found: dict[str, list[Schema]] = {}
    for component in components:
        for name, field in settings.fields(component).items():
            schemas = found.setdefault(name, [])
            schema = _option(field, change=True)
            if schema not in schemas:
                schemas.append(schema)
    return {name: _any(schemas) for name, schemas in sorted(found.items())}


def _stage(objectives: Iterable[type[Component]]) -> Schema:
    """Options of the loop and of its objective, side by side."""
    loop = settings.fields(Stage)
    return _closed({**_change(objectives), **_options(loop, change=True)})


def _experiment() -> Schema:
    """All of it may also come from where it is inherited, so nothing is required here."""
    known = {name: f for name, f in settings.fields(Experiment).items() if name != "name"}
    options = _options(known, change=True)
    inherited = {"type": "string", "description": "the experiment that this one starts from"}
    changes = {**_closed(options), "description": "changes to components and all else"}
    return _closed(
        {
            "from": inherited,
            "pipeline": {"type": "string", "description": "one of `pipelines`"},
            "set": changes,
            SWEEP: {**_mapping(settings.fields(Sweep)), "description": _summary(Sweep)},
            **{name: options[name] for name in BODY},
        }
    )


def _mapping(fields: Fields, *, change: bool = False) -> dict[str, Any]:
    required = [n for n, f in fields.items() if f.default is attrs.NOTHING and not change]
    return {**_closed(_options(fields, change=change)), "required": required}


def _options(fields: Fields, *, change: bool) -> dict[str, Schema]:
    return {name: _option(field, change=change) for name, field in fields.items()}


def _option(field: attrs.Attribute[Any], *, change: bool = False) -> Schema:
    about = {"description": field.metadata["doc"]} if field.metadata.get("doc") else {}
    default = settings.default(field)
    known = {} if default is attrs.NOTHING else {"default": default}
    return {**_value(field.type, settings.bounds(field), change), **about, **known}


def _value(hint: Any, bounds: Bounds, change: bool) -> dict[str, Any]:
    """What YAML may hold for a type; a type that YAML cannot give is left to the reader."""
    bare, origin = settings.bare(hint), get_origin(hint)
    if bare is not hint:
        return {"anyOf": [_value(bare, bounds, change), {"type": "null"}]}
    if settings.is_component(hint):
        return _ref(f"{hint.kind}.set" if change else hint.kind)
    if hint is Stage:
        return _ref("Stage")
    if origin is Literal or bounds.choices:
        return {"enum": list(bounds.choices or get_args(hint))}
    if origin is tuple:
        item = _value(get_args(hint)[0], attrs.evolve(bounds, items=0), change)
        whole = {"type": "array", "items": item, "minItems": bounds.items}
        by_index = {**_closed({}), "patternProperties": {"^[0-9]+$": item}}
        return {"anyOf": [whole, by_index]} if change else whole
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(get_args(hint)[1], bounds, change)}
    if isinstance(hint, type) and attrs.has(hint):
        return _mapping(settings.fields(hint), change=change)
    if hint in SCALARS:
        return {"type": SCALARS[hint], **_limits(bounds)}
    return {}


def _limits(bounds: Bounds) -> dict[str, float]:
    low = "exclusiveMinimum" if bounds.low_open else "minimum"
    high = "exclusiveMaximum" if bounds.high_open else "maximum"
    limits = {low: bounds.low, high: bounds.high}
    return {word: value for word, value in limits.items() if math.isfinite(value)}


def _closed(properties: Mapping[str, Schema]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _named(schema: Schema, about: str) -> Schema:
    return {"type": "object", "description": about, "additionalProperties": schema}


def _any(schemas: Iterable[Schema]) -> Schema:
    """One of these; nothing, where there is none."""
    found = list(schemas)
    return {"anyOf": found} if len(found) > 1 else (found or [False])[0]


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{quote(name, safe=':.')}"}


def _summary(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
