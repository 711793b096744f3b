"""Finding a class of diffusers, and holding what is said of it to its signature."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from sfumato import ConfigError, suggestion

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def diffusers() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        remedy = 'pip install "sfumato[diffusers]"'
        raise ConfigError("diffusers is not installed", remedy=remedy) from error
    return diffusers


def subclass(name: str, base: str, place: str) -> Any:
    """The class of this name, by its own name and of this base class of diffusers.

    Raises:
        ConfigError: there is none, or it needs a library that is not installed.
    """
    library = diffusers()
    found = getattr(library, name, None) if name.isidentifier() else None
    parent = getattr(library, base)
    if missing := getattr(found, "_backends", ()):  # what diffusers has in place of the class
        needed = ", ".join(missing)
        raise ConfigError(f"{name} needs {needed}", place=place, remedy=f"install {needed}")
    if not (isinstance(found, type) and issubclass(found, parent)) or found is parent:
        version = library.__version__
        raise ConfigError(f"diffusers {version} has no {base} {name!r}", place=place)
    return found


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    """Its named parameters, without `self`."""
    found = dict(inspect.signature(function).parameters)
    found.pop("self", None)
    return {name: one for name, one in found.items() if one.kind is not one.VAR_KEYWORD}


def check_names(
    given: Mapping[str, Any], known: Collection[str], owned: Collection[str], place: str, owner: str
) -> None:
    """Raises ConfigError for the first name that is not known, or whose value `owner` says."""
    for name in given:
        if name in owned:
            raise ConfigError(f"{name!r} follows from {owner}", place=place, remedy="leave it out")
        if name not in known:
            raise ConfigError(
                f"unknown option {name!r}", place=place, remedy=suggestion(name, known)
            )
