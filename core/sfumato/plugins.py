"""Who offers what: plugins are discovered, isolated and listed in a catalogue.

Entry points of the group `sfumato` are listed without importing; each is then imported, checked and
asked for its components on its own, so that a broken plugin is left out whole, named with its
cause, and touches no other. There is no global: every call of `load` makes a new catalogue.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pluggy

from sfumato import hookspecs
from sfumato.errors import PluginError, suggestion
from sfumato.interfaces import Component

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from sfumato.document import Node

API = 1
"""The plugin API that this version of sfumato speaks; a plugin states the one it was built for."""


@attrs.frozen(kw_only=True)
class Offer:
    """A component class and the distribution that brought it."""

    component: type[Component]
    distribution: str
    version: str

    @property
    def qualified(self) -> str:
        """The name that no other distribution can take: `distribution:name`."""
        return f"{self.distribution}:{self.component.name}"


@attrs.frozen(kw_only=True)
class Broken:
    """A plugin that was left out, and why."""

    distribution: str
    version: str
    cause: str


@attrs.frozen(eq=False)
class Catalogue:
    """All components that are installed, all plugins that watch, and what is broken."""

    offers: tuple[Offer, ...]
    broken: tuple[Broken, ...]
    plugins: tuple[object, ...]

    def names(self, kind: str) -> list[str]:
        """The names of the components of a kind, sorted."""
        return sorted({o.component.name for o in self.offers if o.component.kind == kind})

    def kinds(self) -> list[str]:
        """The kinds that have a component, sorted."""
        return sorted({offer.component.kind for offer in self.offers})

    def find(self, kind: str, name: str, at: Node | None = None) -> type[Component]:
        """The component class of this kind and name, or `distribution:name`.

        Raises:
            ConfigError: there is none, or two distributions offer it; `at` says where it was asked
                for.
        """
        offers = [o for o in self.offers if o.component.kind == kind]
        found = [o for o in offers if name in (o.component.name, o.qualified)]
        if len(found) == 1:
            return found[0].component
        from sfumato.document import Node  # brings yaml, which listing can do without

        at = at or Node(None, "", (kind,))
        if found:
            ways = " or ".join(repr(offer.qualified) for offer in found)
            raise at.error(f"two plugins offer the {kind} {name!r}", f"write {ways}")
        remedy = suggestion(name, self.names(kind))
        if self.broken:
            left_out = ", ".join(f"{b.distribution} {b.version} ({b.cause})" for b in self.broken)
            remedy += f" (left out as broken: {left_out})"
        raise at.error(f"no {kind} is named {name!r}", remedy)


def load(
    files: Sequence[Path] = (),
    entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
) -> Catalogue:
    """Loads every plugin.

    Args:
        files: local Python files, each a plugin; a broken one raises, since it was asked for by
            name.
        entry_points: the installed plugins; by default those of the group `sfumato`.

    Raises:
        PluginError: one of `files` cannot be loaded.
    """
    offers: list[Offer] = []
    broken: list[Broken] = []
    plugins: list[object] = []
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group="sfumato")
    for entry in sorted(entry_points, key=lambda e: (e.dist.name if e.dist else "", e.name)):
        distribution, version = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
        try:
            plugin, components = _admit(entry.load, api_required=True)
        except (Exception, SystemExit) as error:
            cause = f"{entry.value}: {_cause(error)}"
            broken.append(Broken(distribution=distribution, version=version, cause=cause))
            continue
        plugins.append(plugin)
        offers += [
            Offer(component=c, distribution=distribution, version=version) for c in components
        ]
    for file in files:
        try:
            plugin, components = _admit(partial(_import_file, file), api_required=False)
        except (Exception, SystemExit) as error:
            raise PluginError(_cause(error), place=str(file)) from error
        plugins.append(plugin)
        offers += [Offer(component=c, distribution=file.name, version="") for c in components]
    return Catalogue(tuple(offers), tuple(broken), tuple(plugins))


def _admit(
    get: Callable[[], object], *, api_required: bool
) -> tuple[object, list[type[Component]]]:
    plugin = get()
    api = getattr(plugin, "SFUMATO_API", None if api_required else API)
    if api != API:
        stated = "states no SFUMATO_API" if api is None else f"was built for plugin API {api}"
        raise PluginError(f"{stated}; this sfumato speaks {API}")
    manager = _manager(plugin)
    if not manager.get_hookcallers(plugin):
        raise PluginError("implements no hook; mark each with @hookimpl")
    offers = manager.hook.sfumato_components()
    if not offers and hasattr(plugin, "sfumato_components"):
        raise PluginError("sfumato_components returned nothing; return a list of classes")
    components = [component for offered in offers for component in offered]
    for component in components:
        _check_component(component)
    return plugin, components


def _manager(plugin: object) -> pluggy.PluginManager:
    """A manager of its own for each plugin, so that no plugin can break another's hooks."""
    manager = pluggy.PluginManager("sfumato")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    return manager


def _check_component(component: Any) -> None:
    if not (inspect.isclass(component) and issubclass(component, Component)):
        raise PluginError(f"sfumato_components returned {component!r}, not a component class")
    if not (isinstance(getattr(component, "kind", None), str) and "name" in vars(component)):
        raise PluginError(f"{component.__name__} states no name, or derives from no interface")
    if inspect.isabstract(component):
        missing = ", ".join(sorted(component.__abstractmethods__))
        raise PluginError(f"{component.__name__} does not implement {missing}")
    if "__attrs_attrs__" not in vars(component):
        raise PluginError(
            f"{component.__name__} is not an attrs class (attrs.frozen(kw_only=True))"
        )


def _import_file(file: Path) -> object:
    if not file.is_file():
        raise PluginError("there is no such file")
    name = f"sfumato_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError("is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # attrs resolves the types of options through it
    spec.loader.exec_module(module)
    return module


def _cause(error: BaseException) -> str:
    if isinstance(error, PluginError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


class Watchers:
    """Plugins and trackers that watch a run. One that fails is switched off; the run goes on."""

    def __init__(self, watchers: Iterable[object] = ()) -> None:
        """Each watcher is an object or module with hook implementations."""
        self._managers: dict[str, pluggy.PluginManager] = {}
        for watcher in watchers:
            self.add(getattr(watcher, "__name__", type(watcher).__name__), partial(_same, watcher))

    def add(self, name: str, make: Callable[[], object]) -> None:
        """Adds what `make` makes; a failure is a warning that names it."""
        try:
            self._managers[name] = _manager(make())
        except Exception as error:
            warnings.warn(f"{name} failed to start and is left out: {_cause(error)}", stacklevel=2)

    def notify(self, hook: str, **record: Any) -> None:
        """Calls one lifecycle hook of every watcher with its one record."""
        for name, manager in list(self._managers.items()):
            try:
                getattr(manager.hook, hook)(**record)
            except Exception as error:
                del self._managers[name]
                problem = f"{name} failed in {hook} and is switched off: {_cause(error)}"
                warnings.warn(problem, stacklevel=2)


def _same(watcher: object) -> object:
    return watcher
