"""`sfumato check`: do the components of a plugin keep the laws of their kinds?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.errors import ConfigError, PluginError, suggestion

if TYPE_CHECKING:
    from sfumato.plugins import Catalogue, Offer


def command(
    context: typer.Context,
    plugin: Annotated[
        str,
        typer.Argument(
            metavar="DIST|FILE", help="A distribution, DIST:NAME for one component, or a file."
        ),
    ],
    draws: Annotated[
        int | None, typer.Option(min=0, help="Option sets drawn for each component.")
    ] = None,
) -> None:
    """Hold each component that a plugin offers to the laws of its kind; ends with 1 if one breaks
    a law.
    """
    offers = offered(plugin, context.obj.catalogue)
    from sfumato.testing import conformance

    draws = conformance.DRAWS if draws is None else draws
    broken = False
    for offer in sorted(offers, key=lambda o: (o.component.kind, o.component.name)):
        kind, name = offer.component.kind, offer.component.name
        if not conformance.laws(kind):
            typer.echo(f"no laws {kind} {name}")
            continue
        try:
            report = conformance.check(offer.component, draws=draws)
        except conformance.LawsBroken as failures:
            broken = True
            typer.echo(str(failures))
        else:
            kept = _counted(len(report.laws), "law")
            typer.echo(f"ok {kind} {name}: {kept}, {_counted(report.option_sets, 'option set')}")
    if broken:
        raise typer.Exit(1)


def offered(plugin: str, catalogue: Catalogue) -> list[Offer]:
    """What a file, a distribution or a qualified name offers.

    Raises:
        ConfigError: nothing of that name is installed and enabled.
        PluginError: the file or the distribution is broken.
    """
    from sfumato import plugins

    if plugin.endswith(".py"):
        return list(plugins.load([Path(plugin)], entry_points=[]).offers)
    distribution, _, name = plugin.partition(":")
    wanted = plugins.normalised(distribution)
    for left_out in catalogue.broken:
        if plugins.normalised(left_out.distribution) == wanted:
            raise PluginError(left_out.cause, place=str(left_out.origin))
    for origin in catalogue.disabled:
        if plugins.normalised(origin.distribution) == wanted:
            remedy = f"take the name out of {plugins.DISABLE}"
            raise ConfigError("is disabled", place=str(origin), remedy=remedy)
    offers = [o for o in catalogue.offers if plugins.normalised(o.distribution) == wanted]
    if not offers:
        installed = {offer.distribution for offer in catalogue.offers}
        remedy = suggestion(distribution, installed)
        raise ConfigError(f"no plugin {distribution!r} is installed", remedy=remedy)
    named = [offer for offer in offers if not name or offer.component.name == name]
    if not named:
        remedy = suggestion(name, {offer.component.name for offer in offers})
        raise ConfigError(f"{distribution} offers no component {name!r}", remedy=remedy)
    return named


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
