"""The assembled system: noise belongs to the example, nothing given is ignored, contracts are held."""

import json
import shutil

import attrs
import numpy as np
import pytest
import torch

import sfumato
from sfumato import (
    ConfigError,
    Guidance,
    Guided,
    Pipeline,
    PluginError,
    Sampler,
    SampleStep,
    TimeGrid,
    checkpoint,
)
from sfumato.engine import Undrawn
from sfumato_guidance import ClassifierFreeGuidance, NegativePrompt, NoGuidance

PROMPTS = ["a red circle", "a blue square", "a green triangle on a white background"]


def load(run, *overrides):
    """The run with random weights, so that everything that reaches the denoiser shows.

    On a grid that starts below t = 1, where an x0 estimate is not yet a division by 0.006.
    """
    pipeline = Pipeline.load(run, ["time_grid=leading", *overrides])
    generator = torch.Generator().manual_seed(0)
    for parameter in pipeline.denoiser.parameters():
        parameter.normal_(std=0.15, generator=generator)
    return pipeline


@pytest.fixture(scope="module")
def pipeline(small_run):
    return load(small_run)


def latents(pipeline, *arguments, **options):
    """What is sampled, before it is cut to [-1, 1]."""
    *_, last = pipeline.sample_steps(*arguments, **options)
    return last.x


def message(call, *arguments, kind=ConfigError, **options):
    with pytest.raises(kind) as error:
        call(*arguments, **options)
    return str(error.value)


def test_pictures_are_in_range_and_depend_on_the_seed(pipeline):
    images = pipeline.sample(PROMPTS, seed=1)
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert torch.equal(images, pipeline.sample(PROMPTS, seed=1))
    assert not torch.equal(images, pipeline.sample(PROMPTS, seed=2))


@pytest.mark.fault("one seed")
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_picture_does_not_depend_on_its_neighbours(small_run, sampler):
    pipeline = load(small_run, f"sampler={{use: {sampler}, clip_x0: 1.0}}")
    together = pipeline.sample(PROMPTS, seed=1)
    assert torch.allclose(together, pipeline.sample(PROMPTS, seed=1, batch=2), atol=1e-5)
    seeds = latents(pipeline, PROMPTS, seed=[5, 6, 7])
    turned = latents(pipeline, PROMPTS[::-1], seed=[7, 6, 5])
    alone = latents(pipeline, PROMPTS[1:2], seed=6)
    assert torch.allclose(seeds, turned.flip(0), atol=1e-5)
    assert torch.allclose(seeds[1:2], alone, atol=1e-5)
    assert not torch.allclose(seeds[1:2], latents(pipeline, PROMPTS[:1], seed=6), atol=1e-2)


def test_a_given_start_replaces_the_drawn_one(pipeline):
    start = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = pipeline.sample(PROMPTS, start=start)
    assert torch.equal(images, pipeline.sample(PROMPTS, start=start, seed=9))
    assert message(pipeline.sample, PROMPTS, start=start[:2]) == (
        "start has shape (2, 3, 16, 16), expected (3, 3, 16, 16)"
    )


def test_negatives_reach_the_guidance_in_every_form(pipeline):
    guidance = NegativePrompt(positive_scale=3.0, negative_scale=2.0)

    def sample(negative):
        return latents(pipeline, PROMPTS, negative=negative, guidance=guidance)

    plain, one = sample(None), sample("a square")
    assert not torch.allclose(plain, one, atol=1e-2)
    assert torch.allclose(one, sample(["a square"] * 3), atol=1e-6)
    assert torch.allclose(one, sample([["a square"]] * 3), atol=1e-6)
    assert message(sample, [[], ["a square"], ["a square"]]) == (
        "prompts with 0 and 1 negatives walk apart; draw them with `sample`, which does so"
    )


def test_prompts_with_other_numbers_of_negatives_do_not_touch_each_other(pipeline):
    """Also under a guidance for which another text in the place of a missing one would matter."""
    for name in ("negative_prompt", "nag"):
        guidance = sfumato.create("guidance", name)

        def sample(prompts, negative, seed, guidance=guidance):
            return pipeline.sample(
                prompts, negative=negative, seed=seed, guidance=guidance, steps=2
            )

        negatives = [["a square"], [], ["a square", "a red shape"]]
        together = sample(PROMPTS, negatives, [1, 2, 3])
        for i in range(3):
            alone = sample(PROMPTS[i : i + 1], negatives[i : i + 1], [i + 1])
            assert (alone[0] - together[i]).abs().max() < 1e-5


