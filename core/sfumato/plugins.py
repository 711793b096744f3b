"""Who offers what: plugins are discovered, isolated and listed in a catalogue.

Entry points of the group `sfumato` are listed without importing; each is then imported and admitted
on its own, so that a broken plugin is left out whole, named with its cause, and touches no other.
There is no global: every call of `load` makes a new catalogue. The environment has a say:

    SFUMATO_DISABLE_PLUGINS=dist[,dist]  leaves these distributions out, without importing them
    SFUMATO_TRACE_PLUGINS=1              shows what each plugin brings, how long it takes to load,
                                         and the traceback of one that breaks
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING

import attrs

from sfumato.admission import Origin, Plugin, admit
from sfumato.errors import AmbiguousError, ConfigError, PluginError, cause, suggestion
from sfumato.interfaces import Component
from sfumato.watchers import Watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from sfumato.document import Node

OURS = "sfumato"
"""The distribution whose components keep their plain names in the settings of a run."""

DISABLE, TRACE = "SFUMATO_DISABLE_PLUGINS", "SFUMATO_TRACE_PLUGINS"


@attrs.frozen(kw_only=True)
class Broken:
    """A plugin that was left out, and why."""

    origin: Origin
    cause: str

    @property
    def distribution(self) -> str:
        """Whose it is."""
        return self.origin.distribution

    @property
    def version(self) -> str:
        """Of the distribution."""
        return self.origin.version


@attrs.frozen(kw_only=True)
class Offer:
    """A component class and the plugin that brought it."""

    component: type[Component]
    plugin: Plugin

    @property
    def distribution(self) -> str:
        """Who brought it."""
        return self.plugin.origin.distribution

    @property
    def version(self) -> str:
        """Of the distribution."""
        return self.plugin.origin.version

    @property
    def qualified(self) -> str:
        """The name that no other distribution can take: `distribution:name`."""
        return f"{self.distribution}:{self.component.name}"


@attrs.frozen(eq=False)
class Catalogue:
    """The plugins that work, those that are broken, and those that were disabled."""

    plugins: tuple[Plugin, ...]
    broken: tuple[Broken, ...] = ()
    disabled: tuple[Origin, ...] = ()

    @functools.cached_property
    def offers(self) -> tuple[Offer, ...]:
        """Every component with its plugin."""
        return tuple(
            Offer(component=c, plugin=plugin) for plugin in self.plugins for c in plugin.components
        )

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
            count = "two" if len(found) == 2 else str(len(found))
            problem = f"{count} plugins offer the {kind} {name!r}"
            raise AmbiguousError(problem, place=at.place, remedy=f"write {ways}")
        remedy = suggestion(
            name, [o.qualified for o in offers] if ":" in name else self.names(kind)
        )
        raise at.error(f"no {kind} is named {name!r}", remedy + self._left_out())

    def _left_out(self) -> str:
        """Whose components are missing, since one of them may have been meant."""
        parts = []
        if self.broken:
            listed = ", ".join(f"{b.origin} ({b.cause})" for b in self.broken)
            parts.append(f" (left out as broken: {listed})")
        if self.disabled:
            listed = ", ".join(map(str, self.disabled))
            parts.append(f" (disabled: {listed}; to enable, take the name out of {DISABLE})")
        return "".join(parts)

    def use(self, component: type[Component]) -> str:
        """What `use` has to say so that `find` gives this class again, also after more has been
        installed: `distribution:name`, but the plain name for what comes with sfumato or from a
        file, as long as no other plugin offers it.
        """
        alike = [
            offer
            for offer in self.offers
            if (offer.component.kind, offer.component.name) == (component.kind, component.name)
        ]
        own = next((offer for offer in alike if offer.component is component), None)
        if own is None:
            return component.name
        plain = own.distribution == OURS or not own.plugin.origin.entry_point
        return component.name if plain and len(alike) == 1 else own.qualified

    def watchers(self) -> Watchers:
        """The plugins, ready to be told what happens in a run."""
        watchers = Watchers()
        for plugin in self.plugins:
            watchers.add(f"plugin {plugin.origin}", functools.partial(getattr, plugin, "module"))
        return watchers


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
        ConfigError: one of `files` is not there or not Python.
        PluginError: one of `files` cannot be loaded.
    """
    plugins: list[Plugin] = []
    broken: list[Broken] = []
    if entry_points is None:
        entry_points = _installed(broken)
    found = sorted(((_origin(entry), entry) for entry in entry_points), key=_place)
    switched_off = _switched_off({origin.distribution for origin, _ in found})
    disabled: dict[str, Origin] = {}
    for origin, entry in found:
        if origin.distribution in switched_off:
            disabled.setdefault(origin.distribution, origin)
            continue
        try:
            plugins.append(_traced(origin, _module(entry), entry.load, plugins))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of a compiled extension is no Exception
            broken.append(Broken(origin=origin, cause=f"{entry.value}: {cause(error)}"))
    for file in files:
        if not file.is_file() or file.suffix != ".py":
            problem = "is not a Python file" if file.exists() else "there is no such file"
            raise ConfigError(problem, place=str(file))
        origin = Origin(distribution=file.name, version="", entry_point="")
        if any(plugin.origin == origin for plugin in plugins):
            problem = "another plugin file has this name"
            raise PluginError(problem, place=str(file), remedy="rename one of them")
        name = f"sfumato_file_{file.stem}"
        try:
            get = functools.partial(_import_file, file, name)
            plugins.append(_traced(origin, name, get, plugins))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(cause(error), place=str(file)) from error
    return Catalogue(tuple(plugins), tuple(broken), tuple(disabled.values()))


