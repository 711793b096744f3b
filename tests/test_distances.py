"""Metrics against real pictures and prompts, held to scipy, torchmetrics and closed forms."""

import itertools
import types

import attrs
import numpy as np
import pytest
import torch
from scipy import linalg, spatial
from torch.nn import functional
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

import sfumato
from sfumato import ConfigError
from sfumato_data import Shapes
from sfumato_metrics import (
    ClipScore,
    FrechetDistance,
    KernelDistance,
    PrecisionRecall,
    Retrieval,
)
from sfumato_metrics.distances import covered, frechet, kernel_distance
from sfumato_metrics.features import extractor, fingerprint

DATA = Shapes(size=16, count=600, held_out=300, test_pairs="seen")


def features(count, width, seed, scale=1.0, shift=0.0):
    drawn = torch.randn(
        count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    mixing = torch.linspace(0.2, 1.5, width, dtype=torch.float64)
    return scale * drawn * mixing + shift


def pipeline(data=DATA, encoder=None):
    settings = types.SimpleNamespace(data=data, given_data=lambda: data)
    return types.SimpleNamespace(
        settings=settings, text_encoder=encoder, device=torch.device("cpu")
    )


def measure(metric, images, prompts=None, using=None):
    state = metric.build(using or pipeline())
    state.update(images, prompts or [""] * len(images))
    return state.compute(torch.arange(len(images)))


def train_pictures(count=300):
    split = DATA.split("train")
    return torch.stack([split.example(k)[0] for k in range(count)])


@pytest.mark.parametrize("count", [40, 12])  # more pictures than features, and fewer
def test_frechet_distance_is_that_of_scipy_and_of_torchmetrics(count, parity):
    x, y = features(count, 20, 0), features(60, 20, 1, scale=1.3, shift=0.4)
    mine = frechet(x, y)

    def moments(values):
        return values.mean(0).numpy(), np.cov(values.numpy(), rowvar=False)

    (mean_x, cov_x), (mean_y, cov_y) = moments(x), moments(y)
    shared = np.trace(linalg.sqrtm(cov_x @ cov_y)).real
    wanted = ((mean_x - mean_y) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * shared
    assert mine == pytest.approx(wanted, rel=1e-6)

    class Plain(torch.nn.Module):
        num_features = 20

        def forward(self, values):
            return values

    theirs = FrechetInceptionDistance(feature=Plain()).set_dtype(torch.float64)
    theirs.update(y, real=True)
    theirs.update(x, real=False)
    wanted = theirs.compute().double()
    what = f"distance of {count} and 60 pictures by 20 features"
    ours = torch.tensor(mine, dtype=torch.float64)
    error = parity(FrechetDistance(), "torchmetrics", what, ours, wanted)
    assert error < 1e-6


def test_frechet_distance_of_gaussians_is_the_closed_form():
    width, scale, shift = 4, 2.0, 0.5
    x, y = features(200_000, width, 0), features(200_000, width, 1, scale, shift)
    deviations = torch.linspace(0.2, 1.5, width, dtype=torch.float64)
    wanted = width * shift**2 + float(((scale - 1) * deviations).square().sum())
    assert frechet(x, y) == pytest.approx(wanted, rel=0.01)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_that_of_torchmetrics_and_unbiased(parity):
    x, y = features(50, 12, 0), features(50, 12, 1, shift=0.3)
    mine = torch.tensor(kernel_distance(x, y), dtype=torch.float64)
    error = parity(KernelDistance(), "torchmetrics", "distance, float64", mine, poly_mmd(y, x))
    assert error < 1e-9
    same = [kernel_distance(features(20, 6, k), features(30, 6, 1000 + k)) for k in range(200)]
    mean, error = np.mean(same), np.std(same) / 200**0.5
    assert abs(mean) < 3 * error


def test_a_state_computes_what_the_functions_do():
    images, split = train_pictures(60), DATA.split("test")
    real = torch.stack([split.example(k * 300 // 100)[0] for k in range(100)])
    options = {"extractor": "pixels", "real_count": 100}
    pixels = extractor("pixels", None, pipeline(), "here")
    x, y = pixels.features(images), pixels.features(real)
    shrunk = functional.interpolate(
        images, (8, 8), mode="bilinear", antialias=True, align_corners=False
    )
    assert torch.equal(x, shrunk.double().flatten(1)) and x.shape == (60, 192)
    assert measure(FrechetDistance(**options), images) == pytest.approx(
        {"frechet_distance": frechet(x, y)}
    )
    assert measure(KernelDistance(**options), images) == pytest.approx(
        {"kernel_distance": kernel_distance(x, y)}
    )
    assert measure(PrecisionRecall(**options), images) == pytest.approx(
        {
            "precision": float(covered(x, y, 3).double().mean()),
            "recall": float(covered(y, x, 3).double().mean()),
        }
    )


def test_precision_and_recall_are_those_of_a_tree_of_neighbours():
    x, y = features(80, 3, 0), features(70, 3, 1, shift=0.6)
    for points, by in ((x, y), (y, x)):
        tree = spatial.cKDTree(by.numpy())
        radii = tree.query(by.numpy(), k=4)[0][:, -1]
        distances = spatial.distance.cdist(points.numpy(), by.numpy())
        wanted = (distances <= radii).any(axis=1)
        assert 0 < wanted.mean() < 1
        assert np.array_equal(covered(points, by, 3).numpy(), wanted)


def test_what_lacks_modes_has_precision_and_no_recall():
    images = train_pictures(200)
    circles = images[["circle" in DATA.split("train").caption(k) for k in range(200)]]
    all_of_them = measure(PrecisionRecall(extractor="pixels"), images)
    few = measure(PrecisionRecall(extractor="pixels"), circles[:1].repeat(40, 1, 1, 1))
    assert all_of_them["precision"] > 0.5 and all_of_them["recall"] > 0.5
    assert few["recall"] < 0.1
    noise = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert measure(PrecisionRecall(extractor="pixels"), noise)["precision"] == 0


def worse():
    """Pictures of the train split, ever worse, in three ways."""
    images = train_pictures()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    yield "noise", [images + level * noise for level in (0.0, 0.2, 0.4, 0.8)]
    yield "blur", [functional.avg_pool2d(images, k, 1, k // 2) for k in (1, 3, 5, 9)]
    scenes = [DATA.split("train").scene(k).color for k in range(len(images))]
    kept = [["red", "green", "blue", "yellow", "magenta", "cyan"][:n] for n in (6, 4, 2, 1)]
    yield "dropped classes", [images[[color in some for color in scenes]] for some in kept]


def test_distances_grow_with_noise_blur_and_dropped_classes():
    for fault, levels in worse():
        for metric in (FrechetDistance(extractor="pixels"), KernelDistance(extractor="pixels")):
            (found,) = zip(*(measure(metric, images).values() for images in levels), strict=True)
            assert all(a < b for a, b in itertools.pairwise(found)), (fault, metric.name, found)
            if metric.name == "frechet_distance":
                assert found[-1] > 1.2 * found[0], (fault, found)


def test_repeats_shift_the_frechet_distance_and_the_interval_is_moved_back():
    images = train_pictures(100)
    state = FrechetDistance(extractor="pixels").build(pipeline())
    state.update(images, [""] * 100)
    one = sfumato.measured(state, 100)["frechet_distance"]
    assert one.low < one.value < one.high and one.n == 100
    again = state.compute(torch.arange(100).repeat_interleave(2)[::2])["frechet_distance"]
    assert again == pytest.approx(one.value)
    facts = state.facts()
    assert {key: facts[key] for key in ("extractor", "sha256", "resize", "real", "real_count")} == {
        "extractor": "pixels", "sha256": None, "resize": 8, "real": "test split", "real_count": 300,
    }  # fmt: skip
    real = state.real.features
    assert facts["floor"] == pytest.approx(frechet(real[::2], real[1::2]))


class Encoder(sfumato.JointEncoderModule):
    """The mean colour of a picture; of a prompt the vector that `texts` says."""

    log_scale = torch.tensor(0.0)

    def __init__(self, texts):
        super().__init__()
        self.texts = texts
        self.weight = torch.nn.Parameter(torch.ones(1))

    def encode(self, prompts):
        pooled = torch.tensor([self.texts[prompt] for prompt in prompts])
        return sfumato.TextEmbedding(tokens=pooled[:, None], mask=pooled[:, :1] > 9, pooled=pooled)

    def encode_images(self, images):
        return images.mean(dim=(2, 3))


def judged(metric, images, prompts, texts):
    with pytest.warns(UserWarning, match="the scorer is the run's own text encoder"):
        return measure(metric, images, prompts, pipeline(encoder=Encoder(texts)))


def colored(*colors):
    return torch.tensor(colors)[:, :, None, None].expand(-1, -1, 4, 4)


def test_clip_score_is_two_and_a_half_cosines_and_never_below_zero():
    texts = {"red": [2.0, 0.0, 0.0], "green": [0.0, 1.0, 0.0]}
    images = colored([1.0, 1.0, 0.0], [0.0, -1.0, 0.0])
    found = judged(ClipScore(), images, ["red", "green"], texts)
    assert found["clip_score"] == pytest.approx((2.5 * 0.5**0.5 + 0) / 2, rel=1e-6)


def test_retrieval_counts_both_ways_and_equal_prompts_as_one():
    texts = {"red": [1.0, 0.0, 0.0], "green": [0.0, 1.0, 0.0], "blue": [0.0, 0.0, 1.0]}
    prompts = ["red", "red", "green", "blue"]
    images = colored([1.0, 0.1, 0.0], [1.0, 0.2, 0.0], [0.0, 1.0, 0.0], [0.9, 0.1, 0.2])
    found = judged(Retrieval(), images, prompts, texts)
    # The picture for "blue" is red, and the one most like blue all the same.
    assert found == {"text_to_image": 1.0, "image_to_text": 0.75}
    images = colored([0.0, 1.0, 0.0], [1.0, 0.2, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    found = judged(Retrieval(), images, prompts, texts)
    assert found == {"text_to_image": 0.25, "image_to_text": 0.5}


def test_another_run_judges_without_a_warning(small_run):
    judge = ClipScore(scorer=str(small_run)).build(pipeline())
    assert judge.facts() == {
        "scorer": str(small_run),
        "sha256": fingerprint(sfumato.Pipeline.load(small_run).text_encoder),
    }
    images = train_pictures(4)
    judge.update(images, ["a red circle"] * 4)
    encoder = sfumato.Pipeline.load(small_run).text_encoder
    with torch.no_grad():
        text, pictures = encoder.encode(["a red circle"]).pooled, encoder.encode_images(images)
    cosines = functional.cosine_similarity(text, pictures).clamp(min=0)
    assert judge.compute(torch.arange(4))["clip_score"] == pytest.approx(
        float(2.5 * cosines.mean()), abs=1e-6
    )


def test_a_torchscript_file_is_an_extractor(tmp_path):
    class Means(torch.nn.Module):
        def forward(self, images):
            return images.mean(dim=(2, 3))

    file = tmp_path / "means.pt"
    torch.jit.script(Means()).save(str(file))
    found = extractor(str(file), 12, pipeline(), "here")
    images = train_pictures(3)
    assert found.features(images).shape == (3, 3)
    assert len(found.sha256) == 64 and found.facts["resize"] == 12
    file.write_bytes(b"no program")
    with pytest.raises(ConfigError) as error:
        extractor(str(file), 12, pipeline(), "here")
    assert str(error.value) == f"here: {file} is no TorchScript file"


def test_a_fingerprint_is_that_of_the_weights():
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert fingerprint(one) != fingerprint(other)
    other.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(other)


def test_who_cannot_judge_is_refused(tmp_path):
    for named, message in (
        ("nowhere", "nowhere: is not a run folder: it has no settings.yaml; models that come with sfumato: shapes"),
        ("run", "metric.clip_score: the text encoder NoneType has no image encoder beside it; use a joint text_encoder such as clip, or leave this out"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            ClipScore(scorer=named).build(pipeline())
        assert str(error.value) == message


def test_few_pictures_have_no_distance():
    images = train_pictures(1)
    assert measure(FrechetDistance(extractor="pixels"), images) == {}
    assert measure(KernelDistance(extractor="pixels"), images.repeat(1, 1, 1, 1)) == {}
    assert measure(PrecisionRecall(extractor="pixels"), images).keys() == {"precision"}
    few = attrs.evolve(DATA, held_out=1)
    assert (
        measure(FrechetDistance(extractor="pixels"), train_pictures(3), using=pipeline(few)) == {}
    )
