"""Editing: strengths beside diffusers, masks under every sampler, inversion to each sampler's order."""

import ast
import hashlib
import json
import math
import types
from pathlib import Path

import attrs
import pytest
import torch
from PIL import Image

import sfumato
from sfumato import ConfigError, Denoiser, DenoiserModule, Pipeline, TimeGrid, cli, editing
from sfumato import pictures as files
from sfumato.randomness import Draw
from sfumato.testing.mixture import Mixture, QuarterCircle, clusters, gaussian
from sfumato.trajectory import last, rising
from sfumato_guidance import NoGuidance
from sfumato_schedules import LinearBeta, Times

CIRCLE = QuarterCircle()
PROMPTS = ["a red circle", "a blue square", "a green triangle"]


def message(call, *arguments, kind=ConfigError, **options):
    with pytest.raises(kind) as error:
        call(*arguments, **options)
    return str(error.value)


@pytest.fixture(scope="module")
def pipeline(small_run):
    """The run with random weights, so that everything that reaches the denoiser shows."""
    found = Pipeline.load(small_run, ["time_grid=leading", "sampler=ddim"])
    generator = torch.Generator().manual_seed(0)
    for parameter in found.denoiser.parameters():
        parameter.normal_(std=0.05, generator=generator)
    return found


@pytest.fixture(scope="module")
def image(pipeline):
    split = pipeline.settings.data.split("test")
    return torch.stack([split.example(i)[0] for i in range(3)])


@pytest.fixture(scope="module")
def mask():
    """The left half is painted."""
    found = torch.zeros(1, 1, 16, 16)
    found[..., :8] = 1
    return found


# The share of the steps


def get_timesteps():
    """The method of diffusers' pipeline, without the seconds that its module takes to import."""
    diffusers = pytest.importorskip("diffusers")
    folder = Path(diffusers.__file__).parent / "pipelines" / "stable_diffusion"
    tree = ast.parse((folder / "pipeline_stable_diffusion_img2img.py").read_text())
    (method,) = (node for node in ast.walk(tree) if getattr(node, "name", "") == "get_timesteps")
    module = {}
    exec(compile(ast.Module([method], []), "img2img", "exec"), module)
    return module["get_timesteps"]


def test_strength_is_that_of_diffusers_but_for_its_rounding():
    """Its int(steps * strength) falls a step short where floats do, and may leave no step at all."""
    theirs, short = get_timesteps(), 0
    for steps in (1, 7, 25, 50, 100):
        scheduler = types.SimpleNamespace(timesteps=torch.arange(steps, 0, -1), order=1)
        pipeline = types.SimpleNamespace(scheduler=scheduler)
        times = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
        for percent in range(1, 101):
            timesteps, kept = theirs(pipeline, steps, percent / 100, "cpu")
            exact = steps * percent // 100
            found = last(times, percent / 100)
            assert len(found) - 1 == max(exact, 1)
            if kept == exact > 0:
                assert (found[:-1] * steps).round().tolist() == timesteps.tolist()
            elif kept != exact:
                assert kept == exact - 1
                assert steps * percent % 100 == 0
                short += 1
    assert short > 0


def test_the_walk_starts_from_the_noised_picture(pipeline, image):
    """Where the grid stands after skipping its first steps, with each example's own first draw."""
    first = next(iter(pipeline.sample_steps(PROMPTS, image=image, strength=0.5, steps=10, seed=4)))
    times = pipeline.plan(steps=10, strength=0.5).times
    assert len(times) == 6
    assert first.t == float(times[1])
    draw = Draw(seed=4, stream="sample", examples=torch.arange(3)).normal("noise", (3, 16, 16))
    alpha, sigma = pipeline.schedule.alpha_sigma(times[0])
    start = float(alpha) * image + float(sigma) * draw
    given = next(iter(pipeline.sample_steps(PROMPTS, start=start, strength=0.5, steps=10)))
    assert first.x.equal(given.x)


