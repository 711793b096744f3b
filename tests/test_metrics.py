"""Metrics against known answers, and studies on stand-ins whose answers are known."""

import subprocess
import sys
import types

import attrs
import pytest
import torch

import sfumato
from sfumato_data import ImageFolder, Shapes
from sfumato_data.shapes import BACKGROUNDS, COLORS, SHAPES, SIZES
from sfumato_data.shapes_drawing import Scene
from sfumato_metrics import (
    ClipSimilarity,
    ClipSimilarityStudy,
    Diversity,
    GuidanceStudy,
    NegativePromptStudy,
    ShapeAttributes,
)
from sfumato_metrics.answering import full_captions
from sfumato_metrics.shape_reading import read


@attrs.frozen(kw_only=True)
class Scaled(sfumato.Guidance):
    name = "scaled"
    scale: float = sfumato.option(4.0, "how much")

    def branches(self, step):
        return []

    def combine(self, predictions, step, guided, memory):
        raise NotImplementedError


class Encoder(sfumato.JointEncoderModule):
    """Looks a picture up by its pixels: it has the vector of the caption that `answers` names."""

    log_scale = torch.tensor(0.0)

    def __init__(self, captions, images, answers):
        super().__init__()
        self.captions = captions
        self.images = [image.numpy().tobytes() for image in images]
        self.answers = answers

    def encode(self, prompts):
        places = torch.tensor([self.captions.index(prompt) for prompt in prompts])
        pooled = 3 * torch.eye(len(self.captions))[places]
        return sfumato.TextEmbedding(tokens=pooled[:, None], mask=pooled[:, :1] > 9, pooled=pooled)

    def encode_images(self, images):
        places = [self.answers[self.images.index(image.numpy().tobytes())] for image in images]
        return 5 * torch.eye(len(self.captions))[torch.tensor(places)]


class Sampler:
    """Stands in for a pipeline: draws what the prompt says, with less noise at a higher scale."""

    def __init__(self, data, guidance=None, encoder=None):
        self.settings = types.SimpleNamespace(
            data=data, given_data=lambda: data, guidance=guidance or Scaled()
        )
        self.text_encoder = encoder

    def plan(self, **request):
        """Whatever a study wants to sample can be sampled."""

    def sample(self, prompts, *, negative=None, seed=0, guidance=None):
        guidance = guidance or self.settings.guidance
        forbidden = self.settings.data.attributes(negative or "").get("color")
        pictures = []
        for k, prompt in enumerate(prompts):
            said = self.settings.data.attributes(prompt)
            open_color = list(COLORS)[k % len(COLORS)]
            if open_color == forbidden:
                open_color = "cyan"
            scene = Scene(
                color=said.get("color", open_color),
                shape=said.get("shape", "circle"),
                background=said.get("background", "gray"),
                size=said.get("size", "large"),
                position="center",
                x=0.5,
                y=0.5,
                radius=SIZES[said.get("size", "large")],
            )
            noise = torch.Generator().manual_seed(seed * 1000 + k)
            image = scene.picture(self.settings.data.size)
            image = image + torch.randn(image.shape, generator=noise) / (20 * guidance.scale)
            pictures.append(image)
        return torch.stack(pictures)


def measure(metric, pipeline, images, prompts):
    state = metric.build(pipeline)
    state.update(images, prompts)
    return state.compute(torch.arange(len(prompts)))


def exactly(value, n):
    return sfumato.Measured(value=value, low=value, high=value, n=n)


def values(numbers):
    return {
        name: values(one) if isinstance(one, dict) else one.value for name, one in numbers.items()
    }


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("size", [16, 32])
def test_shapes_are_read_right_99_times_in_100(size, noise):
    data = Shapes(size=size, held_out=2000)
    split = data.split("test")
    images = torch.stack([split.example(i)[0] for i in range(2000)])
    scenes = [split.scene(i) for i in range(2000)]
    images += noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found = read(images, data.palette, data.backgrounds)
    small = torch.tensor([scene.size == "small" for scene in scenes])
    for name, words in (("color", COLORS), ("shape", SHAPES), ("background", BACKGROUNDS)):
        true = torch.tensor([list(words).index(getattr(scene, name)) for scene in scenes])
        right = (getattr(found, name) == true).double()
        assert right.mean() >= 0.99, name
        assert right[small].mean() >= 0.99, name


def test_a_wrong_picture_is_counted_wrong_in_what_is_wrong():
    pipeline = Sampler(Shapes(size=16))
    image = pipeline.sample(["a red circle on a gray background"])
    for prompt, wrong in (
        ("a red circle on a gray background", set()),
        ("a blue circle on a gray background", {"color_accuracy"}),
        ("a red square on a gray background", {"shape_accuracy"}),
        ("a red circle on a black background", {"background_accuracy"}),
        ("a blue square on a gray background", {"color_accuracy", "shape_accuracy"}),
    ):  # fmt: skip
        found = measure(ShapeAttributes(), pipeline, image, [prompt])
        assert found.keys() == {"color_accuracy", "shape_accuracy", "background_accuracy"}
        assert {key for key, value in found.items() if value == 0.0} == wrong
        assert all(found[key] == 1.0 for key in found.keys() - wrong)


