"""`sfumato show`: an experiment as it stands after all overrides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.session import Overrides

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sfumato.document import Node


def command(
    context: typer.Context,
    experiment: Annotated[str, typer.Argument(help="Its name in the registry.")],
    overrides: Overrides = None,
) -> None:
    """Show the resolved settings of an experiment, and where each value came from."""
    from sfumato import settings

    registry = context.obj.registry()
    tree = registry.experiment_tree(experiment, overrides or [])
    resolved = settings.plain(registry.structure(tree, experiment))
    rows = list(_leaves(resolved, tree, ""))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for path, value, source in rows:
        typer.echo(f"{path:<{widths[0]}}  {value:<{min(widths[1], 40)}}  {source}")


def _leaves(value: Any, node: Node | None, path: str) -> Iterator[tuple[str, str, str]]:
    """Path, value and source of every leaf; what no node holds is a default."""
    inner = node.value if node is not None else None
    if isinstance(value, dict) and value:
        for key, item in value.items():
            child = inner.get(key) if isinstance(inner, dict) else None
            yield from _leaves(item, child, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            child = inner[i] if isinstance(inner, list) and i < len(inner) else None
            yield from _leaves(item, child, f"{path}.{i}")
    elif path != "name":
        yield path, str(value), node.source if node is not None else "default"