def test_the_customary_negative_prompt_is_one_of_ours(pipeline):
    """eps_n + s (eps_p - eps_n) is s_pos = s, s_neg = s - 1, and needs no null branch."""
    null = pipeline.text_encoder.null
    customary = latents(
        pipeline,
        PROMPTS,
        negative="a square",
        guidance=NegativePrompt(positive_scale=3.0, negative_scale=2.0),
    )
    negative = pipeline.encode(["a square"])
    pipeline.text_encoder.null = lambda batch: negative.map(
        lambda one: one.expand(batch, *one.shape[1:])
    )
    try:
        plain = latents(pipeline, PROMPTS, guidance=ClassifierFreeGuidance(scale=3.0))
    finally:
        pipeline.text_encoder.null = null
    assert torch.allclose(customary, plain, atol=1e-4)


@pytest.mark.fault("samples")
def test_what_cannot_be_meant_is_refused(pipeline, small_run):
    assert (
        message(pipeline.sample, "a red circle") == "expected a list of prompts, got 'a red circle'"
    )
    assert message(pipeline.sample, []) == "expected a list of prompts, got []"
    assert message(pipeline.sample, PROMPTS, steps=0) == "expected at least 1 step, got 0"
    half = Pipeline.load(small_run)
    half.trained = frozenset({"text_encoder"})
    assert message(half.sample, PROMPTS) == (
        "the denoiser of this run was never trained; finish the run before drawing from it"
    )


def test_what_would_be_ignored_is_refused(pipeline):
    assert message(pipeline.sample, PROMPTS, negative="a square") == (
        "the guidance 'cfg' ignores negative prompts; "
        "use one that takes them, such as --set guidance=negative_prompt"
    )
    assert message(pipeline.sample, PROMPTS, negative=["a square"]) == (
        "1 negatives for 3 prompts; give one text for all, or one item for each prompt"
    )
    assert message(pipeline.sample, PROMPTS, seed=[1, 2]) == "2 seeds for 3 prompts"


def test_a_step_makes_one_forward_pass_for_all_branches(pipeline, monkeypatch):
    batches = []
    forward = type(pipeline.denoiser).forward

    def counting(self, x_t, *arguments):
        batches.append(len(x_t))
        return forward(self, x_t, *arguments)

    monkeypatch.setattr(type(pipeline.denoiser), "forward", counting)
    pipeline.sample(PROMPTS, steps=2, guidance=ClassifierFreeGuidance(scale=4.0))
    assert batches == [6, 6]
    batches.clear()
    pipeline.sample(PROMPTS, steps=2, guidance=NoGuidance())
    assert batches == [3, 3]
    batches.clear()
    pipeline.sample(PROMPTS, steps=2, negative=[["a", "b"]] * 3, guidance=NegativePrompt())
    assert batches == [12, 12]


def test_overrides_of_a_run_swap_components_but_not_what_was_trained(small_run):
    pipeline = Pipeline.load(small_run, ["sampler=ddpm", "guidance.scale=2"])
    assert pipeline.settings.sampler.name == "ddpm"
    assert pipeline.settings.guidance.scale == 2.0


def test_a_pipeline_samples_without_data_at_any_size(small_run, pipeline):
    said = "nothing says how large pictures are; give height and width (--set sampling.size=[512,512]), or data"
    assert message(Pipeline.load, small_run, ["data=null"]) == said
    without = load(small_run, "data=null", "sampling.size=[16, 16]")
    torch.testing.assert_close(without.sample(PROMPTS), pipeline.sample(PROMPTS), rtol=0, atol=0)
    wide = Pipeline.load(small_run, ["data=null", "sampling.size=[8, 24]"])
    assert wide.sample(PROMPTS).shape == (3, 3, 8, 24)
    assert message(Pipeline.load, small_run, ["sampling.size=[8, 23]"]).startswith(
        "pictures are 8 x 23, but the autoencoder 'pixels' (factor 1) and the denoiser 'unet'"
    )


def test_half_precision_is_that_of_weights_and_near_the_picture(small_run, pipeline):
    half = load(small_run, "sampling.precision=bfloat16")
    assert {p.dtype for m in half.modules().values() for p in m.parameters()} == {torch.bfloat16}
    half.denoiser.load_state_dict(pipeline.denoiser.state_dict())
    images, exact = half.sample(PROMPTS), pipeline.sample(PROMPTS)
    assert images.dtype == torch.float32
    error = (images - exact).norm() / exact.norm()
    assert 0 < error < 0.1


