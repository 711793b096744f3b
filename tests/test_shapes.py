"""The procedural data: distinct words, pure functions of the index, pairs kept out of training."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from sfumato_data import Shapes
from sfumato_data.shapes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    POSITIONS,
    SHAPES,
    SIZES,
)
from sfumato_data.shapes_drawing import Scene, distance_inside


def pairs(split):
    return Counter((split.scene(i).color, split.scene(i).shape) for i in range(len(split)))


def test_no_two_colors_or_backgrounds_are_near_each_other():
    every = [*COLORS.values(), *BACKGROUNDS.values()]
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in itertools.combinations(every, 2)) > 0.7
    assert max(abs(value) for color in every for value in color) <= 1


def test_no_word_means_two_things():
    words = [*COLORS, *BACKGROUNDS, *SHAPES, *SIZES, *POSITIONS]
    assert len(words) == len(set(words))


def test_an_example_is_a_function_of_seed_split_and_index():
    image, caption = Shapes(size=16, count=500).split("train").example(123)
    again, same = Shapes(size=16, count=200).split("train").example(123)
    assert torch.equal(image, again) and caption == same
    for other in (
        Shapes(size=16, count=500, seed=1).split("train"),
        Shapes(size=16, held_out=500).split("test"),
    ):
        assert not torch.equal(image, other.example(123)[0])


@pytest.mark.parametrize("size", [12, 16, 32])
def test_a_picture_is_what_the_interface_promises(size):
    data = Shapes(size=size, count=50)
    split = data.split("train")
    for index in range(50):
        image, caption = split.example(index)
        assert image.shape == (3, *data.picture_size) and image.dtype == torch.float32
        assert image.min() >= -1 and image.max() <= 1
        assert caption == split.caption(index)


def test_held_out_pairs_are_in_the_test_split_only():
    data = Shapes(count=5000, held_out=2000)
    every = set(itertools.product(COLORS, SHAPES))
    assert set(pairs(data.split("train"))) == every - set(HELD_OUT_PAIRS)
    assert set(pairs(data.split("test"))) == every
    train = data.split("train")
    said = [data.attributes(train.caption(i)) for i in range(len(train))]
    assert not any((words.get("color"), words.get("shape")) in HELD_OUT_PAIRS for words in said)


def test_each_color_and_each_shape_is_trained_on_with_others():
    left = set(itertools.product(COLORS, SHAPES)) - set(HELD_OUT_PAIRS)
    assert {color for color, _ in left} == set(COLORS)
    assert all(sum(shape == other for _, other in left) >= 3 for shape in SHAPES)


def test_a_caption_says_nothing_but_the_truth_and_parses_back():
    data = Shapes(count=3000)
    split = data.split("train")
    for index in range(3000):
        said = data.attributes(split.caption(index))
        assert said.items() <= vars_of(split.scene(index)).items()


def vars_of(scene):
    return {
        key: getattr(scene, key) for key in ("color", "shape", "background", "size", "position")
    }


def test_every_way_to_leave_attributes_out_round_trips():
    data = Shapes()
    scene = Scene(
        color="red",
        shape="circle",
        background="white",
        size="small",
        position="left",
        x=0.35,
        y=0.5,
        radius=0.2,
    )
    whole = vars_of(scene)
    for count in range(6):
        for named in itertools.combinations(whole, count):
            caption = scene.caption(frozenset(named))
            assert data.attributes(caption) == {key: whole[key] for key in named}, caption
    assert scene.caption(frozenset(whole)) == "a small red circle at the left on a white background"
    assert scene.caption(frozenset({"color"})) == "a red shape"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("red circle on a white background", dict(color="red", shape="circle", background="white")),
        ("red", dict(color="red")),
        ("A large square on white", dict(size="large", shape="square", background="white")),
        ("a circle on gray at the top", dict(shape="circle", background="gray", position="top")),
        ("a circle on a red background", dict(shape="circle")),
        ("a shape", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_what_a_text_says(text, said):
    assert Shapes().attributes(text) == said


def test_captions_leave_out_as_often_as_stated():
    data = Shapes(count=20_000)
    split = data.split("train")
    captions = [split.caption(i) for i in range(20_000)]
    said = [data.attributes(caption) for caption in captions]
    bare = sum(" " not in caption for caption in captions) / len(said)
    assert bare == pytest.approx(0.05, abs=0.01)
    full = sum(len(words) == 5 for words in said) / len(said)
    assert full == pytest.approx(0.45 + 0.5 * 0.75**2 / 8, abs=0.015)
    color = sum("color" in words for words in said) / len(said)
    assert color == pytest.approx(0.45 + 0.5 * 0.75 + 0.025, abs=0.015)
    place = sum("position" in words for words in said) / len(said)
    assert place == pytest.approx(0.45 + 0.5 * 0.5, abs=0.015)


@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_coverage_is_that_of_fine_supersampling(shape):
    pixels, fine, scene_x, scene_y, radius = 32, 32, 0.47, 0.55, 0.21
    middles = ((np.arange(pixels * fine) + 0.5) / (pixels * fine)).astype(np.float32)
    inside = distance_inside(shape, middles - scene_x, middles - scene_y, radius) > 0
    exact = inside.reshape(pixels, fine, pixels, fine).mean(axis=(1, 3))
    scene = Scene(
        color="red",
        shape=shape,
        background="black",
        size="small",
        position="center",
        x=scene_x,
        y=scene_y,
        radius=radius,
    )
    red = scene.picture(pixels)[0].numpy()
    coverage = (red - BACKGROUNDS["black"][0]) / (COLORS["red"][0] - BACKGROUNDS["black"][0])
    # The distance to the nearest edge is wrong in the few pixels that hold a corner.
    assert abs(coverage - exact).max() < 0.35 and abs(coverage - exact).mean() < 0.004
    area = {"circle": np.pi, "square": 4, "triangle": 2}[shape] * (radius * pixels) ** 2
    assert exact.sum() == pytest.approx(area, rel=0.01)
    assert coverage.sum() == pytest.approx(area, rel=0.02)


def test_every_shape_lies_inside_the_picture_whatever_the_jitter():
    split = Shapes(count=5000).split("train")
    for scene in map(split.scene, range(5000)):
        assert scene.radius <= min(scene.x, scene.y, 1 - scene.x, 1 - scene.y)


def test_an_index_that_is_not_there():
    with pytest.raises(IndexError, match="there is no example 5; the last is 4"):
        Shapes(count=5).split("train").example(5)


def test_the_test_split_holds_the_pairs_that_are_asked_for():
    for pairs, expected in (("all", 18), ("seen", 15), ("unseen", 3)):
        split = Shapes(size=16, held_out=800, test_pairs=pairs).split("test")
        found = {(split.scene(i).color, split.scene(i).shape) for i in range(len(split))}
        assert len(found) == expected
        assert set(HELD_OUT_PAIRS).isdisjoint(found) == (pairs == "seen")
