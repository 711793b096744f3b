"""Which plugins there are, to the byte: `plugins.lock`, and what has changed since it was written.

A lock names every plugin that works: distribution, version, entry point, plugin API and a SHA-256
over its Python files. Two machines with equal locks run the same plugins; torch and the rest of the
software are not its business. The hash is that of the lines that `sha256sum` prints for the files,
sorted by name, so that it is the same for a wheel and an editable install.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Literal

import attrs

from sfumato import document, settings
from sfumato.errors import ConfigError
from sfumato.interfaces import option, required

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sfumato.admission import Plugin
    from sfumato.plugins import Catalogue

FILE = "plugins.lock"


@attrs.frozen(kw_only=True)
class Pin:
    """One plugin as it was."""

    distribution: str = required("as installed; the name of a local file")
    version: str = required("of the distribution; empty for a file")
    entry_point: str = required("`name = module`; empty for a file")
    api: int = required("the plugin API that it was built for")
    sha256: str = required("of its Python files")

    @property
    def shown(self) -> str:
        """How messages name it."""
        point = f" ({self.entry_point})" if self.entry_point else ""
        return f"{self.distribution} {self.version}".strip() + point


@attrs.frozen(kw_only=True)
class Lock:
    """What a lock file holds."""

    version: Literal[1] = option(1, "of the format")
    plugins: tuple[Pin, ...] = required("in the order in which they are loaded")


def make(catalogue: Catalogue) -> Lock:
    """The lock of what is installed here and now."""
    pins = (
        Pin(**attrs.asdict(plugin.origin), api=plugin.api, sha256=digest(plugin.source))
        for plugin in catalogue.plugins
    )
    return Lock(plugins=tuple(pins))


def write(path: Path, catalogue: Catalogue) -> Lock:
    """Writes the lock of what is installed.

    Raises:
        OSError: `path` cannot be written.
    """
    lock = make(catalogue)
    path.write_text(json.dumps(attrs.asdict(lock), indent=1) + "\n", encoding="utf-8")
    return lock


def check(path: Path, catalogue: Catalogue, *, recorded: bool = False) -> None:
    """Compares what is installed with a lock.

    Args:
        path: of the lock.
        catalogue: what is installed.
        recorded: whether the lock is the record of a run, which is not to be written again.

    Raises:
        ConfigError: lists every difference, or says that there is no lock at `path`.
    """
    files = "".join(f"--plugin {p.origin.distribution} " for p in _local(catalogue))
    again = "" if recorded else f"sfumato {files}lock --out {path}"
    if not path.is_file():
        remedy = f"write one: {again}" if again else ""
        raise ConfigError("there is no lock", place=str(path), remedy=remedy)
    lock = settings.structure(document.read_file(path), Lock, catalogue)
    lines = [f"{path}: {line}" for line in dict.fromkeys(_differences(lock, catalogue))]
    if lines:
        accept = f"; or, to accept what is installed: {again}" if again else ""
        raise ConfigError("\n".join([*lines, f"install what the lock names{accept}"]))


def _local(catalogue: Catalogue) -> list[Plugin]:
    """The plugins that are files, not installed."""
    return [plugin for plugin in catalogue.plugins if not plugin.origin.entry_point]


def _differences(lock: Lock, catalogue: Catalogue) -> Iterator[str]:
    """A line for each thing that is not as it was; a new version goes with a new source."""
    wanted = {(pin.distribution, pin.entry_point): pin for pin in lock.plugins}
    installed = {(pin.distribution, pin.entry_point): pin for pin in make(catalogue).plugins}
    causes = {(b.distribution, b.origin.entry_point): b.cause for b in catalogue.broken}
    disabled = {origin.distribution for origin in catalogue.disabled}
    for key, pin in wanted.items():
        now = installed.get(key)
        if now is None:
            why = f": left out as broken, {causes[key]}" if key in causes else ""
            why = ": disabled" if pin.distribution in disabled else why
            why = why or ("" if pin.entry_point else "; give it with --plugin")
            yield f"{pin.shown} is missing{why}"
        elif now.version != pin.version:
            yield f"{pin.distribution}: version {pin.version} -> {now.version}"
        elif now.api != pin.api:
            yield f"{pin.shown}: plugin API {pin.api} -> {now.api}"
        elif now.sha256 != pin.sha256:
            yield f"{pin.shown}: source changed"
    yield from (f"{pin.shown} is new" for key, pin in installed.items() if key not in wanted)


def digest(source: Path) -> str:
    """SHA-256 of the lines `HASH  NAME` of the Python files of a package, or of one file; names are
    relative and begin with that of the package.
    """
    files = [source] if source.is_file() else source.rglob("*.py")
    named = sorted(
        (file.relative_to(source.parent).as_posix(), file) for file in files if file.is_file()
    )
    lines = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n" for name, file in named)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
