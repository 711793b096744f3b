"""`sfumato lock`: which plugins are installed, written down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The file; replaced where it is there.")] = Path(
        "plugins.lock"
    ),
) -> None:
    """Write plugins.lock: version and source hash of every plugin, for `--locked` to hold to."""
    from sfumato import lock
    from sfumato.errors import ConfigError

    catalogue = context.obj.catalogue
    try:
        written = lock.write(out, catalogue)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", place=str(out)) from error
    typer.echo(f"{out}: {len(written.plugins)} plugins")
    for one in catalogue.broken:
        typer.echo(f"left out: {one.origin}: {one.cause}", err=True)
