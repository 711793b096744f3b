"""The run folder and its record.

    runs/NAME/  run.json  settings.yaml  plugins.lock  metrics.jsonl  samples/
                checkpoints/step-00001200/

`run.json` says what the run is and how it stands; it is replaced whole at each change. This module
knows nothing about training: it is told.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import yaml

from sfumato import checkpoint, document, lock, settings
from sfumato.errors import CheckpointError, ConfigError
from sfumato.experiment import Trained

if TYPE_CHECKING:
    from sfumato.document import Node
    from sfumato.experiment import Experiment
    from sfumato.plugins import Catalogue

RECORD, SETTINGS, METRICS, CHECKPOINTS = "run.json", "settings.yaml", "metrics.jsonl", "checkpoints"
GUIDANCE_CONVENTION = "uncond + s (cond - uncond); s = 1 is off; the paper's w is s - 1"


@attrs.frozen
class Run:
    """A run folder."""

    path: Path

    @classmethod
    def create(cls, path: Path, experiment: Experiment, catalogue: Catalogue) -> Run:
        """Makes a new run folder with its settings, its lock and its record.

        Raises:
            ConfigError: there is something at `path` already, or it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ConfigError(
                    "is not empty", place=str(path), remedy="choose another --out, or remove it"
                )
            plain = settings.plain(experiment, catalogue)
            text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
            (path / SETTINGS).write_text(text, encoding="utf-8")
            lock.write(path / lock.FILE, catalogue)
            run = cls(path)
            run.update(
                name=experiment.name,
                status="running",
                origin="trained",
                started=_now(),
                seed=experiment.seed,
                guidance=guidance_record(experiment),
                world_size=1,
                parameters={},
                results={},
                versions=versions(),
                commit=_commit(),
            )
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", place=str(path)) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run folder.

        Raises:
            ConfigError: there is none.
        """
        if not (Path(path) / SETTINGS).is_file():
            raise ConfigError("is not a run folder: it has no settings.yaml", place=str(path))
        return cls(Path(path))

    def record(self) -> dict[str, Any]:
        """What `run.json` says; empty where there is none yet."""
        try:
            record = json.loads((self.path / RECORD).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise CheckpointError("cannot be read", place=str(self.path / RECORD)) from error
        return dict(record)

    def update(self, **facts: Any) -> None:
        """Changes facts of `run.json`, atomically."""
        temporary = self.path / f".{RECORD}"
        text = json.dumps({**self.record(), **facts, "updated": _now()}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, self.path / RECORD)

    def log(self, numbers: dict[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")

    def settings(self) -> Node:
        """The resolved settings, as a tree."""
        tree = document.read_file(self.path / SETTINGS)
        if not isinstance(tree.value, dict):
            raise tree.error("expected a mapping")
        return tree

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.path / CHECKPOINTS / f"step-{step:08d}"

    def newest_checkpoint(self) -> Path:
        """The checkpoint of the highest step.

        Raises:
            CheckpointError: there is none.
        """
        steps = self.checkpoint_steps()
        if not steps:
            raise CheckpointError("has no checkpoint yet", place=str(self.path))
        return self.checkpoint(steps[-1])

    def checkpoint_steps(self) -> list[int]:
        """The steps at which there is a checkpoint, rising."""
        folders = (self.path / CHECKPOINTS).glob("step-*")
        return sorted(int(folder.name.removeprefix("step-")) for folder in folders)


def trained(path: Path, catalogue: Catalogue) -> Trained:
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: it has no manifest.
        ConfigError: it names a component that is not installed, or an option that it has not.
    """
    stated = document.node(checkpoint.facts(path), str(path / checkpoint.MANIFEST))
    return settings.structure(stated, Trained, catalogue)


@attrs.frozen(eq=False, kw_only=True)
class Stored:
    """A checkpoint that settings name.

    Attributes:
        path: of the checkpoint.
        trained: what it says of itself.
    """

    path: Path
    trained: Trained

    @classmethod
    def find(cls, reference: str, place: str, catalogue: Catalogue) -> Stored:
        """RUN is its newest checkpoint, RUN@STEP that of a step; no weights are read.

        Args:
            reference: to a checkpoint.
            place: where it is named, for messages.
            catalogue: what is installed.

        Raises:
            ConfigError: there is none, or it names a component that is not installed.
            CheckpointError: it cannot be read.
        """
        run, step = parted(reference)
        found = Run.open(run)
        path = found.newest_checkpoint() if step is None else found.checkpoint(step)
        if not path.is_dir():
            raise ConfigError(
                f"{run} has no checkpoint of step {step}",
                place=place,
                remedy=f"it has: {', '.join(map(str, found.checkpoint_steps())) or 'none'}",
            )
        return cls(path=path, trained=trained(path, catalogue))


def is_run(reference: str) -> bool:
    """Whether RUN or RUN@STEP names a run folder."""
    return (Path(parted(reference)[0]) / SETTINGS).is_file()


def parted(reference: str) -> tuple[str, int | None]:
    """RUN@STEP as run and step; the step is None where there is none."""
    run, _, step = reference.rpartition("@")
    return (run, int(step)) if run and step.isdecimal() else (reference, None)


def free_path(path: Path) -> Path:
    """`path`, or where that is taken the first free of `NAME-2`, `NAME-3` ... beside it."""
    numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
    return next(one for one in itertools.chain([path], numbered) if not one.exists())


def guidance_record(experiment: Experiment) -> dict[str, Any]:
    """The guidance with its convention: scales s as set, and the paper's w = s - 1 beside them."""
    guidance = experiment.guidance
    return {**settings.plain(guidance), "w": guidance.w, "convention": GUIDANCE_CONVENTION}


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    names = ("sfumato", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """The commit of sfumato's own checkout, `-dirty` where files differ; None where it has none."""
    try:
        _git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # an installed copy is in nobody's tree
        dirty = "-dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""
        return _git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        capture_output=True,
        text=True,
        timeout=5,
        cwd=Path(__file__).parent,
        check=True,
    )
    return done.stdout.strip()
