"""Does a component keep the laws of its kind? One line in an author's tests says it.

    from sfumato.testing import conformance

    def test_my_schedule_keeps_the_laws():
        conformance.check(MySchedule)

First the component's example is held to every law, then option sets that Hypothesis draws around
it (see `options`). The kinds' laws stand in the modules beside this one. Runs are repeatable:
nothing is remembered between them and no seed is taken from the clock.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sfumato import settings
from sfumato.errors import ConfigError
from sfumato.interfaces import Component
from sfumato.testing.laws import Broken, Law, laws_of

if TYPE_CHECKING:
    from collections.abc import Iterable

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
)
"""The modules that hold laws."""


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
    with tempfile.TemporaryDirectory() as folder:
        base = component.example(Path(folder)) if isinstance(component, type) else component
        found = laws(base.kind)
        if not found:
            raise ConfigError(f"there are no laws for the kind {base.kind!r}")
        if failures := [failure for law in found if (failure := _failure(law, base))]:
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
        drawn += 1
        for law in laws:
            if failure := _failure(law, instance):
                raise LawsBroken([failure])

    keeps_the_laws()
    return drawn


def _failure(law: Law, component: Component) -> Failure | None:
    try:
        law.check(component)
    except Broken as broken:
        return Failure(law, component, broken.expected, broken.got)
    except Exception as error:
        got = f"{type(error).__name__}: {error}".splitlines()[0]
        return Failure(law, component, "an answer", got)
    return None


def _options(component: Component) -> str:
    plain: dict[str, Any] = settings.plain(component)
    return (
        ", ".join(f"{name}={value!r}" for name, value in plain.items() if name != "use") or "none"
    )