def test_an_attribute_that_no_prompt_names_is_absent():
    pipeline = Sampler(Shapes(size=16))
    prompts = ["a red circle", "a blue shape", "a small shape"]
    images = pipeline.sample(["a red circle", "a red square", "a circle"])
    assert measure(ShapeAttributes(), pipeline, images, prompts) == {
        "color_accuracy": 0.5,
        "shape_accuracy": 1.0,
    }
    assert measure(ShapeAttributes(), pipeline, images[2:], prompts[2:]) == {}


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_blank_picture_shows_no_color_and_no_shape(background):
    pipeline = Sampler(Shapes(size=16))
    image = torch.tensor(BACKGROUNDS[background])[:, None, None].expand(3, 16, 16)
    prompts = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
    images = image.repeat(len(prompts), 1, 1, 1)
    images = images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert measure(ShapeAttributes(), pipeline, images, prompts) == {
        "color_accuracy": 0.0,
        "shape_accuracy": 0.0,
    }


def test_shape_attributes_needs_data_that_can_parse():
    pipeline = types.SimpleNamespace(settings=types.SimpleNamespace(given_data=Scaled))
    with pytest.raises(sfumato.ConfigError) as caught:
        ShapeAttributes().build(pipeline)
    assert str(caught.value) == (
        "metric.shape_attributes: data 'scaled' has no palette, backgrounds and attributes "
        "to compare with; use data: shapes, or leave this metric out"
    )


def test_diversity_of_known_pictures():
    levels = torch.tensor([0.0, 0.3, 1.0, -1.0, 0.5, 0.5, 0.7])
    images = levels[:, None, None, None].expand(-1, 3, 4, 4)
    prompts = ["a", "a", "a", "b", "c", "c", "d"]
    pairs_of_a = (0.3 + 1.0 + 0.7) / 3
    state = Diversity().build(None)
    state.update(images[:2], prompts[:2])
    state.update(images[2:], prompts[2:])
    assert state.compute(torch.arange(7))["diversity"] == pytest.approx(
        (pairs_of_a + 0.0) / 2, abs=1e-6
    )


def test_diversity_of_unit_noise_is_root_two():
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = measure(Diversity(), None, images, ["a"] * 6)
    assert found["diversity"] == pytest.approx(2**0.5, rel=0.01)


def test_diversity_needs_a_pair():
    assert measure(Diversity(), None, torch.zeros(2, 3, 4, 4), ["a", "b"]) == {}


def test_clip_similarity_of_known_vectors():
    images = torch.arange(4.0)[:, None, None, None].expand(-1, 3, 2, 2)
    pipeline = types.SimpleNamespace(text_encoder=Encoder(list("abcd"), images, [0, 1, 2, 0]))
    state = ClipSimilarity().build(pipeline)
    state.update(images[:3], ["a", "b", "c"])
    state.update(images[3:], ["d"])
    assert state.compute(torch.arange(4))["clip_similarity"] == pytest.approx(0.75)


def test_clip_similarity_needs_a_joint_encoder():
    pipeline = types.SimpleNamespace(text_encoder=torch.nn.Identity())
    for place, build in (
        ("metric", lambda: ClipSimilarity().build(pipeline)),
        ("study", lambda: ClipSimilarityStudy().run(pipeline, 0)),
    ):
        with pytest.raises(sfumato.ConfigError) as caught:
            build()
        assert str(caught.value) == (
            f"{place}.clip_similarity: the text encoder Identity has no image encoder beside it; "
            "use a joint text_encoder such as clip, or leave this out"
        )


@pytest.mark.parametrize(("shift", "retrieval"), [(0, 1.0), (1, 0.0)])
def test_retrieval_of_a_perfect_and_of_a_shuffled_encoder(shift, retrieval):
    data = Shapes(size=16, held_out=300)
    places = full_captions(data, 8)
    images = [data.split("test").example(index)[0] for index in places.values()]
    answers = [(k + shift) % 8 for k in range(8)]
    pipeline = Sampler(data, encoder=Encoder(list(places), images, answers))
    finding = ClipSimilarityStudy(count=8).run(pipeline, 0)
    assert finding.numbers == {"clip_retrieval": exactly(retrieval, 8)}
    assert finding.details["captions"] == sorted(places)
    assert torch.tensor(finding.details["cosines"]).sum() == 8
    assert finding.picture.mode == "RGB"


def test_captions_of_studies_are_distinct_and_name_everything():
    data = Shapes(held_out=500)
    places = full_captions(data, 32)
    assert len(places) == 32
    assert all(len(data.attributes(caption)) == 5 for caption in places)
    assert all(data.split("test").caption(index) == caption for caption, index in places.items())
    with pytest.raises(sfumato.DataError, match="distinct full captions, and 32 are needed"):
        full_captions(Shapes(held_out=10), 32)


