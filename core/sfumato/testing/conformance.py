"""Does a component keep the laws of its kind? One line in an author's tests says it.

    from sfumato.testing import conformance

    def test_my_schedule_keeps_the_laws():
        conformance.check(MySchedule)

First the component's example is held to every law, then option sets that Hypothesis draws around
it (see `options`); what a component itself refuses is not drawn. The kinds' laws stand in the
modules beside this one. Runs are repeatable: nothing is remembered between them and no seed is
taken from the clock.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sfumato import settings
from sfumato.errors import ConfigError, DataError
from sfumato.interfaces import Component
from sfumato.testing.laws import Broken, Law, laws_of, subject_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DRAWS = 10
"""Option sets that are drawn beside the example."""

_MODULES = (
    "noise_schedules",
    "time_grids",
    "time_samplers",
    "losses",
    "loss_weights",
    "guidances",
    "samplers",
    "text_encoders",
    "denoisers",
    "autoencoders",
    "objectives",
    "data",
    "trackers",
    "metrics",
    "studies",
    "layouts",
)
"""The modules that hold laws."""

_REFUSALS = (ConfigError, DataError)
"""How a component says that its options do not go together."""


@attrs.frozen
class Failure:
    """One law that one instance does not keep."""

    law: Law
    component: Component
    expected: str
    got: str

    def __str__(self) -> str:
        """Law, component, options, expected, got: a line each."""
        kind, name = self.component.kind, self.component.name
        return (
            f"{kind} {name} breaks the law {self.law.name}: {self.law.sentence}\n"
            f"  options:  {_options(self.component)}\n"
            f"  expected: {self.expected}\n"
            f"  got:      {self.got}"
        )


class LawsBroken(AssertionError):
    """A component does not keep the laws of its kind."""

    def __init__(self, failures: Iterable[Failure]) -> None:
        """At least one failure."""
        self.failures = tuple(failures)
        super().__init__("\n".join(map(str, self.failures)))


@attrs.frozen
class Report:
    """What was held to what: the laws by name, and how many option sets."""

    laws: tuple[str, ...]
    option_sets: int


def laws(kind: str) -> list[Law]:
    """The laws of a kind."""
    for name in _MODULES:
        importlib.import_module(f"sfumato.testing.{name}")
    return laws_of(kind)


def check(component: type[Component] | Component, *, draws: int = DRAWS) -> Report:
    """Holds a component to the laws of its kind.

    Args:
        component: a class, whose `example` is the base of all option sets, or an instance that is
            the base itself.
        draws: option sets drawn beside the base.

    Raises:
        LawsBroken: lists every law that the base breaks or, where it breaks none, one law with the
            smallest change of options that breaks it.
        ConfigError: Hypothesis is missing, or the kind has no laws.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The kit's models are not trained, so no picture of theirs is one, nor who judges it.
        warnings.filterwarnings("ignore", ".* pictures are saturated")
        warnings.filterwarnings("ignore", ".* is the run's own text encoder")
        base = component.example(Path(folder)) if isinstance(component, type) else component
        found = laws(base.kind)
        if not found:
            raise ConfigError(f"there are no laws for the kind {base.kind!r}")
        try:
            failures = list(_failures(base, found))
        except _REFUSALS as error:
            failures = [_failure(subject_of(base.kind), base, error)]
        if failures:
            raise LawsBroken(failures)
        drawn = _check_around(base, found, draws) if draws else 0
    return Report(tuple(law.name for law in found), 1 + drawn)


def _check_around(base: Component, laws: list[Law], draws: int) -> int:
    """Holds option sets drawn around `base` to the laws; returns how many there were."""
    try:
        import hypothesis
    except ImportError as error:
        remedy = "pip install 'sfumato[testing]'"
        raise ConfigError("the conformance kit needs Hypothesis", remedy=remedy) from error
    from sfumato.testing import options

    drawn = 0

    @hypothesis.settings(
        max_examples=draws,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(options.instances(base))
    def keeps_the_laws(instance: Component) -> None:
        nonlocal drawn
        try:
            failure = next(_failures(instance, laws), None)
        except _REFUSALS:
            hypothesis.reject()
        drawn += 1
        if failure is not None:
            raise LawsBroken([failure])

    keeps_the_laws()
    return drawn


def _failures(component: Component, laws: list[Law]) -> Iterator[Failure]:
    """The laws that a component does not keep.

    Raises:
        ConfigError: it refuses its options.
        DataError: likewise.
    """
    subject = subject_of(component.kind)
    try:
        looked_at = subject.check(component)
    except _REFUSALS:
        raise
    except Exception as error:
        yield _failure(subject, component, error)
        return
    for law in laws:
        try:
            law.check(looked_at)
        except Exception as error:
            yield _failure(law, component, error)


def _failure(law: Law, component: Component, error: Exception) -> Failure:
    if isinstance(error, Broken):
        return Failure(law, component, error.expected, error.got)
    got = f"{type(error).__name__}: {error}".splitlines()[0]
    return Failure(law, component, "an answer", got)


def _options(component: Component) -> str:
    plain: dict[str, Any] = settings.plain(component)
    return (
        ", ".join(f"{name}={value!r}" for name, value in plain.items() if name != "use") or "none"
    )
