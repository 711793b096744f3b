"""`sfumato report`: runs as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.errors import ConfigError


def command(
    context: typer.Context,
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders or packaged models.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The page; by default RUN/report.html, of several runs ./report.html."),
    ] = None,
    studies: Annotated[
        bool, typer.Option(help="Make explaining pictures that a run does not have yet.")
    ] = True,
    device: Annotated[str | None, typer.Option(help="That these are made on.")] = None,
) -> None:
    """Write one HTML page about runs: what differs, curves, results, samples, explanations."""
    paths = [_folder(run) for run in runs]
    from sfumato.report import report
    from sfumato.runs import Run

    folder = Run(paths[0]).outputs("report.html") if len(paths) == 1 else Path("report.html")
    out = out or folder
    registry = context.obj.registry()
    for problem in report(paths, out, registry, studies=studies, device=device):
        typer.echo(f"warning: {problem}", err=True)
    typer.echo(str(out))


def _folder(run: str) -> Path:
    """Where a run is; any folder will do, since the page says what is wrong with it."""
    from sfumato import references

    if Path(run).is_dir() and not references.is_run(run):
        return Path(run)
    try:
        return references.located(run)
    except ConfigError as error:
        if Path(run).exists():
            raise
        remedy = "name a run folder, or train one first"
        raise ConfigError("there is no such run", place=run, remedy=remedy) from error
