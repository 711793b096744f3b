"""`sfumato plugins`: who offers what, and what is broken or disabled."""

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
    disabled = [
        {"distribution": one.distribution, "version": one.version} for one in catalogue.disabled
    ]
    if as_json:
        listed = {"components": components, "broken": broken, "disabled": disabled}
        typer.echo(json.dumps(listed, indent=1))
        return
    for offer in offers:
        component = offer.component
        summary = (component.__doc__ or "").strip().partition("\n")[0]
        typer.echo(f"{component.kind:<15} {component.name:<18} {offer.distribution:<12} {summary}")
    for one in catalogue.broken:
        typer.echo(f"left out: {one.origin}: {one.cause}", err=True)
    for one in catalogue.disabled:
        typer.echo(f"disabled: {one}", err=True)
