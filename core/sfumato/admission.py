"""What a plugin must be before anything of it is used: the right plugin API, hooks that exist,
components that are whole. What breaks a rule is raised, and nothing of the plugin is kept.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sfumato.errors import PluginError
from sfumato.hookspecs import manager_of
from sfumato.interfaces import KINDS, Component

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

API = 1
"""The plugin API that this version of sfumato speaks; a plugin states the one it was built for."""

OLDEST_API = 1
"""The oldest plugin API that is still served; `docs/plugin-api.md` says for how long."""


@attrs.frozen(kw_only=True)
class Origin:
    """Where a plugin comes from.

    Attributes:
        distribution: as installed; the name of a local file.
        version: of the distribution; empty for a file.
        entry_point: `name = module`; empty for a file.
    """

    distribution: str
    version: str
    entry_point: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()


@attrs.frozen(kw_only=True, eq=False)
class Plugin:
    """A plugin that works.

    Attributes:
        origin: where it comes from.
        api: the plugin API that it was built for.
        module: the object with its hooks.
        source: the folder of its package, or the file of a module that stands in none.
        components: what it offers.
    """

    origin: Origin
    api: int
    module: object
    source: Path
    components: tuple[type[Component], ...]


def admit(
    origin: Origin, name: str, get: Callable[[], object], earlier: Sequence[Plugin]
) -> Plugin:
    """Imports a plugin and checks all of it.

    Args:
        origin: where it comes from.
        name: of the module that its code stands in.
        get: imports it.
        earlier: those that were admitted before.

    Raises:
        PluginError: it breaks a rule; whatever importing or asking it raises is let through.
    """
    with contextlib.redirect_stdout(sys.stderr):  # our own output may be read by programs
        module: Any = get()
    for other in earlier:
        if other.module is module:
            same = other.origin.distribution == origin.distribution
            remedy = "one entry point is enough" if same else "uninstall one of the two"
            whose = f"{other.origin} ({other.origin.entry_point})"
            raise PluginError(f"is the same module as that of {whose}", remedy=remedy)
    api = _checked_api(origin, module)
    offers = manager_of(module).hook.sfumato_components()
    if not offers and hasattr(module, "sfumato_components"):
        raise PluginError("sfumato_components returned nothing", remedy="return a list of classes")
    components = tuple(component for offered in offers for component in offered)
    for component in components:
        _check_component(component)
    siblings = [p for p in earlier if p.origin.distribution == origin.distribution]
    _check_names(components, [c for plugin in siblings for c in plugin.components])
    return Plugin(
        origin=origin, api=api, module=module, source=_source(name), components=components
    )


def _checked_api(origin: Origin, module: Any) -> int:
    """The plugin API that a module states; a local file need not."""
    stated: Any = getattr(module, "SFUMATO_API", None if origin.entry_point else API)
    if stated is None:
        remedy = f"write SFUMATO_API = {API}, the plugin API that it was written for"
        raise PluginError("states no SFUMATO_API", remedy=remedy)
    if type(stated) is not int:
        raise PluginError(f"states SFUMATO_API = {stated!r}", remedy="expected a whole number")
    if OLDEST_API <= stated <= API:
        return stated
    served = str(API) if OLDEST_API == API else f"{OLDEST_API} to {API}"
    late = "sfumato" if stated > API else origin.distribution
    raise PluginError(
        f"was built for plugin API {stated}, and this sfumato serves {served}",
        remedy=f"upgrade {late}: pip install --upgrade {late}",
    )


def _check_component(component: Any) -> None:
    if not (inspect.isclass(component) and issubclass(component, Component)):
        raise PluginError(f"sfumato_components returned {component!r}, not a component class")
    interface = KINDS.get(getattr(component, "kind", ""))
    if interface is None or not issubclass(component, interface) or "name" not in vars(component):
        raise PluginError(f"{component.__name__} states no name, or derives from no interface")
    if problem := name_problem(component.name):
        raise PluginError(f"{component.__name__} is named {component.name!r}, {problem}")
    if inspect.isabstract(component):
        missing = ", ".join(sorted(component.__abstractmethods__))
        raise PluginError(f"{component.__name__} does not implement {missing}")
    if "__attrs_attrs__" not in vars(component):
        raise PluginError(
            f"{component.__name__} is not an attrs class (attrs.frozen(kw_only=True))"
        )
    _check_options(component)


def name_problem(name: object) -> str | None:
    """What is wrong with the name of a component, which `use` has to be able to say; or None."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.+-]*", name):
        return "and a name is a word that begins with a letter"
    if name in ("true", "false", "null"):
        return "which YAML does not read as text"
    return None


def _check_options(component: type[Component]) -> None:
    """Types that resolve, no option called `use`, defaults that their own validators take."""
    typing.get_type_hints(component)
    fields: Any = component
    for field in attrs.fields(fields):
        place = f"option {field.name!r} of {component.__name__}"
        if field.name == "use":
            raise PluginError(f"{place}: in YAML `use` names the component", remedy="rename it")
        default: Any = field.default
        if field.validator is None or default is attrs.NOTHING or hasattr(default, "factory"):
            continue
        try:
            field.validator(None, field, default)
        except (ValueError, TypeError) as error:
            raise PluginError(f"{place}: its default is refused: {error.args[0]}") from error


def _check_names(
    components: Sequence[type[Component]], siblings: Sequence[type[Component]]
) -> None:
    """`distribution:name` has to mean one component, so a distribution offers a name once."""
    taken = {(c.kind, c.name): c for c in siblings}
    for component in components:
        key = (component.kind, component.name)
        if key in taken:
            raise PluginError(
                f"{taken[key].__name__} and {component.__name__} are both the {component.kind} "
                f"{component.name!r} of one distribution",
                remedy="rename one",
            )
        taken[key] = component


def _source(name: str) -> Path:
    """Where a module's code stands: the folder of the outermost package around it, or its file.

    A namespace package, which distributions share, is no such package.
    """
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = importlib.util.find_spec(".".join(parts[:end]))
        if spec is not None and spec.has_location and spec.origin is not None:
            file = Path(spec.origin)
            return file if spec.submodule_search_locations is None else file.parent
    raise PluginError(f"the source of {name} cannot be found")
