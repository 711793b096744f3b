"""Laws of data: captioned pictures of one size, a function of their index."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import attrs
import torch

from sfumato.interfaces import Data
from sfumato.split import Split
from sfumato.testing.laws import Broken, expect, expect_equal, expect_finite, law, subject
from sfumato.testing.modules import random_state_kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


LOOKED_AT = 24
"""Examples of a split that are looked at, at most."""
WORDS = (0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15)
"""Draws of variations, the ends of their range among them."""
NAMES: tuple[Literal["train", "test"], ...] = ("train", "test")

Example = tuple[bytes, str]


@attrs.frozen(eq=False)
class Subject:
    """The settings and their splits."""

    settings: Data
    splits: Mapping[str, Split]


@subject("data")
def splits(settings: Data) -> Subject:
    """It has a split to train on and one that is held out."""
    return Subject(settings, {name: settings.split(name) for name in NAMES})


def _indices(split: Split) -> list[int]:
    """The first examples and the last."""
    return sorted({*range(min(len(split), LOOKED_AT)), len(split) - 1})


def _varied(split: Split, index: int) -> tuple[Tensor, str]:
    return split.variation(index, WORDS[-1])


def _examples(split: Split) -> list[Example]:
    """The first examples and the last, picture and caption, as values."""
    examples = (split.example(index) for index in _indices(split))
    return [(picture.numpy().tobytes(), caption) for picture, caption in examples]


@law("data")
def not_empty(data: Subject) -> None:
    """Each split has an example, and counts what it dropped."""
    for name, split in data.splits.items():
        expect(len(split) > 0, f"an example to {name} on", "none")
        expect(split.dropped >= 0, "a count of what was dropped", repr(split.dropped))


@law("data")
def pictures_are_as_stated(data: Subject) -> None:
    """Pictures are (3, *picture_size), float32, in [-1, 1]."""
    wanted = (3, *data.settings.picture_size)
    for split in data.splits.values():
        for index in _indices(split):
            picture: Tensor = split.example(index)[0]
            found = (tuple(picture.shape), picture.dtype)
            expect_equal(found, (wanted, torch.float32), "pictures")
            expect_finite(picture, "pictures")
            low, high = float(picture.min()), float(picture.max())
            expect(-1 <= low and high <= 1, "values in [-1, 1]", f"values in [{low:g}, {high:g}]")


@law("data")
def captions_are_those_of_the_examples(data: Subject) -> None:
    """`caption(i)` is the text that `example(i)` gives."""
    for split in data.splits.values():
        for index in _indices(split):
            expect_equal(split.caption(index), split.example(index)[1], f"caption {index}:")


@law("data")
def repeatable(data: Subject) -> None:
    """An index gives the same example again, in any order, and from another split of the name."""
    for name in NAMES:
        split = data.splits[name]
        first = _examples(split)
        backwards = [split.example(index) for index in reversed(_indices(split))]
        again = [(picture.numpy().tobytes(), caption) for picture, caption in reversed(backwards)]
        expect(again == first, f"the same {name} examples again", "others")
        other = _examples(data.settings.split(name))
        expect(other == first, f"the same {name} examples from a split made anew", "others")


@law("data")
def variations_are_examples(data: Subject) -> None:
    """A variation is a function of index and word, as large as an example, and says one of its
    phrasings; where nothing varies it is the example.
    """
    wanted = (3, *data.settings.picture_size)
    for split in data.splits.values():
        for index in _indices(split):
            says = split.phrasings(index)
            expect_equal(says[0], split.caption(index), f"the first phrasing of {index}:")
            word = WORDS[index % len(WORDS)]
            picture, caption = split.variation(index, word)
            again, same_caption = split.variation(index, word)
            expect(torch.equal(picture, again), "the same variation again", "another picture")
            expect_equal(same_caption, caption, "the caption of the same variation:")
            expect_equal((tuple(picture.shape), picture.dtype), (wanted, torch.float32), "pictures")
            limit = float(picture.abs().max())
            expect(limit <= 1, "values in [-1, 1]", f"a value of {limit:g}")
            expect(caption in says, f"one of {says}", repr(caption))
            if not split.varies:
                plain, text = split.example(index)
                expect(torch.equal(picture, plain), "the example itself", "another picture")
                expect_equal(caption, text, "the caption of the example itself:")


@law("data")
def what_is_held_out_does_not_vary(data: Subject) -> None:
    """What is measured is measured on examples as they are."""
    expect(not data.splits["test"].varies, "a test split that does not vary", "one that does")


@law("data")
def held_out_is_held_out(data: Subject) -> None:
    """No example of the test split is among those to train on."""
    train, test = (_examples(data.splits[name]) for name in NAMES)
    common = sorted({caption for _, caption in set(train) & set(test)})
    expect(not common, "no example in both splits", f"{common[:3]} in both")


@law("data")
def the_fingerprint_stands_for_the_examples(data: Subject) -> None:
    """A split made anew has the same fingerprint, and the other split has another."""
    found = [data.settings.split(name).fingerprint() for name in NAMES]
    expect_equal(found, [data.splits[name].fingerprint() for name in NAMES], "fingerprints again:")
    expect(len({*found}) == len(found), "a fingerprint of each split", "the same")


@law("data")
def survives_pickling(data: Subject) -> None:
    """A split goes to a worker process and gives the same there."""
    for name, split in data.splits.items():
        there = pickle.loads(pickle.dumps(split))
        expect_equal(len(there), len(split), f"length of the {name} split after pickling:")
        expect(_examples(there) == _examples(split), f"the same {name} examples", "others")


@law("data")
def an_index_outside_is_refused(data: Subject) -> None:
    """An index below 0 or from `len` on raises IndexError, whatever is asked for."""
    for split in data.splits.values():
        looks: dict[str, Callable[[int], object]] = {
            "example": split.example,
            "caption": split.caption,
            "phrasings": split.phrasings,
            "variation": functools.partial(_varied, split),
        }
        for index in (-1, len(split)):
            for name, look in looks.items():
                try:
                    look(index)
                except IndexError:
                    continue
                except Exception as error:
                    got = f"{type(error).__name__} from {name}({index})"
                    raise Broken("IndexError", got) from error
                raise Broken("IndexError", f"an answer from {name}({index}) of {len(split)}")


@law("data")
def random_state_is_left_alone(data: Subject) -> None:
    """Nothing is drawn from torch's generator."""
    with random_state_kept():
        for split in data.splits.values():
            _examples(split)
