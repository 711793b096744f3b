"""`sfumato describe`: what a component is and which options it has."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer


def command(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="Such as noise_schedule.")],
    name: Annotated[str, typer.Argument(help="Such as linear.")],
) -> None:
    """Show the options, types, bounds, defaults and paper of a component."""
    from sfumato import settings

    component = context.obj.catalogue.find(kind, name)
    typer.echo(f"{kind} {name} ({component.__module__}.{component.__qualname__})\n")
    typer.echo(inspect.cleandoc(component.__doc__ or "") + "\n")
    fields = settings.fields(component)
    typer.echo("Options:" if fields else "No options.")
    for field in fields.values():
        said = settings.describe(field)
        default = said.default if said.default == "required" else f"default {said.default}"
        typer.echo(f"  {field.name}: {' '.join(filter(None, (said.type, said.bounds)))}, {default}")
        typer.echo(f"      {said.doc}")