def test_modules_are_built_undrawn_where_weights_follow():
    before = torch.random.get_rng_state()
    with Undrawn():
        linear = torch.nn.Linear(64, 64)
        normal = torch.nn.Embedding(9, 64)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert linear.weight.shape == (64, 64) and normal.weight.shape == (9, 64)
    torch.nn.Linear(64, 64)
    assert not torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("denoiser.channels=[32, 32]", "denoiser.channels: the weights were trained with [16, 16] and do not go with [32, 32]; leave it as it is, or train again"),
        ("denoiser.prediction=v", "denoiser.prediction: the weights were trained with 'epsilon' and do not go with 'v'; leave it as it is, or train again"),
        ("denoiser.groups=2", "denoiser.groups: the weights were trained with 4 and do not go with 2; leave it as it is, or train again"),
        ("autoencoder=patches", "autoencoder: the weights were trained with 'pixels' and do not go with 'patches'; leave it as it is, or train again"),
        ("seed=5", "seed: has no effect on a run that is trained; give the seed to the command (--seed)"),
        ("stages.denoiser.steps=9", "stages: has no effect on a run that is trained; leave it"),
        ("loss_weight=p2", "loss_weight: has no effect on a run that is trained; leave it"),
    ],
)  # fmt: skip
def test_what_belongs_to_the_weights_or_to_training_is_not_overridden(small_run, override, text):
    assert message(Pipeline.load, small_run, [override]) == text


def test_settings_that_were_edited_after_training_are_refused(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    settings = (run / "settings.yaml").read_text()
    (run / "settings.yaml").write_text(settings.replace("prediction: epsilon", "prediction: v"))
    assert message(Pipeline.load, run) == (
        "denoiser.prediction: the weights were trained with 'epsilon' and do not go with 'v'; "
        "leave it as it is, or train again"
    )


def test_a_manifest_without_its_facts_is_refused(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    path = next((run / "checkpoints").glob("*10")) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["slots"], manifest["sha256"]
    path.write_bytes(checkpoint.sealed({**manifest, "step": "ten"}))
    assert message(Pipeline.load, run).splitlines() == [
        f"{path}: 'slots' is missing; whose weights a stage has trained",
        f"{path}: step: expected int, got the text 'ten'",
    ]


@pytest.mark.fault("samples")
@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"steps": 2.5}, "expected steps to be a whole number, got 2.5"),
        ({"seed": None}, "expected seed to be a whole number, got None"),
        ({"batch": 0}, "expected a batch of at least 1, got 0"),
        ({"guidance": 7.5}, "expected a guidance, got 7.5; make one with sfumato.create('guidance', 'cfg', scale=4.0)"),
        ({"negative": 3}, "expected negative to be texts, got 3"),
        ({"negative": ["a", "b"]}, "2 negatives for 1 prompts; give one text for all, or one item for each prompt"),
        ({"start": [1]}, "expected start to be a tensor, got list"),
        ({"start": torch.full((1, 3, 16, 16), torch.nan)}, "start holds values that are not finite"),
        ({"prompts": [None]}, "expected a list of prompts, got [None]"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(pipeline, asked, text):
    assert message(pipeline.sample, asked.pop("prompts", ["a"]), **asked) == text


def test_numbers_of_other_libraries_are_numbers(pipeline):
    ours = pipeline.sample(["a"], steps=2, seed=3)
    assert torch.equal(pipeline.sample(["a"], steps=np.int64(2), seed=np.int64(3)), ours)


@pytest.mark.fault("samples")
def test_saturated_pictures_are_flagged(pipeline):
    guidance = sfumato.create("guidance", "cfg", scale=30.0)
    flag = "^2 of 2 pictures are saturated: over 90% of their values"
    with pytest.warns(UserWarning, match=flag):
        pipeline.sample(["a red circle", "a blue square"], steps=4, guidance=guidance)


def test_what_is_no_run_is_refused(tmp_path):
    assert message(Pipeline.load, tmp_path / "none") == (
        f"{tmp_path / 'none'}: is not a run folder: it has no settings.yaml"
    )


def test_the_newest_checkpoint_is_loaded(small_run):
    from safetensors.torch import load_file

    state = load_file(small_run / "checkpoints" / "step-00000010" / "denoiser.safetensors")
    own = Pipeline.load(small_run).denoiser.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in state)


