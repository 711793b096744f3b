"""Strict structuring: a tree of nodes to attrs classes, with every error at its place.

cattrs dispatches on the types of the fields; the hooks here are strict where its own would guess
(`"false"` is not True, 10.7 is not 10, NaN is not a number to train with) and collect all problems
instead of stopping at the first. Options are described from the same source: types, validators and
one-line docs.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import attrs
import cattrs

from sfumato.errors import ConfigError, SfumatoError, suggestion
from sfumato.interfaces import Component

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sfumato.document import Node
    from sfumato.plugins import Catalogue

T = TypeVar("T")


@attrs.frozen
class Bounds:
    """What validators allow: numbers between `low` and `high`, or one of `choices`, in a list of at
    least `items`, and at most `most_items`.
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    choices: tuple[Any, ...] = ()
    items: int = 0
    most_items: int | None = None

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        sides = []
        if self.low > -math.inf:
            sides.append(f"{'>' if self.low_open else '>='} {self.low:g}")
        if self.high < math.inf:
            sides.append(f"{'<' if self.high_open else '<='} {self.high:g}")
        if self.items:
            exactly = self.items == self.most_items
            sides.append(f"{'exactly' if exactly else 'at least'} {self.items} of them")
        return " and ".join(sides)


def bounds(field: attrs.Attribute[Any]) -> Bounds:
    """Reads the bounds of a field from its type and its attrs validators, also through `and_`,
    `optional`, `deep_iterable`.
    """
    choices = get_args(field.type) if get_origin(field.type) is Literal else ()
    found = Bounds(choices=choices)
    for validator in _flat(field.validator):
        if hasattr(validator, "bound"):
            value, comparison = validator.bound, validator.compare_op
            if comparison.startswith(">") and value >= found.low:
                found = attrs.evolve(found, low=value, low_open=comparison == ">")
            elif comparison.startswith("<") and value <= found.high:
                found = attrs.evolve(found, high=value, high_open=comparison == "<")
        elif hasattr(validator, "options"):
            found = attrs.evolve(found, choices=tuple(validator.options))
        elif hasattr(validator, "min_length"):
            found = attrs.evolve(found, items=validator.min_length)
        elif hasattr(validator, "max_length"):
            found = attrs.evolve(found, most_items=validator.max_length)
    return found


def _flat(validator: Any) -> Iterator[Any]:
    if validator is None or type(validator).__name__ == "_NotValidator":
        return  # what is excluded is no bound
    for name in ("_validators", "validator", "member_validator"):
        inner = getattr(validator, name, None)
        if inner is not None:
            for one in inner if isinstance(inner, tuple | list) else (inner,):
                yield from _flat(one)
            return
    yield validator


@functools.cache
def fields(cls: Any) -> dict[str, attrs.Attribute[Any]]:
    """The fields of an attrs class by name, their types resolved."""
    hints = typing.get_type_hints(cls)
    return {f.name: f.evolve(type=hints[f.name]) for f in attrs.fields(cls) if f.init}


def bare(hint: Any) -> Any:
    """A type without `| None`."""
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        return members[0] if len(members) == 1 else hint
    return hint


def is_component(hint: Any) -> bool:
    """Whether a type is an interface of components (or one component)."""
    return isinstance(hint, type) and issubclass(hint, Component)


def goes_around(component: Any, interface: Any) -> list[str]:
    """The required options of a component that hold one of its own kind."""
    return [
        name
        for name, field in fields(component).items()
        if field.default is attrs.NOTHING and field.type is interface
    ]


