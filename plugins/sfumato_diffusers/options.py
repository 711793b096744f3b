"""A JSON file of settings, every key of which is accounted for.

A reader takes the keys that it knows, says which others change no number, and closes the file: what
is left then has no counterpart here, and is refused. Nothing is passed over in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sfumato import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
PRIVATE = "_"
"""What a key begins with that describes the file, such as `_diffusers_version`."""


class Options:
    """The keys of one file that nobody has asked for yet."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        """`place` is the path of the file.

        Raises:
            CheckpointError: it asks for code of its own.
        """
        self._left = {key: value for key, value in values.items() if key[:1] != PRIVATE}
        self.place = place
        self.class_name = values.get("_class_name")
        for key in CODE:
            if values.get(key):
                raise CheckpointError(
                    f"asks for code of its own ({key})",
                    place=place,
                    remedy="code is never read from a folder: write a plugin instead",
                )

    def refusal(self, key: str, value: Any, remedy: str) -> CheckpointError:
        """An error about a value that has no counterpart here."""
        problem = f"{key} is {_shown(value)}, which has no counterpart here"
        return CheckpointError(problem, place=self.place, remedy=remedy)

    def raw(self, key: str) -> Any:
        """A value as it is; None where there is none."""
        return self._left.pop(key, None)

    def take(self, key: str, default: Any) -> Any:
        """A value, of the type of its default; a list also where that is one value."""
        value = self._left.pop(key, default)
        if not _alike(value, default):
            raise CheckpointError(
                f"{key} is {_shown(value)}, expected something like {_shown(default)}",
                place=self.place,
            )
        return value

    def take_or_none(self, key: str, like: Any) -> Any:
        """A value, of the type of another; None too, which is what is meant where there is none."""
        if self._left.get(key) is not None:
            return self.take(key, like)
        return self.raw(key)

    def choice(self, key: str, default: str, known: Collection[str]) -> str:
        """A text, one of `known`."""
        value = self._left.pop(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.refusal(key, value, f"known: {', '.join(known)}")
        return value

    def count(self, key: str, default: int) -> int:
        """A whole number, also written as a list of equal ones."""
        value = self._left.pop(key, default)
        numbers = value if isinstance(value, list) and value else [value]
        if type(numbers[0]) is not int or any(number != numbers[0] for number in numbers):
            raise self.refusal(key, value, "one number for all levels is needed")
        return numbers[0]

    def fixed(self, **expected: Any) -> None:
        """Values that are the only ones with a counterpart, and the defaults too."""
        for key, wanted in expected.items():
            value = self._left.pop(key, wanted)
            if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
                raise self.refusal(key, value, f"{_shown(wanted)} alone is known")

    def ignore(self, *keys: str) -> None:
        """Keys that change no number."""
        for key in keys:
            self.raw(key)

    def close(self) -> None:
        """Says that all keys have been asked for.

        Raises:
            CheckpointError: there are more.
        """
        for key, value in self._left.items():
            raise self.refusal(key, value, "nothing is known of this key")


def _alike(value: Any, default: Any) -> bool:
    if isinstance(value, list):
        inner = default[0] if isinstance(default, list) else default
        return bool(value) and all(_alike(item, inner) for item in value)
    if isinstance(default, float) and type(value) is int:
        return True
    return type(value) is type(default)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
