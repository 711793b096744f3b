"""Errors that a person can act on: place, problem, remedy.

Every error that sfumato raises on purpose is a `SfumatoError`. Its text is at most a few lines; the
command line prints it without a traceback and ends with `exit_code` (2 for bad input, 1 for a
failure).
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class SfumatoError(Exception):
    """Something went wrong; the text names place, problem and, where there is one, remedy."""

    exit_code = 1

    def __init__(self, problem: str, *, place: str = "", remedy: str = "") -> None:
        self.place, self.problem, self.remedy = place, problem, remedy
        text = f"{place}: {problem}" if place else problem
        super().__init__(f"{text}; {remedy}" if remedy else text)


class ConfigError(SfumatoError):
    """Settings or arguments are wrong. Several problems of one file are one error, a line each."""

    exit_code = 2
    parts: Sequence[SfumatoError] = ()

    @classmethod
    def joined(cls, errors: Sequence[SfumatoError]) -> ConfigError:
        """One error that lists all of `errors`, and holds them as `parts`."""
        error = cls("\n".join(str(one) for one in errors))
        error.parts = errors
        return error


class AmbiguousError(ConfigError):
    """Several plugins offer a name: wrong for whoever uses it, and for nobody else."""


class PluginError(SfumatoError):
    """A plugin or one of its components breaks its contract."""


class CheckpointError(SfumatoError):
    """Weights or a run folder cannot be read or written."""


class DataError(SfumatoError):
    """A data source cannot give what was asked of it."""

    exit_code = 2


def cause(error: BaseException) -> str:
    """An error in one line: the text of one of ours, else its type and the first line it says."""
    if isinstance(error, SfumatoError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that an unknown one was probably meant to be."""
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1)), None)


def suggestion(word: str, known: Iterable[str]) -> str:
    """The remedy for an unknown word: the nearest known one, or the list of all."""
    known = sorted(known)
    meant = nearest(word, known)
    if meant is not None:
        return f"did you mean {meant!r}?"
    return f"known: {', '.join(known)}" if known else "there is none"
