"""Assemblies that cannot work are refused before anything is built, each with its remedy."""

import json

import attrs
import pytest
import torch

import sfumato
from sfumato import (
    Branch,
    ConfigError,
    Denoiser,
    DenoiserModule,
    Guidance,
    Guided,
    NoiseSchedule,
    Pipeline,
    PluginError,
    TextEmbedding,
    compatibility,
    create,
    plugins,
    solve,
    target,
    trajectory,
)
from sfumato.compatibility import LOG_SNR_TOLERANCE
from sfumato.registry import Registry
from sfumato.sampling import GuidedDenoiser, Model, Texts, reverse
from sfumato_clip import Concat
from sfumato_guidance import NoGuidance
from sfumato_samplers import DDIM
from sfumato_schedules import Cosine, Leading, LinearBeta, Trailing

STRANGER = '''
"""Components of a third party: some are fine, and say what they need; some break their contract."""

import math

import attrs
from sfumato import Autoencoder, Branch, Denoiser, Guidance, NoiseSchedule, hookimpl, option


@attrs.frozen(kw_only=True)
class Quarter(NoiseSchedule):
    """A quarter of a circle, down to no signal at all."""

    name = "quarter"

    def alpha_sigma(self, t):
        return (t * math.pi / 2).cos(), (t * math.pi / 2).sin()


@attrs.frozen(kw_only=True)
class Bumpy(NoiseSchedule):
    """Cleaner again around t = 0.5."""

    name = "bumpy"

    def alpha_sigma(self, t):
        sigma = 0.9 * t + 0.2 * (t * 4 * math.pi).sin().clamp(min=0)
        return 1 - 0.5 * t, sigma


@attrs.frozen(kw_only=True)
class Table(NoiseSchedule):
    """Returns its whole table."""

    name = "table"

    def alpha_sigma(self, t):
        return t.new_ones(10), t.new_ones(10)


@attrs.frozen(kw_only=True)
class Root(NoiseSchedule):
    """The root of a number that is below 0 late."""

    name = "root"

    def alpha_sigma(self, t):
        return (0.75 - t).sqrt(), t


@attrs.frozen(kw_only=True)
class Thirds(Autoencoder):
    name = "thirds"
    channels: int = option(27, "of a latent")
    factor: int = option(3, "pixels of its side")

    def build(self):
        raise AssertionError("built")


@attrs.frozen(kw_only=True)
class Windows(Denoiser):
    """Attends in windows."""

    name = "windows"
    prediction: str = option("v", "what it says")
    window: int = option(5, "side of a window")

    @property
    def multiple(self):
        return self.window

    def build(self, space):
        raise AssertionError("built")


@attrs.frozen(kw_only=True)
class Asking(Guidance):
    """Asks for one branch, in the second half of the steps only."""

    name = "asking"
    model: str = option("main", "of the branch")
    variant: str | None = option(None, "of the branch")
    text: str = option("prompt", "of the branch")
    index: int = option(0, "of the negative")

    def branches(self, step):
        late = Branch(text=self.text, index=self.index, variant=self.variant, model=self.model)
        return [Branch(), *([late] if 2 * step.index >= step.steps and late != Branch() else [])]

    def combine(self, predictions, step, guided, memory):
        raise AssertionError("combined")


@hookimpl
def sfumato_components():
    return [Quarter, Bumpy, Table, Root, Thirds, Windows, Asking]
'''


@pytest.fixture
def stranger(tmp_path):
    path = tmp_path / "stranger.py"
    path.write_text(STRANGER)
    return path


@pytest.fixture
def registry(registry_file, stranger):
    """The small registry, with the components of a third party."""
    return Registry.load(registry_file, plugins.load([stranger]))


def message(call, *arguments, kind=ConfigError, **options):
    with pytest.raises(kind) as error:
        call(*arguments, **options)
    return str(error.value)


def train(registry, run, *overrides):
    return list(sfumato.train(registry.experiment("small", overrides), run))


