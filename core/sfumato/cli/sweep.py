"""`sfumato sweep`: one experiment, or one run, many times with other settings, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from sfumato.cli.session import Overrides
from sfumato.errors import ConfigError


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
        typer.Option(help="Its folder; by default runs/NAME-sweep, or the next that is free."),
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
    device: Annotated[str | None, typer.Option(help="As torch names it.")] = None,
) -> None:
    """Make a run for each point of a sweep, and a table of what they measured."""
    registry = context.obj.registry()
    from sfumato import claim, references, runs, sweep

    trained = name not in registry.experiments and references.is_run(name)
    swept = [*(grid or []), *(more or [])]
    points = sweep.from_arguments(swept, tied or [])
    if not (swept or tied):
        points = (None if trained else registry.sweep(name)) or points
        if points == sweep.Sweep():
            raise ConfigError(
                "there is nothing to sweep over",
                place=name,
                remedy="give --sweep KEY=VALUE,VALUE, or the experiment a `sweep`",
            )
    if trials is not None:
        points = attrs.evolve(points, trials=trials)
    usual = Path("runs") / f"{Path(name).name}-sweep"
    out = out or (usual if resume else runs.free_path(usual))
    if not resume and out.is_dir() and any(out.iterdir()):
        remedy = "choose another --out, or go on with it with --resume"
        raise ConfigError("is not empty", place=str(out), remedy=remedy)

    from sfumato import jobs, sweeping
    from sfumato.interruption import Interruption, Preempted

    threads = jobs.cores(count)
    _use(threads)
    kind = sweeping.Evaluations if trained else sweeping.Trainings
    asked = Interruption()
    process = sweeping.Sweeping(
        swept=kind(
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
        if points.search:
            rows = _searched(points, process, overrides or [])
        else:
            planned = process.swept.planned(points.points())
            with claim.claimed(out):
                typer.echo(f"{len(planned)} points, {count} at once, {threads} threads each: {out}")
                rows = process.run(planned)
    typer.echo((out / sweeping.PAGE).read_text(encoding="utf-8"))
    typer.echo(f"Each run is in {out}, all numbers in {out / sweeping.TABLE}.")
    try:
        asked.check(str(out))
    except Preempted as end:
        typer.echo(str(end), err=True)
        raise typer.Exit(end.exit_code) from None
    if failed := sum(not row.results for row in rows):
        typer.echo(
            f"{failed} of {len(rows)} points failed; their output is in {out / 'logs'}", err=True
        )
        raise typer.Exit(1)


def _searched(points: Any, process: Any, overrides: Sequence[str]) -> list[Any]:
    """The rows of all trials that have ended."""
    from sfumato import search

    seed = process.swept.seed()
    found = search.Search(points, process.swept.out, seed)
    done = search.run(found, process)
    typer.echo(found.best())
    rows: list[Any] = process.rows(done)
    return rows


def _executor(name: str, out: Path, threads: int, submit: Sequence[str]) -> Any:
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
    return jobs.Submitit(out / "submitit", {"cpus_per_task": threads, **options})


def _use(threads: int) -> None:
    """What depends on the number of threads, such as the keys of stages, is then as in the runs."""
    import torch

    torch.set_num_threads(threads)


def _options(session: Any) -> tuple[str, ...]:
    """What stands before the command."""
    found = [part for file in session.files for part in ("--plugin", str(file))]
    if session.registry_path is not None:
        found += ["--registry", str(session.registry_path)]
    return tuple(found)
