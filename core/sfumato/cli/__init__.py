"""The command line: one module for each command, each a thin layer over the Python interface.

A module here imports nothing heavy at its top, so that `sfumato --help` is quick.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from sfumato.cli import (
    check,
    describe,
    doctor,
    evaluate,
    export,
    frontier,
    import_,
    lock,
    new_plugin,
    plan,
    plugins,
    report,
    reproduce,
    sample,
    schema,
    show,
    sweep,
    train,
)
from sfumato.cli.session import Session
from sfumato.errors import SfumatoError

app = typer.Typer(
    name="sfumato",
    help="Text-conditional diffusion in which every part is a plugin.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *(train, sweep, reproduce, plan, sample, evaluate, frontier, report, import_, export, show),
    *(plugins, check, new_plugin, lock, describe, schema, doctor),
)
EPILOG = (
    "Before it: --plugin FILE, --registry FILE. Anywhere: --debug, for the traceback of an error."
)
for command in COMMANDS:
    name = command.__name__.rpartition(".")[2]
    app.command(name.rstrip("_").replace("_", "-"), epilog=EPILOG)(command.command)


@app.callback()
def options(
    context: typer.Context,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A Python file to load as a plugin; may be repeated.")
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option(help="The registry; by default ./registry.yaml, else the packaged one."),
    ] = None,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """What all commands share."""
    context.obj = Session(files=tuple(plugin or ()), registry_path=registry)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command; ends with 0, 1 (failed), 2 (bad input) or 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if debug:  # it belongs before the command, and is thought of after it
        arguments = ["--debug", *(one for one in arguments if one != "--debug")]
    else:
        warnings.formatwarning = _one_line
    try:
        app(arguments, prog_name="sfumato")
    except BrokenPipeError:
        # Whoever read our output has gone; Python would fail again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, SfumatoError)
        text = str(error) if known else f"{type(error).__name__}: {error}; --debug shows where"
        typer.echo(f"error: {text}", err=True)
        sys.exit(error.exit_code if isinstance(error, SfumatoError) else 1)
    sys.exit(0)


def _one_line(
    message: Warning | str, category: object, filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as an error is shown; `--debug` leaves it as Python has it, with its place."""
    return f"warning: {message}\n"