def test_strength_one_forgets_the_picture_and_little_keeps_it(pipeline, image):
    plain = pipeline.sample(PROMPTS, steps=20, seed=2)
    assert pipeline.sample(PROMPTS, steps=20, seed=2, image=image, strength=1.0).equal(plain)
    apart = [
        float((pipeline.sample(PROMPTS, steps=20, image=image, strength=s) - image).abs().mean())
        for s in (0.05, 0.3, 0.9)
    ]
    assert apart[0] < 0.1 < apart[2]
    assert apart == sorted(apart)
    usual = pipeline.sample(PROMPTS, steps=20, image=image)
    assert usual.equal(pipeline.sample(PROMPTS, steps=20, image=image, strength=0.6))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_edits_belong_to_the_example(small_run, image, mask, sampler):
    pipeline = Pipeline.load(small_run, [f"sampler={sampler}", "time_grid=leading"])
    masks = torch.cat([mask, mask.flip(-1), mask])
    options = {"steps": 4, "strength": 0.5}
    together = pipeline.sample(PROMPTS, image=image, mask=masks, seed=[5, 6, 7], **options)
    for batch in (1, 2):
        again = pipeline.sample(
            PROMPTS, image=image, mask=masks, seed=[5, 6, 7], batch=batch, **options
        )
        torch.testing.assert_close(again, together, rtol=0, atol=2e-5)
    for k, seed in enumerate((5, 6, 7)):
        alone = pipeline.sample(
            PROMPTS[k : k + 1],
            image=image[k : k + 1],
            mask=masks[k : k + 1],
            seed=[seed],
            **options,
        )
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=2e-5)


# Masks


