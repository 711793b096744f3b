"""`sfumato frontier`: what two guidance scales buy and cost, as picture and table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.session import Device, Overrides

STUDY = "evaluation.studies.0"


def command(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="A run folder or a packaged model.")],
    positive: Annotated[str, typer.Option(help="s_pos, on the prompt.")] = "1,2,4,8",
    negative: Annotated[str, typer.Option(help="s_neg, on the negative prompt.")] = "0,1,2,4",
    count: Annotated[int | None, typer.Option(min=1, help="Captions of the test split.")] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Pictures of each.")] = None,
    alignment: Annotated[str | None, typer.Option(help="A metric; by default what fits.")] = None,
    fidelity: Annotated[str | None, typer.Option(help="A metric; by default none.")] = None,
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(min=0, help="By default the run's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="An empty folder; by default one in RUN/evaluations.")
    ] = None,
    device: Device = None,
) -> None:
    """Measure alignment against diversity and fidelity over a grid of guidance scales."""
    registry = context.obj.registry()
    from sfumato import references, runs
    from sfumato.evaluations import evaluate

    asked = {"count": count, "samples": samples, "alignment": alignment, "fidelity": fidelity}
    options = {
        "positive": f"[{positive}]",
        "negative": f"[{negative}]",
        **{name: value for name, value in asked.items() if value is not None},
    }
    folder = runs.Run.open(references.parted(run)[0]).outputs("evaluations")
    done = evaluate(
        run,
        overrides=[*(overrides or ()), *(f"{STUDY}.{key}={options[key]}" for key in options)],
        studies=["frontier"],
        seed=seed,
        out=out or runs.free_path(folder / "frontier"),
        registry=registry,
        device=device,
    )
    if done.ours:
        table = markdown(done.results)
        (done.path / "frontier.md").write_text(f"{table}\n", encoding="utf-8")
        typer.echo(f"{table}\n\n{done.path / 'frontier.png'}")


def markdown(results: Mapping[str, Any]) -> str:
    """The numbers of the study as a table; the last column says which row is the knee."""
    from sfumato.measurements import flat

    rows, knee = results["frontier"], results.get("frontier_knee")
    roles = list(next(iter(rows.values())))
    lines = [f"| s_pos | s_neg | {' | '.join(roles)} | |", f"|---|---|{'---|' * len(roles)}---|"]
    for scales, numbers in rows.items():
        positive, negative = scales.split(", ")
        shown = " | ".join(map(str, flat(numbers).values()))
        bends = knee == {"positive": float(positive), "negative": float(negative)}
        lines.append(f"| {positive} | {negative} | {shown} | {'knee' if bends else ''} |")
    return "\n".join(lines)
