"""`sfumato reproduce`: a run trained once more, and what of it came out equal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.session import Device, Locked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sfumato.reproduction import Compared


def command(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that was trained to its end.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The new run folder; by default runs/NAME-again, or the next free."),
    ] = None,
    device: Device = None,
    locked: Locked = False,
) -> None:
    """Train a run again from its own settings; 1 where log, results or weights differ."""
    registry = context.obj.registry()
    from sfumato import reproduction, runs
    from sfumato.interruption import Interruption, Preempted
    from sfumato.training import train

    first = runs.Run.open(run)
    experiment = reproduction.experiment(first, registry)
    found = reproduction.facts(first, registry, int(os.environ.get("WORLD_SIZE", "1")), locked)
    threads = first.record().get("threads")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    out = out or runs.free_path(Path("runs") / f"{experiment.name}-again")
    asked = Interruption()
    try:
        with asked.handlers():
            for _ in train(
                experiment, out, device=device, catalogue=registry.catalogue, interruption=asked
            ):
                pass
    except Preempted as end:
        typer.echo(str(end), err=True)
        raise typer.Exit(end.exit_code) from None
    if os.environ.get("RANK", "0") != "0":
        return  # the first of several ranks tells
    found += reproduction.compare(first, runs.Run.open(out))
    typer.echo(_table(found))
    if not all(one.equal for one in found if one.decides):
        typer.echo(f"{first.path} is not reproduced by {out}")
        raise typer.Exit(1)
    typer.echo(f"{first.path} is reproduced by {out}, bit for bit")


def _table(found: Sequence[Compared]) -> str:
    width = max(len(one.what) for one in found)
    lines = (
        f"{one.what:<{width}}  {'equal' if one.equal else 'DIFFERS'}  {one.said}" for one in found
    )
    return "\n".join(line.rstrip() for line in lines)
