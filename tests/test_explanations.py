"""The studies that explain, against computations by hand, and the frontier with its knee."""

import math
import shutil

import attrs
import pytest
import torch

import sfumato
from sfumato.testing import assembly
from sfumato_data import ImageFolder, Shapes
from sfumato_metrics import DenoisingPath, Frontier, GuidanceGeometry, NegativeEffect
from sfumato_metrics.geometry import angle, basis, length, plane
from sfumato_metrics.knees import front, knee
from sfumato_metrics.trade_off import Averaged
from sfumato_metrics.walking import (
    distances_to_the_end,
    half_way,
    negatives_for,
    spread,
    two_scales,
)

PROMPTS = ("a red circle", "a blue square", "a large green triangle")


@pytest.fixture(scope="module")
def pipeline():
    """Random weights: what is compared holds for any."""
    return assembly.pipeline()


@attrs.frozen(kw_only=True)
class Customary(sfumato.Guidance):
    """Classifier-free guidance as most programs have it, with the negative in the place of the null condition."""

    name = "customary"
    scale: float

    @property
    def uses_negatives(self):
        return True

    def branches(self, step):
        return {sfumato.Branch(text="prompt"), sfumato.Branch(text="negative")}

    def combine(self, predictions, step, guided, memory):
        p, n = (
            predictions[sfumato.Branch(text="prompt")],
            predictions[sfumato.Branch(text="negative")],
        )
        mixed = (n.x0 + self.scale * (p.x0 - n.x0), n.eps + self.scale * (p.eps - n.eps))
        return sfumato.Guided(*mixed), memory


@pytest.mark.parametrize("negative_scale", [0.5, 2.0, 3.0])
def test_s_pos_of_s_neg_plus_1_is_the_customary_negative_prompt(pipeline, negative_scale):
    negatives = ["a red shape", "a circle", "a small shape"]
    ours = two_scales(negative_scale + 1, negative_scale)
    theirs = Customary(scale=negative_scale + 1)
    first, second, unlike = (
        pipeline.sample(PROMPTS, negative=negatives, seed=4, guidance=guidance)
        for guidance in (ours, theirs, two_scales(negative_scale + 2, negative_scale))
    )
    assert (first - second).abs().max() <= 1e-5
    assert (first - unlike).abs().max() > 1e-3


def test_angles_and_lengths_of_known_vectors():
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 2.0], [5.0, 5.0], [-3.0, -4.0], [1.0, 1e-9]], dtype=torch.float64)
    wanted = torch.tensor([90.0, 0.0, 180.0, math.degrees(1e-9)], dtype=torch.float64)
    assert torch.allclose(angle(a, b), wanted, rtol=1e-6, atol=1e-12)
    assert length(a).tolist() == pytest.approx([0.5**0.5, 1.0, 12.5**0.5, 0.5**0.5])


def test_the_geometry_of_a_small_pipeline_by_hand(pipeline):
    """eps of the prompt and of the null condition, asked for alone along the same path."""
    finding = GuidanceGeometry(prompts=PROMPTS, time=0.5).run(pipeline, seed=2)
    from sfumato_metrics.walking import first_noise

    scale = pipeline.settings.guidance.scale
    x, found = first_noise(pipeline, 3, seed=2), finding.details
    steps = list(pipeline.sample_steps(PROMPTS, seed=2, start=x))
    alone = {
        name: pipeline.denoise(PROMPTS, guidance=sfumato.create("guidance", "cfg", scale=s))
        for name, s in (("cond", 1.0), ("uncond", 0.0))
    }
    for k, t in enumerate(found["t"]):
        time = alone["cond"].times[k]
        assert float(time) == t
        cond, uncond = (alone[name](x, time).eps.flatten(1).double() for name in ("cond", "uncond"))
        cosine = torch.cosine_similarity(cond, uncond).clamp(-1, 1)
        lengths = (cond - uncond).square().mean(dim=1).sqrt()
        assert found["angle"][k]["value"] == pytest.approx(
            float(torch.rad2deg(cosine.acos()).mean()), rel=1e-3
        )
        assert found["length"][k]["value"] == pytest.approx(float(lengths.mean()), rel=1e-4)
        if t == found["plane"]["t"]:
            points = found["plane"]["points"]
            assert points["cond"] == pytest.approx([float(lengths[0]), 0.0], rel=1e-4, abs=1e-12)
            assert points["guided"] == pytest.approx(
                [scale * float(lengths[0]), 0.0], rel=1e-3, abs=1e-5
            )
        x = steps[k].x
    assert finding.numbers["guidance_geometry"]["angle"].n == 3


