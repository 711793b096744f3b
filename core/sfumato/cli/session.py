"""What the options before the command say, and what follows from them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.plugins import Catalogue
    from sfumato.registry import Registry


def _each_once(overrides: list[str] | None) -> list[str] | None:
    """Refuses to choose between two values of one path."""
    given: dict[str, str] = {}
    for text in overrides or []:
        path = text.partition("=")[0].strip()
        if path in given:
            remedy = "give one of them"
            raise ConfigError(
                f"is given twice, first as {given[path]}", place=f"--set {text}", remedy=remedy
            )
        given[path] = text
    return overrides


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="PATH=VALUE; may be repeated.", callback=_each_once),
]

Device = Annotated[str | None, typer.Option(help="As torch names it.")]
Locked = Annotated[
    bool, typer.Option("--locked", help="Refuse plugins other than those of RUN/plugins.lock.")
]


@attrs.frozen
class Session:
    """One call of the command line."""

    files: tuple[Path, ...] = ()
    registry_path: Path | None = None

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """What is installed, with the local plugin files; loaded once."""
        from sfumato import plugins

        return plugins.load(self.files)

    def registry(self) -> Registry:
        """The registry that was named, else ./registry.yaml, else the packaged one."""
        from sfumato.registry import Registry

        path = self.registry_path
        if path is None and Path("registry.yaml").is_file():
            path = Path("registry.yaml")
        return Registry.load(path, self.catalogue)
