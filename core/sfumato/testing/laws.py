"""A law: one sentence that every component of a kind must make true, and the check that looks.

Laws are written one function each, next to others of their kind:

    @law("noise_schedule")
    def snr_falls(schedule: NoiseSchedule) -> None:
        "The signal-to-noise ratio falls strictly with t."
        ...
        expect(bool(...), "a falling ratio", f"{snr[i]} at t = {t[i]}, then {snr[i + 1]}")

Where laws look at what a component builds, a `subject` makes that once for all of them:

    @subject("denoiser")
    def builds(settings: Denoiser) -> Built:
        "It builds a module for a small space."

Making the subject is then the first law of the kind. A law knows nothing about how options are
drawn or failures reported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from torch import Tensor

Check = Callable[[Any], Any]


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
_subjects: dict[str, Law] = {}


def law(kind: str) -> Callable[[Check], Check]:
    """Registers a check as a law of `kind`: the function's name is the law's, its docstring the
    sentence.
    """

    def register(check: Check) -> Check:
        _laws.append(_law(kind, check))
        return check

    return register


def subject(kind: str) -> Callable[[Check], Check]:
    """Registers what makes, from a component, that which the laws of its kind look at.

    A ConfigError or DataError that it raises means that the options do not go together.
    """

    def register(check: Check) -> Check:
        _subjects[kind] = _law(kind, check)
        return check

    return register


def _law(kind: str, check: Check) -> Law:
    return Law(kind, check.__name__, " ".join(inspect.cleandoc(check.__doc__ or "").split()), check)


def laws_of(kind: str) -> list[Law]:
    """The laws of a kind, in the order in which they are written."""
    return [one for one in _laws if one.kind == kind]


def subject_of(kind: str) -> Law:
    """What makes the subject of a kind's laws: by default the component itself."""
    return _subjects.get(kind) or Law(kind, "exists", "It exists.", lambda component: component)


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
