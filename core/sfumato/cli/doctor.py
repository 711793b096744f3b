"""`sfumato doctor`: what is here, and what does not fit together."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform

import typer


def command(context: typer.Context) -> None:
    """Check versions, devices and plugins; ends with 1 where something is wrong."""
    from sfumato import runs
    from sfumato.plugins import DISABLE

    wrong: list[str] = []
    for name, version in runs.versions().items():
        typer.echo(f"{name:<14} {version}")
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices = ", ".join(gpus) or f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    typer.echo(f"{'devices':<14} {devices}")
    catalogue = context.obj.catalogue
    typer.echo(f"{'components':<14} {len(catalogue.offers)} from {len(catalogue.plugins)} plugins")
    for origin in catalogue.disabled:
        typer.echo(f"{'disabled':<14} {origin}, by {DISABLE}")
    wrong += [f"plugin {b.origin} is broken: {b.cause}" for b in catalogue.broken]
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            version = importlib.metadata.version("torchvision")
            wrong.append(
                f"torchvision {version} does not fit torch {torch.__version__} ({error}); it "
                "breaks transformers too: pip uninstall torchvision (sfumato does not need it)"
            )
    for line in wrong:
        typer.echo(f"wrong: {line}", err=True)
    typer.echo("something is wrong" if wrong else "all is well")
    if wrong:
        raise typer.Exit(1)
