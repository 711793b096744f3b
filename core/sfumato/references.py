"""What RUN and RUN@STEP name: a run folder, or a model that comes with the package.

A packaged model is a run folder in `sfumato/models`, without its log and with one checkpoint.
Whoever asks for a run asks here, so that each command, `start` and `sampling.weak` mean the same.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from sfumato.errors import ConfigError

SETTINGS = "settings.yaml"
"""The file that makes a folder a run."""
MODELS = Path(__file__).with_name("models")
"""Where packaged models are, each in a folder of its name."""


def models() -> list[str]:
    """The names of the packaged models."""
    return sorted(settings.parent.name for settings in MODELS.glob(f"*/{SETTINGS}"))


def located(run: str | Path) -> Path:
    """The folder of a run.

    Args:
        run: a folder or, as a text, the name of a packaged model. A run folder of that name in the
            working directory comes first, with a warning; a path such as `./NAME` means it alone.

    Raises:
        ConfigError: it is neither.
    """
    folder, packaged = Path(run), isinstance(run, str) and run in models()
    if (folder / SETTINGS).is_file():
        if packaged:
            warnings.warn(
                f"{run} is the run folder here, not the model of that name that comes with "
                f"sfumato; ./{run} says so without this warning",
                stacklevel=2,
            )
        return folder
    if packaged:
        return MODELS / run
    known = ", ".join(models())
    raise ConfigError(
        f"is not a run folder: it has no {SETTINGS}",
        place=str(run),
        remedy=f"models that come with sfumato: {known}" if known and folder.name == run else "",
    )


def parted(reference: str | Path) -> tuple[str | Path, int | None]:
    """RUN@STEP as run and step; the step is None where there is none."""
    run, _, step = str(reference).rpartition("@")
    if not (run and step.isdecimal()):
        return reference, None
    return (Path(run) if isinstance(reference, Path) else run), int(step)


def is_run(reference: str) -> bool:
    """Whether RUN or RUN@STEP names a run folder or a packaged model."""
    run, _ = parted(reference)
    return (Path(run) / SETTINGS).is_file() or run in models()
