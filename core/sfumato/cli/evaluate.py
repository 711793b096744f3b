"""`sfumato evaluate`: a run measured again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.session import Device, Overrides

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def command(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help="A run folder or a packaged model; RUN@STEP is an earlier checkpoint."),
    ],
    metrics: Annotated[
        str | None, typer.Option(help="Names, with commas; by default the run's.")
    ] = None,
    studies: Annotated[
        str | None, typer.Option(help="Names, with commas; by default the run's.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file with one a line; by default held-out captions.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Of pictures; by default the run's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="By default the run's.")] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="An empty folder; by default one in RUN/evaluations.")
    ] = None,
    device: Device = None,
) -> None:
    """Measure a trained run: metrics over pictures of prompts, and studies. Its record stays."""
    registry = context.obj.registry()
    from sfumato.evaluations import evaluate

    done = evaluate(
        run,
        overrides=overrides or (),
        metrics=_names(metrics),
        studies=_names(studies),
        prompts=prompts,
        count=count,
        seed=seed,
        out=out,
        registry=registry,
        device=device,
    )
    if done.ours:
        for line in lines(done.record):
            typer.echo(line)
        typer.echo(str(done.path))


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Each number with its interval, then what the numbers of a metric depend on."""
    from sfumato.measurements import flat

    numbers = flat(record["results"])
    width = max(map(len, numbers), default=0)
    for name, one in numbers.items():
        yield f"{name:<{width}}  {one}"
    for name, facts in record["measured_with"].items():
        stated = (f"{key} {_short(value)}" for key, value in facts.items() if value is not None)
        yield f"{name}: measured with {', '.join(stated)}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {_short(item)}" for key, item in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
