"""`sfumato schema`: the registry language, for editors."""

from __future__ import annotations

import typer


def command(context: typer.Context) -> None:
    """Print the JSON Schema of registry.yaml, made from the installed components."""
    from sfumato import schema

    typer.echo(schema.text(context.obj.catalogue))
