"""`sfumato sample`: prompts to a grid of pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.session import Overrides
from sfumato.errors import ConfigError


def command(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw.")],
    negative: Annotated[
        list[str] | None, typer.Option(help="What not to draw; may be repeated, for every prompt.")
    ] = None,
    overrides: Overrides = None,
    steps: Annotated[int | None, typer.Option(min=1, help="By default the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 4,
    out: Annotated[Path | None, typer.Option(help="The PNG; by default in RUN/samples.")] = None,
    device: Annotated[str | None, typer.Option(help="As torch names it.")] = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Refuse plugins other than those of RUN/plugins.lock.")
    ] = False,
) -> None:
    """Draw pictures of prompts with a trained run: a row for each prompt, its settings inside the
    PNG.
    """
    from sfumato import lock, runs

    if locked:
        lock.check(runs.Run.open(run).path / lock.FILE, context.obj.catalogue, recorded=True)
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError("is not a PNG", place=f"--out {out}", remedy="let its name end in .png")
    registry = context.obj.registry()
    from sfumato import pictures, settings
    from sfumato.pipeline import Pipeline

    pipeline = Pipeline.load(run, overrides or [], registry, device)
    texts = [prompt for prompt in prompts for _ in range(count)]
    images = pipeline.sample(
        texts, negative=[negative] * len(texts) if negative else None, steps=steps, seed=seed
    )
    slug = re.sub(r"\W+", "-", prompts[0].lower()).strip("-")[:60] or "picture"
    out = out or runs.free_path(run / "samples" / f"{slug}-{seed}.png")
    facts = {
        "prompts": prompts,
        "negative": negative or [],
        "count": count,
        "seed": seed,
        "steps": steps or pipeline.settings.sampling.steps,
        "run": str(run),
        "schedule_mapping": pipeline.plan(steps=steps, negatives=len(negative or [])).mapping,
        "settings": settings.plain(pipeline.settings, registry.catalogue),
    }
    pictures.save(pictures.grid(images, columns=count), out, facts)
    typer.echo(str(out))
