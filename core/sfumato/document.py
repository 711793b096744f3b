"""Strict YAML: text to a tree in which every value knows where it stands.

The rules are those of YAML 1.2 with nothing surprising left in: `1e-4` is a number, `no` and `010`
are texts, a key stands once, and anchors, aliases, tags and several documents are refused. So
reading a file runs nothing, takes bounded memory, and every problem has a line. This module knows
nothing about components.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import yaml

from sfumato.errors import ConfigError, SfumatoError

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES = 1 << 20
MOST_LEVELS = 40
WORDS = {
    "'<stream end>'": "the end",
    "'<block end>'": "the end of the block",
    "'<block mapping start>'": "a mapping",
    "'<block sequence start>'": "a list",
    "'<scalar>'": "a value",
    "<block end>": "the end of the block",
    "the node content": "a value",
    "<document start>": "the start of a document",
}
"""What PyYAML's parser calls things, and what a person does."""


@attrs.frozen(eq=False)
class Node:
    """A scalar, a dict of nodes or a list of nodes, and its place: `registry.yaml:4:
    noise_schedule.linear`.
    """

    value: Any
    source: str = ""
    path: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where it stands, for a message."""
        return ": ".join(part for part in (self.source, ".".join(self.path)) if part)

    def error(self, problem: str, remedy: str = "") -> ConfigError:
        """An error about this value."""
        return ConfigError(problem, place=self.place, remedy=remedy)

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def node(value: Any, source: str = "", path: tuple[str, ...] = ()) -> Node:
    """A tree from Python values, all from one source."""
    if isinstance(value, Mapping):
        value = {str(key): node(child, source, (*path, str(key))) for key, child in value.items()}
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = [node(child, source, (*path, str(i))) for i, child in enumerate(value)]
    return Node(value, source, path)


def read_file(path: Path, shown: str | None = None) -> Node:
    """Reads a YAML file.

    Args:
        path: the file.
        shown: how messages name it; by default as `path` is written.

    Raises:
        ConfigError: the file is missing or unreadable, or breaks a rule; all problems are listed.
    """
    name = shown or str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", place=name) from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"is larger than {MOST_BYTES >> 20} MiB", place=name)
    try:
        return read(content.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", place=name) from error


def read(text: str, source: str, path: tuple[str, ...] = (), *, lines: bool = True) -> Node:
    """Reads one YAML document.

    Args:
        text: the document.
        source: how messages name it.
        path: where its root belongs, for a document that is one value of a larger tree.
        lines: whether messages add the line to the source.

    Raises:
        ConfigError: the text breaks a rule; all problems that can be seen are listed.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark and lines else source
        raise ConfigError(_plainly(error.problem or "is not YAML"), place=place) from error
    except yaml.YAMLError as error:
        raise ConfigError("holds a character that YAML does not allow", place=source) from error
    finally:
        if loader is not None:
            loader.dispose()
    if root is None:
        raise Node(None, source, path).error("is empty")
    reader = _Reader(source, lines)
    tree = reader.tree(root, path)
    if reader.errors:
        raise ConfigError.joined(reader.errors)
    return tree


def _plainly(problem: str) -> str:
    """What the parser says, without the names of its own parts."""
    for part, word in WORDS.items():
        problem = problem.replace(part, word)
    return problem


class _Loader(yaml.SafeLoader):
    """Composes nodes and refuses what the module's docstring says, before anything is built from
    it.
    """

    levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            self._refuse(event, "anchors and aliases are refused; use a named entry or `from`")
        if getattr(event, "tag", None):
            self._refuse(event, f"the tag {event.tag!r} is refused: settings are plain data")
        self.levels += 1
        if self.levels > MOST_LEVELS:
            self._refuse(event, f"is nested deeper than {MOST_LEVELS} levels")
        composed = super().compose_node(parent, index)
        self.levels -= 1
        return composed

    def _refuse(self, event: Any, problem: str) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]{0,99})", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first)
    )


class _Reader:
    def __init__(self, source: str, lines: bool) -> None:
        self.source, self.lines = source, lines
        self.errors: list[SfumatoError] = []

    def tree(self, composed: yaml.Node, path: tuple[str, ...]) -> Node:
        source = f"{self.source}:{composed.start_mark.line + 1}" if self.lines else self.source
        if isinstance(composed, yaml.MappingNode):
            return Node(self._mapping(composed, path), source, path)
        if isinstance(composed, yaml.SequenceNode):
            children = [self.tree(item, (*path, str(i))) for i, item in enumerate(composed.value)]
            return Node(children, source, path)
        return Node(_scalar(composed), source, path)

    def _mapping(self, composed: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Node]:
        children: dict[str, Node] = {}
        for key, value in composed.value:
            line = f"{self.source}:{key.start_mark.line + 1}" if self.lines else self.source
            if not isinstance(key, yaml.ScalarNode):
                self.errors.append(Node(None, line, path).error("a key must be a word"))
                continue
            child = self.tree(value, (*path, key.value))
            child = attrs.evolve(child, source=line)
            if key.value in children:
                first = children[key.value].source
                self.errors.append(child.error(f"the key stands twice, first at {first}"))
            children[key.value] = child
        return children


def _scalar(composed: yaml.Node) -> Any:
    text = composed.value
    match composed.tag.rpartition(":")[2]:
        case "bool":
            return text == "true"
        case "null":
            return None
        case "int":
            return int(text)
        case "float":
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        case _:
            return text