def walk(sampler, denoise, x, steps=12, dtype=torch.float64):
    times = torch.linspace(0.95, 0, steps + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    noise = lambda: torch.randn(x.shape, generator=generator, dtype=dtype)  # noqa: E731
    return list(sampler.run(denoise, CIRCLE, x, times, noise))


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(
    params=[offer.component for offer in sfumato.plugins.load().offers if offer.component.kind == "sampler"],
    ids=lambda component: component.name,
)  # fmt: skip
def sampler(request, tmp_path):
    return request.param.example(tmp_path)


LEFT = torch.tensor([True, False]).expand(1, 1, 2, 2)


def test_what_is_kept_is_the_original_noised_to_each_time(sampler):
    """With its first noise to the end where the sampler draws none; in any case x0 at the end."""
    x0, eps = 0.3 * normal(3, 1, 2, 2), normal(4, 1, 2, 2)[1:]
    alpha, sigma = CIRCLE.alpha_sigma(torch.tensor(0.95, dtype=torch.float64))
    start = alpha * x0 + sigma * eps
    steps = walk(sampler, editing.keeping(clusters().denoise(CIRCLE), CIRCLE, x0, LEFT), start)
    right = ~LEFT.expand_as(x0)
    torch.testing.assert_close(steps[-1].x[right], x0[right], rtol=0, atol=1e-12)
    assert float((steps[-1].x - x0)[~right].abs().max()) > 0.01
    for step in steps if sampler.order else ():
        alpha, sigma = CIRCLE.alpha_sigma(torch.tensor(step.t, dtype=torch.float64))
        noised = alpha * x0 + sigma * eps
        torch.testing.assert_close(step.x[right], noised[right], rtol=0, atol=1e-12)


def test_what_is_painted_is_drawn_as_without_a_mask(sampler):
    """To rounding where pixels do not depend on each other, and to the bit where all are painted."""
    start, x0 = normal(3, 1, 2, 2), 0.1 * normal(3, 1, 2, 2)
    denoise = gaussian(0.2, 0.3).denoise(CIRCLE)
    plain = walk(sampler, denoise, start)[-1].x
    masked = walk(sampler, editing.keeping(denoise, CIRCLE, x0, LEFT), start)[-1].x
    left = LEFT.expand_as(x0)
    torch.testing.assert_close(masked[left], plain[left], rtol=0, atol=1e-12)
    everywhere = torch.ones_like(LEFT)
    full = walk(sampler, editing.keeping(denoise, CIRCLE, x0, everywhere), start)[-1].x
    assert full.equal(plain)


def test_what_is_painted_hears_what_is_kept():
    """Where the right half shows the first cluster, the left more often does. (It hears x, not x0:
    fresh noise gives it more chances, which is what RePaint's resampling is for.)
    """
    mixture = clusters()
    first = mixture.means[:1].expand(200, -1, -1, -1)
    plain = mixture.denoise(CIRCLE)
    shares = []
    for denoise in (plain, editing.keeping(plain, CIRCLE, first, LEFT)):
        found = walk(sfumato.create("sampler", "edm"), denoise, normal(200, 1, 2, 2), 60)[-1].x
        distances = (found[:, None] - mixture.means)[..., 0].flatten(2).norm(dim=2)
        shares.append(float((distances.argmin(1) == 0).double().mean()))
    assert shares[0] < 0.35  # 0.3 by the weights
    assert shares[1] > 0.45


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m", "unipc"])
def test_outside_of_the_mask_a_picture_is_the_original_to_the_bit(small_run, image, mask, name):
    pipeline = Pipeline.load(small_run, [f"sampler={name}"])
    for strength in (None, 0.5):
        found = pipeline.sample(PROMPTS, image=image, mask=mask, strength=strength, steps=5)
        assert found[..., 8:].equal(image[..., 8:])
        assert float((found - image)[..., :8].abs().mean()) > 0.01


def test_under_a_mask_the_picture_has_its_own_first_noise_from_the_start(pipeline, image, mask):
    """At strength 1 too, where the painted half starts from noise alone, as plain sampling does."""
    options = {"steps": 5, "seed": 3}
    first = next(iter(pipeline.sample_steps(PROMPTS, image=image, mask=mask, **options)))
    draw = Draw(seed=3, stream="sample", examples=torch.arange(3)).normal("noise", (3, 16, 16))
    alpha, sigma = map(float, pipeline.schedule.alpha_sigma(torch.tensor(first.t).double()))
    noised = alpha * image + sigma * draw
    torch.testing.assert_close(first.x[..., 8:], noised[..., 8:], rtol=0, atol=1e-5)
    plan = pipeline.plan(steps=5)
    start = editing.noised_start(draw, plan, image, mask == 1)
    plain = editing.noised_start(draw, plan)
    assert start[..., :8].equal(plain[..., :8])


def test_masks_over_latents(registry):
    """A latent is painted where one of its pixels is; pixels outside are the original all the same."""
    settings = registry.experiment("small", ["autoencoder={use: patches, side: 4}", "denoiser={use: unet, channels: [8], attention: [false], groups: 4}"])  # fmt: skip
    pipeline = Pipeline(settings, settings.text_encoder.fit(PROMPTS))
    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5, 5] = 1
    assert editing.latents_painted(mask, (16, 16), 4).nonzero().tolist() == [[0, 0, 1, 1]]
    found = pipeline.sample(["a"], image=pictures, mask=mask, steps=2)
    assert (found != pictures).nonzero()[:, 2:].unique(dim=0).tolist() == [[5, 5]]
    coarse = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    coarse[..., 0, 3] = True
    found = pipeline.sample(["a"], image=pictures, mask=coarse, steps=2)
    changed = (found != pictures).nonzero()[:, 2:]
    assert (changed.amin(0).tolist(), changed.amax(0).tolist()) == ([0, 12], [3, 15])


# Inversion


def test_rising_times():
    table, falling = LinearBeta(), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    assert rising(falling, table).tolist() == [0.001, 0.5, 1.0]
    assert rising(torch.tensor([0.5, 1e-3, 0.0], dtype=torch.float64), table).tolist() == [
        5e-4,
        1e-3,
        0.5,
    ]
    assert rising(falling[:2], table).tolist() == [0.5, 1.0]
    assert falling.tolist() == [1, 0.5, 0]


