"""A report: one HTML page about runs that needs nothing else.

`reading` takes in run folders in whatever state they are, `explaining` makes pictures that are
missing, `comparing` says what differs, `curves` draws what was logged, `page` fills the template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sfumato.registry import Registry


def report(
    paths: Sequence[Path],
    out: Path,
    registry: Registry,
    *,
    studies: bool = True,
    device: str | None = None,
) -> list[str]:
    """Writes the page.

    Args:
        paths: folders of runs, which may be half-finished or damaged.
        out: the HTML file.
        registry: with the components that the runs are made of.
        studies: whether explaining pictures that a run lacks are made, where it has a checkpoint.
        device: that they are made on.

    Returns:
        What could not be shown, one line each; the page says it too.

    Raises:
        ConfigError: the file cannot be written, or matplotlib is missing.
    """
    from sfumato.report import explaining, page, reading

    names = reading.names(paths)
    failed = [explaining.make(path, registry, device) if studies else [] for path in paths]
    runs = [reading.read(path, names[place], place) for place, path in enumerate(paths)]
    for run, problems in zip(runs, failed, strict=True):
        run.problems.extend(problems)
    text = page.render(runs, explaining.questions(registry.catalogue))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", place=str(out)) from error
    return [f"{run.name}: {problem}" for run in runs for problem in run.problems]
