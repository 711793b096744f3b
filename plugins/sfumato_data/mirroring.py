"""Which pictures a mirror would make wrong, told by what is said of them.

A mirrored arrow points elsewhere, mirrored writing cannot be read, a mirrored clock tells another
time, a mirrored flag is another country's. What a picture shows is known from its phrasings alone,
so one suspicious word in any of them is enough: where nothing is lost but some variety, it is
better to leave out too many.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

DIRECTIONS = (
    "left right leftward leftwards rightward rightwards leftwing rightwing east west eastward "
    "westward clockwise counterclockwise anticlockwise direction arrow arrows cursor rewind "
    "shuffle repeat italic map globe earth"
)
ORDERS = "clock oclock watch stopwatch timer calendar waxing waning quarter crescent chart"
WRITING = (
    "letter letters text word words alphabet abc abcd number numbers numeric digit digits keycap "
    "button sign symbol squared ideograph ideographic kanji hiragana katakana japanese latin "
    "writing written label caption headline newspaper news logo brand license plate keyboard "
    "question interrogation percent atm copyright registered trademark currency dollar euro yen "
    "pound bitcoin banknote receipt musical note notes clef card cards mahjong ligature zodiac"
)
FLAGS = "flag flags"

UNMIRRORED = frozenset(f"{DIRECTIONS} {ORDERS} {WRITING} {FLAGS}".split())


def may_mirror(phrasings: Iterable[str]) -> bool:
    """Whether none of these says that the picture has a left and a right of its own."""
    words = {word for text in phrasings for word in re.findall(r"\w+", text.lower())}
    return not any(word in UNMIRRORED or any(map(str.isdigit, word)) for word in words)
