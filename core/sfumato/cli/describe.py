"""`sfumato describe`: what a component is and which options it has."""

from __future__ import annotations

import inspect
from typing import Annotated

import attrs
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
        required = field.default is attrs.NOTHING
        default = "required" if required else f"default {settings.plain(field.default)}"
        allowed = str(settings.bounds(field))
        kind_of = settings.type_name(field.type)
        if allowed and not allowed.startswith("one of"):
            kind_of += f" {allowed}"
        typer.echo(f"  {field.name}: {kind_of}, {default}")
        typer.echo(f"      {field.metadata.get('doc', '')}")