@attrs.frozen(kw_only=True)
class Rising(TimeGrid):
    name = "rising"

    def times(self, steps, schedule):
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


@attrs.frozen(kw_only=True)
class Endless(Sampler):
    name = "endless"

    def run(self, denoise, schedule, x, times, noise):
        while True:
            yield SampleStep(index=0, t=0.0, x=x, x0=x)


@attrs.frozen(kw_only=True)
class Short(Endless):
    name = "short"

    def run(self, denoise, schedule, x, times, noise):
        yield SampleStep(index=0, t=0.0, x=x, x0=x)


@attrs.frozen(kw_only=True)
class Exploding(Guidance):
    name = "exploding"

    def branches(self, step):
        return [sfumato.Branch()]

    def combine(self, predictions, step, guided, memory):
        x0 = predictions[sfumato.Branch()].x0 * float("nan")
        return Guided(x0, x0), None


@attrs.frozen(kw_only=True)
class Perturbing(Exploding):
    name = "perturbing"

    def branches(self, step):
        return [sfumato.Branch(variant="skip")]


@pytest.mark.fault("broken components")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"time_grid": Rising()}, "time_grid rising: expected 3 falling times in [0, 1], got [0.0, 0.5, 1.0]"),
        ({"sampler": Endless()}, "sampler endless: expected 2 steps, got more"),
        ({"sampler": Short()}, "sampler short: expected 2 steps, got 1"),
        ({"guidance": Exploding()}, "sampler ddim: step 1 of 2 (t = 0.5000) gave values that are not finite; "
         "a smaller guidance scale or more steps may help"),
        ({"guidance": Perturbing()}, "the guidance 'perturbing' needs a denoiser with variant 'skip'; the denoiser 'unet' offers: nag, pag, seg, slg"),
    ],
)  # fmt: skip
def test_components_are_held_to_their_contracts(small_run, change, text):
    pipeline = Pipeline.load(small_run)
    pipeline.settings = attrs.evolve(pipeline.settings, **change)
    assert message(pipeline.sample, PROMPTS, steps=2, kind=(PluginError, ConfigError)) == text


@pytest.mark.fault("broken components")
def test_a_denoiser_of_the_wrong_shape_is_named(small_run, monkeypatch):
    pipeline = Pipeline.load(small_run)
    monkeypatch.setattr(type(pipeline.denoiser), "forward", lambda self, x, *rest: x[:, :2])
    assert message(pipeline.sample, PROMPTS[:1], kind=PluginError) == (
        "denoiser unet: expected shape (2, 3, 16, 16), got (2, 2, 16, 16)"
    )


def test_a_png_carries_its_settings(tmp_path):
    from PIL import Image

    from sfumato import pictures

    images = torch.stack([torch.full((3, 16, 16), value) for value in (-1.0, 0.0, 1.0)])
    path = tmp_path / "new" / "grid.png"
    pictures.save(pictures.grid(images, columns=2), path, {"seed": 3})
    with Image.open(path) as image:
        assert json.loads(image.text["sfumato"]) == {"seed": 3}
        assert image.size == (2 * (96 + 4) + 4, 2 * (96 + 4) + 4)
        assert [image.getpixel(at) for at in ((10, 10), (110, 10), (10, 110))] == [
            (0, 0, 0), (128, 128, 128), (255, 255, 255),
        ]  # fmt: skip


@attrs.frozen(kw_only=True)
class Noting(NoGuidance):
    """Notes in which interval it is asked."""

    asked: list = attrs.field(factory=list, eq=False)

    def combine(self, predictions, step, guided, memory):
        self.asked.append(step.index)
        return super().combine(predictions, step, guided, memory)


def test_guidance_is_told_the_interval_also_between_grid_times_and_on_the_way_up(small_run):
    """A sampler that asks twice in a step is in that step both times."""
    pipeline = load(small_run, "sampler=dpm2")
    guidance = Noting()
    pipeline.sample(["a"], steps=3, guidance=guidance)
    assert guidance.asked == [0, 0, 1, 1, 2]  # the last step ends in x0 itself
    guidance.asked.clear()
    pipeline.invert(torch.zeros(1, 3, 16, 16), ["a"], steps=3, guidance=guidance)
    assert guidance.asked == [2, 2, 1, 1, 0, 0]