@attrs.frozen(kw_only=True)
class Best(Denoiser):
    """The best denoiser of two pictures (3, 16, 16) with a spread around each."""

    name = "best"
    prediction = "x0"

    def build(self, space):
        return Closed(space.schedule)


class Closed(DenoiserModule):
    MIXTURE = Mixture(
        means=0.3 * torch.stack([torch.ones(3, 16, 16), -torch.ones(3, 16, 16)]).double(),
        deviations=torch.tensor([0.2, 0.3]).double(),
        weights=torch.tensor([[0.5, 0.5]]).double(),
    )

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule
        self.weight = torch.nn.Parameter(torch.zeros(1))  # says where it is

    def forward(self, x_t, t, condition, variant=None):
        alpha, sigma = self.schedule.alpha_sigma(t)
        text = torch.zeros(len(x_t), dtype=torch.int64)
        return self.MIXTURE.predict(x_t.double(), alpha, sigma, text).x0


@attrs.frozen(kw_only=True)
class Levels(TimeGrid):
    """Even in log(sigma / alpha) from t = 0.9 to 0.1."""

    name = "levels"

    def times(self, steps, schedule):
        ends = torch.tensor([0.9, 0.1], dtype=torch.float64)
        alpha, sigma = schedule.alpha_sigma(ends)
        levels = torch.linspace(*(sigma / alpha).log().tolist(), steps + 1, dtype=torch.float64)
        return schedule.time_at(levels)


def exact(registry, sampler, grid):
    settings = attrs.evolve(
        registry.experiment("small"),
        denoiser=Best(), noise_schedule=CIRCLE, sampler=sampler, time_grid=grid,
    )  # fmt: skip
    return Pipeline(settings, settings.text_encoder.fit(PROMPTS))


def round_trip(pipeline, image, steps, **options):
    prompts = PROMPTS[: len(image)]
    start = pipeline.invert(image, prompts, steps=steps, **options)
    back = pipeline.sample(prompts, start=start, steps=steps, **options)
    return float((back - image).abs().max())


def test_a_round_trip_errs_by_the_order_of_the_sampler(registry, sampler):
    """On the best denoiser, in float32, between two times where there is noise."""
    if sampler.order is None:
        return
    pipeline = exact(registry, sampler, Levels())
    image = (0.3 + 0.2 * normal(1, 3, 16, 16)).float().clamp(-1, 1)
    few, many = (round_trip(pipeline, image, n, guidance=NoGuidance()) for n in (48, 96))
    assert many < 0.03
    assert many < 5e-6 or math.log2(few / many) > sampler.order - 0.35


def test_inverted_data_are_noise(registry):
    """Of data from the mixture the starts have the spread of x at the first time."""
    pipeline = exact(registry, sfumato.create("sampler", "heun"), Times(values=tuple(
        0.9 - 0.01 * k for k in range(88))))  # fmt: skip
    image = (0.3 + 0.2 * normal(3, 3, 16, 16)).clamp(-1, 1).float()
    start = pipeline.invert(image, PROMPTS, steps=88, guidance=NoGuidance())
    alpha, sigma = CIRCLE.alpha_sigma(torch.tensor(0.9, dtype=torch.float64))
    spread = math.hypot(float(alpha) * 0.2, float(sigma))
    assert float(start.std()) == pytest.approx(spread, rel=0.05)


