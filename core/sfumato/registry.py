"""registry.yaml: named components, pipelines and experiments, and what overrides make of them.

An experiment is resolved in layers, later wins: registry entry, pipeline, `from`, its own body,
`set`, `--set` (defaults of the classes fill what is left). How one layer lies over another is told
in `layers`. In the place of a pipeline an experiment may name a run to `start` from, whose slots it
takes with the weights.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sfumato import document, plugins, references, runs, settings
from sfumato.document import Node
from sfumato.errors import AmbiguousError, ConfigError, SfumatoError, suggestion
from sfumato.experiment import Experiment, PipelineSettings
from sfumato.interfaces import KINDS
from sfumato.layers import Layers
from sfumato.plugins import Catalogue
from sfumato.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGED = Path(__file__).with_name("registry.yaml")
VERSION = 1

SLOTS = [name for name in settings.fields(PipelineSettings) if name != "sampling"]
BODY = [name for name in settings.fields(Experiment) if name not in (*SLOTS, "name")]
SWEEP = "sweep"

Bodies = list[tuple[Node, dict[str, Node]]]
"""An experiment and those it comes `from`: as written, and its keys."""


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

    @functools.cached_property
    def _layers(self) -> Layers:
        return Layers(self.catalogue, self.entries)

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
        kinds = list(KINDS)
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
        """Resolves and structures all that the file holds.

        A name that several plugins offer is no error of the file, and left to whoever uses it.
        """
        errors: list[SfumatoError] = []

        def attempt(call: Any, *arguments: Any) -> None:
            try:
                call(*arguments)
            except ConfigError as error:
                parts = error.parts or (error,)
                errors.extend(part for part in parts if not isinstance(part, AmbiguousError))

        for (kind, _), entry in self.entries.items():
            attempt(self._component, kind, entry)
        for name in self.pipelines:
            attempt(self.pipeline, name)
        for name in self.experiments:
            attempt(self._check_experiment, name)
        return errors

    def _check_experiment(self, name: str) -> None:
        """What rests on a run is left to whoever uses it: the run may be gone, or still to come."""
        key, _ = _foundation(self._ancestry(Node(name)))
        if key != "start":
            self.experiment(name)
        self.sweep(name)

    def _component(self, kind: str, entry: Node) -> None:
        if not isinstance(entry.value, dict) or "use" not in entry.value:
            raise self._layers.not_an_entry(kind, entry)
        used = entry.value["use"]
        found = self.catalogue.find(kind, str(used.value), used)
        settings.structure(self._layers.expand(entry, found), found, self.catalogue)

    def pipeline(self, name: str) -> PipelineSettings:
        """The components of a pipeline.

        Raises:
            ConfigError: lists every problem, each with its place.
        """
        return settings.structure(self._pipeline_tree(name), PipelineSettings, self.catalogue)

    def experiment(self, name: str, overrides: Sequence[str] = ()) -> Experiment:
        """An experiment, resolved and checked.

        Args:
            name: one of `experiments`; or RUN or RUN@STEP, which is that run once more, started
                from its own weights.
            overrides: `path=value` texts, such as `guidance.scale=7.5`; values are YAML.

        Raises:
            ConfigError: lists every problem, each with its place.
        """
        tree = self.experiment_tree(name, overrides)
        start = tree.value.get("start", Node(None))
        if isinstance(start.value, str):
            runs.Stored.find(start.value, start.place, self.catalogue)
        return self.structure(tree, name)

    def is_run(self, name: str) -> bool:
        """Whether a name is no experiment, and RUN or RUN@STEP."""
        return name not in self.experiments and references.is_run(name)

    def recorded(self, run: str) -> Experiment:
        """The experiment that a run folder is of, as it was begun."""
        return self.structure(runs.Run.open(run).settings(), Path(run).name)

    def sweep(self, name: str) -> Sweep | None:
        """The sweep of an experiment, or of the nearest that it comes `from`; None without one.

        Raises:
            ConfigError: lists every problem, each with its place.
        """
        written = [body[SWEEP] for _, body in self._ancestry(Node(name)) if SWEEP in body]
        return settings.structure(written[-1], Sweep, self.catalogue) if written else None

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
            change = _override(text)
            _check_stage(tree, change)
            tree = self._changed(tree, change)
        return tree

    def _changed(self, tree: Node, change: Node) -> Node:
        if "name" in change.value:
            raise change.value["name"].error("an experiment is named by its key, not by an option")
        return self._layers.merge(tree, change, Experiment)

    def _experiment_tree(self, name: str) -> Node:
        """The nearest pipeline or start, then what each experiment says, from the farthest ancestor
        on.
        """
        if name not in self.experiments and Path(name).name != name and not references.is_run(name):
            problem = f"is neither an experiment nor a run folder: it has no {references.SETTINGS}"
            raise ConfigError(problem, place=name, remedy="train or import it first")
        if self.is_run(name):
            return _started(Node(name, "the run itself", ("start",)))
        bodies = self._ancestry(Node(name))
        tree = attrs.evolve(bodies[-1][0], value=self._slots(bodies))
        for written, body in bodies:
            own = {key: body[key] for key in BODY if key in body}
            tree = self._layers.merge(tree, attrs.evolve(written, value=own), Experiment)
            if "set" in body:
                tree = self._changed(tree, body["set"])
        return tree

    def _slots(self, bodies: Bodies) -> dict[str, Node]:
        key, named = _foundation(bodies)
        if key == "pipeline":
            return dict(self._pipeline_tree(named).value)
        if key == "start":
            found = _started(named).value
            return {name: found[name] for name in (*SLOTS, "sampling") if name in found}
        return {}

    def _ancestry(self, named: Node) -> Bodies:
        """An experiment and those it comes `from`, the farthest first: as written, and its keys."""
        bodies: Bodies = []
        seen: set[str] = set()
        at: Node | None = named
        while at is not None:
            name = at.value
            if not isinstance(name, str):
                raise at.error("expected the name of an experiment")
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
        known = ["from", "set", "pipeline", SWEEP, *BODY]
        for key in body:
            if key not in known:
                remedy = "put it under `set`" if key in SLOTS else suggestion(key, known)
                errors.append(body[key].error("unknown key of an experiment", remedy))
        if "set" in body:
            _mapping(body["set"], errors)
        if "start" in body and not isinstance(body["start"].value, str | None):
            errors.append(body["start"].error("expected RUN or RUN@STEP"))
        if errors:
            raise ConfigError.joined(errors)
        return body

    def _pipeline_tree(self, named: Node | str) -> Node:
        name = named if isinstance(named, str) else named.value
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
        return self._layers.expand(written, PipelineSettings)


def _foundation(bodies: Bodies) -> tuple[str, Node]:
    """Where the slots of an experiment come from: `pipeline` or `start`, whichever is nearer, and
    its value. Beside a pipeline, a start gives weights alone.
    """
    for _, body in reversed(bodies):
        for key in ("pipeline", "start"):
            if key in body and body[key].value is not None:
                return key, body[key]
    return "", Node(None)


def _started(named: Node) -> Node:
    """The settings of a run, starting from its weights: RUN or RUN@STEP.

    How large pictures are is left out, as the data says it.
    """
    run, _ = references.parted(named.value)
    if not references.is_run(named.value):
        problem = f"{run!r} is not a run folder: it has no {references.SETTINGS}"
        raise named.error(problem, "train or import it first, or name another")
    tree = runs.Run.open(run).settings()
    sampling = tree.value.get("sampling", Node({}))
    drawn = {key: child for key, child in sampling.value.items() if key != "size"}
    changes = {"sampling": attrs.evolve(sampling, value=drawn), "start": named}
    return attrs.evolve(tree, value={**tree.value, **changes})


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


def _check_stage(tree: Node, change: Node) -> None:
    """Raises ConfigError where one option is given of a stage that is not there."""
    stages = tree.value.get("stages", Node({})).value
    named = change.value["stages"].value if "stages" in change.value else {}
    for name, stage in named.items() if isinstance(named, dict) else ():
        if isinstance(stage.value, dict) and len(stage.value) == 1 and name not in stages:
            if "objective" not in stage.value:
                remedy = f"a new one is given whole: --set 'stages.{name}={{objective: ..., ...}}'"
                known = ", ".join(stages) or "none"
                raise stage.error(f"there is no such stage; stages: {known}", remedy)


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
