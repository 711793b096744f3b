"""Structuring is strict, complete and literal in its messages."""

from typing import Any, Literal

import attrs
import pytest
from attrs.validators import and_, deep_iterable, ge, gt, in_, le, lt, min_len, optional

from sfumato import document, option, required, settings
from sfumato.errors import ConfigError
from sfumato.settings import Bounds


@attrs.frozen(kw_only=True)
class Options:
    whole: int = option(1, "a count", ge(1), le(10))
    share: float = option(0.5, "a share", gt(0), lt(1))
    flag: bool = option(False, "a switch")
    text: str = option("a", "a word")
    maybe: float | None = option(None, "perhaps", optional(ge(0)))
    several: tuple[int, ...] = option((1,), "some", deep_iterable(ge(0)))
    choice: Literal["a", "b"] = option("a", "one of two")
    power: int = option(2, "of two", in_([2, 4, 8]))
    free: dict[str, Any] = option(attrs.Factory(dict), "what another library reads")


@attrs.frozen(kw_only=True)
class Needs:
    folder: str = required("where the pictures are")


def structure(text, cls, catalogue):
    return settings.structure(document.read(text, "f.yaml"), cls, catalogue)


@pytest.mark.fault("mistakes in YAML")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('whole: "10"', "whole: expected int, got the text '10'; remove the quotes"),
        ("whole: 10.7", "whole: expected int, got 10.7"),
        ("whole: true", "whole: expected int, got true"),
        ("whole: 11", "whole: expected >= 1 and <= 10, got 11"),
        ("share: 0", "share: expected > 0 and < 1, got 0"),
        ("share: .nan", "share: expected a finite number, got nan"),
        ("share: .inf", "share: expected a finite number, got inf"),
        ("share: null", "share: expected number, got null"),
        ('flag: "false"', "flag: expected true or false, got the text 'false'"),
        ("flag: no", "flag: expected true or false, got the text 'no'"),
        ("flag: 0", "flag: expected true or false, got 0"),
        ("text: 3", "text: expected text, got 3"),
        ("several: abc", "several: expected list of int, got the text 'abc'"),
        ("several: [1, 2.5]", "several.1: expected int, got 2.5"),
        ("several: [1, -2]", "several: expected each >= 0, got [1, -2]"),
        ("choice: c", "choice: expected one of 'a', 'b', got the text 'c'"),
        ("power: 3", "power: expected one of 2, 4, 8, got 3"),
        ("wohle: 3", "wohle: unknown option of Options; did you mean 'whole'?"),
        ("maybe: -1", "maybe: expected >= 0, got -1"),
        ("free: [1]", "free: expected a mapping, got [1]"),
        ("free: {a: {b: [1, .nan]}}", "free.a.b.1: expected a finite number, got nan"),
    ],
)
def test_wrong_values_are_refused_with_place_and_remedy(catalogue, text, message):
    with pytest.raises(ConfigError) as error:
        structure(text, Options, catalogue)
    assert str(error.value) == f"f.yaml:1: {message}"


def test_right_values_are_taken_as_they_are(catalogue):
    text = "{whole: 3, share: 1e-4, flag: true, maybe: 2, several: [], choice: b, power: 8, "
    text += "free: {a: null, b: {c: [1, 2.5, true, x]}}}"
    made = structure(text, Options, catalogue)
    assert made == Options(
        whole=3, share=1e-4, flag=True, maybe=2.0, several=(), choice="b", power=8,
        free={"a": None, "b": {"c": [1, 2.5, True, "x"]}},
    )  # fmt: skip
    assert type(made.maybe) is float


@pytest.mark.fault("mistakes in YAML")
def test_all_problems_are_reported_at_once(catalogue):
    with pytest.raises(ConfigError) as error:
        structure("whole: 0\nshare: x\nnothing: 1\n", Options, catalogue)
    assert str(error.value) == (
        "f.yaml:3: nothing: unknown option of Options; known: choice, flag, free, maybe, power, "
        "several, share, text, whole\n"
        "f.yaml:1: whole: expected >= 1 and <= 10, got 0\n"
        "f.yaml:2: share: expected number, got the text 'x'"
    )


def test_a_missing_option_says_what_it_is_for(catalogue):
    with pytest.raises(ConfigError) as error:
        structure("{}", Needs, catalogue)
    assert str(error.value) == "f.yaml:1: 'folder' is missing; where the pictures are"


def test_bounds_are_read_through_every_wrapper():
    @attrs.frozen
    class Wrapped:
        a: int = attrs.field(validator=and_(gt(0), optional(le(5))))
        b: tuple[int, ...] = attrs.field(validator=deep_iterable(lt(3)))
        c: int = attrs.field(default=0)
        d: float | None = attrs.field(default=None, validator=optional([ge(0), lt(1)]))
        e: tuple[int, ...] = attrs.field(default=(1,), validator=[min_len(1), deep_iterable(ge(2))])

    fields = attrs.fields_dict(Wrapped)
    assert settings.bounds(fields["a"]) == Bounds(low=0, low_open=True, high=5)
    assert settings.bounds(fields["b"]) == Bounds(high=3, high_open=True)
    assert settings.bounds(fields["c"]) == Bounds()
    assert settings.bounds(fields["d"]) == Bounds(low=0, high=1, high_open=True)
    assert settings.bounds(fields["e"]) == Bounds(low=2, items=1)
    assert str(settings.bounds(fields["e"])) == ">= 2 and at least 1 of them"


def test_an_option_in_words():
    @attrs.frozen(kw_only=True)
    class Few:
        choice: Literal["a", "b"] = option("a", "which")
        share: float | None = option(None, "how much", optional([ge(0), lt(1)]))
        names: tuple[str, ...] = option(attrs.Factory(lambda: ("é",)), "who")
        picked: str = required("one of a few", in_(["x", "y"]))

    said = [attrs.astuple(settings.describe(field)) for field in settings.fields(Few).values()]
    assert said == [
        ("one of 'a', 'b'", "", '"a"', "which"),
        ("number or null", ">= 0 and < 1", "null", "how much"),
        ("list of text", "", '["é"]', "who"),
        ("text", "one of 'x', 'y'", "required", "one of a few"),
    ]


def test_plain_and_structure_are_inverse_for_every_component(catalogue, tmp_path):
    for offer in catalogue.offers:
        component = offer.component.example(tmp_path)
        tree = document.node(settings.plain(component))
        assert settings.structure(tree, offer.component, catalogue) == component
