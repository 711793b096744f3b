"""Signals that ask a run to end: the first lets it end well, a second ends it at once.

A scheduler tells every process of a job, and a launcher that is told tells its processes again: so
SIGTERM or SIGUSR1 that comes again within `GRACE` is the same request. Ctrl-C is a person's.

    SIGINT           from a keyboard                      exit code 130
    SIGTERM, SIGUSR1 from a scheduler that wants the node exit code 143

A handler only writes down that it was asked; the run looks between steps. So no step, save or
picture is ever cut in the middle, and nothing else in the process has to know about signals.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
GRACE = 10.0
"""Seconds. A launcher passes a signal on at once, but it is heard only after what torch computes in
one go; torchrun and schedulers wait 30 seconds before they kill."""


class Preempted(KeyboardInterrupt):
    """A run was asked to end and has ended well; the text says where.

    It is no `Exception`: whoever survives those of plugins and components must not survive it.
    """

    def __init__(self, text: str, exit_code: int = 143) -> None:
        """`exit_code` is that of the process."""
        super().__init__(text)
        self.exit_code = exit_code


class Interruption:
    """Whether the run has been asked to end.

    Of several ranks some may have been told and others not (yet), so that `largest` has to be given
    where they decide together: the largest of all ranks' numbers.

    Attributes:
        signal: the one that asked this process, or None.
    """

    def __init__(self) -> None:
        """Nobody has asked."""
        self.signal: signal.Signals | None = None
        self._since = 0.0

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """What a handler calls; when it is asked a second time it ends the process."""
        asked, now = signal.Signals(number), time.monotonic()
        if self.signal is None:
            self.signal, self._since = asked, now
            return
        same = asked is self.signal and asked is not signal.SIGINT and now < self._since + GRACE
        if not same:
            os._exit(_exit_code(asked))  # checkpoints are whole or absent at any moment

    def asked(self, largest: Callable[[int], int] = int) -> bool:
        """Whether anybody has asked."""
        return largest(self.signal or 0) > 0

    def check(self, place: str, largest: Callable[[int], int] = int) -> None:
        """Ends the run here if it was asked to.

        Raises:
            Preempted: it was.
        """
        if number := largest(self.signal or 0):
            asked = signal.Signals(number)
            text = f"{place}: ended by {asked.name}; continue with --resume"
            raise Preempted(text, _exit_code(asked))

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """Inside, signals come here; the handlers before are put back afterwards. Only the main
        thread of a process can do so.
        """
        before = {number: signal.signal(number, self.ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def ignored() -> None:
    """For a worker process: its parent ends it, even where the signal goes to the whole group."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _exit_code(asked: signal.Signals) -> int:
    return 130 if asked is signal.SIGINT else 143
