"""The demo, whole: what `make demo` promises, held to its numbers."""

import json

import pytest
from PIL import Image

from sfumato import Pipeline
from sfumato.registry import Registry
from sfumato.training import train
from small import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory, catalogue):
    """The run folder."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    experiment = Registry.load(ROOT / "registry.yaml", catalogue).experiment("demo")
    for _ in train(experiment, folder):
        pass
    return folder


@pytest.fixture(scope="module")
def results(demo):
    return json.loads((demo / "run.json").read_text())["results"]


def test_samples_follow_their_prompts(results):
    assert results["color_accuracy"]["value"] >= 0.95
    assert results["shape_accuracy"]["value"] >= 0.80
    assert 0 < results["color_accuracy"]["n"] <= 192  # captions may leave the color open


def test_clip_finds_the_right_caption(results):
    assert results["clip_retrieval"]["value"] >= 0.9


def test_guidance_trades_diversity_for_alignment(results):
    scales = {
        scale: {name: one["value"] for name, one in numbers.items()}
        for scale, numbers in results["guidance"].items()
    }
    assert list(scales) == ["1", "2", "4", "8"]
    alignment = {
        scale: (numbers["color_accuracy"] + numbers["shape_accuracy"]) / 2
        for scale, numbers in scales.items()
    }
    assert alignment["4"] >= alignment["1"] + 0.05 or alignment["4"] >= 0.95
    diversity = [numbers["diversity"] for numbers in scales.values()]
    assert diversity[0] > diversity[-1]


def test_a_negative_prompt_takes_a_colour_away(results):
    shares = results["negative_prompt"]
    assert shares["without"]["value"] > 0.05
    assert shares["with"]["value"] <= shares["without"]["value"] / 3


@pytest.mark.parametrize("name", ["clip_similarity", "guidance", "negative_prompt"])
def test_each_picture_has_its_numbers(demo, name):
    with Image.open(demo / f"{name}.png") as picture:
        assert picture.width > 400
    assert json.loads((demo / f"{name}.json").read_text())


def test_pictures_are_the_same_alone_and_in_a_batch(demo):
    pipeline = Pipeline.load(demo)
    prompts = ["a large red circle", "a small blue square", "a green triangle", "a square"]
    seeds = [11, 12, 13, 14]
    together = pipeline.sample(prompts, seed=seeds)
    for i in range(4):
        alone = pipeline.sample(prompts[i : i + 1], seed=seeds[i : i + 1])
        # 1.4e-5 was seen: at t = 1 rounding of the network is divided by alpha = 0.006
        assert (alone[0] - together[i]).abs().max() < 1e-4
