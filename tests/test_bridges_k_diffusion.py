"""k-diffusion's samplers on our pipeline, and our samplers on a model of its kind."""

import pytest
import torch

import k_diffusion_source
from relative_error import relative
from sfumato import ConfigError, Guided, Pipeline, create
from sfumato.testing.modules import shake
from sfumato_bridges.k_diffusion import as_k_diffusion, from_k_diffusion
from sfumato_samplers import DDIM, DPMPP2M, Euler, Heun
from sfumato_schedules import VE, LinearBeta, RectifiedFlow, Trailing

PROMPTS, NEGATIVE = ["a red circle", "a blue square"], "a green triangle"


@pytest.fixture(scope="module")
def peer():
    return k_diffusion_source.sampling()


@pytest.fixture(scope="module")
def small(small_run):
    """The small pipeline, with weights that say something, and a guidance that looks at the interval."""
    pipeline = Pipeline.load(small_run)
    shake(pipeline.denoiser)
    return pipeline


GUIDANCE = {
    "cfg": create("guidance", "cfg", scale=3.0),
    "negative": create("guidance", "negative_prompt", positive_scale=3.0, negative_scale=2.0),
}


@pytest.mark.parametrize(
    ("sampler", "function", "guidance"),
    [
        ("euler", "sample_euler", "negative"),
        ("heun", "sample_heun", "cfg"),
        ("dpm2", "sample_dpm_2", "cfg"),
        ("dpmpp_2m", "sample_dpmpp_2m", "negative"),
    ],
)
def test_k_diffusion_s_samplers_draw_what_ours_draw(
    peer, small, small_run, sampler, function, guidance, parity
):
    negative = NEGATIVE if guidance == "negative" else None
    options = {"negative": negative, "steps": 6, "guidance": GUIDANCE[guidance]}
    pipeline = Pipeline.load(small_run, [f"sampler={sampler}"])
    pipeline.denoiser.load_state_dict(small.denoiser.state_dict())
    start = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    *_, ours = pipeline.sample_steps(PROMPTS, start=start, **options)

    model, sigmas = as_k_diffusion(pipeline, PROMPTS, **options)
    alpha, _ = LinearBeta().alpha_sigma(Trailing().times(6, LinearBeta()))
    theirs = getattr(peer, function)(model, start / float(alpha[0]), sigmas, disable=True)
    assert sigmas.shape == (7,) and sigmas[-1] == 0
    what = "the picture of a guided pipeline, float32"
    error = parity(pipeline.settings.sampler, "k-diffusion on our pipeline", what, ours.x, theirs)
    assert error < 1e-4

    other, _ = as_k_diffusion(pipeline, PROMPTS[::-1], **options)
    different = getattr(peer, function)(other, start / float(alpha[0]), sigmas, disable=True)
    assert float((different - theirs).abs().max()) > 1e-3 * float(theirs.abs().max())


def test_the_interval_is_that_of_the_level(small):
    """A guidance may look at it: on the grid, and between two of its times."""
    seen = []

    class Watching(type(small.settings.guidance)):
        def branches(self, step):
            seen.append((step.index, step.steps))
            return super().branches(step)

    model, sigmas = as_k_diffusion(small, PROMPTS, steps=4, guidance=Watching(scale=2.0))
    seen.clear()
    x = torch.zeros(2, 3, 16, 16)
    for sigma in (sigmas[0], sigmas[3], (sigmas[1] * sigmas[2]).sqrt(), sigmas[1]):
        model(x, sigma.expand(2))
    assert seen == [(0, 4), (3, 4), (1, 4), (1, 4)]


def z_model(x, sigma, *, shift=0.0):
    """x0 of x = x0 + sigma eps."""
    r = sigma.view(-1, 1, 1, 1)
    return 0.8 * torch.tanh(x / (0.3 + r)) + 0.1 * torch.sin(2 * x / (1 + r) + r) + shift


@pytest.mark.parametrize("schedule", [LinearBeta(), VE(), RectifiedFlow()], ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("sampler", "function"),
    [(Euler(), "sample_euler"), (Heun(), "sample_heun"), (DPMPP2M(), "sample_dpmpp_2m")],
    ids=["euler", "heun", "dpmpp_2m"],
)
def test_our_samplers_walk_with_a_model_of_theirs(peer, schedule, sampler, function):
    times = torch.linspace(0.95, 0, 11, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(times)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * schedule.start_scale(0.95)
    denoise = from_k_diffusion(z_model, schedule, shift=0.05)
    *_, ours = sampler.run(denoise, schedule, x, times, lambda: pytest.fail("drew noise"))
    theirs = getattr(peer, function)(
        z_model, x / alpha[0], sigma / alpha, extra_args={"shift": 0.05}, disable=True
    )
    torch.testing.assert_close(ours.x, theirs, rtol=1e-9, atol=1e-9)


def test_there_and_back_is_the_same(small):
    model, sigmas = as_k_diffusion(small, PROMPTS, steps=3)
    schedule, t = small.settings.noise_schedule, Trailing().times(3, LinearBeta())[1]
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        direct = small.denoise(PROMPTS, steps=3)(x, t)
    back = from_k_diffusion(model, schedule)(x, t)
    assert isinstance(back, Guided)
    torch.testing.assert_close(back.x0, direct.x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back.eps, direct.eps, rtol=1e-4, atol=1e-4)
    assert sigmas[0] > sigmas[1] > 0


def test_what_cannot_be_said_is_refused(small, small_run):
    with pytest.raises(ConfigError) as error:
        from_k_diffusion(z_model, RectifiedFlow())(torch.zeros(1, 3, 4, 4), torch.ones(()))
    assert str(error.value) == (
        "at t = 1 sigma / alpha is infinite, which model(x, sigma) cannot take; use times that start later"
    )
    with pytest.raises(ConfigError) as error:
        as_k_diffusion(small, PROMPTS, guidance=create("guidance", "cfg_plus_plus"))
    assert str(error.value) == (
        "the guidance 'cfg_plus_plus' renoises with an eps of its own, which model(x, sigma) cannot say; "
        "use another, such as cfg"
    )
    with pytest.raises(TypeError, match="unexpected keyword argument 'cond_scale'"):
        as_k_diffusion(small, PROMPTS)[0](torch.zeros(2, 3, 16, 16), torch.ones(2), cond_scale=7.5)


def test_ddim_is_euler_here_too(peer, small):
    """One more way round: DDIM of ours is Euler of theirs."""
    start = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    model, sigmas = as_k_diffusion(small, PROMPTS, steps=5)
    denoise = small.denoise(PROMPTS, steps=5)
    schedule, times = small.settings.noise_schedule, denoise.times
    alpha = float(schedule.alpha_sigma(times[0])[0])
    with torch.no_grad():
        *_, ours = DDIM().run(denoise, schedule, start, times, lambda: pytest.fail("drew noise"))
    theirs = peer.sample_euler(model, start / alpha, sigmas, disable=True)
    assert relative(ours.x, theirs) < 1e-4