def test_a_picture_is_alpha_x0_above_a_clean_end_and_x_itself_where_the_grid_ends(registry):
    flow = sfumato.create("noise_schedule", "rectified_flow")
    for grid, shrunk in ((Times(values=(0.9, 0.5)), 0.999), (Levels(), 1.0)):
        settings = exact(registry, sfumato.create("sampler", "heun"), grid).settings
        settings = attrs.evolve(settings, noise_schedule=flow)
        pipeline = Pipeline(settings, settings.text_encoder.fit(PROMPTS))
        plan = pipeline.plan(steps=2, guidance=NoGuidance())
        assert editing.shrinking(plan, rising(plan.times, flow)) == pytest.approx(shrunk, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "steps", "error"), [("ddim", 60, 0.3), ("heun", 30, 0.02), ("dpmpp_2m", 40, 0.08)]
)
def test_a_trained_run_comes_back(small_run, image, name, steps, error):
    pipeline = Pipeline.load(small_run, [f"sampler={name}"])
    assert round_trip(pipeline, image[:1], steps) < error
    assert round_trip(pipeline, image[:1], steps, strength=0.5) < error


def test_an_inverted_start_keeps_the_rest_under_a_mask(small_run, image, mask):
    pipeline = Pipeline.load(small_run, ["sampler=heun"])
    start = pipeline.invert(image, PROMPTS, steps=10)
    found = pipeline.sample(PROMPTS[::-1], start=start, image=image, mask=mask, steps=10)
    assert found[..., 8:].equal(image[..., 8:])


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 0.5}, "strength says how much of an image is drawn anew; give the image, or a start"),
        ({"mask": torch.ones(1, 1, 16, 16)}, "a mask says what to paint anew of an image; give the image"),
        ({"image": "a.png"}, "expected image to be a tensor, got str"),
        ({"image": torch.zeros(2, 3, 16, 16)}, "2 images for 3 prompts"),
        ({"image": torch.zeros(3, 3, 8, 8)}, "image has shape (3, 3, 8, 8), expected (3, 3, 16, 16)"),
        ({"image": torch.full((3, 3, 16, 16), 1.5)},
         "image holds values outside of [-1, 1]; make bytes so by image / 127.5 - 1"),
        ({"image": torch.full((3, 3, 16, 16), math.nan)},
         "image holds values outside of [-1, 1]; make bytes so by image / 127.5 - 1"),
        ({"image": torch.zeros(3, 3, 16, 16), "strength": 0.0},
         "expected a strength above 0 and at most 1, got 0; 1 forgets the picture, 0.6 keeps its "
         "composition, 0.2 its shapes"),
        ({"image": torch.zeros(3, 3, 16, 16), "start": torch.zeros(3, 3, 16, 16)},
         "image and start are two places to start from; leave one out; with a mask, image is what is kept"),
        ({"image": torch.zeros(3, 3, 16, 16), "mask": torch.ones(2, 1, 16, 16)}, "2 masks for 3 prompts"),
        ({"image": torch.zeros(3, 3, 16, 16), "mask": torch.ones(1, 3, 16, 16)},
         "mask has shape (1, 3, 16, 16), expected B or 1 times (1, 16, 16)"),
        ({"image": torch.zeros(3, 3, 16, 16), "mask": torch.full((1, 1, 16, 16), 0.5)},
         "mask holds values other than 0 and 1; give mask > 0.5"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(pipeline, options, words):
    assert message(pipeline.sample, PROMPTS, **options) == words


def test_inversions_that_have_no_answer(small_run, registry, image):
    pipeline = Pipeline.load(small_run, ["sampler=ddpm"])
    assert message(pipeline.invert, image, PROMPTS) == (
        "the sampler 'ddpm' draws noise, so no start leads to a given picture; use one that draws none, "
        "such as --set sampler=ddim"
    )
    pure = exact(registry, sfumato.create("sampler", "heun"), Times(values=(1.0, 0.5)))
    settings = attrs.evolve(
        pure.settings, noise_schedule=sfumato.create("noise_schedule", "rectified_flow")
    )
    pure = Pipeline(settings, settings.text_encoder.fit(PROMPTS))
    options = {"steps": 2, "guidance": NoGuidance()}
    assert message(pure.invert, image, PROMPTS, **options) == (
        "noise_schedule 'rectified_flow' leaves no signal at t = 1, so no noise there leads to a given "
        "picture; use a strength below 1, or a grid that starts later (--set time_grid=leading)"
    )
    assert pure.invert(image, PROMPTS, strength=0.5, **options).isfinite().all()


# Files, and the command line


def written(path, values, mode="RGB"):
    Image.fromarray(values.numpy(), mode=mode if mode == "L" else None).save(path)
    return path


def test_pictures_of_files(tmp_path):
    levels = torch.arange(16 * 16 * 3).reshape(16, 16, 3).remainder(256).byte()
    path = written(tmp_path / "a.png", levels)
    found = files.read(path, (16, 16))
    assert found.shape == (1, 3, 16, 16)
    assert ((found[0].permute(1, 2, 0) + 1) * 127.5).round().byte().equal(levels)
    assert files.read(path, (8, 8)).shape == (1, 3, 8, 8)
    gray = torch.tensor([[0, 127], [128, 255]]).byte()
    mask = files.read_mask(written(tmp_path / "m.png", gray, "L"), (2, 2))
    assert mask.tolist() == [[[[False, False], [True, True]]]]
    assert files.read_mask(tmp_path / "m.png", (4, 4)).sum() == 8


def test_files_that_are_refused(tmp_path):
    wide = written(tmp_path / "wide.png", torch.zeros(8, 16, 3).byte())
    assert message(files.read, wide, (16, 16)) == (
        f"{wide}: is 8 x 16, and the pipeline draws 16 x 16; cut it to these proportions: nothing is cut "
        "or stretched here"
    )
    text = tmp_path / "a.txt"
    text.write_text("a red circle")
    assert message(files.read, text, (16, 16)) == f"{text}: is not a PNG or JPEG picture"
    clear = written(tmp_path / "clear.png", torch.zeros(16, 16, 4).byte())
    assert message(files.read, clear, (16, 16)) == (
        f"{clear}: is of mode RGBA, or has transparent parts; save it as 8-bit RGB or gray, on the "
        "background that it should have"
    )
    none = tmp_path / "none.png"
    assert (
        message(files.read, none, (16, 16)) == f"{none}: cannot be read: No such file or directory"
    )
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "wide.png").read_bytes()[:45])
    assert message(files.read, cut, (8, 16)).startswith(f"{cut}: cannot be read (")