def _installed(broken: list[Broken]) -> list[importlib.metadata.EntryPoint]:
    """The entry points of every installed distribution, as Python itself would find them.

    A distribution whose list cannot be read joins `broken` instead of hiding all others.
    """
    entries: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or "unknown"
        if name in entries:
            continue  # an earlier place on the path wins
        try:
            entries[name] = list(distribution.entry_points.select(group="sfumato"))
        except (ValueError, TypeError, AttributeError, OSError) as error:
            entries[name] = []
            if _may_be_a_plugin(distribution):
                origin = Origin(distribution=name, version=distribution.version, entry_point="")
                problem = f"entry_points.txt cannot be read: {cause(error)}"
                broken.append(Broken(origin=origin, cause=problem))
    return [entry for found in entries.values() for entry in found]


def _may_be_a_plugin(distribution: importlib.metadata.Distribution) -> bool:
    """Whether a list of entry points that cannot be read has a section for us."""
    try:
        return "[sfumato]" in (distribution.read_text("entry_points.txt") or "")
    except UnicodeDecodeError:
        return True


def _module(entry: importlib.metadata.EntryPoint) -> str:
    """What an entry point imports."""
    return entry.value.partition(":")[0].strip()


def _origin(entry: importlib.metadata.EntryPoint) -> Origin:
    name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
    return Origin(
        distribution=name or "unknown",  # damaged metadata states neither
        version=version or "",
        entry_point=f"{entry.name} = {entry.value}",
    )


def _place(found: tuple[Origin, object]) -> tuple[str, str]:
    """Plugins are loaded in the order of their names, so that two machines agree."""
    return found[0].distribution, found[0].entry_point


def _switched_off(installed: set[str]) -> set[str]:
    """Those of the installed distributions that the environment disables."""
    known = {normalised(name): name for name in installed}
    asked = [name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()]
    for name in asked:
        if normalised(name) not in known:
            remedy = suggestion(name, installed)
            warnings.warn(f"{DISABLE}: {name!r} brings no plugin; {remedy}", stacklevel=3)
    return {known[normalised(name)] for name in asked if normalised(name) in known}


def normalised(distribution: str) -> str:
    """Names are compared as package indexes do: `My_Plugin` is `my-plugin`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _traced(
    origin: Origin, name: str, get: Callable[[], object], earlier: Sequence[Plugin]
) -> Plugin:
    """`admit`, which shows on standard error what happens where the environment asks for it."""
    if os.environ.get(TRACE, "0").lower() in ("", "0", "false", "no", "off"):
        return admit(origin, name, get, earlier)
    began = time.perf_counter()

    def show(found: str) -> None:
        took = f"{1000 * (time.perf_counter() - began):.1f} ms"
        sys.stderr.write(f"plugin {origin}: {origin.entry_point or name}: {took}: {found}\n")

    try:
        plugin = admit(origin, name, get, earlier)
    except BaseException as error:
        show(f"left out: {cause(error)}\n{''.join(traceback.format_exception(error))}".rstrip())
        raise
    show(", ".join(f"{c.kind} {c.name}" for c in plugin.components) or "no components")
    return plugin


def _import_file(file: Path, name: str) -> object:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "every .py file has one"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # attrs resolves the types of options through it
    spec.loader.exec_module(module)
    return module
