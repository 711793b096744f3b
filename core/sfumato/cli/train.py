"""`sfumato train`: an experiment, from its settings to a run folder."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.session import Device, Overrides
from sfumato.errors import ConfigError


def command(
    context: typer.Context,
    experiment: Annotated[
        str, typer.Argument(help="Its name in the registry; or a run, to train on.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run folder; by default runs/NAME, or the next that is free."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, or begin it where none is; a run itself goes on.",
        ),
    ] = False,
    reuse: Annotated[
        Path | None,
        typer.Option(help="Runs whose finished stages are taken where they are the same."),
    ] = None,
    device: Device = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Refuse plugins other than those of ./plugins.lock.")
    ] = False,
) -> None:
    """Train the stages of an experiment, then measure and draw what it learnt."""
    catalogue = context.obj.catalogue
    if locked:
        from sfumato import lock

        lock.check(Path(lock.FILE), catalogue)
    registry = context.obj.registry()
    if resume and out is None and registry.is_run(experiment):
        if overrides:
            raise ConfigError(
                f"what trains on from {experiment} has a run folder of its own",
                place="--resume",
                remedy="name it with --out; without --set, the run itself goes on",
            )
        out, settings = Path(experiment), registry.recorded(experiment)
    else:
        settings = registry.experiment(experiment, overrides or [])
    began = time.monotonic()
    from sfumato.interruption import Interruption, Preempted
    from sfumato.runs import Run, free_path
    from sfumato.training import train

    usual = Path("runs") / settings.name
    out = out or (usual if resume else free_path(usual))
    asked = Interruption()
    try:
        with asked.handlers():
            for _ in train(
                settings,
                out,
                device=device,
                catalogue=catalogue,
                resume=resume,
                interruption=asked,
                reuse=reuse,
            ):
                pass
    except Preempted as end:
        typer.echo(str(end), err=True)
        typer.echo(f"Go on: {command_line(context, 'train', out, '--resume')}")
        raise typer.Exit(end.exit_code) from None
    typer.echo(summary(Run.open(out), time.monotonic() - began))
    typer.echo(f'Try: {command_line(context, "sample", out)} "A PROMPT"')


def command_line(context: typer.Context, *arguments: object) -> str:
    """Another command of ours, with the plugin files of this one."""
    files = [part for file in context.obj.files for part in ("--plugin", str(file))]
    return shlex.join([sys.argv[0], *files, *map(str, arguments)])


def summary(run: Any, seconds: float) -> str:
    """One paragraph that says what was made and where."""
    from sfumato.measurements import flat

    record = run.record()
    sizes = ", ".join(f"{name} {count:,}" for name, count in record["parameters"].items())
    numbers = ", ".join(f"{name} {one}" for name, one in flat(record["results"]).items())
    taken = [
        f" Stage {name} is that of {stage['taken']}."
        for name, stage in record.get("stages", {}).items()
        if "taken" in stage
    ]
    drawn = sorted(path.name for path in run.path.glob("*.png"))
    pictures = (
        f" Pictures, each with its numbers as JSON beside it: {', '.join(drawn)}." if drawn else ""
    )
    return (
        f"\nTrained {record['name']} in {seconds / 60:.1f} minutes (parameters: {sizes}). "
        f"Measured: {numbers or 'nothing'}.{''.join(taken)}{pictures} All of it is in "
        f"{run.path}, the numbers in {run.path / 'run.json'}."
    )
