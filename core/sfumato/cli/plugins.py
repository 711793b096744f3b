"""`sfumato plugins`: who offers what, and what is broken."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List every installed component, and the plugins that were left out."""
    catalogue = context.obj.catalogue
    offers = sorted(catalogue.offers, key=lambda o: (o.component.kind, o.component.name))
    components = [
        {
            "kind": offer.component.kind,
            "name": offer.component.name,
            "distribution": offer.distribution,
            "version": offer.version,
        }
        for offer in offers
    ]
    broken = [
        {"distribution": b.distribution, "version": b.version, "cause": b.cause}
        for b in catalogue.broken
    ]
    if as_json:
        typer.echo(json.dumps({"components": components, "broken": broken}, indent=1))
        return
    for offer in offers:
        component = offer.component
        summary = (component.__doc__ or "").strip().partition("\n")[0]
        typer.echo(f"{component.kind:<15} {component.name:<18} {offer.distribution:<12} {summary}")
    for one in catalogue.broken:
        typer.echo(f"left out: {one.distribution} {one.version}: {one.cause}", err=True)
