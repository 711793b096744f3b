"""`sfumato export`: a run laid out as another program reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.session import Overrides


def command(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="A run folder, or a packaged model.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    layout: Annotated[str, typer.Option(help="That of which program.")] = "diffusers",
    overrides: Overrides = None,
) -> None:
    """Write a run as another program lays its weights out, such as diffusers."""
    from sfumato.exchange import export_run

    registry = context.obj.registry()
    export_run(run, folder, layout=layout, overrides=overrides or [], registry=registry)
    typer.echo(str(folder))