def type_name(hint: Any) -> str:
    """How messages and `describe` call a type."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if m is type(None) else type_name(m) for m in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {type_name(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "mapping"
    if is_component(hint):
        return f"{'an' if hint.kind[0] in 'aeiou' else 'a'} {hint.kind}"
    return {int: "int", float: "number", str: "text", bool: "true or false", dict: "mapping"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def default(field: attrs.Attribute[Any], catalogue: Catalogue | None = None) -> Any:
    """The default of a field as `plain` has it; `attrs.NOTHING` where the field is required."""
    made: Any = field.default
    if hasattr(made, "factory"):
        made = made.factory()
    return made if made is attrs.NOTHING else plain(made, catalogue)


@attrs.frozen
class Described:
    """What `sfumato describe` and the reference say of an option, each in words."""

    type: str
    bounds: str
    default: str
    doc: str


def describe(field: attrs.Attribute[Any]) -> Described:
    """An option in words; its bounds are empty where the type says it all."""
    value = default(field)
    return Described(
        type=type_name(field.type),
        bounds="" if get_origin(bare(field.type)) is Literal else str(bounds(field)),
        default="required" if value is attrs.NOTHING else json.dumps(value, ensure_ascii=False),
        doc=field.metadata.get("doc", ""),
    )


class Problems(Exception):
    """Errors found so far, on their way to the root."""

    def __init__(self, errors: list[SfumatoError]) -> None:
        """At least one error."""
        super().__init__(*errors)
        self.errors = errors


def structure(node: Node, cls: type[T], catalogue: Catalogue) -> T:
    """Makes an object of attrs class `cls`, or a component of interface `cls`, from a tree.

    A component is a mapping with `use`, the name of a registered component, and its options.

    Raises:
        ConfigError: lists every problem, each with its place.
    """
    try:
        return _converter(catalogue).structure(node, cls)
    except Problems as problems:
        raise ConfigError.joined(problems.errors) from None


def _converter(catalogue: Catalogue) -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    for scalar in (bool, int, float, str):
        converter.register_structure_hook(scalar, _scalar)

    def optional(node: Node, hint: Any) -> Any:
        return None if node.value is None else converter.structure(node, bare(hint))

    def choice(node: Node, hint: Any) -> Any:
        if node.value not in get_args(hint) or isinstance(node.value, bool):
            _refuse(node, f"expected {type_name(hint)}, got {_shown(node)}")
        return node.value

    def sequence(node: Node, hint: Any) -> Any:
        if not isinstance(node.value, list):
            _refuse(node, f"expected {type_name(hint)}, got {_shown(node)}")
        item = get_args(hint)[0]
        return tuple(_gather([lambda n=n: converter.structure(n, item) for n in node.value]))

    def mapping(node: Node, hint: Any) -> Any:
        if not isinstance(node.value, dict):
            _refuse(node, f"expected a mapping, got {_shown(node)}")
        item = get_args(hint)[1]
        calls = [lambda n=n: converter.structure(n, item) for n in node.value.values()]
        return dict(zip(node.value, _gather(calls), strict=True))

    def settings(node: Node, cls: Any) -> Any:
        if isinstance(node.value, cls):
            return node.value
        if is_component(cls) and isinstance(node.value, str):
            node = attrs.evolve(node, value={"use": node})
        if not isinstance(node.value, dict):
            _refuse(node, f"expected {type_name(cls)}, got {_shown(node)}")
        if is_component(cls):
            cls = _used(node, cls, catalogue)
        return _instance(node, cls, converter)

    converter.register_structure_hook(Any, _free)
    converter.register_structure_hook_func(lambda hint: bare(hint) is not hint, optional)
    converter.register_structure_hook_func(lambda hint: _origin(hint) is Literal, choice)
    converter.register_structure_hook_func(lambda hint: _origin(hint) is tuple, sequence)
    converter.register_structure_hook_func(lambda hint: _origin(hint) is dict, mapping)
    converter.register_structure_hook_func(
        lambda hint: is_component(hint) or attrs.has(hint), settings
    )
    return converter


def _origin(hint: Any) -> Any:
    return get_origin(hint)


def _refuse(node: Node, problem: str, remedy: str = "") -> NoReturn:
    raise Problems([node.error(problem, remedy)])


def _shown(node: Node) -> str:
    if isinstance(node.value, str):
        return f"the text {node.value!r}" if len(node.value) <= 40 else "a long text"
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        text = str(node.plain())
        return text if len(text) <= 40 else "a list"
    return "null" if node.value is None else str(node.value).lower()


def _scalar(node: Node, hint: type) -> Any:
    value: Any = node.value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        remedy = "remove the quotes" if isinstance(value, str) and _is_number(value) else ""
        _refuse(node, f"expected {type_name(hint)}, got {_shown(node)}", remedy)
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(node, f"expected a finite number, got {value}")
    return value


def _free(node: Node, hint: Any) -> Any:
    """What another library reads: text, numbers, truths, nulls, lists and mappings, as they are."""
    if isinstance(node.value, dict):
        calls = [lambda n=n: _free(n, hint) for n in node.value.values()]
        return dict(zip(node.value, _gather(calls), strict=True))
    if isinstance(node.value, list):
        return _gather([lambda n=n: _free(n, hint) for n in node.value])
    return node.value if node.value is None else _scalar(node, type(node.value))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _gather(calls: list[Any]) -> list[Any]:
    """The results of all calls, or all their problems."""
    results, errors = [], []
    for call in calls:
        try:
            results.append(call())
        except Problems as problems:
            errors += problems.errors
    if errors:
        raise Problems(errors)
    return results


def _used(node: Node, interface: type[Component], catalogue: Catalogue) -> type[Component]:
    used = node.value.get("use")
    if used is None:
        _refuse(node, f"expected a {interface.kind}", "say which one with `use`")
    if not isinstance(used.value, str):
        _refuse(used, f"expected the name of a {interface.kind}, got {_shown(used)}")
    try:
        return catalogue.find(interface.kind, used.value, used)
    except ConfigError as error:
        raise Problems([error]) from None


def _instance(node: Node, cls: type, converter: cattrs.Converter) -> Any:
    """An object of an attrs class, every field structured and validated on its own."""
    known: dict[str, Any] = fields(cls)
    reserved = ("use",) if issubclass(cls, Component) else ()
    options = {key: child for key, child in node.value.items() if key not in reserved}
    unknown = [
        child.error(f"unknown option of {cls.__name__}", suggestion(key, known))
        for key, child in options.items()
        if key not in known
    ]
    required = [name for name, field in known.items() if field.default is attrs.NOTHING]
    missing = [
        node.error(f"{name!r} is missing", known[name].metadata.get("doc", ""))
        for name in required
        if name not in options
    ]
    present = {key: child for key, child in options.items() if key in known}
    errors: list[SfumatoError] = [*unknown, *missing]
    values: dict[str, Any] = {}
    for key, child in present.items():
        try:
            values[key] = _field(child, known[key], converter)
        except Problems as problems:
            errors += problems.errors
    if errors:
        raise Problems(errors)
    try:
        return cls(**values)
    except (ConfigError, ValueError) as error:
        # They do not fit each other: one that was laid over the others is the likelier cause.
        file = node.source.partition(":")[0]
        laid_over = [child for child in options.values() if not child.source.startswith(file)]
        _refuse(laid_over[-1] if laid_over else node, str(error))


def _field(node: Node, field: Any, converter: cattrs.Converter) -> Any:
    try:
        value = converter.structure(node, field.type)
    except cattrs.StructureHandlerNotFoundError:
        _refuse(node, f"its type, {type_name(field.type)}, is none that YAML can give")
    if field.validator is not None:
        try:
            field.validator(None, field, value)
        except (ConfigError, ValueError, TypeError) as error:
            allowed = str(bounds(field))
            if not allowed or value == ():
                _refuse(node, str(error.args[0]))
            each = "each " if isinstance(value, tuple) else ""
            _refuse(node, f"expected {each}{allowed}, got {_shown(node)}")
    return value


def plain(value: Any, catalogue: Catalogue | None = None) -> Any:
    """Settings as YAML has them: components as mappings with `use`, all options written out.

    With a catalogue, `use` says which distribution is meant where the plain name might not.
    """
    cls: Any = type(value)
    if attrs.has(cls):
        options = {name: plain(getattr(value, name), catalogue) for name in fields(cls)}
        if not isinstance(value, Component):
            return options
        return {"use": value.name if catalogue is None else catalogue.use(type(value)), **options}
    if isinstance(value, dict):
        return {key: plain(item, catalogue) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item, catalogue) for item in value]
    return value
