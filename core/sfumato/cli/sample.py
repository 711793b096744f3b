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
    run: Annotated[
        str,
        typer.Argument(help="A run folder or a packaged model; RUN@STEP is an earlier checkpoint."),
    ],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw.")],
    negative: Annotated[
        list[str] | None, typer.Option(help="What not to draw; may be repeated, for every prompt.")
    ] = None,
    overrides: Overrides = None,
    steps: Annotated[int | None, typer.Option(min=1, help="By default the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 4,
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
    device: Annotated[str | None, typer.Option(help="As torch names it.")] = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Refuse plugins other than those of RUN/plugins.lock.")
    ] = False,
) -> None:
    """Draw pictures of prompts with a trained run: a row for each prompt, its settings inside the
    PNG.
    """
    from sfumato import lock, runs
    from sfumato.references import parted

    opened = runs.Run.open(parted(run)[0])
    if locked:
        lock.check(opened.path / lock.FILE, context.obj.catalogue, recorded=True)
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError("is not a PNG", place=f"--out {out}", remedy="let its name end in .png")
    registry = context.obj.registry()
    from sfumato import pictures, ranks, settings
    from sfumato.pipeline import Pipeline
    from sfumato.request import usual_strength

    engine = ranks.engine(device or "cpu")
    pipeline = Pipeline.load(run, overrides or [], registry, str(engine.device)).share(engine)
    texts = [prompt for prompt in prompts for _ in range(count)]
    size = pipeline.settings.picture_size
    with engine.session(), engine.failing_together():
        images = pipeline.sample(
            texts,
            negative=[negative] * len(texts) if negative else None,
            steps=steps,
            seed=seed,
            image=pictures.read(image, size).expand(len(texts), -1, -1, -1) if image else None,
            mask=pictures.read_mask(mask, size) if mask else None,
            strength=strength,
        )
    if not engine.main:
        return
    walked = usual_strength(image, mask) if strength is None else strength
    slug = re.sub(r"\W+", "-", prompts[0].lower()).strip("-")[:60] or "picture"
    out = out or runs.free_path(opened.outputs("samples") / f"{slug}-{seed}.png")
    facts = {
        "prompts": prompts,
        "negative": negative or [],
        "count": count,
        "seed": seed,
        "steps": steps or pipeline.settings.sampling.steps,
        "image": str(image) if image else None,
        "mask": str(mask) if mask else None,
        "strength": walked,
        "run": run,
        "schedule_mapping": pipeline.plan(
            steps=steps, negatives=len(negative or []), strength=walked
        ).mapping,
        "settings": settings.plain(pipeline.settings, registry.catalogue),
    }
    pictures.save(pictures.grid(images, columns=count), out, facts)
    typer.echo(str(out))
