"""A run folder belongs to one process at a time.

The claim is a lock of the operating system on a file in the folder. It ends with the process that
holds it, however that ends, so a crash leaves nothing to clean up; the file says who it is or was.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = ".lock"
_held: set[int] = set()


@contextmanager
def claimed(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Inside, a folder, which is made where there is none, is this process's alone.

    Args:
        folder: to be claimed.
        wait: until no other process has it, rather than raise.

    Raises:
        ConfigError: another process has it, or it cannot be written.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except (FileExistsError, NotADirectoryError) as error:
        remedy = "a run is a folder; choose another --out"
        raise ConfigError("is a file, or is in one", place=str(folder), remedy=remedy) from error
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", place=str(folder)) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ConfigError(
                f"is in use by {_holder(handle)}",
                place=str(folder),
                remedy="wait for it or end it, or choose another --out",
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        _held.add(handle)
        yield
    finally:
        _held.discard(handle)
        fcntl.flock(handle, fcntl.LOCK_UN)  # also for a child that has just been forked
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        who = json.loads(os.pread(handle, 1000, 0))
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _forget() -> None:
    """A forked child, such as a worker of a loader, must not hold the claim of a parent that is
    gone.
    """
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
