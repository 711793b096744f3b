"""How one layer of settings lies over another: names are looked up, options are merged.

Everything happens on trees of nodes, so each value keeps the place it came from, for errors and for
`sfumato show`. Where a component is expected,

    a name          is an entry of the file or, where there is none, a registered component
    {use: ...}      is that registered component with exactly these options
    other mappings  change options of the component that stands there
    a list          replaces the list that stands there;

a component that goes around another one of its kind, and does not say which, goes around the one
that stands there.

This module knows nothing about files, pipelines and experiments, but for one rule about stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_origin

import attrs

from sfumato import document, settings
from sfumato.document import Node
from sfumato.errors import ConfigError, nearest
from sfumato.experiment import Stage
from sfumato.plugins import Catalogue

if TYPE_CHECKING:
    from collections.abc import Callable

    from sfumato.interfaces import Component


@attrs.frozen(eq=False)
class Layers:
    """Expands and merges trees, by the entries of a file and the components of a catalogue."""

    catalogue: Catalogue
    entries: dict[tuple[str, str], Node]

    def not_an_entry(self, kind: str, entry: Node) -> ConfigError:
        """The error about a named entry that is no component."""
        known = ", ".join(self.catalogue.names(kind))
        return entry.error("expected {use: NAME, ...}", f"known: {known}")

    def expand(self, node: Node, hint: Any, inside: tuple[str, ...] = ()) -> Node:
        """Names of components become `{use: ...}` mappings, down to the last option.

        `inside` holds the entries that are being expanded: none may hold itself.
        """
        hint = settings.bare(hint)
        if settings.is_component(hint) and isinstance(node.value, str):
            name = f"{hint.kind}.{node.value}"
            entry = self.entries.get((hint.kind, node.value))
            if entry is None:
                return attrs.evolve(node, value={"use": node})
            if name in inside:
                raise entry.error("the entry holds itself")
            if not (isinstance(entry.value, dict) and "use" in entry.value):
                raise self.not_an_entry(hint.kind, entry)
            return self.expand(entry, hint, (*inside, name))
        if isinstance(node.value, list) and get_origin(hint) is tuple:
            item = get_args(hint)[0]
            children = [self.expand(child, item, inside) for child in node.value]
            return attrs.evolve(node, value=children)
        if isinstance(node.value, dict):
            node = self._stage(node, hint, None)
            hint_of = self._hints(node, hint)
            value = {k: self.expand(n, hint_of(k), inside) for k, n in node.value.items()}
            return attrs.evolve(node, value=value)
        return node

    def merge(self, base: Node | None, change: Node, hint: Any) -> Node:
        """`base` with `change` laid over it."""
        hint = settings.bare(hint)
        if isinstance(change.value, dict) and base is not None and isinstance(base.value, list):
            return self._merge_items(base, change, hint)
        used = isinstance(change.value, dict) and "use" in change.value
        if not isinstance(change.value, dict) or (used and settings.is_component(hint)):
            return self._around(base, self.expand(change, hint), hint)
        if base is None or not isinstance(base.value, dict):
            base = attrs.evolve(change, value={})
        change = self._stage(change, hint, base)
        hint_of, merged = self._hints(base, hint), dict(base.value)
        for key, child in change.value.items():
            before = base.value.get(key) or self._default(base, hint, key)
            merged[key] = self.merge(before, child, hint_of(key))
        return attrs.evolve(base, value=merged)

    def _around(self, base: Node | None, wrapper: Node, hint: Any) -> Node:
        """Puts `base` where a component that replaces it requires one of its own kind."""
        if base is None or not isinstance(base.value, dict) or not isinstance(wrapper.value, dict):
            return wrapper
        component = self._used(wrapper.value, hint)
        inside = [] if component is None else settings.goes_around(component, hint)
        return attrs.evolve(wrapper, value={**dict.fromkeys(inside, base), **wrapper.value})

    def _merge_items(self, base: Node, change: Node, hint: Any) -> Node:
        items = list(base.value)
        item = get_args(hint)[0] if get_args(hint) else None
        for key, child in change.value.items():
            if not key.isdecimal() or int(key) >= len(items):
                raise child.error(f"expected an index below {len(items)}")
            items[int(key)] = self.merge(items[int(key)], child, item)
        return attrs.evolve(base, value=items)

    def _default(self, node: Node, hint: Any, key: str) -> Node | None:
        """What an option is where nothing says so, for a change that reaches inside it."""
        field = self._fields(node, hint).get(key)
        default = attrs.NOTHING if field is None else settings.default(field, self.catalogue)
        return None if default is attrs.NOTHING else document.node(default, "default")

    def _hints(self, node: Node, hint: Any) -> Callable[[str], Any]:
        """The type of each key of a mapping, or None; in a component `use` decides."""
        if get_origin(hint) is dict:
            item = get_args(hint)[1]
            return lambda key: item
        known = self._fields(node, hint)
        return lambda key: known[key].type if key in known else None

    def _fields(self, node: Node, hint: Any) -> dict[str, attrs.Attribute[Any]]:
        """The fields that a mapping may fill."""
        if settings.is_component(hint):
            return self._options(node.value, hint)
        return settings.fields(hint) if isinstance(hint, type) and attrs.has(hint) else {}

    def _options(self, value: dict[str, Node], interface: Any) -> dict[str, attrs.Attribute[Any]]:
        """The fields of the component that `use` names."""
        component = self._used(value, interface)
        return {} if component is None else settings.fields(component)

    def _used(self, value: dict[str, Node], interface: Any) -> type[Component] | None:
        """The component that `use` names; where it names none, structuring says so."""
        used = value.get("use")
        if used is None or not isinstance(used.value, str):
            return None
        try:
            return self.catalogue.find(interface.kind, used.value, used)
        except ConfigError:
            return None

    def _stage(self, node: Node, hint: Any, base: Node | None) -> Node:
        """In a stage, options of the objective stand beside those of the loop: moves them in."""
        if hint is not Stage:
            return node
        loop = settings.fields(Stage)
        objective = loop["objective"].type
        inner: dict[str, Node] = {}
        if "objective" in node.value:
            chosen = self.expand(node.value["objective"], objective)
            if not isinstance(chosen.value, dict):
                return node  # structuring says what is wrong with it
            inner = chosen.value
        before = base.value.get("objective") if base is not None else None
        named = {**(before.value if before is not None else {}), **inner}
        inside = self._options(named, objective)
        known = [*loop, *inside]
        moved = {
            key: child
            for key, child in node.value.items()
            if key not in loop and nearest(key, known) in inside
        }
        stays = {k: n for k, n in node.value.items() if k not in moved and k != "objective"}
        if inner or moved:
            stays["objective"] = attrs.evolve(node, value={**inner, **moved})
        return attrs.evolve(node, value=stays)
