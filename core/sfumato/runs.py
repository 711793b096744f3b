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
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import yaml

from sfumato import checkpoint, claim, document, lock, references, settings
from sfumato.errors import CheckpointError, ConfigError
from sfumato.experiment import Trained
from sfumato.references import SETTINGS, parted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sfumato.document import Node
    from sfumato.experiment import Checkpoints, Experiment
    from sfumato.plugins import Catalogue

RECORD, METRICS, CHECKPOINTS = "run.json", "metrics.jsonl", "checkpoints"
GUIDANCE_CONVENTION = "uncond + s (cond - uncond); s = 1 is off; the paper's w is s - 1"


@attrs.frozen
class Run:
    """A run folder.

    Attributes:
        path: where it is.
        ours: whether this process writes in it; for another, what would be written is not.
    """

    path: Path
    ours: bool = True

    @classmethod
    def create(
        cls, path: Path, experiment: Experiment, catalogue: Catalogue, ranks: int = 1
    ) -> Run:
        """Begins a run in a folder that is ours, or not there, with its settings, its lock and its
        record.

        Raises:
            ConfigError: it cannot be written.
        """
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.write_settings(experiment, catalogue)
            lock.write(path / lock.FILE, catalogue)
            run._update(
                name=experiment.name,
                status="running",
                origin="trained",
                started=_now(),
                seed=experiment.seed,
                guidance=guidance_record(experiment),
                world_size=ranks,
                parameters={},
                results={},
                skipped={},
                versions=versions(),
                commit=commit(),
            )
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", place=str(path)) from error
        return run

    @classmethod
    def begun(cls, path: Path) -> bool:
        """Whether there is a run to go on with: `create` writes the record last."""
        return (path / RECORD).is_file()

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run folder, or a packaged model; see `references.located`.

        Raises:
            ConfigError: there is none.
        """
        return cls(references.located(path))

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
        """Changes facts of `run.json`, atomically.

        Raises:
            CheckpointError: it cannot be read, or written.
        """
        if self.ours:
            with _writing(self.path / RECORD):
                self._update(**facts)

    def _update(self, **facts: Any) -> None:
        text = json.dumps({**self.record(), **facts, "updated": _now()}, indent=1)
        replace(self.path / RECORD, text + "\n")

    def log(self, numbers: dict[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`.

        Raises:
            CheckpointError: it cannot be written.
        """
        if not self.ours:
            return
        path = self.path / METRICS
        with _writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")

    def sync(self) -> None:
        """Makes `metrics.jsonl` durable, as a checkpoint is that stands at its last line."""
        path = self.path / METRICS
        with _writing(path), path.open("rb") as file:
            os.fsync(file.fileno())

    def go_on(
        self, step: int, experiment: Experiment, catalogue: Catalogue, ranks: int = 1
    ) -> None:
        """The run goes on from a checkpoint of this step, 0 without one: what was said of later
        steps is taken back.
        """
        lines = [line for line in self.logged() if line["step"] <= step]
        with _writing(self.path / METRICS):
            replace(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
        with _writing(self.path / SETTINGS):
            self.write_settings(experiment, catalogue)
        resumed = {"step": step, "at": _now(), "world_size": ranks}
        self.update(
            status="running",
            error=None,
            results={},
            skipped=dict(Counter(line["stage"] for line in lines if line.get("skipped"))),
            resumed=[*self.record().get("resumed", []), resumed],
        )

    def logged(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, up to one that a kill left unfinished."""
        lines: list[dict[str, Any]] = []
        if (self.path / METRICS).exists():
            for line in (self.path / METRICS).read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break
        return lines

    def write_settings(self, experiment: Experiment, catalogue: Catalogue) -> None:
        """Writes `settings.yaml`, atomically."""
        plain = settings.plain(experiment, catalogue)
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        replace(self.path / SETTINGS, text)

    def settings(self) -> Node:
        """The resolved settings, as a tree."""
        tree = document.read_file(self.path / SETTINGS)
        if not isinstance(tree.value, dict):
            raise tree.error("expected a mapping")
        return tree

    def outputs(self, kind: str) -> Path:
        """The folder for what is made of the run: inside it, or, as nobody writes in a packaged
        model, in the working directory.
        """
        return Path(kind) if self.path.parent == references.MODELS else self.path / kind

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
        steps = (folder.name.removeprefix("step-") for folder in folders)
        return sorted(int(step) for step in steps if step.isdecimal())

    def retire(self, kept: Checkpoints, ends: Collection[int]) -> None:
        """Removes the checkpoints that are not to be kept, after the newest was read back.

        Those at `ends` of stages stay, and the newest that was due, to which a stage may roll back.

        Raises:
            CheckpointError: the newest is not what was written; nothing is removed.
        """
        steps = self.checkpoint_steps()
        stay = {*steps[-kept.keep_last :], *ends}
        stay |= {step for step in steps if kept.keep_every and step % kept.keep_every == 0}
        stay |= set([step for step in steps if kept.every and step % kept.every == 0][-1:])
        gone = [self.checkpoint(step) for step in steps if step not in stay]
        if gone:
            checkpoint.verify(self.checkpoint(steps[-1]))
        for path in gone:
            checkpoint.remove(path)


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Inside, an empty folder, made where there is none, is this process's alone.

    Raises:
        ConfigError: it is not empty, another process has it, or it cannot be written.
    """
    if not (path / claim.FILE).exists():
        _check_empty(path)
    with claim.claimed(path):
        _check_empty(path)
        yield


def _check_empty(path: Path) -> None:
    ours = {claim.FILE, lock.FILE, SETTINGS}  # all that a run has before it has begun
    if path.is_dir() and not {one.name for one in path.iterdir()} <= ours:
        remedy = f"choose another --out, remove it, or go on: sfumato train {path} --resume"
        raise ConfigError("is not empty", place=str(path), remedy=remedy)


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
    def find(cls, reference: str | Path, place: str, catalogue: Catalogue) -> Stored:
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


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise CheckpointError(
            problem, place=str(path), remedy="make room; continue with --resume"
        ) from error


def replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def commit() -> str | None:
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
