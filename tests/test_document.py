"""Strict YAML, by the traps of its libraries and by hostile files."""

import time

import pytest

from sfumato import document
from sfumato.errors import ConfigError


def plain(text):
    return document.read(text, "file.yaml").plain()


@pytest.mark.fault("numbers in YAML")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("5e-6", 5e-6),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("10", 10),
        ("-3", -3),
        ("010", "010"),
        ("no", "no"),
        ("yes", "yes"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("'3'", "3"),
        ("2026-11-23", "2026-11-23"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("[1, 2.5, x]", [1, 2.5, "x"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    read = plain(text)
    assert read == value
    assert type(read) is type(value)


def test_every_value_knows_its_place():
    tree = document.read("a:\n  b: [1,\n      2]\n", "file.yaml")
    assert tree.value["a"].value["b"].value[1].place == "file.yaml:3: a.b.1"


@pytest.mark.fault("mistakes in YAML")
def test_every_repeated_key_is_reported_with_both_lines():
    with pytest.raises(ConfigError) as error:
        plain("a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert str(error.value) == (
        "file.yaml:2: b.c: the key stands twice, first at file.yaml:2\n"
        "file.yaml:3: a: the key stands twice, first at file.yaml:1"
    )


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.fault("code in YAML")
@pytest.mark.fault("hostile files")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "file.yaml:1: anchors and aliases are refused; use a named entry or `from`"),
        ("a: &a [*a]", "file.yaml:1: anchors and aliases are refused; use a named entry or `from`"),
        ("[" * 100_000, "file.yaml:1: is nested deeper than 40 levels"),
        ("{a: " * 50_000, "file.yaml:1: is nested deeper than 40 levels"),
        ("a: b\0", "file.yaml: holds a character that YAML does not allow"),
        ("", "file.yaml: is empty"),
        ("# nothing\n", "file.yaml: is empty"),
        ("a: 1\n---\nb: 2\n", "file.yaml:2: but found another document"),
        (
            "a: !!python/object/apply:os.system [id]",
            "file.yaml:1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is refused: "
            "settings are plain data",
        ),
        ("a: [1,\nb: 2", "file.yaml:2: expected ',' or ']', but got the end"),
        ("? [a]\n: 1", "file.yaml:1: a key must be a word"),
    ],
)
def test_hostile_files_are_one_clean_error(text, message):
    began = time.monotonic()
    with pytest.raises(ConfigError) as error:
        plain(text)
    assert str(error.value) == message
    assert time.monotonic() - began < 2  # a second, on a machine that does nothing else


@pytest.mark.fault("hostile files")
def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "settings.yaml"
    with pytest.raises(ConfigError, match="settings.yaml: cannot be read: No such file"):
        document.read_file(path)
    path.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match="settings.yaml: is not UTF-8 text"):
        document.read_file(path)
    path.write_text("a: " + "x" * (2 << 20))
    with pytest.raises(ConfigError, match="settings.yaml: is larger than 1 MiB"):
        document.read_file(path)
