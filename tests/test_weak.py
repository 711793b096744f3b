"""A weaker model beside the main one: which it is, what it is asked, when it is refused."""

import pytest
import torch

import sfumato
from sfumato import ConfigError, Pipeline
from sfumato.testing.modules import shake
from sfumato.trajectory import matched
from sfumato_guidance.weak import Autoguidance

PROMPTS = ["a red circle", "a blue square", "a green triangle"]
QUIET = ["time_grid=leading", "guidance=autoguidance", "sampler.clip_x0=null"]


def train(registry, folder, *overrides):
    overrides = ["evaluation.metrics=[]", "guidance=none", *overrides]
    for _ in sfumato.train(registry.experiment("small", overrides), folder):
        pass
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that share their first stage: one that goes on after its denoiser, a smaller one on
    another schedule, one with other seeds, one with another text encoder.
    """
    from sfumato.registry import Registry
    from small import SMALL

    folder = tmp_path_factory.mktemp("weak")
    (folder / "registry.yaml").write_text(SMALL)
    registry = Registry.load(folder / "registry.yaml")
    later = "stages.later={objective: denoising, steps: 3, batch: 8, learning_rate: 0.1}"
    train(registry, folder / "main", later)
    train(
        registry, folder / "small", "noise_schedule=cosine", "denoiser.channels=[8, 8]",
        "denoiser.prediction=v",
    )  # fmt: skip
    train(registry, folder / "seeded", "seed=4")
    train(registry, folder / "wider", "text_encoder.width=32")
    return folder


def load(runs, weak, *overrides):
    return Pipeline.load(runs / "main", [*QUIET, f"sampling.weak={runs / weak}", *overrides])


def latents(pipeline, **options):
    *_, last = pipeline.sample_steps(PROMPTS, **options)
    return last.x


def record(module):
    """The (t, batch) of every call."""
    calls = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append((inputs[1][0], len(inputs[0]))))
    return calls


@pytest.mark.parametrize("weak", ["main@10", "small"])
def test_each_model_is_asked_once_a_step_and_the_pictures_change(runs, weak):
    pipeline = load(runs, weak)
    main, other = record(pipeline.denoiser), record(pipeline._weak_denoiser)
    pictures = latents(pipeline, steps=4)
    assert [batch for _, batch in main] == [batch for _, batch in other] == [3] * 4
    unguided = latents(pipeline, steps=4, guidance=Autoguidance(scale=1.0))
    assert (len(main), len(other)) == (8, 4)
    assert (pictures - unguided).flatten(1).norm(dim=1).min() > 1e-3


def test_pictures_are_per_example(runs):
    pipeline = load(runs, "small")
    together = latents(pipeline)
    *_, alone = pipeline.sample_steps(PROMPTS[:1])
    torch.testing.assert_close(alone.x, together[:1], rtol=1e-4, atol=1e-5)


def test_guided_by_itself_a_model_is_unguided(runs):
    pipeline = load(runs, "main@13")
    none = latents(pipeline, guidance=sfumato.create("guidance", "none"))
    torch.testing.assert_close(latents(pipeline), none, rtol=1e-4, atol=1e-5)


def test_a_step_of_a_run_holds_the_weights_of_that_step(runs):
    early = load(runs, "main@10")._weak_denoiser.state_dict()
    late = load(runs, "main@13")._weak_denoiser.state_dict()
    newest = load(runs, "main")._weak_denoiser.state_dict()
    assert all(late[name].equal(newest[name]) for name in late)
    assert not all(early[name].equal(late[name]) for name in late)


def test_a_weak_model_is_asked_at_its_own_times(runs):
    pipeline = load(runs, "small")
    main, other = record(pipeline.denoiser), record(pipeline._weak_denoiser)
    latents(pipeline, steps=4)
    times = torch.stack([t for t, _ in main])
    expected = matched(times, pipeline.schedule, pipeline.weak.trained.noise_schedule)
    assert torch.stack([t for t, _ in other]).allclose(expected)
    assert not expected.allclose(times, atol=0.01)


def test_evaluation_after_training_asks_it_too(runs):
    from sfumato.registry import Registry

    registry = Registry.load(runs / "registry.yaml")
    train(
        registry, runs / "evaluated", "guidance=autoguidance", f"sampling.weak={runs / 'main@10'}",
        "evaluation.metrics=[shape_attributes]", "time_grid=leading", "evaluation.count=2",
    )  # fmt: skip
    assert (runs / "evaluated" / "samples" / "step-00000010.png").is_file()
    for weak, message in (
        (f"{runs / 'none'}", f"{runs / 'none'}: is not a run folder: it has no settings.yaml"),
        ("null", "the guidance 'autoguidance' needs a 'weak' model; name a checkpoint with "
         "--set sampling.weak=RUN, or RUN@STEP"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            train(
                registry, runs / "refused", "guidance=autoguidance", f"sampling.weak={weak}",
                "evaluation.metrics=[shape_attributes]", "time_grid=leading",
            )  # fmt: skip
        assert str(error.value) == message
        assert not (runs / "refused").exists()


def test_what_does_not_fit_is_refused(runs):
    step = "checkpoints/step-000000"
    cases = {
        "main@11": f"{runs}/main has no checkpoint of step 11; it has: 4, 10, 13",
        "main@4": f"the denoiser of {runs}/main/{step}04 was never trained; "
        "name a checkpoint after a stage that trains it",
        "wider": f"{runs}/wider/{step}10 goes with text_encoder.width 32, the main model with 16; "
        "name a run with the same text_encoder",
        "seeded": f"text_encoder.safetensors of {runs}/seeded/{step}10 is not that of "
        f"{runs}/main/{step}13; name a run that was trained with the same text encoder and "
        "autoencoder, such as one with another denoiser and the same seed and stages before it",
    }
    for weak, message in cases.items():
        with pytest.raises(ConfigError) as error:
            load(runs, weak)
        assert str(error.value) == f"sampling.weak: {message}"


def test_a_weak_model_that_never_saw_the_noise_is_refused(runs):
    """Linear ends at 157 for sigma / alpha, cosine goes on to 20,291."""
    overrides = ["time_grid=trailing", f"sampling.weak={runs / 'main'}"]
    pipeline = Pipeline.load(runs / "small", overrides)
    assert len(pipeline.sample(["a circle"], guidance=Autoguidance(scale=1.0))) == 1
    with pytest.raises(ConfigError, match=r"^sampling\.weak: noise_schedule 'cosine' at t = 1 is "):
        pipeline.sample(["a circle"], guidance=Autoguidance())


def test_without_a_weak_model_the_remedy_is_named(runs):
    pipeline = Pipeline.load(runs / "main", QUIET)
    with pytest.raises(ConfigError) as error:
        pipeline.sample(PROMPTS)
    assert str(error.value) == (
        "the guidance 'autoguidance' needs a 'weak' model; "
        "name a checkpoint with --set sampling.weak=RUN, or RUN@STEP"
    )


@pytest.mark.parametrize("name", ["pag", "seg", "slg"])
def test_variants_are_asked_in_a_forward_pass_of_their_own(runs, name):
    pipeline = Pipeline.load(runs / "main", [*QUIET, f"guidance={name}"])
    asked = []
    pipeline.denoiser.register_forward_pre_hook(
        lambda _, inputs: asked.append((inputs[3], len(inputs[0])))
    )
    pictures = latents(pipeline, steps=2)
    assert asked == [(None, 6), (name, 3)] * 2
    cfg = latents(pipeline, steps=2, guidance=sfumato.create("guidance", "cfg"))
    assert (pictures - cfg).flatten(1).norm(dim=1).min() > 1e-4
    off = sfumato.create("guidance", name, perturbed_scale=0.0)
    torch.testing.assert_close(latents(pipeline, steps=2, guidance=off), cfg, rtol=1e-3, atol=1e-4)


def test_nag_is_asked_with_both_texts(runs):
    pipeline = Pipeline.load(runs / "main", [*QUIET, "guidance={use: nag, scale: 1}"])
    shake(pipeline.denoiser)
    asked = []
    pipeline.denoiser.register_forward_pre_hook(
        lambda _, inputs: asked.append((inputs[3], len(inputs[0])))
    )
    null, one, other, both = (
        latents(pipeline, steps=2, negative=negative)
        for negative in (
            None,
            "a red square",
            "a blue circle",
            [["a red square", "a blue circle"]] * 3,
        )
    )
    assert asked == [("nag", 3)] * 6 + [("nag", 3)] * 4
    assert (one - null).flatten(1).norm(dim=1).min() > 1e-4
    assert (one - other).flatten(1).norm(dim=1).min() > 1e-4
    assert not both.allclose(one)
    *_, alone = pipeline.sample_steps(PROMPTS[:1], steps=2, negative="a red square")
    torch.testing.assert_close(alone.x, one[:1], rtol=1e-3, atol=1e-4)
    plain = latents(pipeline, steps=2, guidance=sfumato.create("guidance", "none"))
    against_itself = latents(pipeline, steps=2, negative=PROMPTS)
    torch.testing.assert_close(against_itself, plain, rtol=1e-3, atol=1e-4)


def test_layers_and_blur_may_change_when_sampling(runs):
    pictures = [
        latents(Pipeline.load(runs / "main", [*QUIET, "guidance=seg", *overrides]), steps=2)
        for overrides in ([], ["denoiser.blur=0.5"], ["denoiser.perturbed=[up_blocks]"])
    ]
    assert not pictures[0].allclose(pictures[1])
    assert not pictures[0].allclose(pictures[2])