def test_an_edit_from_the_command_line(small_run, tmp_path, image, mask, capsys):
    picture, painted = tmp_path / "picture.png", tmp_path / "mask.png"
    files.picture(image[0]).save(picture)
    files.picture(mask[0].expand(3, -1, -1) * 2 - 1).save(painted)
    out = tmp_path / "edited.png"
    arguments = [
        "sample",
        str(small_run),
        "a red circle",
        "--image",
        str(picture),
        "--out",
        str(out),
    ]
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--mask", str(painted), "--count", "1"])
    assert not end.value.code
    with Image.open(out) as drawn:
        facts = json.loads(drawn.text["sfumato"])
        zoom = (drawn.width - 8) // 16
        cell = drawn.crop((4, 4, drawn.width - 4, drawn.height - 4))
    for name, path in (("image", picture), ("mask", painted)):
        hashed = hashlib.sha256(path.read_bytes()).hexdigest()
        assert facts[name] == {"path": str(path), "sha256": hashed}
    assert facts["strength"] == 1.0
    kept = cell.resize((16, 16), Image.Resampling.NEAREST).crop((8, 0, 16, 16))
    with Image.open(picture) as original:
        assert kept.tobytes() == original.crop((8, 0, 16, 16)).tobytes()
    assert zoom == 6
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--count", "1"])
    with Image.open(out) as drawn:
        assert json.loads(drawn.text["sfumato"])["strength"] == 0.6
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--strength", "2"])
    assert end.value.code == 2
    assert "expected a strength above 0 and at most 1, got 2" in capsys.readouterr().err
