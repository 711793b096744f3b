"""`sfumato import`: weights of another program become a run folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sfumato.errors import ConfigError


def command(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of another program.")],
    name: Annotated[
        str | None, typer.Option(help="Of the run; by default that of the folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; by default runs/NAME, or the next free.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="By default the one that recognises the folder.")
    ] = None,
) -> None:
    """Make a run of weights that another program has written; nothing is built before all fits."""
    from sfumato.exchange import import_run
    from sfumato.runs import free_path

    if name is not None and Path(name).name != name:
        remedy = "give a plain name, and --out for a place elsewhere"
        raise ConfigError("is not the name of a run", place=f"--name {name!r}", remedy=remedy)
    path = out or free_path(Path("runs") / (name or folder.resolve().name))
    run = import_run(folder, path, name=name, layout=layout, catalogue=context.obj.catalogue)
    record = run.record()
    for remark in record["imported"]["left_out"]:
        typer.echo(remark)
    sizes = ", ".join(f"{slot} {count:,}" for slot, count in record["parameters"].items())
    typer.echo(f"Imported {folder} (parameters: {sizes}) into {run.path}")
    typer.echo(f'Try: {shlex.join([sys.argv[0], "sample", str(run.path)])} "A PROMPT"')
