"""registry.yaml: named components, pipelines and experiments, and what overrides make of them.

An experiment is resolved in layers, later wins: registry entry, pipeline, `from`, its own body,
`set`, `--set` (defaults of the classes fill what is left). Everything happens on trees of nodes, so
each value keeps the place it came from, for errors and for `sfumato show`. Where a component is
expected,

    a name          is an entry of the file or, where there is none, a registered component
    {use: ...}      is that registered component with exactly these options
    other mappings  change options of the component that stands there
    a list          replaces the list that stands there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import attrs

from sfumato import document, plugins, settings
from sfumato.document import Node
from sfumato.errors import ConfigError, SfumatoError, nearest, suggestion
from sfumato.experiment import Experiment, PipelineSettings, Stage
from sfumato.interfaces import Component
from sfumato.plugins import Catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PACKAGED = Path(__file__).with_name("registry.yaml")
VERSION = 1

SLOTS = [name for name in settings.fields(PipelineSettings) if name != "sampling"]
BODY = [name for name in settings.fields(Experiment) if name not in (*SLOTS, "name")]


def create(kind: str, name: str, /, **options: Any) -> Any:
    """One component, for a notebook or a test: `create("noise_schedule", "linear", steps=1000)`.

    Raises:
        ConfigError: there is no such component, or an option is wrong.
    """
    catalogue = plugins.load()
    found = catalogue.find(kind, name)
    tree = document.node({"use": name, **options}, f"create({kind!r}, {name!r})")
    return settings.structure(tree, found, catalogue)


@attrs.frozen(eq=False)
class Registry:
    """A registry file, read and checked.

    Attributes:
        catalogue: the components that it draws on.
        entries: named components, by (kind, name).
        pipelines: by name, as written.
        experiments: by name, as written.
    """

    catalogue: Catalogue
    entries: dict[tuple[str, str], Node]
    pipelines: dict[str, Node]
    experiments: dict[str, Node]

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        catalogue: Catalogue | None = None,
        plugin_files: Sequence[str | Path] = (),
    ) -> Registry:
        """Reads a registry file; without a path the one that comes with the package.

        Args:
            path: the file.
            catalogue: the components to draw on; by default all that are installed.
            plugin_files: local Python files to load as plugins, where no catalogue is given.

        Raises:
            ConfigError: lists every error of the file.
            PluginError: one of `plugin_files` cannot be loaded.
        """
        catalogue = catalogue or plugins.load([Path(file) for file in plugin_files])
        shown = "registry.yaml" if path is None else str(path)
        root = document.read_file(Path(path or PACKAGED), shown)
        registry, errors = cls._from_tree(root, catalogue)
        errors += registry._check()
        if errors:
            raise ConfigError("\n".join(dict.fromkeys(line for e in errors for line in _lines(e))))
        return registry

    @classmethod
    def _from_tree(cls, root: Node, catalogue: Catalogue) -> tuple[Registry, list[SfumatoError]]:
        errors: list[SfumatoError] = []
        parts = _mapping(root, errors)
        version = parts.pop("version", Node(None, root.source, ("version",)))
        if version.value != VERSION or isinstance(version.value, bool):
            errors.append(version.error(f"expected version: {VERSION}"))
        pipelines = _mapping(parts.pop("pipelines", Node({})), errors)
        experiments = _mapping(parts.pop("experiments", Node({})), errors)
        kinds = {interface.kind for interface in Component.__subclasses__()}
        entries: dict[tuple[str, str], Node] = {}
        for kind, section in parts.items():
            if kind in kinds:
                named = _mapping(section, errors)
                entries |= {(kind, name): entry for name, entry in named.items()}
            else:
                known = [*kinds, "version", "pipelines", "experiments"]
                errors.append(section.error("unknown section", suggestion(kind, known)))
        return cls(catalogue, entries, pipelines, experiments), errors

    def _check(self) -> list[SfumatoError]:
        """Resolves and structures all that the file holds."""
        errors: list[SfumatoError] = []

        def attempt(call: Any, *arguments: Any) -> None:
            try:
                call(*arguments)
            except SfumatoError as error:
                errors.append(error)

        for (kind, _), entry in self.entries.items():
            attempt(self._component, kind, entry)
        for name in self.pipelines:
            attempt(self.pipeline, name)
        for name in self.experiments:
            attempt(self.experiment, name)
        return errors

    def _component(self, kind: str, entry: Node) -> None:
        if not isinstance(entry.value, dict) or "use" not in entry.value:
            raise self._not_an_entry(kind, entry)
        used = entry.value["use"]
        found = self.catalogue.find(kind, str(used.value), used)
        settings.structure(self._expand(entry, found), found, self.catalogue)

    def _not_an_entry(self, kind: str, entry: Node) -> ConfigError:
        known = ", ".join(self.catalogue.names(kind))
        return entry.error("expected {use: NAME, ...}", f"known: {known}")

    def pipeline(self, name: str) -> PipelineSettings:
        """The components of a pipeline.

        Raises:
            ConfigError: lists every problem, each with its place.
        """
        return settings.structure(self._pipeline_tree(name), PipelineSettings, self.catalogue)

    def experiment(self, name: str, overrides: Sequence[str] = ()) -> Experiment:
        """An experiment, resolved and checked.

        Args:
            name: one of `experiments`.
            overrides: `path=value` texts, such as `guidance.scale=7.5`; values are YAML.

        Raises:
            ConfigError: lists every problem, each with its place.
        """
        return self.structure(self.experiment_tree(name, overrides), name)

    def structure(self, tree: Node, name: str) -> Experiment:
        """An experiment from its resolved tree."""
        named = attrs.evolve(tree, value={"name": Node(name), **tree.value})
        return settings.structure(named, Experiment, self.catalogue)

    def experiment_tree(self, name: str, overrides: Sequence[str] = ()) -> Node:
        """The resolved tree of an experiment, each value with its place."""
        return self.override(self._experiment_tree(name), overrides)

    def override(self, tree: Node, overrides: Sequence[str]) -> Node:
        """A resolved tree after `--set`: swaps (the shorter paths) first, then options."""
        for text in sorted(overrides, key=_rank):
            tree = self._merge(tree, _override(text), Experiment)
        return tree

    def _experiment_tree(self, name: str) -> Node:
        """The nearest pipeline, then what each experiment says, from the farthest ancestor on."""
        bodies = self._ancestry(Node(name))
        pipelines = [body["pipeline"] for _, body in bodies if "pipeline" in body]
        slots = self._pipeline_tree(pipelines[-1]).value if pipelines else {}
        tree = attrs.evolve(bodies[-1][0], value=slots)
        for written, body in bodies:
            own = {key: body[key] for key in BODY if key in body}
            tree = self._merge(tree, attrs.evolve(written, value=own), Experiment)
            if "set" in body:
                tree = self._merge(tree, body["set"], Experiment)
        return tree

    def _ancestry(self, named: Node) -> list[tuple[Node, dict[str, Node]]]:
        """An experiment and those it comes `from`, the farthest first: as written, and its keys."""
        bodies: list[tuple[Node, dict[str, Node]]] = []
        seen: set[str] = set()
        at: Node | None = named
        while at is not None:
            name = str(at.value)
            if name in seen:
                raise at.error("experiments inherit from each other in a circle")
            if name not in self.experiments:
                remedy = suggestion(name, self.experiments)
                raise at.error(f"no experiment is named {name!r}", remedy)
            seen.add(name)
            written = self.experiments[name]
            body = self._body(written)
            bodies.insert(0, (written, body))
            at = body.get("from")
        return bodies

    def _body(self, written: Node) -> dict[str, Node]:
        errors: list[SfumatoError] = []
        body = _mapping(written, errors)
        known = ["from", "set", "pipeline", *BODY]
        for key in body:
            if key not in known:
                remedy = "put it under `set`" if key in SLOTS else suggestion(key, known)
                errors.append(body[key].error("unknown key of an experiment", remedy))
        if "set" in body:
            _mapping(body["set"], errors)
        if errors:
            raise ConfigError.joined(errors)
        return body

    def _pipeline_tree(self, named: Node | str) -> Node:
        name = named if isinstance(named, str) else str(named.value)
        if name not in self.pipelines:
            at = named if isinstance(named, Node) else Node(None)
            raise at.error(f"no pipeline is named {name!r}", suggestion(name, self.pipelines))
        written = self.pipelines[name]
        errors: list[SfumatoError] = []
        for key, child in _mapping(written, errors).items():
            if key not in SLOTS:
                errors.append(child.error("unknown slot of a pipeline", suggestion(key, SLOTS)))
            elif isinstance(child.value, dict) and "use" not in child.value:
                errors.append(child.error("expected a name or {use: NAME, ...}"))
        if errors:
            raise ConfigError.joined(errors)
        return self._expand(written, PipelineSettings)

    def _expand(self, node: Node, hint: Any, inside: tuple[str, ...] = ()) -> Node:
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
                raise self._not_an_entry(hint.kind, entry)
            return self._expand(entry, hint, (*inside, name))
        if isinstance(node.value, list) and get_origin(hint) is tuple:
            item = get_args(hint)[0]
            children = [self._expand(child, item, inside) for child in node.value]
            return attrs.evolve(node, value=children)
        if isinstance(node.value, dict):
            node = self._stage(node, hint, None)
            hint_of = self._hints(node, hint)
            value = {k: self._expand(n, hint_of(k), inside) for k, n in node.value.items()}
            return attrs.evolve(node, value=value)
        return node

    def _merge(self, base: Node | None, change: Node, hint: Any) -> Node:
        """`base` with `change` laid over it."""
        hint = settings.bare(hint)
        if isinstance(change.value, dict) and base is not None and isinstance(base.value, list):
            return self._merge_items(base, change, hint)
        if not isinstance(change.value, dict) or "use" in change.value:
            return self._expand(change, hint)
        if base is None or not isinstance(base.value, dict):
            base = attrs.evolve(change, value={})
        change = self._stage(change, hint, base)
        hint_of, merged = self._hints(base, hint), dict(base.value)
        for key, child in change.value.items():
            before = base.value.get(key) or self._default(base, hint, key)
            merged[key] = self._merge(before, child, hint_of(key))
        return attrs.evolve(base, value=merged)

    def _merge_items(self, base: Node, change: Node, hint: Any) -> Node:
        items = list(base.value)
        item = get_args(hint)[0] if get_args(hint) else None
        for key, child in change.value.items():
            if not key.isdecimal() or int(key) >= len(items):
                raise child.error(f"expected an index below {len(items)}")
            items[int(key)] = self._merge(items[int(key)], child, item)
        return attrs.evolve(base, value=items)

    def _default(self, node: Node, hint: Any, key: str) -> Node | None:
        """What an option is where nothing says so, for a change that reaches inside it."""
        field = self._fields(node, hint).get(key)
        default: Any = attrs.NOTHING if field is None else field.default
        if hasattr(default, "factory"):
            default = default.factory()
        if default is attrs.NOTHING:
            return None
        return document.node(settings.plain(default), "default")

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
        """The fields of the component that `use` names; structuring says where it names none."""
        used = value.get("use")
        if used is None or not isinstance(used.value, str):
            return {}
        try:
            return settings.fields(self.catalogue.find(interface.kind, used.value, used))
        except ConfigError:
            return {}

    def _stage(self, node: Node, hint: Any, base: Node | None) -> Node:
        """In a stage, options of the objective stand beside those of the loop: moves them in."""
        if hint is not Stage:
            return node
        loop = settings.fields(Stage)
        objective = loop["objective"].type
        inner: dict[str, Node] = {}
        if "objective" in node.value:
            chosen = self._expand(node.value["objective"], objective)
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


def _mapping(node: Node, errors: list[SfumatoError]) -> dict[str, Node]:
    if isinstance(node.value, dict):
        return dict(node.value)
    errors.append(node.error("expected a mapping"))
    return {}


def _lines(error: SfumatoError) -> list[str]:
    return str(error).splitlines()


def _rank(override: str) -> tuple[bool, int]:
    """Swaps come before options: a stage's objective first, then the shorter path."""
    path = override.partition("=")[0].strip()
    return not path.endswith(".objective"), path.count(".")


def _override(text: str) -> Node:
    """`guidance.scale=7.5` as a tree."""
    path, equals, value = text.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise ConfigError("expected PATH=VALUE", place=f"--set {text}")
    node = document.read(value, "--set", keys, lines=False)
    for i in range(len(keys) - 1, -1, -1):
        node = Node({keys[i]: node}, "--set", keys[:i])
    return node