def test_the_plane_beside_a_known_noise_holds_the_noise(pipeline):
    """A linear guidance leaves the second direction to the noise; nothing lies outside of the plane."""
    flat = GuidanceGeometry(count=2).run(pipeline, seed=2).details["plane"]
    assert list(flat["points"]) == ["uncond", "cond", "guided", "noise"]
    assert max(flat["outside"].values()) < 1e-4
    assert flat["points"]["noise"][1] > 0.1


def test_a_plane_keeps_the_distances_of_what_spans_it():
    u, c, g, far = torch.randn(
        4, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    flat = plane({"u": u, "c": c, "g": g, "far": far})
    points = {
        name: torch.tensor(point, dtype=torch.float64) for name, point in flat["points"].items()
    }
    for one, other, wanted in (("u", "c", u - c), ("u", "g", u - g), ("c", "g", c - g)):
        distance = wanted.square().mean().sqrt()
        assert torch.isclose((points[one] - points[other]).norm(), distance)
    assert flat["outside"]["g"] < 1e-12 < flat["outside"]["far"]
    along = points["far"].square().sum() + flat["outside"]["far"] ** 2
    assert torch.isclose(along, (far - u).square().mean())


def test_axes_where_nothing_spans_a_plane():
    line = torch.tensor([1.0, 2.0, 2.0])
    axes = basis([line, 3 * line, torch.zeros(3)])
    assert torch.allclose(axes[0], line / 3) and not axes[1].any()


def test_the_front_and_the_knee_of_known_curves():
    quarter = [math.radians(angle) for angle in range(0, 91, 5)]
    gains, others = [math.sin(a) for a in quarter], [math.cos(a) for a in quarter]
    assert front(gains, others) == list(range(len(quarter)))
    assert knee(gains, others) == 9  # 45 degrees
    # y = sqrt(1 - x) is farthest above x + y = 1 where its slope is -1: at x = 3/4.
    x = [k / 100 for k in range(101)]
    assert x[knee(x, [math.sqrt(1 - one) for one in x])] == 0.75
    # The same in other units, with points behind the front.
    scaled = [7 + 1000 * one for one in x] + [7.0, 500.0]
    heights = [-3 + 0.01 * math.sqrt(1 - one) for one in x] + [-3.0, -2.9999]
    assert scaled[knee(scaled, heights)] == 757.0
    assert knee(heights, scaled) == knee(scaled, heights)


def test_a_front_without_a_bend_has_no_knee():
    assert knee([0.0, 1.0, 2.0], [2.0, 1.0, 0.0]) is None
    assert knee([0.0, 1.0], [1.0, 0.0]) is None
    assert knee([0.0, 0.4, 1.0], [1.0, 0.4, 0.0]) is None
    assert knee([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]) is None
    assert front([1.0, 1.0, 0.5], [0.2, 0.4, 0.3]) == [1]


def test_the_denoising_path_is_the_path(pipeline):
    finding = DenoisingPath(prompts=PROMPTS, columns=3).run(pipeline, seed=1)
    times, distances = finding.details["times"], torch.tensor(finding.details["distances"])
    assert times == pipeline.plan().times.tolist()
    assert distances.shape == (len(times) - 1, 3) and bool((distances[0] > 0).all())
    half = finding.numbers["denoising_path"]["half_way"]
    assert half.n == 3 and times[-1] <= half.low <= half.value <= half.high <= times[0]


def test_half_of_the_way():
    distances = torch.tensor([[8.0, 1.0, 4.0], [4.1, 0.9, 2.0], [4.0, 0.8, 3.0]])
    assert half_way(distances, [1.0, 0.6, 0.3, 0.0]).tolist() == [0.3, 0.3, 0.6]


def test_distances_of_estimates_from_the_result():
    def step(index, x, x0):
        full = {"x": torch.full((2, 3, 4, 4), x), "x0": torch.full((2, 3, 4, 4), x0)}
        return sfumato.SampleStep(index=index, t=0.5 - index / 2, **full)

    assert distances_to_the_end([step(0, 9.0, 3.0), step(1, 1.0, 1.5)]).tolist() == [
        [2.0, 2.0],
        [0.5, 0.5],
    ]


def test_columns_are_spread_over_all_steps():
    assert spread(26, 5) == [0, 6, 12, 19, 25]
    assert spread(3, 13) == [0, 1, 2]


def test_the_effect_of_a_negative_prompt_is_what_changed(pipeline):
    study = NegativeEffect(prompts=PROMPTS, negatives=("a cyan shape",))
    finding = study.run(pipeline, seed=3)
    guidance = two_scales(4.0, 2.0)
    without = pipeline.sample(PROMPTS, seed=3, guidance=guidance)
    changed = pipeline.sample(PROMPTS, negative="a cyan shape", seed=3, guidance=guidance)
    wanted = (changed - without).double().square().mean(dim=(1, 2, 3)).sqrt()
    assert finding.details["distances"] == pytest.approx(wanted.tolist())
    assert finding.numbers["negative_effect"]["distance"].value == pytest.approx(
        float(wanted.mean())
    )


def test_negatives_name_what_the_prompt_does_not(pipeline):
    shapes = attrs.evolve(pipeline.settings, data=Shapes())
    folder = attrs.evolve(pipeline.settings, data=ImageFolder(folder="none", size=16))
    stand_in = type("Stand", (), {"settings": shapes})()
    prompts = ["a red circle", "a cyan square", "a shape"]
    assert negatives_for(prompts, (), stand_in, "") == [
        "a green shape",
        "a red shape",
        "a red shape",
    ]
    assert negatives_for(prompts, ("dull",), stand_in, "") == ["dull"] * 3
    stand_in.settings = folder
    assert negatives_for(prompts, (), stand_in, "") == ["a cyan square", "a shape", "a red circle"]
    with pytest.raises(sfumato.ConfigError) as caught:
        negatives_for(prompts, ("a", "b"), stand_in, "study.frontier")
    assert str(caught.value) == (
        "study.frontier: 2 negatives for 3 prompts; give one for all, or one for each"
    )


def test_the_frontier_measures_the_same_noise_at_each_pair(pipeline):
    """By hand at one pair; and s_neg 0 is what `cfg` draws."""
    study = Frontier(positive=(1.0, 4.0), negative=(0.0, 2.0), count=2, samples=2)
    finding = study.run(pipeline, seed=5)
    rows, details = finding.numbers["frontier"], finding.details
    assert list(rows) == ["1, 0", "4, 0", "1, 2", "4, 2"]
    assert details["metrics"] == {"alignment": "shape_attributes", "diversity": "diversity"}
    texts = [prompt for prompt in details["prompts"] for _ in range(2)]
    negatives = [negative for negative in details["negatives"] for _ in range(2)]
    for pair, options in (
        ("4, 2", {"negative": negatives, "guidance": two_scales(4.0, 2.0)}),
        ("4, 0", {"guidance": sfumato.create("guidance", "cfg", scale=4.0)}),
    ):
        images = pipeline.sample(texts, seed=5, **options)
        pairs = (images[0] - images[1], images[2] - images[3])
        distances = [float(one.double().square().mean().sqrt()) for one in pairs]
        assert rows[pair]["diversity"].value == pytest.approx(sum(distances) / 2, rel=1e-5)
        state = sfumato.create("metric", "shape_attributes").build(pipeline)
        state.update(images, texts)
        shares = state.compute(torch.arange(4)).values()
        assert rows[pair]["alignment"].value == pytest.approx(sum(shares) / 3)


def test_frontier_scales_that_would_share_a_name_are_refused():
    with pytest.raises(sfumato.ConfigError) as error:
        Frontier(negative=(1.0, 1.00000001))
    assert str(error.value) == (
        "study.frontier.negative: the scales 1, 1 are not distinct; "
        "name each once; results are kept by the first six digits"
    )


def test_the_frontier_on_the_command_line(call, small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    code, out, _ = call(
        "frontier",
        run,
        "--positive",
        "1,4",
        "--negative",
        "0",
        "--count",
        "2",
        "--samples",
        "2",
    )
    table, path = out.rstrip().split("\n\n")
    assert code == 0 and path == str(run / "evaluations" / "frontier" / "frontier.png")
    header, _, *rows = table.splitlines()
    assert header == "| s_pos | s_neg | alignment | diversity | |"
    assert [row.split("|")[1:3] for row in rows] == [[" 1 ", " 0 "], [" 4 ", " 0 "]]
    assert (run / "evaluations" / "frontier" / "frontier.md").read_text() == table + "\n"


def test_an_averaged_measurement_is_resampled_and_counted_as_the_one_inside():
    class Half(sfumato.MetricState):
        biased = frozenset({"first"})

        def update(self, images, prompts):
            pass

        def compute(self, rows):
            return {"first": 0.25, "second": 0.75}

        def counted(self, name, rows):
            return {"first": 3, "second": 5}[name]

    state = Averaged(Half())
    assert state.compute(torch.arange(8)) == {"mean": 0.5}
    assert (state.biased, state.counted("mean", torch.arange(8))) == ({"mean"}, 5)
