"""Commands that run beside each other: processes of this machine, or jobs of a cluster.

A task may hold keys: what it makes that others can take. Of tasks with a key in common one runs
first, and the others wait until what they need is there. This module knows nothing about what the
commands do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sfumato.errors import ConfigError, cause

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sfumato.interruption import Interruption

POLL = 0.2
"""Seconds between two looks at what runs."""
LOOK = 2.0
"""Seconds between two looks at what running tasks have made, which reads files."""
THREADS = "OMP_NUM_THREADS"


@attrs.frozen(kw_only=True)
class Task:
    """A command.

    Attributes:
        name: of it, for whoever watches.
        arguments: of the process.
        log: the file that takes its output.
        keys: what it makes, and others may wait for.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    keys: frozenset[str] = frozenset()


class Job(ABC):
    """A task under way."""

    @abstractmethod
    def code(self) -> int | None:
        """The exit code; None while it runs."""

    @abstractmethod
    def ask(self, asked: signal.Signals) -> None:
        """Asks it to end well."""


class Executor(ABC):
    """Where tasks run."""

    @abstractmethod
    def start(self, task: Task) -> Job:
        """Begins a task."""


@attrs.frozen
class Processes(Executor):
    """Of this machine, with `threads` each."""

    threads: int

    def start(self, task: Task) -> Job:
        """In a session of its own: a key at the terminal asks us, and we ask it."""
        with task.log.open("ab") as log:
            return _Process(
                subprocess.Popen(
                    task.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(self.threads),
                    start_new_session=True,
                )
            )


@attrs.frozen
class _Process(Job):
    process: subprocess.Popen[bytes]

    def code(self) -> int | None:
        return self.process.poll()

    def ask(self, asked: signal.Signals) -> None:
        self.process.send_signal(asked)


class Submitit(Executor):
    """Jobs of a cluster, through submitit: Slurm where there is one, else processes here."""

    def __init__(self, folder: Path, threads: int, options: Mapping[str, Any]) -> None:
        """Prepares jobs; none is submitted.

        Args:
            folder: for its files, which machines have to share.
            threads: of each job.
            options: those of its AutoExecutor, such as `timeout_min` and `slurm_partition`;
                `cluster` says which kind.

        Raises:
            ConfigError: submitit is not installed, or refuses an option.
        """
        try:
            import submitit
        except ImportError:
            remedy = "pip install 'sfumato[slurm]'"
            raise ConfigError("is not installed", place="submitit", remedy=remedy) from None
        self.threads = threads
        asked = {"cpus_per_task": threads, **options}
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=asked.pop("cluster", None))
            self.executor.update_parameters(name="sfumato", **asked)
        except Exception as error:  # of many kinds, about what it was given
            raise ConfigError(cause(error), place="submitit") from error

    def start(self, task: Task) -> Job:
        """Submits it; output goes to the task's log, which machines have to share."""
        job = self.executor.submit(run_here, task.arguments, str(task.log), self.threads)
        return _Submitted(job)


@attrs.frozen
class _Submitted(Job):
    job: Any

    def code(self) -> int | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        return int(self.job.result()) if error is None else 1

    def ask(self, asked: signal.Signals) -> None:
        self.job.cancel()


def run_here(arguments: Sequence[str], log: str, threads: int) -> int:
    """What a job of a cluster does: the command, told of signals that ask to end."""
    with Path(log).open("ab") as file:
        process = subprocess.Popen(
            arguments, stdout=file, stderr=subprocess.STDOUT, env=_environment(threads)
        )
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, lambda number, frame: process.send_signal(number))
    return process.wait()


def _environment(threads: int) -> dict[str, str]:
    """Ours, with a number of threads: the bits of a result depend on it."""
    return {**os.environ, THREADS: str(threads)}


def cores(jobs: int) -> int:
    """Threads for each of some jobs at once: those that our own environment states, else a share
    of the cores that this process may use.
    """
    stated = os.environ.get(THREADS, "")
    if stated.isdecimal() and int(stated) > 0:
        return int(stated)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((usable or 1) // jobs, 1)


def sfumato(*arguments: str) -> tuple[str, ...]:
    """Our own command, in a process of its own."""
    return (sys.executable, "-m", "sfumato.cli", *arguments)


def run(
    tasks: Sequence[Task],
    executor: Executor,
    jobs: int,
    interruption: Interruption,
    available: Callable[[str], bool],
    told: Callable[[Task, int | None, float], None],
) -> dict[str, int]:
    """Runs all tasks; one that fails touches no other.

    Args:
        tasks: in the order in which they begin, but for those that wait.
        executor: where they run.
        jobs: how many at once.
        interruption: asked, those that run are asked to end, and no other begins.
        available: whether what goes by a key is there to be taken.
        told: of each task that begins, with None, and of each that ends, with its exit code, and
            the seconds that it took.

    Returns:
        The exit code of each task that began, by its name.
    """
    waiting, running, codes = list(tasks), dict[str, tuple[Task, Job, float]](), dict[str, int]()
    asked, look = False, 0.0
    while running or (waiting and not asked):
        for name, (task, job, began) in list(running.items()):
            if (code := job.code()) is not None:
                codes[name] = code
                look = 0.0
                del running[name]
                told(task, code, time.monotonic() - began)
        if interruption.signal is not None and not asked:
            asked = True
            for _, job, _ in running.values():
                with suppress(OSError):
                    job.ask(interruption.signal)
        if not asked and waiting and len(running) < jobs and time.monotonic() >= look:
            ready = _next(waiting, [one for one, _, _ in running.values()], available)
            if ready is not None:
                waiting.remove(ready)
                told(ready, None, 0.0)
                running[ready.name] = (ready, executor.start(ready), time.monotonic())
                continue
            look = time.monotonic() + LOOK
        time.sleep(POLL)
    return codes


def _next(
    waiting: Collection[Task], running: Collection[Task], available: Callable[[str], bool]
) -> Task | None:
    """The first task that does not wait for what a running one is about to make."""
    needed = {key for task in waiting for key in task.keys}
    promised = {key for task in running for key in task.keys & needed}
    missing = {key for key in promised if not available(key)}
    return next((task for task in waiting if not task.keys & missing), None)
