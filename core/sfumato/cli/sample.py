"""`sfumato sample`: prompts to a grid of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.session import Device, Locked, Overrides
from sfumato.errors import ConfigError
from sfumato.references import is_run


def command(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="A run folder or a packaged model; RUN@STEP is an earlier checkpoint.",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            help="Draw that picture of `sample` again; what else is given is what differs.",
        ),
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option(help="What not to draw; may be repeated, for every prompt.")
    ] = None,
    overrides: Overrides = None,
    steps: Annotated[int | None, typer.Option(min=1, help="By default the run's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise; by default 0.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each prompt; by default 4.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="A PNG or JPEG to start from, in the pictures' proportions.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps that draw IMAGE anew; by default 0.6, or 1 with a mask."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where IMAGE is painted anew, black where kept.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The PNG; by default in RUN/samples, of a packaged model in ./samples."),
    ] = None,
    device: Device = None,
    locked: Locked = False,
) -> None:
    """Draw pictures of prompts with a trained run: a row for each prompt, its settings inside the
    PNG.
    """
    if like is None and not (run and prompts):
        raise ConfigError("expected a run and at least one prompt", remedy="or --like PNG")
    if like is not None and run and not (prompts or is_run(run)):
        raise ConfigError(
            "is not a run folder: it has no settings.yaml",
            place=run,
            remedy=f'name the run before another prompt: sfumato sample RUN "{run}" --like {like}',
        )
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError("is not a PNG", place=f"--out {out}", remedy="let its name end in .png")
    from sfumato import drawing

    asked = {
        "run": run,
        "prompts": tuple(prompts or ()),
        "negative": tuple(negative or ()),
        "count": count,
        "seed": seed,
        "steps": steps,
        "image": image,
        "mask": mask,
        "strength": strength,
        "device": device,
        "overrides": tuple(overrides or ()),
    }
    given: dict[str, Any] = {
        name: value for name, value in asked.items() if value not in (None, ())
    }
    catalogue = context.obj.catalogue
    order = drawing.Order(**given) if like is None else drawing.again(like, catalogue, **given)
    if locked:
        from sfumato import lock, references

        folder = references.located(references.parted(order.run)[0])
        lock.check(folder / lock.FILE, catalogue, recorded=True)
    if (path := drawing.draw(order, context.obj.registry(), out)) is not None:
        typer.echo(str(path))
