"""`sfumato plan`: what an experiment would ask of a machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from sfumato.cli.session import Overrides

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sfumato.footprint import Footprint


def command(
    context: typer.Context,
    experiment: Annotated[str, typer.Argument(help="Its name in the registry.")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show parameters, FLOP, memory and checkpoint size of an experiment, without training it."""
    settings = context.obj.registry().experiment(experiment, overrides or [])
    from sfumato import footprint

    found = footprint.measure(settings, context.obj.catalogue)
    if as_json:
        typer.echo(json.dumps(attrs.asdict(found), indent=1))
        return
    typer.echo(f"{experiment}: {found.examples:,} examples an epoch")
    for line in _lines(found):
        typer.echo(line)


def _lines(found: Footprint) -> Iterator[str]:
    from sfumato.memory import scaled

    for slot, count in found.parameters.items():
        yield f"  {slot:<14}{count:>16,} parameters"
    yield f"  {'checkpoint':<14}{scaled(found.checkpoint):>16}B"
    for name, stage in found.stages.items():
        yield f"stage {name}: {stage.steps:,} steps of {stage.batch}, {stage.epochs:,.2f} epochs"
        yield f"  {'trains':<14}{stage.parameters:>16,} parameters of {stage.trains}"
        yield f"  {'a step':<14}{scaled(stage.flops):>16}FLOP"
        yield f"  {'in all':<14}{scaled(stage.flops * stage.steps):>16}FLOP"
        for part in (
            "weights",
            "gradients",
            "optimizer",
            "average",
            "activations",
            "peak",
            "checkpoint",
        ):
            yield f"  {part:<14}{scaled(getattr(stage, part)):>16}B"