def test_the_guidance_study_measures_the_same_noise_at_each_scale():
    pipeline = Sampler(Shapes(size=16))
    study = GuidanceStudy(scales=(1.0, 2.5, 8.0), prompts=3, samples=4)
    finding = study.run(pipeline, seed=1)
    found = finding.numbers["guidance"]
    assert list(found) == ["1", "2.5", "8"]
    for numbers in found.values():
        assert numbers["color_accuracy"] == numbers["shape_accuracy"] == exactly(1.0, 12)
    # Equal noise, divided by the scale: so is the distance between two samples.
    first, last = (found[scale]["diversity"].value for scale in ("1", "8"))
    assert first == pytest.approx(8 * last, rel=1e-4)
    assert len(finding.details["prompts"]) == 3 and finding.details["seed"] == 1
    assert finding.picture.mode == "RGB"


def test_the_guidance_study_needs_a_scale():
    @attrs.frozen(kw_only=True)
    class Plain(sfumato.Guidance):
        name = "plain"

        def branches(self, step):
            return []

        def combine(self, predictions, step, guided, memory):
            raise NotImplementedError

    with pytest.raises(sfumato.ConfigError) as caught:
        GuidanceStudy().run(Sampler(Shapes(size=16), guidance=Plain()), 0)
    assert str(caught.value) == (
        "study.guidance: the guidance 'plain' has no option 'scale' to vary; "
        "study a pipeline with a guidance such as cfg, or leave this study out"
    )


def test_the_negative_prompt_study_counts_the_color_it_names():
    pipeline = Sampler(Shapes(size=16))
    study = NegativePromptStudy(guidance=Scaled(), prompts=("a circle", "a square"), samples=6)
    finding = study.run(pipeline, seed=0)
    assert values(finding.numbers) == {
        "negative_prompt": {
            "without": 1 / 6,
            "with": 0.0,
            "shape_accuracy_without": 1.0,
            "shape_accuracy_with": 1.0,
        }
    }
    assert finding.picture.mode == "RGB"


def test_the_negative_prompt_study_tells_when_guidance_destroys_pictures():
    class Destroyer(Sampler):
        def sample(self, prompts, *, negative=None, seed=0, guidance=None):
            images = super().sample(prompts, seed=seed)
            if negative is not None:
                images[::2] = 0
            return images

    study = NegativePromptStudy(guidance=Scaled(), prompts=("a circle", "a square"), samples=6)
    finding = study.run(Destroyer(Shapes(size=16)), seed=0)
    assert values(finding.numbers) == {
        "negative_prompt": {
            "without": 1 / 6,
            "with": 0.0,
            "shape_accuracy_without": 1.0,
            "shape_accuracy_with": 0.5,
        }
    }


class Unsampled(Sampler):
    def sample(self, prompts, *, negative=None, seed=0, guidance=None):
        pytest.fail("sampled before the settings were checked")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"negative": "a square"},
            "finds no color in 'a square'; name a color of the data in `negative`",
        ),
        (
            {"prompts": ("a shape", "a large shape")},
            "finds no shape in 'a shape', 'a large shape'; name a shape of the data in `prompts`",
        ),
    ],
)
def test_the_negative_prompt_study_refuses_what_it_cannot_measure(options, problem):
    study = NegativePromptStudy(guidance=Scaled(), **options)
    with pytest.raises(sfumato.ConfigError) as caught:
        study.run(Unsampled(Shapes(size=16)), 0)
    assert str(caught.value) == (
        f"study.negative_prompt: the metric 'shape_attributes' {problem}, "
        "and use a metric such as shape_attributes"
    )


def test_the_negative_prompt_study_needs_data_with_colors():
    study = NegativePromptStudy(guidance=Scaled())
    with pytest.raises(sfumato.ConfigError) as caught:
        study.run(Unsampled(ImageFolder(folder="none", size=16)), 0)
    assert str(caught.value) == (
        "metric.shape_attributes: data 'image_folder' has no palette, backgrounds and attributes "
        "to compare with; use data: shapes, or leave this metric out"
    )


def test_without_matplotlib_a_study_says_what_to_install():
    script = (
        "import sys; sys.modules['matplotlib.backends.backend_agg'] = None\n"
        "import sfumato, sfumato_metrics\n"
        "try: sfumato_metrics.GuidanceStudy().run(None, 0)\n"
        "except sfumato.ConfigError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == (
        "studies draw their pictures with matplotlib, which is not installed; "
        "pip install 'sfumato[plots]'"
    )


@pytest.mark.parametrize("plugin", ["sfumato_data", "sfumato_metrics"])
def test_listing_needs_nothing_heavy(plugin):
    heavy = {"torch", "transformers", "numpy", "PIL", "matplotlib"}
    script = f"import sys, {plugin}; print({heavy} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_scales_that_would_share_a_name_are_refused():
    with pytest.raises(sfumato.ConfigError) as error:
        GuidanceStudy(scales=(1.0, 3.0, 3.00000001))
    assert str(error.value) == (
        "study.guidance: the scales 1, 3, 3 are not distinct; "
        "name each once; results are kept by the first six digits"
    )
