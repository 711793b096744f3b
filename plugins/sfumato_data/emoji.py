"""Which emoji there are, and what is said of them: names, other names, keywords."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import unicodedata
from typing import TYPE_CHECKING

import attrs

from sfumato import DataError, Split
from sfumato_data.openmoji_font import (
    colored_code_points,
    draw,
    drawing_version,
    drawn,
    is_colored,
    package,
)
from sfumato_data.pictures import to_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

TONES = dict(
    zip("🏻🏼🏽🏾🏿", ("light", "medium-light", "medium", "medium-dark", "dark"), strict=True)
)
"""The five modifiers, by the names of the CLDR."""
EMOJI_STYLE = "\ufe0f"
"""Asks for a drawing in colour where there is one in text style too; part of no identity."""
REGIONAL = re.compile("[\U0001f1e6-\U0001f1ff]{2}")
INK = frozenset({"black", "white", "heavy"})
"""In the names of Unicode these tell of the ink of printed charts, and not of colours."""
KEYWORDS = 8
"""Phrasings with a keyword, at most: the first ones fit best."""


@attrs.frozen
class Named:
    """One emoji: its code points, and what is said of it, what it is captioned with first."""

    text: str
    phrasings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The code points but for skin tone and style: what decides about the split."""
        return "-".join(f"U+{ord(one):04X}" for one in _bare(self.text))


class Emoji(Split):
    """One drawing for each emoji, drawn when it is first asked for."""

    def __init__(self, emoji: Sequence[Named], size: int) -> None:
        """At least one; `size` is height and width in pixels.

        Raises:
            DataError: there is none.
        """
        if not emoji:
            raise DataError("no emoji in this split", place="openmoji", remedy="change held_out")
        self._emoji, self._size = emoji, size

    def __len__(self) -> int:
        return len(self._emoji)

    def example(self, index: int) -> tuple[Tensor, str]:
        """Picture (3, size, size) float32 in [-1, 1], and the name of the emoji in lower case."""
        caption = self.caption(index)
        return to_tensor(draw(self._emoji[index].text, self._size)), caption

    def caption(self, index: int) -> str:
        """The name alone."""
        return self.phrasings(index)[0]

    def phrasings(self, index: int) -> tuple[str, ...]:
        """The name, other names, and the name with each of the keywords."""
        self.refuse_outside(index)
        return self._emoji[index].phrasings

    def fingerprint(self) -> str:
        """A hash of phrasings, of code points, and of what draws them."""
        told = [super().fingerprint(), drawing_version(), *(one.text for one in self._emoji)]
        return hashlib.sha256("\0".join(told).encode()).hexdigest()


def named_by_code_point() -> list[Named]:
    """Single code points by their names in Unicode, in ascending order."""
    return [
        Named(chr(code_point), (unicodedata.name(chr(code_point)).lower(),))
        for code_point in colored_code_points()
    ]


@functools.cache
def named_by_cldr() -> tuple[Named, ...]:
    """All that has a drawing in colour and at most one skin tone, in an order without meaning, so
    that the first few are of all sorts.

    Raises:
        DataError: a package is not installed.
    """
    package("emoji", "emoji")
    from emoji import EMOJI_DATA, STATUS

    keywords = json.loads((package("em", "em-keyboard") / "emojis.json").read_text("utf-8"))
    pictures, whole = drawn(), STATUS["fully_qualified"]
    return tuple(
        Named(text, _phrasings(text, EMOJI_DATA, keywords))
        for text in sorted(
            (text for text, facts in EMOJI_DATA.items() if facts["status"] == whole),
            key=lambda text: hashlib.blake2b(text.encode()).digest(),
        )
        if not pictures.isdisjoint({_hex(text), _hex(text.replace(EMOJI_STYLE, ""))})
        and len(tones := _tones(text)) <= 1
        and (tones or is_colored(text))
    )


def _phrasings(
    text: str, facts: Mapping[str, Mapping[str, object]], keywords: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    tones = _tones(text)
    plain = next((one for one in _without_tone(text) if one in facts), text)
    names = [str(facts[plain]["en"]), *map(str, facts[plain].get("alias", ()))]  # type: ignore[call-overload]
    said = [_words(name) for name in names]
    if REGIONAL.fullmatch(text):
        said = [f"flag of {said[0]}"]
    elif len(plain) == 1:
        said.append(unicodedata.name(plain, said[0]).lower())
    extra = [word for one in keywords.get(plain, ())[1:] if (word := _words(one)).isalpha()]
    said += [f"{said[0]}, {word}" for word in extra if word not in said[0]][:KEYWORDS]
    colors = INK.intersection(said[0].split())
    said = [one for one in said if INK.intersection(one.split()) == colors]
    tone = f" with {TONES[tones[0]]} skin tone" if tones else ""
    return tuple(dict.fromkeys(_with_tone(one, tone) for one in said if len(one) > 2))


def _with_tone(said: str, tone: str) -> str:
    name, comma, keyword = said.partition(", ")
    return f"{name}{tone}{comma}{keyword}"


def _without_tone(text: str) -> tuple[str, str]:
    """Which of the two it is depends on whether the emoji has a text style too."""
    tone = next(iter(_tones(text)), "")
    return text.replace(tone, EMOJI_STYLE), text.replace(tone, "")


def _words(name: str) -> str:
    """`:woman_firefighter:` as words in lower case."""
    return re.sub(r"[\s_]+", " ", name.strip(":").replace("“", "").replace("”", "")).strip().lower()


def _tones(text: str) -> list[str]:
    return [one for one in text if one in TONES]


def _bare(text: str) -> str:
    return "".join(one for one in text if one not in TONES and one != EMOJI_STYLE)


def _hex(text: str) -> str:
    return "-".join(f"{ord(one):04X}" for one in text)