REMEDY_NULL = "use --set guidance=none, or train with text_dropout, such as 0.1"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["noise_schedule=bumpy"], "noise_schedule bumpy: expected an SNR that falls with t, "
         "got 8.02614 at t = 0.15625 and 8.10946 at t = 0.171875"),
        (["noise_schedule=table"], "noise_schedule table: expected alpha and sigma of shape (65,), "
         "as that of t, got (10,) and (10,)"),
        (["noise_schedule=root"], "noise_schedule root: expected finite numbers, got alpha nan and "
         "sigma 0.765625 at t = 0.765625"),
        (["autoencoder=thirds"], "pictures are 16 x 16, but the autoencoder 'thirds' (factor 3) and the denoiser "
         "'unet' (latents in multiples of 2) need multiples of 6; draw 18 x 18 (of a run: "
         "--set sampling.size=[18,18]), or change these two"),
        (["autoencoder={use: patches, side: 16}"], "pictures are 16 x 16, but the autoencoder 'patches' (factor 16) and the denoiser "
         "'unet' (latents in multiples of 2) need multiples of 32; draw 32 x 32 (of a run: "
         "--set sampling.size=[32,32]), or change these two"),
        (["denoiser=windows"], "pictures are 16 x 16, but the autoencoder 'pixels' (factor 1) and the denoiser "
         "'windows' (latents in multiples of 5) need multiples of 5; draw 15 x 15 (of a run: "
         "--set sampling.size=[15,15]), or change these two"),
        (["noise_schedule=quarter"], "3 steps of the time_grid 'trailing' visit t = 1, where "
         "noise_schedule 'quarter' leaves no signal (alpha is 6.12323e-17) and epsilon says nothing "
         "about x0; use a grid that starts later (--set time_grid=leading), or train another "
         "prediction (--set denoiser.prediction=v, or x0)"),
        (["guidance={use: asking, model: weak}"], "the guidance 'asking' needs a 'weak' model; "
         "name a checkpoint with --set sampling.weak=RUN, or RUN@STEP"),
        (["guidance={use: asking, variant: skip}"], "the guidance 'asking' needs a denoiser with "
         "variant 'skip'; the denoiser 'unet' offers: nag, pag, seg, slg"),
        (["guidance={use: asking, text: negative}"], "guidance asking: expected an index below 0, "
         "the number of negatives, got 0"),
        (["stages.denoiser.text_dropout=0"], "the guidance 'cfg' asks for the null condition, which "
         f"a model trained with text_dropout: 0 does not know; {REMEDY_NULL}"),
        (["stages.denoiser.text_dropout=0", "guidance={use: asking, text: 'null'}"],
         "the guidance 'asking' asks for the null condition, which a model trained with "
         f"text_dropout: 0 does not know; {REMEDY_NULL}"),
        (["sampling.steps=2000"], "time_grid.trailing: 2000 steps on a noise schedule of 1000 points; "
         "ask for at most 1000"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_fitted(
    registry, tmp_path, monkeypatch, overrides, text
):
    monkeypatch.setattr("sfumato_clip.Clip.fit", lambda *_: pytest.fail("fitted"))
    found = message(train, registry, tmp_path / "run", *overrides, kind=(ConfigError, PluginError))
    assert found == text
    assert not (tmp_path / "run").exists()


def test_an_experiment_without_stages_is_refused(registry, tmp_path):
    experiment = attrs.evolve(registry.experiment("small"), stages={})
    assert message(list, sfumato.train(experiment, tmp_path / "run")) == (
        "experiment 'small' has no stages; add `stages`, such as --set "
        "'stages.denoiser={objective: denoising, steps: 1000, batch: 16}'"
    )


def test_the_command_line_refuses_with_a_strangers_component(sfumato, registry_file, stranger):
    done = sfumato(
        "--plugin", stranger, "train", "small", "--set", "denoiser=windows", "--out", "run"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: pictures are 16 x 16, but the autoencoder 'pixels' (factor 1) and the "
        "denoiser 'windows' (latents in multiples of 5) need multiples of 5; draw 15 x 15 "
        "(of a run: --set sampling.size=[15,15]), or change these two\n"
    )
    assert not registry_file.with_name("run").exists()


def test_loading_refuses_before_weights_are_read(small_run, registry, monkeypatch):
    monkeypatch.setattr("sfumato.checkpoint.read", lambda *_: pytest.fail("read"))
    assert message(Pipeline.load, small_run, ["autoencoder=thirds"], registry) == (
        "autoencoder: the weights were trained with 'pixels' and do not go with 'thirds'; "
        "leave it as it is, or train again"
    )
    assert message(Pipeline.load, small_run, ["data.size=17"], registry) == (
        "pictures are 17 x 17, but the autoencoder 'pixels' (factor 1) and the denoiser "
        "'unet' (latents in multiples of 2) need multiples of 2; draw 16 x 16 (of a run: "
        "--set sampling.size=[16,16]), or change these two"
    )


class TestSignal:
    """Training draws t = 1 too, but that is no harm: sampling is what cannot start there."""

    @pytest.mark.parametrize(
        "change", ["denoiser.prediction=v", "denoiser.prediction=x0", "time_grid=leading"]
    )
    def test_each_remedy_works(self, registry, tmp_path, change):
        steps = train(registry, tmp_path / "run", "noise_schedule=quarter", change)
        assert len(steps) == 10

    def test_another_grid_is_checked_when_sampling(self, registry, tmp_path):
        train(registry, tmp_path / "run", "noise_schedule=quarter", "time_grid=leading")
        pipeline = Pipeline.load(tmp_path / "run", ["time_grid=trailing"], registry)
        assert message(pipeline.sample, ["a red circle"], steps=5).startswith(
            "5 steps of the time_grid 'trailing' visit t = 1, where noise_schedule 'quarter' leaves "
            "no signal (alpha is 6.12323e-17) and epsilon says nothing about x0; use a grid"
        )


class TestNull:
    def test_without_evaluation_it_trains_and_sampling_refuses(self, registry, tmp_path):
        run = tmp_path / "run"
        train(registry, run, "stages.denoiser.text_dropout=0", "evaluation.metrics=[]")
        assert message(Pipeline.load(run).sample, ["a red circle"]) == (
            "the guidance 'cfg' asks for the null condition, which a model trained with "
            f"text_dropout: 0 does not know; {REMEDY_NULL}"
        )
        assert len(Pipeline.load(run, ["guidance=none"]).sample(["a red circle"])) == 1
        assert len(Pipeline.load(run, ["guidance.scale=1"]).sample(["a red circle"])) == 1

    def test_where_nobody_knows_it_goes_ahead(self, small_run):
        pipeline = Pipeline.load(small_run)
        assert pipeline.text_dropout == 0.2
        pipeline.text_dropout = None
        assert len(pipeline.sample(["a red circle"])) == 1

    def test_a_study_is_asked_before_training(self, registry, tmp_path):
        """The pipeline's own guidance needs no null condition, that of the study does."""
        study = "evaluation.studies=[{use: guidance, scales: [1, 2], prompts: 2, samples: 1}]"
        changes = ["stages.denoiser.text_dropout=0", "guidance.scale=1", study]
        assert message(train, registry, tmp_path / "run", *changes).startswith(
            "the guidance 'cfg' asks for the null condition"
        )
        assert not (tmp_path / "run").exists()


@attrs.frozen(kw_only=True)
class Midway(Guidance):
    """Asks for a model that is not there, but only between the times of a grid."""

    name = "midway"

    def branches(self, step):
        return [Branch(model="weak" if 0.4 < step.t < 0.6 else "main")]

    def combine(self, predictions, step, guided, memory):
        (one,) = predictions.values()
        return Guided(one.x0, one.eps), None


def test_a_sampler_that_asks_between_the_times_is_checked_there(small_run):
    class Halving(DDIM):
        name = "halving"

        def run(self, denoise, schedule, x, times, noise):
            denoise(x, times[0] / 2)
            yield from super().run(denoise, schedule, x, times, noise)

    pipeline = Pipeline.load(small_run)
    pipeline.settings = attrs.evolve(pipeline.settings, sampler=Halving(clip_x0=1.0))
    assert message(pipeline.sample, ["a"], steps=1, guidance=Midway()) == (
        "the guidance 'midway' needs a 'weak' model; name a checkpoint with --set sampling.weak=RUN, or RUN@STEP"
    )


@attrs.frozen(kw_only=True)
class Exploding(NoiseSchedule):
    """alpha stays 1, sigma rises to 50: not variance-preserving."""

    name = "exploding"

    def alpha_sigma(self, t):
        return t * 0 + 1, 50 * t**3


@attrs.frozen(kw_only=True)
class Twin(LinearBeta):
    """LinearBeta by another name."""

    name = "twin"


@attrs.frozen(kw_only=True)
class Gaussian(Denoiser):
    """The exact posterior mean of N(mean, deviation^2), on the schedule that it is trained with."""

    name = "gaussian"
    prediction: str
    schedule: NoiseSchedule

    def build(self, space=None):
        return GaussianModule(self)


class GaussianModule(DenoiserModule):
    MEAN, VARIANCE = 0.3, 0.49

    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        self.asked = []

    def precompute(self, text, times):
        self.announced = times
        return text

    def forward(self, x_t, t, condition, variant=None):
        self.asked.append(t[0])
        alpha, sigma = self.settings.schedule.alpha_sigma(t[0])
        share = alpha * self.VARIANCE / (alpha**2 * self.VARIANCE + sigma**2)
        x0 = self.MEAN + share * (x_t - alpha * self.MEAN)
        return target(self.settings.prediction, x0, (x_t - alpha * x0) / sigma, alpha, sigma)


def denoiser_on(trajectory_schedule, trained, times, prediction="epsilon"):
    """The exact denoiser of `trained` on the way down another schedule, and its module."""
    settings = Gaussian(prediction=prediction, schedule=trained)
    module = settings.build()
    main = Model(module=module, settings=settings, schedule=trained)
    one = torch.zeros(2, 1, 1)
    text = TextEmbedding(tokens=one, mask=one[..., 0] == 0, pooled=one[..., 0])
    texts = Texts(prompt=text, null=text)
    return GuidedDenoiser({"main": main}, NoGuidance(), trajectory_schedule, texts, times), module


def picture_on(schedule, trained, grid, prediction):
    times = trajectory.times_of(grid, 8, schedule)
    denoise, module = denoiser_on(schedule, trained, times, prediction)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * schedule.start_scale(float(times[0]))
    *_, last = reverse(DDIM(), denoise, schedule, x, times, lambda: pytest.fail("no noise"))
    assert torch.equal(torch.stack(module.asked), module.announced)
    return last.x


class TestMatchedSchedules:
    @pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
    @pytest.mark.parametrize(
        ("schedule", "trained", "grid"),
        [
            (Cosine(), LinearBeta(), Leading()),
            (LinearBeta(), Cosine(), Trailing()),
            (Exploding(), LinearBeta(), Trailing()),
            (Cosine(), Exploding(), Leading()),
            (Twin(), LinearBeta(), Trailing()),
        ],
        ids=lambda component: component.name,
    )
    def test_the_picture_is_that_of_a_model_trained_there(
        self, schedule, trained, grid, prediction
    ):
        mapped = picture_on(schedule, trained, grid, prediction)
        native = picture_on(schedule, schedule, grid, prediction)
        torch.testing.assert_close(mapped, native, rtol=0, atol=1e-8)
        times = trajectory.times_of(grid, 8, schedule)
        assert trajectory.mismatch(times[:-1], schedule, trained) < 1e-9

    def test_the_same_schedule_is_not_touched(self):
        schedule = LinearBeta()
        times = trajectory.times_of(Trailing(), 8, schedule)
        assert trajectory.matched(times, schedule, LinearBeta()) is times
        denoise, module = denoiser_on(schedule, LinearBeta(), times)
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        t = times[2]
        alpha, sigma = schedule.alpha_sigma(t)
        direct = solve("epsilon", module(x, t.expand(2), None), x, alpha, sigma)
        guided = denoise(x, t)
        assert torch.equal(guided.x0, direct.x0)
        assert torch.equal(guided.eps, direct.eps)

    def test_what_the_model_has_never_seen_is_an_error_in_log_snr(self):
        """Clamped at the end of what it has: the difference between the two ends."""
        ends = [
            float(s.snr(torch.ones((), dtype=torch.float64)).log())
            for s in (LinearBeta(), Cosine())
        ]
        found = trajectory.mismatch(torch.tensor([1.0, 0.5]).double(), Cosine(), LinearBeta())
        assert found == pytest.approx(ends[0] - ends[1], abs=1e-9)

    def test_it_is_stated_and_refused_beyond_the_tolerance(self, small_run):
        pipeline = Pipeline.load(small_run, ["noise_schedule=cosine"])
        assert LOG_SNR_TOLERANCE == 0.1
        assert message(pipeline.sample, ["a"]) == (
            "noise_schedule 'cosine' at t = 1 is noisier than 'linear', which the model was trained "
            "with, ever is: log SNR would be off by 9.7, and at most 0.1 is accepted; use a grid that "
            "starts later (--set time_grid=leading), or leave noise_schedule as it is"
        )
        pipeline = Pipeline.load(small_run, ["noise_schedule=cosine", "time_grid=leading"])
        assert pipeline.denoiser.schedule == pipeline.schedule == LinearBeta()
        with pytest.warns(UserWarning) as caught:
            assert len(pipeline.sample(["a"])) == 1
        (text,) = {str(warning.message) for warning in caught}
        start, _, error = text.rpartition(" ")
        assert start == (
            "noise_schedule cosine: the model was trained with linear; its times are matched by "
            "SNR, with an error in log SNR of at most"
        )
        assert float(error) < 1e-12

    def test_the_picture_says_so(self, small_run, sfumato, registry_file):
        from PIL import Image

        changes = ["--set", "noise_schedule=cosine", "--set", "time_grid=leading"]
        done = sfumato("sample", small_run, "a", *changes, "--count", 1, "--out", "a.png")
        text = "noise_schedule cosine: the model was trained with linear; its times"
        assert done.returncode == 0
        assert done.stderr.startswith(f"warning: {text}")
        assert done.stderr.count("\n") == 1
        with Image.open(registry_file.with_name("a.png")) as image:
            assert json.loads(image.text["sfumato"])["schedule_mapping"].startswith(text)


def test_options_inside_of_several_components_are_compared_one_by_one():
    first = create("text_encoder", "clip")
    both = Concat(encoders=(first, first))
    split = attrs.evolve(first, long_prompts="chunks")
    wide = attrs.evolve(split, width=256)
    differences = compatibility.differences
    assert list(differences(both, attrs.evolve(both, encoders=(first, split)))) == []
    assert list(differences(both, attrs.evolve(both, encoders=(first, wide)))) == [
        ("encoders.1.width", 128, 256)
    ]
    ((name, was, now),) = differences(both, attrs.evolve(both, encoders=(first,)))
    assert (name, len(was), len(now)) == ("encoders", 2, 1)


LONG = " ".join(["a red circle on a white background"] * 9)


class TestLongPrompts:
    def test_they_are_refused_with_the_remedy(self, small_run):
        assert message(Pipeline.load(small_run).sample, ["a", LONG]).endswith(
            "but the text encoder reads 40; "
            "shorten it, or split it: long_prompts=chunks of the text encoder"
        )

    def test_a_picture_does_not_depend_on_the_length_of_its_neighbours(self, small_run):
        pipeline = Pipeline.load(
            small_run, ["text_encoder.long_prompts=chunks", "time_grid=leading"]
        )
        generator = torch.Generator().manual_seed(0)
        for parameter in pipeline.denoiser.parameters():
            parameter.normal_(std=0.15, generator=generator)
        longer = f"{LONG} {LONG}"
        prompts = ["a blue square", LONG, longer]
        lengths = [pipeline.encode([prompt]).tokens.shape[1] // 40 for prompt in prompts]
        assert len(set(lengths)) == 3
        together = pipeline.sample(prompts, seed=[1, 2, 3])
        for index, prompt in enumerate(prompts):
            alone = pipeline.sample([prompt], seed=index + 1)
            torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5)
        assert not torch.allclose(
            pipeline.sample([longer], seed=2)[0], together[1], rtol=0, atol=1e-3
        )

    def test_captions_of_several_chunks_are_trained_on(self, registry, tmp_path):
        changes = ["text_encoder.positions=6", "stages.denoiser.text_dropout=0.5"]
        assert "the text encoder reads 6; shorten it, or split it" in message(
            train, registry, tmp_path / "refused", *changes, "evaluation.metrics=[]"
        )
        assert not (tmp_path / "refused").exists()
        changes.append("text_encoder.long_prompts=chunks")
        assert len(train(registry, tmp_path / "run", *changes)) == 10


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("stages.clip.batch=65", "stages.clip.batch: a batch of 65 is more than the 64 examples of the data; use at most 64"),
        ("stages.denoiser={objective: contrastive, steps: 1, batch: 4}", "evaluation.metrics: evaluation draws samples, and no stage trains the denoiser; add a stage with such an objective, or leave the metrics out"),
        ("evaluation.metrics=[shape_attributes, shape_attributes]", "evaluation: metric shape_attributes: is listed twice, and its numbers have one name; drop one"),
        ("sampling.steps=1001", "time_grid.trailing: 1001 steps on a noise schedule of 1000 points; ask for at most 1000"),
    ],
)  # fmt: skip
def test_what_would_fail_later_is_refused_before_training(registry, tmp_path, override, text):
    assert message(train, registry, tmp_path / "run", override) == text
    assert not (tmp_path / "run").exists()
