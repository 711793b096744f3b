"""Every installed component keeps the laws of its kind: the author's one line, over the live catalogue."""

import attrs
import pytest
from attrs.validators import ge, le

from sfumato import NoiseSchedule, option, plugins
from sfumato.errors import ConfigError
from sfumato.interfaces import KINDS
from sfumato.testing import LawsBroken, conformance

COMPONENTS = [
    pytest.param(offer.component, id=f"{offer.component.kind}-{offer.component.name}")
    for offer in plugins.load().offers
]


BUILT = ("denoiser", "text_encoder", "objective", "study", "metric", "data", "tracker")
"""Kinds whose option sets are built, read or run anew each time: a second each, not a hundredth."""


@pytest.mark.parametrize("component", COMPONENTS)
def test_keeps_the_laws_of_its_kind(component):
    report = conformance.check(component, draws=3 if component.kind in BUILT else 10)
    assert len(report.laws) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("component", COMPONENTS)
def test_no_false_alarm_over_many_drawn_option_sets(component):
    """200, and 20 where each is built; `sfumato check sfumato --draws 200` holds all to 200."""
    conformance.check(component, draws=20 if component.kind in BUILT else 200)


def test_every_kind_has_laws_each_with_a_sentence_and_a_name_of_its_own():
    for interface in KINDS.values():
        laws = conformance.laws(interface.kind)
        assert laws, interface.kind
        assert len({law.name for law in laws}) == len(laws)
        assert all(law.sentence.endswith(".") for law in laws)


@attrs.frozen(kw_only=True)
class Tangent(NoiseSchedule):
    """Fine by default; at a high power the noise level stands still near t = 0 in float64."""

    name = "tangent"
    power: float = option(1.0, "more than 3 is too much", ge(1), le(8))
    label: str = "kept as it is"

    def alpha_sigma(self, t):
        sigma = 0.9 * t**self.power
        if self.power > 3:
            sigma = sigma * 0
        return 1 - sigma, sigma


def test_a_fault_that_only_some_options_show_is_found_and_shrunk():
    with pytest.raises(LawsBroken) as broken:
        conformance.check(Tangent, draws=200)
    (failure,) = broken.value.failures
    assert failure.component.power > 3
    assert failure.component.label == "kept as it is"
    assert str(failure) == (
        "noise_schedule tangent breaks the law in_range: Alpha is above 0, or 0 at t = 1 alone; sigma is "
        "above 0 wherever t is.\n"
        f"  options:  power={failure.component.power!r}, label='kept as it is'\n"
        "  expected: alpha > 0 before t = 1, alpha >= 0 there, sigma > 0\n"
        "  got:      alpha [1.0], sigma [0.0] at t = [0.001]"
    )


def test_an_instance_is_the_base_of_its_own_draws():
    conformance.check(Tangent(power=1.5), draws=0)
    with pytest.raises(LawsBroken, match=r"power=3\.5"):
        conformance.check(Tangent(power=3.5), draws=0)


def test_without_hypothesis_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hypothesis", None)
    with pytest.raises(ConfigError) as error:
        conformance.check(Tangent)
    assert str(error.value) == (
        "the conformance kit needs Hypothesis; pip install 'sfumato[testing]'"
    )
