"""`sfumato sweep`: one experiment, or one run, many times with other settings, and their table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from sfumato.cli.session import Device, Overrides, Session
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sfumato.interruption import Interruption
    from sfumato.jobs import Executor
    from sfumato.registry import Registry
    from sfumato.summary import Row
    from sfumato.sweep import Sweep
    from sfumato.sweep_runner import Runner


def command(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="An experiment, which each point trains; or a run, drawn from.")
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE,...]...", help="More of --sweep.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep", help="KEY=VALUE,VALUE: each with all others, not those of `sweep:`."
        ),
    ] = None,
    tied: Annotated[
        list[str] | None,
        typer.Option("--zip", help="KEY=VALUE,VALUE: first with first, etc."),
    ] = None,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Of a search, in all.")] = None,
    count: Annotated[int, typer.Option("--jobs", min=1, help="Processes at once.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Its folder; by default runs/NAME-sweep, of a run runs/NAME-evaluations, or the "
            "next that is free."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in --out: do what is not done.")
    ] = False,
    executor: Annotated[
        str, typer.Option(help="Who runs points: processes, or submitit.")
    ] = "processes",
    submit: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for submitit, such as timeout_min=60; may be repeated."),
    ] = None,
    device: Device = None,
) -> None:
    """Make a run for each point of a sweep, and a table of what they measured."""
    registry = context.obj.registry()
    from sfumato import references

    trained = name not in registry.experiments and references.is_run(name)
    given = [*(grid or []), *(more or [])], tied or []
    points = _points(name, *given, None if trained else registry)
    if trials is not None:
        if not points.search:
            problem, remedy = "there is no search to try", "leave it, or give the sweep a `search`"
            raise ConfigError(problem, place="--trials", remedy=remedy)
        points = attrs.evolve(points, trials=trials)
    out = _folder(name, out, resume, trained)
    from sfumato import jobs, sweep_runner, sweep_targets
    from sfumato.interruption import Interruption

    threads, asked = jobs.cores(count), Interruption()
    _use(threads)
    kind = sweep_targets.Evaluations if trained else sweep_targets.Trainings
    runner = sweep_runner.Runner(
        target=kind(
            name=name,
            registry=registry,
            out=out,
            overrides=tuple(overrides or ()),
            options=_options(context.obj),
            device=device,
        ),
        executor=_executor(executor, out, threads, submit or []),
        jobs=count,
        interruption=asked,
        told=typer.echo,
    )
    with asked.handlers():
        rows = _searched(points, runner) if points.search else _made(points, runner)
    typer.echo((out / sweep_runner.PAGE).read_text(encoding="utf-8"))
    typer.echo(f"Each run is in {out}, all numbers in {out / sweep_runner.TABLE}.")
    _end(rows, out / sweep_targets.LOGS, asked)


def _points(
    name: str, grid: Sequence[str], tied: Sequence[str], registry: Registry | None
) -> Sweep:
    """What the command line asks for, else what the experiment says; a run says nothing."""
    from sfumato import sweep

    if grid or tied:
        return sweep.from_arguments(grid, tied)
    points = None if registry is None else registry.sweep(name)
    if points is None:
        raise ConfigError(
            "there is nothing to sweep over",
            place=name,
            remedy="give --sweep KEY=VALUE,VALUE, or the experiment a `sweep`",
        )
    return points


def _folder(name: str, out: Path | None, resume: bool, trained: bool) -> Path:
    """That of a run is another: its points are called as those of the experiment are."""
    from sfumato import runs

    usual = Path("runs") / f"{Path(name).name}-{'evaluations' if trained else 'sweep'}"
    out = out or (usual if resume else runs.free_path(usual))
    if not resume and out.is_dir() and any(out.iterdir()):
        remedy = "choose another --out, or go on with it with --resume"
        raise ConfigError("is not empty", place=str(out), remedy=remedy)
    return out


def _made(points: Sweep, runner: Runner) -> list[Row]:
    """The rows of all points; no other sweep makes runs in the folder meanwhile."""
    from sfumato import claim

    planned = runner.target.planned(points.points())
    runner.target.refuse_another(planned)
    typer.echo(f"{len(planned)} points in {runner.target.out}, {runner.jobs} at once")
    with claim.claimed(runner.target.out):
        return runner.run(planned)


def _searched(points: Sweep, runner: Runner) -> list[Row]:
    """The rows of all trials that have ended."""
    from sfumato import search

    found = search.Search(points, runner.target.out, runner.target.seed())
    done = search.run(found, runner)
    runner.tables(done)
    typer.echo(found.best())
    return runner.rows(done)


def _end(rows: Sequence[Row], logs: Path, asked: Interruption) -> None:
    """Ends the command as it was asked to, or, where a point failed, with 1."""
    from sfumato.interruption import Preempted

    try:
        asked.check(str(logs.parent))
    except Preempted as end:
        typer.echo(str(end), err=True)
        raise typer.Exit(end.exit_code) from None
    if failed := sum(not row.complete for row in rows):
        said = f"{failed} of {len(rows)} points failed; their output is in {logs}"
        typer.echo(said, err=True)
        raise typer.Exit(1)


def _executor(name: str, out: Path, threads: int, submit: Sequence[str]) -> Executor:
    from sfumato import document, jobs

    if name not in ("processes", "submitit"):
        remedy = "known: processes, submitit"
        raise ConfigError(f"is none: {name!r}", place="--executor", remedy=remedy)
    options = {}
    for text in submit:
        key, equals, value = text.partition("=")
        if not equals or name != "submitit":
            problem = "expected KEY=VALUE, with --executor submitit"
            raise ConfigError(problem, place=f"--submit {text}")
        options[key] = document.read(value, f"--submit {text}", lines=False).plain()
    if name == "processes":
        return jobs.Processes(threads)
    return jobs.Submitit(out / "submitit", threads, options)


def _use(threads: int) -> None:
    """What depends on the number of threads, such as the keys of stages, is then as in the runs."""
    import torch

    torch.set_num_threads(threads)


def _options(session: Session) -> tuple[str, ...]:
    """What stands before the command."""
    found = [part for file in session.files for part in ("--plugin", str(file))]
    if session.registry_path is not None:
        found += ["--registry", str(session.registry_path)]
    return tuple(found)
