"""A law: one sentence that every component of a kind must make true, and the check that looks.

Laws are written one function each, next to others of their kind:

    @law("noise_schedule")
    def snr_falls(schedule: NoiseSchedule) -> None:
        "The signal-to-noise ratio falls strictly with t."
        ...
        expect(bool(...), "a falling ratio", f"{snr[i]} at t = {t[i]}, then {snr[i + 1]}")

A law knows nothing about how options are drawn or failures reported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from torch import Tensor

Check = Callable[[Any], None]


class Broken(Exception):
    """What a law expected, and what it got instead."""

    def __init__(self, expected: str, got: str) -> None:
        """Both as phrases that read after "expected" and "got"."""
        super().__init__(expected, got)
        self.expected, self.got = expected, got


@attrs.frozen
class Law:
    """A law of one kind: its name, its sentence, its check."""

    kind: str
    name: str
    sentence: str
    check: Check


_laws: list[Law] = []


def law(kind: str) -> Callable[[Check], Check]:
    """Registers a check as a law of `kind`: the function's name is the law's, its docstring the
    sentence.
    """

    def register(check: Check) -> Check:
        sentence = inspect.cleandoc(check.__doc__ or "")
        _laws.append(Law(kind, check.__name__, " ".join(sentence.split()), check))
        return check

    return register


def laws_of(kind: str) -> list[Law]:
    """The laws of a kind, in the order in which they are written."""
    return [one for one in _laws if one.kind == kind]


def expect(holds: bool, expected: str, got: str) -> None:
    """Raises `Broken` unless something holds."""
    if not holds:
        raise Broken(expected, got)


def expect_equal(got: object, expected: object, of: str) -> None:
    """Raises `Broken` unless a fact, called `of`, is as expected."""
    expect(got == expected, f"{of} {expected}", f"{of} {got}")


def expect_close(got: Tensor, wanted: Tensor, of: str, tolerance: float) -> None:
    """Raises `Broken` unless two tensors agree in shape and, relative to the largest value of
    `wanted` (or 1 where that is smaller), to `tolerance`.
    """
    expect_equal(tuple(got.shape), tuple(wanted.shape), f"shape of {of}")
    got, wanted = got.detach().double(), wanted.detach().double()
    scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    error = float((got - wanted).abs().max()) / scale if wanted.numel() else 0.0
    expect(error <= tolerance, f"{of} equal to {tolerance:g}", f"a difference of {error:.3g}")


def expect_finite(values: Tensor, of: str) -> None:
    """Raises `Broken` unless every value is a finite number."""
    wrong = int((~values.isfinite()).sum())
    expect(wrong == 0, f"{of} finite", f"{wrong} of {values.numel()} values that are not")
